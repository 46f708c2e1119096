//! `PatientHttp::Sidekiq::TaskMonitor`: the methods that every request pays for. The class is defined without a name here; Ruby puts it under its name, which another gem may have taken before.

use crate::convert::{self, id_bytes, seconds};
use crate::pool::Pool;
use crate::testing::time_shift;
use crate::{class_methods, fork, guard, sidekiq};
use inflight_registry::entries::Entry;
use inflight_registry::processes::{self, Ping, PingReport};
use inflight_registry::units::seconds_to_ms;
use inflight_registry::{Attempt, LocalTime, ProcessId, RegistryId, Ttl, entries, gc as registry_gc};
use magnus::rb_sys::AsRawValue;
use magnus::typed_data::{DataType, DataTypeBuilder, Obj};
use magnus::value::{InnerValue, Lazy, LazyId, Opaque, ReprValue};
use magnus::{
    Class, DataTypeFunctions, Error, Module, Object, RArray, RClass, RModule, RString, Ruby, TypedData, Value, function, gc,
    method,
};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

static CLASS: Lazy<RClass> = Lazy::new(|ruby| {
    // A new class under Object cannot fail but for want of memory.
    RClass::new(ruby.class_object()).unwrap_or_else(|_| ruby.class_object())
});
static JSON: Lazy<RModule> = Lazy::new(|ruby| ruby.class_object().const_get("JSON").unwrap_or_else(|_| ruby.module_kernel()));
static FAILED: LazyId = LazyId::new("failed");
static GENERATE: LazyId = LazyId::new("generate");
static HEARTBEAT_INTERVAL: LazyId = LazyId::new("heartbeat_interval");
static CALL: LazyId = LazyId::new("call");
static DETAILS: Lazy<RModule> = Lazy::new(|ruby| {
    ruby.class_object()
        .const_get::<_, RModule>("PatientHttpMonitor")
        .and_then(|module| module.const_get("InflightDetails"))
        .unwrap_or_else(|_| ruby.module_kernel())
});
static ID: LazyId = LazyId::new("id");
static INFLIGHT_DETAILS: LazyId = LazyId::new("inflight_details?");
static OF: LazyId = LazyId::new("of");
static MAX_CONNECTIONS: LazyId = LazyId::new("max_connections");
static ORPHAN_THRESHOLD: LazyId = LazyId::new("orphan_threshold");
static SIDEKIQ_JOB: LazyId = LazyId::new("sidekiq_job");
static TASK_HANDLER: LazyId = LazyId::new("task_handler");

/// How often the registry was cleared: what an instance remembers of its pings is void then.
pub(crate) static CLEARED: AtomicUsize = AtomicUsize::new(0);

/// Whether orphans may be taken. After an outage of Redis that outlasted the capacity keys every process looks dead; whoever
/// finds its own key gone gives its peers one TTL to show that they live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    /// They may.
    #[default]
    Off,
    /// Not before this process has pinged again, and one capacity TTL more.
    UntilPinged,
    /// Not before this moment.
    Until(LocalTime),
}

/// A pool of Sidekiq's, and ours that belongs to it.
#[derive(Clone, Copy)]
struct Pools {
    theirs: Opaque<Value>,
    ours: Opaque<Obj<Pool>>,
}

/// What a process says of its load when it pings.
struct Reported {
    capacity: i64,
    processors: Option<Vec<u8>>,
}

/// The state of one monitor. Everything but `config` and `load` is this process's own and begins anew in a forked child.
#[derive(Default)]
pub(crate) struct TaskMonitor {
    config: Cell<Option<Opaque<Value>>>,
    /// Answers capacity and processors at each ping, where they are not `config`'s.
    load: Cell<Option<Opaque<Value>>>,
    /// Whether any of its requests was registered with details.
    wrote_details: Cell<bool>,
    process: RefCell<Option<Arc<ProcessId>>>,
    generation: Cell<u32>,
    cleared: Cell<usize>,
    last_ping: Cell<Option<LocalTime>>,
    hold: Cell<Hold>,
    /// Until when this monitor holds the GC lock, as far as it knows.
    lock_until: Cell<Option<LocalTime>>,
    /// Where the next sweep goes on looking for jobs without an index entry.
    restore_cursor: Cell<u64>,
    /// Those in use last.
    pools: Cell<Option<Pools>>,
}

