//! `PatientHttpMonitor::Sweep`: the steps of a recovery, for the Ruby code that pushes between them.

use crate::convert::{self, milliseconds, seconds};
use crate::guard;
use crate::pool::Pool;
use crate::task_monitor::TaskMonitor;
use crate::testing::time_shift;
use inflight_registry::recovery::{self, Batch, Begun, Plan, Settled};
use inflight_registry::{LocalTime, Millis, RegistryId, Ttl};
use magnus::typed_data::Obj;
use magnus::value::{InnerValue, Opaque, ReprValue};
use magnus::{
    Class, DataTypeFunctions, Error, Module, Object, RArray, RModule, RString, Ruby, Symbol, TypedData, Value, function, gc,
    method,
};
use std::cell::Cell;

/// One sweep of one monitor.
#[derive(TypedData)]
#[magnus(class = "PatientHttpMonitor::Sweep", mark, free_immediately)]
pub(crate) struct Sweep {
    monitor: Opaque<Obj<TaskMonitor>>,
    pool: Opaque<Obj<Pool>>,
    /// Taken out while a step is under way.
    state: Cell<Option<Box<recovery::Sweep>>>,
    /// How long a lease holds, in ms: what any collector calls stale.
    threshold_ms: i64,
    kept_alive: Cell<LocalTime>,
    /// Whether it ended because the monitor's own proof of life had run out.
    stopped: Cell<bool>,
}

impl DataTypeFunctions for Sweep {
    fn mark(&self, marker: &gc::Marker) {
        marker.mark(self.monitor);
        marker.mark(self.pool);
    }
}

impl Sweep {
    /// Begins; nil when orphans may not be taken now.
    fn begin(ruby: &Ruby, monitor: Obj<TaskMonitor>, threshold: Value) -> Result<Option<Obj<Self>>, Error> {
        guard::method(ruby, || {
            let threshold_ms = milliseconds(ruby, "orphan_threshold_seconds", threshold)?;
            let process = monitor.process(ruby)?;
            let ttl = TaskMonitor::registry_ttl(ruby, monitor)?;
            let proof_of_life = Ttl::of_capacity(TaskMonitor::heartbeat_interval(ruby, monitor)?);
            if monitor.is_silent(proof_of_life) {
                monitor.found_itself_dead();
            }
            if !monitor.may_sweep() {
                return Ok(None);
            }
            let (pool, shift) = (monitor.pool(ruby)?, time_shift(ruby)?);
            let plan = Plan { process: &process, threshold_ms, shift, ttl, restore_from: monitor.restore_cursor() };
            let begun = Pool::run(ruby, pool, |session, _| recovery::Sweep::begin(session, &plan, monitor.has_pinged()))?;
            match begun {
                Begun::NotAlive => {
                    monitor.found_itself_dead();
                    Ok(None)
                }
                Begun::Ready(sweep) => Ok(Some(ruby.obj_wrap(Self {
                    monitor: monitor.into(),
                    pool: pool.into(),
                    state: Cell::new(Some(sweep)),
                    threshold_ms,
                    kept_alive: Cell::new(LocalTime::now()),
                    stopped: Cell::new(false),
                }))),
            }
        })
    }

