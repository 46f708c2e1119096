//! The connections to one Redis: idle ones in a list that is only touched under the GVL, so that nothing is locked.

use crate::connection::Connection;
use crate::connector::{Connector, Fault, Limits, Timeouts};
use crate::holders::Holders;
use crate::session::{FORKED, Failure, Session};
use crate::waiters::{Waiters, Woken};
use crate::{fork, guard};
use inflight_registry::{self as core, Attempt, LocalTime, Millis, ServerClock};
use magnus::typed_data::Obj;
use magnus::value::{InnerValue, Opaque, ReprValue};
use magnus::{Class, DataTypeFunctions, Error, Module, Object, RModule, Ruby, TypedData, Value, function, gc};
use redis::ConnectionLike;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many connections there are at most. Fewer than callers halve the throughput: a cap of 5 did under 25 threads.
const CEILING: usize = 50;
/// How long a caller at the ceiling waits before it looks again whether the collector freed a connection, in s.
const RECHECK: f64 = 0.25;
/// How often at most a caller at the ceiling starts the garbage collector, in ms: while a thread is known to have died with
/// connections, and when all that is known is that the caller's time is over.
const COLLECT_EVERY: i64 = 1_000;
const COLLECT_ANYWAY_EVERY: i64 = 30_000;

/// The pool that belongs to one of Sidekiq's.
#[derive(TypedData)]
#[magnus(class = "PatientHttpMonitor::Pool", mark, free_immediately)]
pub(crate) struct Pool {
    pub(crate) connector: Connector,
    /// In s; none: no limit.
    timeouts: Timeouts,
    /// In ms.
    idle_timeout: i64,
    /// In ms.
    checkout_timeout: i64,
    /// The most recently used last.
    idle: RefCell<VecDeque<Opaque<Obj<Connection>>>>,
    /// How many exist, idle or not. A connection counts until it is closed, or freed: one in a fiber that never unwinds is never
    /// given back.
    pub(crate) open: RefCell<Arc<AtomicUsize>>,
    waiters: Waiters,
    holders: Holders,
    collected: Cell<Option<LocalTime>>,
    /// Whether the last run of the collector freed no connection.
    in_vain: Cell<bool>,
    clock: Cell<ServerClock>,
    generation: Cell<u32>,
}

impl DataTypeFunctions for Pool {
    fn mark(&self, marker: &gc::Marker) {
        marker.mark(self.connector.0);
        self.waiters.mark(marker);
        self.holders.mark(marker);
        // Never borrowed while Ruby can run, and the collector runs only then.
        if let Ok(idle) = self.idle.try_borrow() {
            for &connection in idle.iter() {
                marker.mark(connection);
            }
        }
    }
}

impl Pool {
    fn new(ruby: &Ruby, connector: Value) -> Result<Obj<Self>, Error> {
        guard::method(ruby, || {
            let connector = Connector(connector.into());
            let Limits { timeouts, idle_timeout, checkout_timeout } = connector.limits(ruby)?;
            Ok(ruby.obj_wrap(Self {
                connector,
                timeouts,
                idle_timeout: core::units::seconds_to_ms(idle_timeout),
                checkout_timeout: core::units::seconds_to_ms(checkout_timeout),
                idle: RefCell::default(),
                open: RefCell::default(),
                waiters: Waiters::default(),
                holders: Holders::default(),
                collected: Cell::new(None),
                in_vain: Cell::new(false),
                clock: Cell::new(ServerClock::default()),
                generation: Cell::new(fork::generation()),
            }))
        })
    }

    /// The server's time now, in ms since the epoch. Known once a connection was made.
    pub(crate) fn now(&self) -> Millis {
        self.clock.get().at(LocalTime::now()).unwrap_or(Millis(0))
    }

    /// Takes in a reading of the server's clock.
    pub(crate) fn sample(&self, reading: core::processes::TimeReading) {
        let mut clock = self.clock.get();
        clock.sample(reading.sent, reading.received, reading.server_us);
        self.clock.set(clock);
    }

