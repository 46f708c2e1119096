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
static NAMESPACE: Lazy<RModule> = Lazy::new(|ruby| {
    ruby.class_object()
        .const_get::<_, RModule>("PatientHttp")
        .and_then(|module| module.const_get("Sidekiq"))
        .unwrap_or_else(|_| ruby.module_kernel())
});
static FOR: LazyId = LazyId::new("for");
static OF_NAMESPACE: LazyId = LazyId::new("of_namespace");
static REDIS: LazyId = LazyId::new("redis");
static REDIS_POOL: LazyId = LazyId::new("redis_pool");

/// The pool that patient_http-sidekiq names, where it has one, and else Sidekiq's.
///
/// # Errors
/// Whatever either raises when its settings make no pool.
pub(crate) fn redis_pool(ruby: &Ruby) -> Result<Value, Error> {
    let namespace = ruby.get_inner(&NAMESPACE);
    if namespace.respond_to(*REDIS_POOL, false)? || namespace.respond_to(*REDIS, false)? {
        let named: Value = ruby.get_inner(&POOLS).funcall(*OF_NAMESPACE, (namespace,))?;
        if !named.is_nil() {
            return Ok(named);
        }
    }
    ruby.get_inner(&SIDEKIQ).funcall(*REDIS_POOL, ())
}

/// Our pool that belongs to it.
///
/// # Errors
/// ArgumentError for a Redis Cluster; the pool's own error when it has no client to lend.
pub(crate) fn pool_for(ruby: &Ruby, theirs: Value) -> Result<Obj<Pool>, Error> {
    ruby.get_inner(&POOLS).funcall(*FOR, (theirs,))
}