    /// Runs a step on the sweep, which nobody else can touch meanwhile.
    fn step<T>(
        &self,
        ruby: &Ruby,
        mut step: impl FnMut(&mut recovery::Sweep, &mut crate::session::Session<'_>) -> inflight_registry::Result<T>,
    ) -> Result<T, Error> {
        let Some(mut sweep) = self.state.take() else {
            return Err(Error::new(ruby.exception_runtime_error(), "this sweep is used by another thread"));
        };
        let result = Pool::run(ruby, self.pool.get_inner_with(ruby), |session, _| step(&mut sweep, session));
        self.state.set(Some(sweep));
        result
    }

    /// `[lease in ms, [[registry id, payload, counted by, recoveries], ...], [ids of ghosts]]`, or nil at the end.
    fn claim(ruby: &Ruby, this: Obj<Self>) -> Result<Option<(i64, RArray, RArray)>, Error> {
        guard::method(ruby, || {
            let monitor = this.monitor.get_inner_with(ruby);
            // A ping in the middle of the sweep may have found that Redis was away.
            if !monitor.may_sweep() {
                this.stopped.set(true);
                return Ok(None);
            }
            let (batch, found_dead) = this.step(ruby, |sweep, session| Ok((sweep.claim(session)?, sweep.found_dead())))?;
            if found_dead {
                monitor.found_itself_dead();
                this.stopped.set(true);
            }
            let Some(Batch { lease, claimed, ghosts }) = batch else { return Ok(None) };
            let orphans = ruby.ary_new_capa(claimed.len());
            for orphan in claimed {
                orphans.push((
                    convert::string(ruby, orphan.id.as_bytes()),
                    convert::string(ruby, &orphan.payload),
                    convert::string(ruby, &orphan.counted_by),
                    orphan.recoveries,
                ))?;
            }
            Ok(Some((lease.0, orphans, strings(ruby, &ghosts))))
        })
    }

    /// The ids put back into the index, or nil at the end.
    fn restore(ruby: &Ruby, this: Obj<Self>) -> Result<Option<RArray>, Error> {
        guard::method(ruby, || {
            let restored = this.step(ruby, |sweep, session| {
                let restored = sweep.restore(session)?;
                Ok((restored, sweep.restore_cursor()))
            })?;
            let (restored, cursor) = restored;
            this.monitor.get_inner_with(ruby).set_restore_cursor(cursor);
            Ok(restored.map(|ids| strings(ruby, &ids)))
        })
    }

    /// `:removed`, `:gone` or `:lease_lost`. `window` in s, or nil to count nothing.
    fn settle(
        ruby: &Ruby,
        this: Obj<Self>,
        id: RString,
        lease: i64,
        counted_by: RString,
        window: Option<Value>,
    ) -> Result<Symbol, Error> {
        guard::method(ruby, || {
            let (id, counted_by) = (RegistryId(convert::bytes(id)), convert::bytes(counted_by));
            let window = window.map(|window| seconds(ruby, "recovery_window", window)).transpose()?.map(Ttl::from_seconds);
            let settled = this.step(ruby, |sweep, session| sweep.settle(session, &id, Millis(lease), &counted_by, window))?;
            Ok(ruby.to_symbol(match settled {
                Settled::Removed => "removed",
                Settled::Gone => "gone",
                Settled::LeaseLost => "lease_lost",
            }))
        })
    }

    /// `[new lease in ms, [ids that still were ours]]`.
    fn renew(ruby: &Ruby, this: Obj<Self>, lease: i64, ids: RArray) -> Result<(i64, RArray), Error> {
        guard::method(ruby, || {
            let ids: Vec<_> = convert::byte_strings(ids)?.into_iter().map(RegistryId).collect();
            let (lease, kept) = this.step(ruby, |sweep, session| sweep.renew(session, Millis(lease), &ids))?;
            Ok((lease.0, strings(ruby, &kept)))
        })
    }

    /// How often Sidekiq has refused this job within `window` s, this time included.
    fn count_refusal(ruby: &Ruby, this: Obj<Self>, counted_by: RString, window: Value) -> Result<u64, Error> {
        guard::method(ruby, || {
            let counted_by = convert::bytes(counted_by);
            let window = Ttl::from_seconds(seconds(ruby, "recovery_window", window)?);
            this.step(ruby, |sweep, session| sweep.count_refusal(session, &counted_by, window))
        })
    }

    fn is_stopped(&self) -> bool {
        self.stopped.get()
    }

    /// Whether a lease taken at a moment `age` s ago should be renewed before the next push.
    fn is_lease_old(ruby: &Ruby, this: Obj<Self>, age: Value) -> Result<bool, Error> {
        let age = milliseconds(ruby, "age", age)?;
        Ok(this.threshold_ms > 0 && age > this.threshold_ms / 3)
    }

    /// A sweep of many orphans must not make its collector look dead: renews the capacity key, if the monitor ever pinged, and
    /// the GC lock, if it holds it, every half heartbeat_interval.
    fn keep_alive(ruby: &Ruby, this: Obj<Self>) -> Result<(), Error> {
        guard::method(ruby, || {
            let monitor = this.monitor.get_inner_with(ruby);
            let interval = inflight_registry::units::seconds_to_ms(TaskMonitor::heartbeat_interval(ruby, monitor)?);
            let now = LocalTime::now();
            if now.ms_since(this.kept_alive.get()) < interval / 2 {
                return Ok(());
            }
            this.kept_alive.set(now);
            // A fork inside a push makes another monitor of this one.
            monitor.process(ruby)?;
            if monitor.has_pinged() {
                TaskMonitor::ping_process(ruby, monitor)?;
            }
            TaskMonitor::renew_gc_lock(ruby, monitor)
        })
    }
}

fn strings(ruby: &Ruby, ids: &[RegistryId]) -> RArray {
    ruby.ary_from_iter(ids.iter().map(|id| convert::string(ruby, id.as_bytes())))
}

/// Defines the class, which only this gem's own Ruby code uses.
pub(crate) fn init(ruby: &Ruby, module: RModule) -> Result<(), Error> {
    let class = module.define_class("Sweep", ruby.class_object())?;
    class.undef_default_alloc_func();
    class.define_singleton_method("begin", function!(Sweep::begin, 2))?;
    class.define_method("claim", method!(Sweep::claim, 0))?;
    class.define_method("stopped?", method!(|sweep: &Sweep| sweep.is_stopped(), 0))?;
    class.define_method("restore", method!(Sweep::restore, 0))?;
    class.define_method("settle", method!(Sweep::settle, 4))?;
    class.define_method("renew", method!(Sweep::renew, 2))?;
    class.define_method("count_refusal", method!(Sweep::count_refusal, 2))?;
    class.define_method("lease_old?", method!(Sweep::is_lease_old, 1))?;
    class.define_method("keep_alive", method!(Sweep::keep_alive, 0))?;
    module.funcall::<_, _, Value>("private_constant", ("Sweep",)).map(drop)
}