impl DataTypeFunctions for TaskMonitor {
    fn mark(&self, marker: &gc::Marker) {
        for value in [self.config.get(), self.load.get()].into_iter().flatten() {
            marker.mark(value);
        }
        if let Some(Pools { theirs, ours }) = self.pools.get() {
            marker.mark(theirs);
            marker.mark(ours);
        }
    }
}

// SAFETY: `class` always answers the same class, and `data_type` the one and only type of its instances.
unsafe impl TypedData for TaskMonitor {
    fn class(ruby: &Ruby) -> RClass {
        ruby.get_inner(&CLASS)
    }

    fn data_type() -> &'static DataType {
        static TYPE: DataType =
            DataTypeBuilder::<TaskMonitor>::new(c"PatientHttp::Sidekiq::TaskMonitor").mark().free_immediately().build();
        &TYPE
    }
}

impl TaskMonitor {
    /// `load` answers `call` with the capacity and the processors as JSON, or is nil.
    fn set_up(ruby: &Ruby, this: Obj<Self>, config: Value, load: Value) -> Result<(), Error> {
        guard::method(ruby, || {
            this.config.set(Some(config.into()));
            this.load.set((!load.is_nil()).then(|| load.into()));
            this.begin_anew();
            Ok(())
        })
    }

    fn begin_anew(&self) {
        self.generation.set(fork::generation());
        *self.process.borrow_mut() = Some(Arc::new(ProcessId::generate()));
        self.forget_pings();
        self.lock_until.set(None);
        self.wrote_details.set(false);
    }

    fn forget_pings(&self) {
        self.cleared.set(CLEARED.load(Ordering::Relaxed));
        self.last_ping.set(None);
        self.hold.set(Hold::Off);
    }

    /// Who this is: another one in a forked child.
    pub(crate) fn process(&self, ruby: &Ruby) -> Result<Arc<ProcessId>, Error> {
        if self.config.get().is_some() && self.generation.get() != fork::generation() {
            self.begin_anew();
        }
        if self.cleared.get() != CLEARED.load(Ordering::Relaxed) {
            self.forget_pings();
        }
        let process = self.process.borrow().clone();
        process.ok_or_else(|| not_initialized(ruby))
    }

    fn config(ruby: &Ruby, this: Obj<Self>) -> Result<Value, Error> {
        this.config.get().map(|config| config.get_inner_with(ruby)).ok_or_else(|| not_initialized(ruby))
    }

    /// The pool that belongs to the Redis which Sidekiq would use in this thread at this moment.
    pub(crate) fn pool(&self, ruby: &Ruby) -> Result<Obj<Pool>, Error> {
        let theirs = sidekiq::redis_pool(ruby)?;
        if let Some(Pools { theirs: known, ours }) = self.pools.get()
            && known.get_inner_with(ruby).as_raw() == theirs.as_raw()
        {
            return Ok(ours.get_inner_with(ruby));
        }
        let ours = sidekiq::pool_for(ruby, theirs)?;
        self.pools.set(Some(Pools { theirs: theirs.into(), ours: ours.into() }));
        Ok(ours)
    }

    pub(crate) fn heartbeat_interval(ruby: &Ruby, this: Obj<Self>) -> Result<f64, Error> {
        seconds(ruby, "heartbeat_interval", Self::config(ruby, this)?.funcall(*HEARTBEAT_INTERVAL, ())?)
    }

    pub(crate) fn registry_ttl(ruby: &Ruby, this: Obj<Self>) -> Result<Ttl, Error> {
        let threshold = seconds(ruby, "orphan_threshold", Self::config(ruby, this)?.funcall(*ORPHAN_THRESHOLD, ())?)?;
        Ok(Ttl::of_registry(threshold))
    }

