//! The methods of the class itself: what is asked about all processes, and needs no monitor.

use crate::pool::Pool;
use crate::task_monitor::CLEARED;
use crate::testing::time_shift;
use crate::{convert, guard, sidekiq};
use inflight_registry::details::{self, Details};
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

/// `{"host:pid" => {inflight:, max_capacity:}}`, with the texts of the `processors:` where they are wanted.
fn loads(ruby: &Ruby, _: Value, with_processors: bool) -> Result<RHash, Error> {
    guard::method(ruby, || {
        let loads = Pool::run(ruby, current_pool(ruby)?, |session, _| processes::loads(session, with_processors))?;
        let counts = ruby.hash_new();
        for (process, Load { inflight, max_capacity, processors }) in loads {
            let count = ruby.hash_new();
            count.aset(ruby.to_symbol("inflight"), inflight)?;
            count.aset(ruby.to_symbol("max_capacity"), max_capacity)?;
            if with_processors {
                let texts = ruby.ary_from_iter(processors.iter().map(|text| convert::string(ruby, text)));
                count.aset(ruby.to_symbol("processors"), texts)?;
            }
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

/// `[now in ms, [[registry id, registration in ms, JSON or nil], ...]]`, oldest first.
fn details_page(ruby: &Ruby, _: Value, offset: usize, count: usize) -> Result<(i64, RArray), Error> {
    guard::method(ruby, || {
        let (pool, shift) = (current_pool(ruby)?, time_shift(ruby)?);
        let page = Pool::run(ruby, pool, |session, _| details::page(session, offset, count))?;
        let records = ruby.ary_new_capa(page.len());
        for Details { id, registered, json } in page {
            let json = json.map(|json| convert::string(ruby, &json));
            records.push((convert::string(ruby, id.as_bytes()), registered.0, json))?;
        }
        Ok((pool.now().ahead(shift).0, records))
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
    class.define_singleton_method("loads", method!(loads, 1))?;
    class.define_singleton_method("details_page", method!(details_page, 2))?;
    class.define_singleton_method("total_max_connections", method!(total_max_connections, 0))?;
    class.define_singleton_method("registered_process_ids", method!(registered_process_ids, 0))?;
    class.define_singleton_method("clear_registry", method!(clear_registry, 0))
}
