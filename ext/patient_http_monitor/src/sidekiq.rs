//! Which Redis: the one that Sidekiq would use in this thread at this moment.

use crate::pool::Pool;
use magnus::typed_data::Obj;
use magnus::value::{Lazy, LazyId, ReprValue};
use magnus::{Error, Module, RModule, Ruby, Value};

static SIDEKIQ: Lazy<RModule> =
    Lazy::new(|ruby| ruby.class_object().const_get("Sidekiq").unwrap_or_else(|_| ruby.module_kernel()));
static POOLS: Lazy<RModule> = Lazy::new(|ruby| {
    ruby.class_object()
        .const_get::<_, RModule>("PatientHttpMonitor")
        .and_then(|module| module.const_get("Pools"))
        .unwrap_or_else(|_| ruby.module_kernel())
});
static FOR: LazyId = LazyId::new("for");
static REDIS_POOL: LazyId = LazyId::new("redis_pool");

/// Sidekiq's pool.
///
/// # Errors
/// Whatever Sidekiq raises when its settings make no pool.
pub(crate) fn redis_pool(ruby: &Ruby) -> Result<Value, Error> {
    ruby.get_inner(&SIDEKIQ).funcall(*REDIS_POOL, ())
}

/// Our pool that belongs to it.
///
/// # Errors
/// ArgumentError for a Redis Cluster; the pool's own error when it has no client to lend.
pub(crate) fn pool_for(ruby: &Ruby, theirs: Value) -> Result<Obj<Pool>, Error> {
    ruby.get_inner(&POOLS).funcall(*FOR, (theirs,))
}
