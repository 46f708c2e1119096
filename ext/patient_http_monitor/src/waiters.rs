//! Who waits for a connection when a pool has none left, in the order of coming. Fibers and threads wait alike: each in a
//! `Thread::Queue` of its own, into which a connection is put for it.
//!
//! One queue that all wait in would not do. Ruby keeps its waiters on their stacks, and a fiber whose thread was killed never
//! takes itself off: waking it once its stack was freed touches memory that is someone else's by then. So each waiter is kept
//! with its fiber, which keeps the stack, and one that will never run again is forgotten instead of woken.

use crate::connection::Connection;
use crate::guard;
use inflight_registry::LocalTime;
use inflight_registry::units::seconds_to_ms;
use magnus::rb_sys::{AsRawValue, FromRawValue};
use magnus::typed_data::Obj;
use magnus::value::{InnerValue, Opaque, ReprValue};
use magnus::{Class, Error, KwArgs, Module, RClass, Ruby, TryConvert, Value, gc};
use std::cell::RefCell;
use std::collections::VecDeque;

#[derive(Clone, Copy)]
struct Waiter {
    thread: Opaque<Value>,
    fiber: Opaque<Value>,
    mailbox: Opaque<Value>,
    /// Since when its caller waits, by which it is served.
    since: LocalTime,
    /// When it takes itself off at the latest, if it ever runs again.
    until: LocalTime,
}

/// By how much a scheduler that is busy may be late, in ms. A waiter that is taken for lost and is not looks again by itself.
const GRACE_MS: i64 = 500;

/// How a wait ended.
pub(crate) enum Woken {
    /// With a connection.
    With(Obj<Connection>),
    /// A place for a new connection has become free.
    ByAPlace,
    /// The time is over.
    ByTime,
}

/// The waiters of a pool. Only touched under the GVL, and never borrowed while Ruby runs.
#[derive(Default)]
pub(crate) struct Waiters(RefCell<VecDeque<Waiter>>);

impl Waiters {
    pub(crate) fn mark(&self, marker: &gc::Marker) {
        if let Ok(waiters) = self.0.try_borrow() {
            for waiter in waiters.iter() {
                marker.mark(waiter.thread);
                marker.mark(waiter.fiber);
                marker.mark(waiter.mailbox);
            }
        }
    }

    /// Waits for at most `timeout` s, in the place of one that has waited `since` then.
    ///
    /// # Errors
    /// Whatever interrupts the wait.
    pub(crate) fn wait(&self, ruby: &Ruby, timeout: f64, since: LocalTime) -> Result<Woken, Error> {
        let mailbox: Value =
            ruby.class_object().const_get::<_, RClass>("Thread")?.const_get::<_, RClass>("Queue")?.new_instance(())?;
        let options = ruby.hash_new();
        options.aset(ruby.to_symbol("timeout"), timeout)?;
        let until = LocalTime::now().ahead(seconds_to_ms(timeout));
        let waiter = Waiter {
            thread: ruby.thread_current().as_value().into(),
            fiber: current_fiber().into(),
            mailbox: mailbox.into(),
            since,
            until,
        };
        {
            let mut waiters = self.0.borrow_mut();
            let place = waiters.iter().rposition(|other| other.since <= since).map_or(0, |place| place + 1);
            waiters.insert(place, waiter);
        }
        let popped: Result<Value, Error> = mailbox.funcall("pop", (KwArgs(options),));
        self.forget(ruby, mailbox);
        match popped {
            Ok(value) if !value.is_nil() => read(value),
            // Between the end of the wait and this line something may have come.
            Ok(_) if !mailbox.funcall::<_, _, bool>("empty?", ())? => read(mailbox.funcall("pop", ())?),
            Ok(_) => Ok(Woken::ByTime),
            Err(interrupt) => Err(guard::clearing_away(interrupt, || self.pass_on(ruby, mailbox))),
        }
    }

    /// What had been put there for one that was interrupted is the next one's.
    fn pass_on(&self, ruby: &Ruby, mailbox: Value) -> Result<(), Error> {
        while !mailbox.funcall::<_, _, bool>("empty?", ())? {
            if let Woken::With(connection) = read(mailbox.funcall("pop", ())?)? {
                if !self.hand_on(ruby, Some(connection))? {
                    Connection::close_elsewhere(ruby, connection);
                }
            } else {
                self.hand_on(ruby, None)?;
            }
        }
        Ok(())
    }

    /// Hands a connection, or the news of a free place, to whoever has waited longest. False when nobody waits.
    ///
    /// # Errors
    /// Interrupts. An error from waking is the waiter's, whose scheduler may be closed, and not the caller's.
    pub(crate) fn hand_on(&self, ruby: &Ruby, connection: Option<Obj<Connection>>) -> Result<bool, Error> {
        loop {
            let Some(waiter) = self.0.borrow_mut().pop_front() else { return Ok(false) };
            // On this stack for as long as the mailbox is touched.
            let fiber = waiter.fiber.get_inner_with(ruby);
            let mailbox = waiter.mailbox.get_inner_with(ruby);
            if is_lost(ruby, waiter)? {
                continue;
            }
            let news = connection.map_or_else(|| ruby.qtrue().as_value(), |connection| connection.as_value());
            let pushed: Result<Value, Error> = mailbox.funcall("push", (news,));
            std::hint::black_box(fiber);
            match pushed {
                Ok(_) => return Ok(true),
                Err(error) if error.is_kind_of(ruby.exception_standard_error()) => {}
                Err(interrupt) => return Err(interrupt),
            }
        }
    }

    /// Forgets those that will never run again: they keep their fibers, and with them whatever these had in hand.
    ///
    /// # Errors
    /// Interrupts.
    pub(crate) fn forget_lost(&self, ruby: &Ruby) -> Result<(), Error> {
        let mut looked_at = self.0.borrow().len();
        while looked_at > 0 {
            looked_at -= 1;
            let Some(waiter) = self.0.borrow().get(looked_at).copied() else { continue };
            if is_lost(ruby, waiter)? {
                self.forget(ruby, waiter.mailbox.get_inner_with(ruby));
            }
        }
        Ok(())
    }

    /// In a forked child: the threads that waited are the parent's.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    fn forget(&self, ruby: &Ruby, mailbox: Value) {
        let mut waiters = self.0.borrow_mut();
        if let Some(place) = waiters.iter().position(|waiter| waiter.mailbox.get_inner_with(ruby).as_raw() == mailbox.as_raw())
        {
            waiters.remove(place);
        }
    }
}

/// Whether its thread is dead, or its fiber was given up by its scheduler.
fn is_lost(ruby: &Ruby, waiter: Waiter) -> Result<bool, Error> {
    if LocalTime::now().ms_since(waiter.until) > GRACE_MS {
        return Ok(true);
    }
    waiter.thread.get_inner_with(ruby).funcall::<_, _, bool>("alive?", ()).map(|alive| !alive)
}

fn read(news: Value) -> Result<Woken, Error> {
    if bool::try_convert(news)? && news.as_raw() == rb_sys::Qtrue as rb_sys::VALUE {
        return Ok(Woken::ByAPlace);
    }
    Obj::<Connection>::try_convert(news).map(Woken::With)
}

fn current_fiber() -> Value {
    // SAFETY: the GVL is held; there is always a current fiber, and it is a live object on return.
    unsafe { Value::from_raw(rb_sys::rb_fiber_current()) }
}
