//! A connection as a Ruby object: the garbage collector must be able to free it when the fiber that used it never unwinds,
//! because its thread was killed.

use crate::fork;
use inflight_registry::LocalTime;
use magnus::block::Proc;
use magnus::value::{InnerValue, Opaque, ReprValue};
use magnus::{Class, DataTypeFunctions, Error, Module, RClass, RModule, Ruby, TypedData, Value, gc, typed_data::Obj};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts one open connection of a pool.
pub(crate) struct Slot(Arc<AtomicUsize>);

impl Slot {
    pub(crate) fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket, its TLS layer, and the bytes of the next reply that came with the last.
#[derive(TypedData)]
#[magnus(class = "PatientHttpMonitor::Connection", mark, free_immediately)]
pub(crate) struct Connection {
    io: Cell<Option<Opaque<Value>>>,
    ssl: Cell<Option<Opaque<Value>>>,
    parser: Cell<Option<Box<redis::Parser>>>,
    generation: u32,
    idle_since: Cell<LocalTime>,
    /// Given up when the connection is closed, at the latest when it is freed.
    slot: Cell<Option<Slot>>,
}

impl DataTypeFunctions for Connection {
    fn mark(&self, marker: &gc::Marker) {
        for value in [self.io.get(), self.ssl.get()].into_iter().flatten() {
            marker.mark(value);
        }
    }
}

impl Connection {
    pub(crate) fn new(slot: Slot) -> Self {
        Self {
            io: Cell::new(None),
            ssl: Cell::new(None),
            parser: Cell::new(None),
            generation: fork::generation(),
            idle_since: Cell::new(LocalTime::now()),
            slot: Cell::new(Some(slot)),
        }
    }

    pub(crate) fn set_sockets(&self, io: Value, ssl: Option<Value>) {
        self.io.set(Some(io.into()));
        self.ssl.set(ssl.map(Opaque::from));
    }

    pub(crate) fn io(&self, ruby: &Ruby) -> Option<Value> {
        self.io.get().map(|io| io.get_inner_with(ruby))
    }

    pub(crate) fn ssl(&self, ruby: &Ruby) -> Option<Value> {
        self.ssl.get().map(|ssl| ssl.get_inner_with(ruby))
    }

    /// Taken out while a request is under way: nothing here is borrowed while Ruby runs.
    pub(crate) fn take_parser(&self) -> Box<redis::Parser> {
        self.parser.take().unwrap_or_else(|| Box::new(redis::Parser::new()))
    }

    pub(crate) fn put_parser(&self, parser: Box<redis::Parser>) {
        self.parser.set(Some(parser));
    }

    /// Whether it was opened before a fork: then it is the parent's.
    pub(crate) fn is_inherited(&self) -> bool {
        self.generation != fork::generation()
    }

    pub(crate) fn rest(&self) {
        self.idle_since.set(LocalTime::now());
    }

    pub(crate) fn idle_ms(&self) -> i64 {
        LocalTime::now().ms_since(self.idle_since.get())
    }

    /// Closes this process's copy of the socket and nothing else: no QUIT and no TLS goodbye, which would end the session of a
    /// parent that still uses it.
    ///
    /// # Errors
    /// Interrupts alone: nothing can be done about a socket that does not close.
    pub(crate) fn close(ruby: &Ruby, connection: Obj<Self>) -> Result<(), Error> {
        connection.ssl.set(None);
        connection.slot.set(None);
        let Some(io) = connection.io.take() else { return Ok(()) };
        match io.get_inner_with(ruby).funcall::<_, _, Value>("close", ()) {
            // Whatever else is raised here comes from another thread.
            Err(error)
                if !error.is_kind_of(ruby.exception_system_call_error()) && !error.is_kind_of(ruby.exception_io_error()) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Closes it where an interrupt is on its way to the caller: in a thread of its own, since closing may be interrupted, too, and
    /// leaves the descriptor open then. Where there can be no thread (the process ends, or has as many as it may), in this one.
    pub(crate) fn close_elsewhere(ruby: &Ruby, connection: Obj<Self>) {
        connection.ssl.set(None);
        connection.slot.set(None);
        let Some(io) = connection.io.take() else { return };
        let io = io.get_inner_with(ruby);
        // None of these looks for interrupts.
        let closing = io
            .funcall::<_, _, Value>("method", (ruby.to_symbol("close"),))
            .and_then(|close| close.funcall::<_, _, Proc>("to_proc", ()))
            .and_then(|close| {
                ruby.class_object().const_get::<_, RClass>("Thread")?.funcall_with_block::<_, _, Value>("new", (), close)
            });
        if closing.is_err() {
            let _ = io.funcall::<_, _, Value>("close", ());
        }
    }
}

/// Defines the class, which Ruby code never makes or calls.
pub(crate) fn init(ruby: &Ruby, module: RModule) -> Result<(), Error> {
    let class = module.define_class("Connection", ruby.class_object())?;
    class.undef_default_alloc_func();
    module.funcall::<_, _, Value>("private_constant", ("Connection",)).map(drop)
}