    fn reported(ruby: &Ruby, this: Obj<Self>) -> Result<Reported, Error> {
        let config = Self::config(ruby, this)?;
        let (capacity, processors): (Value, Option<RString>) = match this.load.get() {
            Some(load) => load.get_inner_with(ruby).funcall(*CALL, ())?,
            None => (config.funcall(*MAX_CONNECTIONS, ())?, None),
        };
        let capacity = convert::whole_number(ruby, "max_connections", capacity)?;
        Ok(Reported { capacity, processors: processors.map(convert::bytes) })
    }

    fn wants_details(ruby: &Ruby, this: Obj<Self>, task: Value) -> Result<bool, Error> {
        let config = Self::config(ruby, this)?;
        if !config.respond_to(*INFLIGHT_DETAILS, false)? {
            return Ok(false);
        }
        match config.funcall::<_, _, Value>(*INFLIGHT_DETAILS, ()) {
            Ok(wanted) => Ok(wanted.to_bool()),
            // The request is worth more.
            Err(error) if error.is_kind_of(ruby.exception_standard_error()) => {
                let error = error.value().unwrap_or_else(|| ruby.qnil().as_value());
                ruby.get_inner(&DETAILS).funcall::<_, _, Value>(*FAILED, (task, config, error))?;
                Ok(false)
            }
            Err(interrupt) => Err(interrupt),
        }
    }

    fn registry_id(&self, ruby: &Ruby, task: Value) -> Result<RegistryId, Error> {
        let id = id_bytes(task.funcall(*ID, ())?)?;
        Ok(self.process(ruby)?.registry_id(&id))
    }

    fn full_task_id(ruby: &Ruby, this: Obj<Self>, id: Value) -> Result<RString, Error> {
        guard::method(ruby, || Ok(convert::string(ruby, this.process(ruby)?.registry_id(&id_bytes(id)?).as_bytes())))
    }

    fn enter(ruby: &Ruby, this: Obj<Self>, task: Value, processor: Value) -> Result<(), Error> {
        guard::method(ruby, || {
            let id = this.registry_id(ruby, task)?;
            let handler: Value = task.funcall(*TASK_HANDLER, ())?;
            let job: Value = handler.funcall(*SIDEKIQ_JOB, ())?;
            let payload = convert::bytes(ruby.get_inner(&JSON).funcall(*GENERATE, (job,))?);
            let details = this.details(ruby, this, task, processor)?;
            let ttl = Self::registry_ttl(ruby, this)?;
            let due = this.due_ping(ruby, this)?;
            let process = this.process(ruby)?;
            let ping = due.as_ref().map(|(load, ttl)| load.ping(&process, *ttl));
            let (pool, shift) = (this.pool(ruby)?, time_shift(ruby)?);
            let entry = Entry { id: &id, payload: &payload, details: details.as_deref() };
            let report = Pool::run(ruby, pool, |session, _| {
                entries::register(session, &entry, pool.now().ahead(shift), ttl, ping.as_ref())
            })?;
            if let (Some(report), Some(ping)) = (report, ping) {
                this.pinged(report, ping.ttl);
            }
            Ok(())
        })
    }

