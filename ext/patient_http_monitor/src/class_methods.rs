//! The methods of the class itself: what is asked about all processes, and needs no monitor.

use crate::pool::Pool;
use crate::task_monitor::CLEARED;
use crate::{convert, guard, sidekiq};
use inflight_registry::entries;
use inflight_registry::processes::{self, Load};
use magnus::typed_data::Obj;
use magnus::{Error, Object, RArray, RClass, RHash, Ruby, Value, method};
use std::sync::atomic::Ordering;

fn current_pool(ruby: &Ruby) -> Result<Obj<Pool>, Error> {
    sidekiq::pool_for(ruby, sidekiq::redis_pool(ruby)?)
}

fn inflight_count(ruby: &Ruby, _: Value) -> Result<u64, Error> {
    guard::method(ruby, || Pool::run(ruby, current_pool(ruby)?, |session, _| entries::count(session)))
}

fn inflight_counts_by_process(ruby: &Ruby, _: Value) -> Result<RHash, Error> {
    guard::method(ruby, || {
        let loads = Pool::run(ruby, current_pool(ruby)?, |session, _| processes::loads(session))?;
        let counts = ruby.hash_new();
        for (process, Load { inflight, max_capacity }) in loads {
            let count = ruby.hash_new();
            count.aset(ruby.to_symbol("inflight"), inflight)?;
            count.aset(ruby.to_symbol("max_capacity"), max_capacity)?;
            counts.aset(convert::string(ruby, &process), count)?;
        }
        Ok(counts)
    })
}

fn total_max_connections(ruby: &Ruby, _: Value) -> Result<i64, Error> {
    guard::method(ruby, || Pool::run(ruby, current_pool(ruby)?, |session, _| processes::total_capacity(session)))
}

fn registered_process_ids(ruby: &Ruby, _: Value) -> Result<RArray, Error> {
    guard::method(ruby, || {
        let processes = Pool::run(ruby, current_pool(ruby)?, |session, _| processes::registered(session))?;
        Ok(ruby.ary_from_iter(processes.iter().map(|process| convert::string(ruby, process))))
    })
}

fn clear_registry(ruby: &Ruby, _: Value) -> Result<(), Error> {
    guard::method(ruby, || {
        Pool::run(ruby, current_pool(ruby)?, |session, _| entries::clear(session))?;
        CLEARED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })
}

/// Adds them to the class.
pub(crate) fn init(class: RClass) -> Result<(), Error> {
    class.define_singleton_method("inflight_count", method!(inflight_count, 0))?;
    class.define_singleton_method("inflight_counts_by_process", method!(inflight_counts_by_process, 0))?;
    class.define_singleton_method("total_max_connections", method!(total_max_connections, 0))?;
    class.define_singleton_method("registered_process_ids", method!(registered_process_ids, 0))?;
    class.define_singleton_method("clear_registry", method!(clear_registry, 0))
}