    /// Runs an operation on a connection of the pool, and once more where Sidekiq would: after READONLY, NOREPLICAS or
    /// UNBLOCKED, and after a connection that turned out to be dead, as often as `reconnect_attempts` says. Each operation is
    /// built so that a repeat is harmless.
    ///
    /// # Errors
    /// Those of redis-client, as existing code rescues them, and interrupts.
    pub(crate) fn run<T>(
        ruby: &Ruby,
        pool: Obj<Self>,
        mut operation: impl FnMut(&mut Session<'_>, Attempt) -> core::Result<T>,
    ) -> Result<T, Error> {
        pool.forget_inherited(ruby)?;
        let _call = pool.holders.begin(ruby)?;
        let generation = fork::generation();
        let (mut attempt, mut tries, mut moved) = (Attempt::First, 0, false);
        loop {
            let connected = pool.check_out(ruby).and_then(|connection| pool.begin(ruby, connection));
            let mut session = match connected {
                Ok(session) => session,
                Err(error) => {
                    if generation == fork::generation() && pool.connector.retry(ruby, tries, &error)? {
                        tries += 1;
                        continue;
                    }
                    return Err(error);
                }
            };
            let error = match operation(&mut session, attempt) {
                Ok(value) => {
                    pool.give_back(ruby, session.end())?;
                    // Sidekiq may have another pool by now: then this stack alone keeps ours.
                    std::hint::black_box(pool);
                    return Ok(value);
                }
                Err(error) => error,
            };
            attempt = Attempt::Repeat;
            if let core::Error::Server { message, .. } = &error {
                if !ends_connection(&error) && !session.is_lost() {
                    pool.give_back(ruby, session.end())?;
                    return Err(pool.connector.core_error(ruby, &error));
                }
                if let Some(Failure::Interrupt(interrupt)) = session.abandon() {
                    return Err(interrupt);
                }
                pool.close_idle(ruby)?;
                pool.connector.forget_master(ruby)?;
                // Sidekiq's own rule: one repeat on a fresh connection.
                if !moved && ["READONLY", "NOREPLICAS", "UNBLOCKED"].iter().any(|code| message.contains(code)) {
                    moved = true;
                    continue;
                }
                let exception = pool.connector.core_error(ruby, &error);
                // MASTERDOWN is a lost connection to redis-client, which repeats as `reconnect_attempts` says.
                if !moved && pool.connector.retry(ruby, tries, &exception)? {
                    tries += 1;
                    continue;
                }
                return Err(exception);
            }
            match session.abandon() {
                Some(Failure::Interrupt(interrupt)) => return Err(guard::clearing_away(interrupt, || pool.wake_one(ruby))),
                Some(Failure::Fault(fault, detail)) => {
                    pool.wake_one(ruby)?;
                    let exception = pool.connector.fault(ruby, fault, &detail);
                    let silent = matches!(fault, Fault::ReadTimeout | Fault::WriteTimeout);
                    if fault == Fault::Closed || (silent && pool.connector.is_sentinel(ruby)?) {
                        pool.close_idle(ruby)?;
                    }
                    if silent {
                        // It may be the master no longer: a host that is cut off says nothing.
                        pool.connector.forget_master(ruby)?;
                    }
                    if fault == Fault::Closed && pool.connector.retry(ruby, tries, &exception)? {
                        tries += 1;
                        continue;
                    }
                    return Err(exception);
                }
                None => {
                    pool.wake_one(ruby)?;
                    return Err(pool.connector.core_error(ruby, &error));
                }
            }
        }
    }

    pub(crate) fn begin<'ruby>(&self, ruby: &'ruby Ruby, connection: Obj<Connection>) -> Result<Session<'ruby>, Error> {
        if connection.is_inherited() {
            // This process was forked while the connection was opened, and this fiber is a copy of the parent's.
            Connection::close(ruby, connection)?;
            return Err(self.connector.fault(ruby, Fault::Forked, FORKED));
        }
        let begun = Session::begin(ruby, connection, self.timeouts.read, self.timeouts.write);
        if let Err(error) = begun {
            // Someone closed its socket, and most likely those of the others.
            Connection::close(ruby, connection)?;
            self.close_idle(ruby)?;
            return Err(self.connector.fault(ruby, Fault::Closed, &error.to_string()));
        }
        begun
    }

    fn check_out(&self, ruby: &Ruby) -> Result<Obj<Connection>, Error> {
        self.forget_inherited(ruby)?;
        // Here, where nothing is sent yet: closing may be interrupted, and a write that is done must not be.
        self.close_surplus(ruby)?;
        let started = LocalTime::now();
        loop {
            if let Some(connection) = self.take_idle(ruby) {
                if connection.is_inherited() {
                    // Another thread of this child closes those one by one, and lets Ruby run meanwhile; or it was interrupted.
                    Connection::close(ruby, connection)?;
                    continue;
                }
                if connection.idle_ms() <= self.idle_timeout || self.is_alive(ruby, connection)? {
                    return Ok(connection);
                }
                // The others have been idle for longer still: each would cost this call the whole read_timeout again.
                self.close_idle(ruby)?;
                continue;
            }
            if self.count() < CEILING {
                return match self.connect(ruby) {
                    Ok(connection) => Ok(connection),
                    // The place is free again for someone who waits.
                    Err(error) => Err(guard::clearing_away(error, || self.wake_one(ruby))),
                };
            }
            match self.waiters.wait(ruby, self.time_to_wait(ruby, started)?, started)? {
                Woken::With(connection) => return Ok(connection),
                Woken::ByAPlace => {}
                Woken::ByTime => self.collect_garbage(ruby, LocalTime::now().ms_since(started) >= self.checkout_timeout)?,
            }
        }
    }

    fn take_idle(&self, ruby: &Ruby) -> Option<Obj<Connection>> {
        self.idle.borrow_mut().pop_back().map(|connection| connection.get_inner_with(ruby))
    }

    fn count(&self) -> usize {
        self.open.borrow().load(Ordering::Relaxed)
    }

    /// How long to wait now, in s: until the time is over after which Sidekiq's own pool would give up, and not longer than
    /// until the next look whether the garbage collector has freed a connection.
    fn time_to_wait(&self, ruby: &Ruby, started: LocalTime) -> Result<f64, Error> {
        let waited = LocalTime::now().ms_since(started);
        if waited >= self.checkout_timeout {
            return Err(self.connector.checkout_timeout(ruby, CEILING));
        }
        #[expect(clippy::cast_precision_loss, reason = "a few seconds, in ms")]
        let left = (self.checkout_timeout - waited) as f64 / 1_000.0;
        Ok(left.min(RECHECK))
    }

    /// Connections of fibers whose thread was killed are freed by the garbage collector alone, which may have no other reason to
    /// run. All else waits for it, a reactor's other fibers too: a server that is slow to answer is no reason. A dead thread is one,
    /// twice: its fibers may have held nothing. Those that were given up in a thread that goes on leave no trace, so a caller whose
    /// time is over tries it now and then.
    fn collect_garbage(&self, ruby: &Ruby, is_over: bool) -> Result<(), Error> {
        self.waiters.forget_lost(ruby)?;
        let every = match (self.holders.any_dead(ruby)?, is_over) {
            (true, _) => COLLECT_EVERY,
            (false, true) => COLLECT_ANYWAY_EVERY,
            (false, false) => return Ok(()),
        };
        let now = LocalTime::now();
        if self.collected.get().is_none_or(|last| now.ms_since(last) >= every) {
            self.collected.set(Some(now));
            scrub_stack();
            ruby.gc_start();
            let in_vain = self.count() >= CEILING;
            if !in_vain || self.in_vain.get() {
                self.holders.forget_dead(ruby)?;
            }
            self.in_vain.set(in_vain);
        }
        Ok(())
    }

    /// A place for a new connection has become free.
    fn wake_one(&self, ruby: &Ruby) -> Result<(), Error> {
        self.waiters.hand_on(ruby, None).map(drop)
    }

    fn give_back(&self, ruby: &Ruby, connection: Obj<Connection>) -> Result<(), Error> {
        if connection.is_inherited() {
            return Connection::close(ruby, connection);
        }
        if self.waiters.hand_on(ruby, Some(connection))? {
            return Ok(());
        }
        connection.rest();
        self.idle.borrow_mut().push_back(connection.into());
        Ok(())
    }

    /// Closes what has been idle for too long; the last one stays.
    fn close_surplus(&self, ruby: &Ruby) -> Result<(), Error> {
        loop {
            let surplus = {
                let mut idle = self.idle.borrow_mut();
                let oldest = idle.front().map(|oldest| oldest.get_inner_with(ruby));
                match oldest {
                    Some(oldest) if idle.len() > 1 && oldest.idle_ms() > self.idle_timeout => idle.pop_front(),
                    _ => None,
                }
            };
            match surplus {
                Some(surplus) => Connection::close(ruby, surplus.get_inner_with(ruby))?,
                None => return Ok(()),
            }
        }
    }

    /// After one connection was found dead, or at a server that is not the one to talk to, the others are no better: a repeat
    /// must not meet the next of them.
    fn close_idle(&self, ruby: &Ruby) -> Result<(), Error> {
        while let Some(connection) = self.take_idle(ruby) {
            Connection::close(ruby, connection)?;
        }
        self.wake_one(ruby)
    }

    /// After a fork nothing that the parent opened is used, and nothing of it is told goodbye.
    fn forget_inherited(&self, ruby: &Ruby) -> Result<(), Error> {
        let generation = fork::generation();
        if self.generation.replace(generation) == generation {
            return Ok(());
        }
        // A new count: the inherited connections go on counting in the old one.
        *self.open.borrow_mut() = Arc::default();
        self.waiters.clear();
        self.holders.clear();
        // One at a time: whatever is not in the list or on this stack is the garbage collector's.
        while let Some(connection) = self.take_inherited(ruby) {
            Connection::close(ruby, connection)?;
        }
        Ok(())
    }

    fn take_inherited(&self, ruby: &Ruby) -> Option<Obj<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let place = idle.iter().position(|connection| connection.get_inner_with(ruby).is_inherited())?;
        idle.remove(place).map(|connection| connection.get_inner_with(ruby))
    }

    /// Asks a connection that has been idle for long whether the server is still there.
    fn is_alive(&self, ruby: &Ruby, connection: Obj<Connection>) -> Result<bool, Error> {
        let mut session = match self.begin(ruby, connection) {
            Ok(session) => session,
            Err(error) if error.is_kind_of(ruby.exception_standard_error()) => return Ok(false),
            Err(interrupt) => return Err(interrupt),
        };
        if session.check_connection() {
            session.end();
            return Ok(true);
        }
        match session.abandon() {
            Some(Failure::Interrupt(interrupt)) => Err(interrupt),
            _ => Ok(false),
        }
    }

    /// For operators and tests: how many connections exist, and how many of them are idle.
    fn counts(&self) -> (usize, usize) {
        (self.count(), self.idle.borrow().len())
    }
}

/// Whether the connection is of no more use after this reply: the server it leads to is not the one to talk to, or not yet.
fn ends_connection(error: &core::Error) -> bool {
    const CODES: [&str; 5] = ["READONLY", "NOREPLICAS", "UNBLOCKED", "MASTERDOWN", "LOADING"];
    match error {
        core::Error::Server { message, .. } => CODES.iter().any(|code| message.contains(code)),
        _ => true,
    }
}

/// Overwrites what earlier calls left on the stack below this one. The garbage collector takes it for values, and one old pointer
/// to a dead fiber would keep its scheduler and every connection of its fibers.
#[inline(never)]
fn scrub_stack() {
    let mut area = [0_u8; 64 * 1024];
    std::hint::black_box(&mut area);
}

/// Defines the class.
pub(crate) fn init(ruby: &Ruby, module: RModule) -> Result<(), Error> {
    let class = module.define_class("Pool", ruby.class_object())?;
    class.undef_default_alloc_func();
    class.define_singleton_method("new", function!(Pool::new, 1))?;
    class.define_method("counts", magnus::method!(|pool: &Pool| pool.counts(), 0))?;
    module.funcall::<_, _, Value>("private_constant", ("Pool",)).map(drop)
}