    /// A process that works must not look dead because the thread that pings has died: in one that has pinged, registering
    /// pings too when the last ping is older than heartbeat_interval.
    fn due_ping(&self, ruby: &Ruby, this: Obj<Self>) -> Result<Option<(Reported, Ttl)>, Error> {
        let Some(last) = self.last_ping.get() else { return Ok(None) };
        let interval = Self::heartbeat_interval(ruby, this)?;
        if LocalTime::now().ms_since(last) <= seconds_to_ms(interval) {
            return Ok(None);
        }
        match Self::reported(ruby, this) {
            Ok(load) => Ok(Some((load, Ttl::of_capacity(interval)))),
            // The request is worth more than the proof of life: who pings is told what is wrong, not who registers.
            Err(error) if error.is_kind_of(ruby.exception_standard_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What people may see of a request, as JSON, where `config` wants that to be written.
    fn details(&self, ruby: &Ruby, this: Obj<Self>, task: Value, processor: Value) -> Result<Option<Vec<u8>>, Error> {
        if !Self::wants_details(ruby, this, task)? {
            return Ok(None);
        }
        let config = Self::config(ruby, this)?;
        let json: Option<RString> = ruby.get_inner(&DETAILS).funcall(*OF, (task, processor, config))?;
        self.wrote_details.set(self.wrote_details.get() || json.is_some());
        Ok(json.map(convert::bytes))
    }

    fn pinged(&self, report: PingReport, ttl: Ttl) {
        let now = LocalTime::now();
        // The key may be there again by a ping whose answer was lost: the time since the last one that was answered tells more.
        let was_silent = self.last_ping.get().is_some() && (!report.was_alive || self.is_silent(ttl));
        if was_silent || self.hold.get() == Hold::UntilPinged {
            self.hold.set(Hold::Until(now.ahead(ttl_ms(ttl))));
        }
        self.last_ping.set(Some(now));
    }

    /// Whether the last ping that was answered is older than the proof of life that it gave.
    pub(crate) fn is_silent(&self, ttl: Ttl) -> bool {
        self.last_ping.get().is_some_and(|last| LocalTime::now().ms_since(last) >= ttl_ms(ttl))
    }

    fn unregister(ruby: &Ruby, this: Obj<Self>, task: Value) -> Result<(), Error> {
        guard::method(ruby, || {
            let id = this.registry_id(ruby, task)?;
            let has_details = this.wrote_details.get();
            Pool::run(ruby, this.pool(ruby)?, |session, _| entries::unregister(session, &id, has_details))
        })
    }

    fn update_heartbeats(ruby: &Ruby, this: Obj<Self>, ids: Value) -> Result<(), Error> {
        guard::method(ruby, || {
            let array = array_of_ids(ruby, ids)?;
            let process = this.process(ruby)?;
            let ids = convert::each(array, |id| Ok(process.registry_id(&id_bytes(id)?)))?;
            if ids.is_empty() {
                return Ok(());
            }
            let (ttl, pool, shift) = (Self::registry_ttl(ruby, this)?, this.pool(ruby)?, time_shift(ruby)?);
            Pool::run(ruby, pool, |session, _| entries::heartbeat(session, &ids, pool.now().ahead(shift), ttl))
        })
    }

    fn is_registered(ruby: &Ruby, this: Obj<Self>, task: Value) -> Result<bool, Error> {
        Self::heartbeat_timestamp_for(ruby, this, task).map(|timestamp| timestamp.is_some())
    }

    fn heartbeat_timestamp_for(ruby: &Ruby, this: Obj<Self>, task: Value) -> Result<Option<i64>, Error> {
        guard::method(ruby, || {
            let id = this.registry_id(ruby, task)?;
            let score = Pool::run(ruby, this.pool(ruby)?, |session, _| entries::heartbeat_of(session, &id))?;
            Ok(score.map(|millis| millis.0))
        })
    }

    fn registered_task_ids(ruby: &Ruby, this: Obj<Self>) -> Result<RArray, Error> {
        guard::method(ruby, || {
            let process = this.process(ruby)?;
            let ids = Pool::run(ruby, this.pool(ruby)?, |session, _| entries::of_process(session, &process))?;
            Ok(ruby.ary_from_iter(ids.iter().map(|id| convert::string(ruby, id.as_bytes()))))
        })
    }

    /// Pings; a sweep does so too, while it runs.
    pub(crate) fn ping_process(ruby: &Ruby, this: Obj<Self>) -> Result<(), Error> {
        guard::method(ruby, || {
            let process = this.process(ruby)?;
            let (load, ttl) = (Self::reported(ruby, this)?, Ttl::of_capacity(Self::heartbeat_interval(ruby, this)?));
            let pool = this.pool(ruby)?;
            let ping = load.ping(&process, ttl);
            let (report, reading) = Pool::run(ruby, pool, |session, _| processes::ping(session, &ping))?;
            pool.sample(reading);
            this.pinged(report, ttl);
            Ok(())
        })
    }

    pub(crate) fn has_pinged(&self) -> bool {
        self.last_ping.get().is_some()
    }

    fn remove_process(ruby: &Ruby, this: Obj<Self>) -> Result<(), Error> {
        guard::method(ruby, || {
            let process = this.process(ruby)?;
            Pool::run(ruby, this.pool(ruby)?, |session, _| processes::remove(session, &process))?;
            // An outage is not over because this process leaves: the hold stays.
            this.last_ping.set(None);
            Ok(())
        })
    }

    fn acquire_gc_lock(ruby: &Ruby, this: Obj<Self>) -> Result<bool, Error> {
        guard::method(ruby, || {
            let process = this.process(ruby)?;
            let ttl = Ttl::of_gc_lock(Self::heartbeat_interval(ruby, this)?);
            let held = this.holds_lock();
            let pool = this.pool(ruby)?;
            let acquired = Pool::run(ruby, pool, |session, _| registry_gc::acquire_lock(session, &process, ttl, held))?;
            if acquired {
                this.lock_until.set(Some(LocalTime::now().ahead(ttl_ms(ttl))));
            }
            Ok(acquired)
        })
    }

    pub(crate) fn holds_lock(&self) -> bool {
        self.lock_until.get().is_some_and(|until| LocalTime::now() < until)
    }

    /// Renews the GC lock, if this monitor holds it.
    pub(crate) fn renew_gc_lock(ruby: &Ruby, this: Obj<Self>) -> Result<(), Error> {
        if !this.holds_lock() {
            return Ok(());
        }
        let process = this.process(ruby)?;
        let ttl = Ttl::of_gc_lock(Self::heartbeat_interval(ruby, this)?);
        let ours = Pool::run(ruby, this.pool(ruby)?, |session, _| registry_gc::renew_lock(session, &process, ttl))?;
        this.lock_until.set(ours.then(|| LocalTime::now().ahead(ttl_ms(ttl))));
        Ok(())
    }

    fn release_gc_lock(ruby: &Ruby, this: Obj<Self>) -> Result<bool, Error> {
        guard::method(ruby, || {
            let process = this.process(ruby)?;
            // Whatever becomes of this call: if its answer is lost, the next acquire must not take the lock for held.
            this.lock_until.set(None);
            let released = Pool::run(ruby, this.pool(ruby)?, |session, attempt: Attempt| {
                registry_gc::release_lock(session, &process, attempt)
            })?;
            Ok(released)
        })
    }

    fn is_gc_needed(ruby: &Ruby, this: Obj<Self>) -> Result<bool, Error> {
        guard::method(ruby, || {
            let interval_ms = seconds_to_ms(Self::heartbeat_interval(ruby, this)?);
            let (pool, shift) = (this.pool(ruby)?, time_shift(ruby)?);
            Pool::run(ruby, pool, |session, _| registry_gc::is_due(session, interval_ms, shift))
        })
    }

    fn record_gc_run(ruby: &Ruby, this: Obj<Self>) -> Result<(), Error> {
        guard::method(ruby, || {
            let ttl = Ttl::of_last_run(Self::heartbeat_interval(ruby, this)?);
            let (pool, shift) = (this.pool(ruby)?, time_shift(ruby)?);
            Pool::run(ruby, pool, |session, _| registry_gc::record_run(session, pool.now().ahead(shift), ttl))
        })
    }

    pub(crate) fn restore_cursor(&self) -> u64 {
        self.restore_cursor.get()
    }

    pub(crate) fn set_restore_cursor(&self, cursor: u64) {
        self.restore_cursor.set(cursor);
    }

    /// Whether orphans may be taken now, as far as this monitor knows.
    pub(crate) fn may_sweep(&self) -> bool {
        match self.hold.get() {
            Hold::Off => true,
            Hold::UntilPinged => false,
            Hold::Until(moment) => {
                let over = LocalTime::now() >= moment;
                if over {
                    self.hold.set(Hold::Off);
                }
                over
            }
        }
    }

    /// This monitor's own proof of life is gone although it pinged.
    pub(crate) fn found_itself_dead(&self) {
        self.hold.set(Hold::UntilPinged);
    }
}

impl Reported {
    fn ping<'a>(&'a self, process: &'a ProcessId, ttl: Ttl) -> Ping<'a> {
        Ping { process, capacity: self.capacity, ttl, processors: self.processors.as_deref() }
    }
}

fn ttl_ms(ttl: Ttl) -> i64 {
    i64::try_from(ttl.as_duration().as_millis()).unwrap_or(i64::MAX)
}

fn not_initialized(ruby: &Ruby) -> Error {
    let message = "this TaskMonitor was never initialized: a subclass must call super(config) in its initialize";
    Error::new(ruby.exception_runtime_error(), message)
}

fn array_of_ids(ruby: &Ruby, ids: Value) -> Result<RArray, Error> {
    if let Some(array) = RArray::from_value(ids) {
        return Ok(array);
    }
    let enumerable: RModule = ruby.class_object().const_get("Enumerable")?;
    if ids.is_kind_of(enumerable) && !ids.is_kind_of(ruby.class_hash()) {
        return ids.funcall("to_a", ());
    }
    let got = if ids.is_nil() { "nil".to_owned() } else { format!("an instance of {}", ids.class()) };
    Err(Error::new(ruby.exception_type_error(), format!("update_heartbeats takes an Array of task ids, got {got}")))
}

/// Defines the class, still without a name, and the way to it.
pub(crate) fn init(ruby: &Ruby, module: RModule) -> Result<(), Error> {
    let class = ruby.get_inner(&CLASS);
    class.define_alloc_func::<TaskMonitor>();
    class_methods::init(class)?;
    class.define_private_method("set_up_natively", method!(TaskMonitor::set_up, 2))?;
    class.define_private_method("register_natively", method!(TaskMonitor::enter, 2))?;
    class.define_method("config", method!(TaskMonitor::config, 0))?;
    class.define_method("full_task_id", method!(TaskMonitor::full_task_id, 1))?;
    class.define_method("unregister", method!(TaskMonitor::unregister, 1))?;
    class.define_method("update_heartbeats", method!(TaskMonitor::update_heartbeats, 1))?;
    class.define_method("registered?", method!(TaskMonitor::is_registered, 1))?;
    class.define_method("heartbeat_timestamp_for", method!(TaskMonitor::heartbeat_timestamp_for, 1))?;
    class.define_method("registered_task_ids", method!(TaskMonitor::registered_task_ids, 0))?;
    class.define_method("ping_process", method!(TaskMonitor::ping_process, 0))?;
    class.define_method("remove_process", method!(TaskMonitor::remove_process, 0))?;
    class.define_method("acquire_gc_lock", method!(TaskMonitor::acquire_gc_lock, 0))?;
    class.define_method("release_gc_lock", method!(TaskMonitor::release_gc_lock, 0))?;
    class.define_method("gc_needed?", method!(TaskMonitor::is_gc_needed, 0))?;
    class.define_method("record_gc_run", method!(TaskMonitor::record_gc_run, 0))?;

    module.define_singleton_method("task_monitor_class", function!(|ruby: &Ruby| ruby.get_inner(&CLASS), 0))?;
    for (name, text) in [
        ("REMOVE_IF_ORPHANED_SCRIPT", inflight_registry::REMOVE_IF_ORPHANED),
        ("REMOVE_IF_ORPHANED_SHA", &inflight_registry::sha1(inflight_registry::REMOVE_IF_ORPHANED)),
        ("RELEASE_LOCK_SCRIPT", inflight_registry::RELEASE_IF_HELD),
        ("RELEASE_LOCK_SHA", &inflight_registry::sha1(inflight_registry::RELEASE_IF_HELD)),
        ("INFLIGHT_INDEX_KEY", inflight_registry::keys::INDEX),
        ("INFLIGHT_JOBS_KEY", inflight_registry::keys::JOBS),
        ("PROCESS_SET_KEY", inflight_registry::keys::PROCESS_SET),
        ("GC_LOCK_KEY", inflight_registry::keys::GC_LOCK),
        ("GC_LAST_RUN_KEY", inflight_registry::keys::GC_LAST_RUN),
        ("INFLIGHT_DETAILS_KEY", inflight_registry::keys::DETAILS),
        ("INFLIGHT_DETAILS_INDEX_KEY", inflight_registry::keys::DETAILS_INDEX),
    ] {
        let text = ruby.str_new(text);
        text.freeze();
        class.const_set(name, text)?;
    }
    class.const_set("ORPHAN_BATCH_SIZE", inflight_registry::recovery::CLAIM)
}
