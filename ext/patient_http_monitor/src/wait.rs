//! Waiting is Ruby's: `rb_io_wait` releases the GVL in a plain thread, yields only the fiber under a Fiber scheduler, and can be
//! interrupted in either.

use inflight_registry::LocalTime;
use magnus::rb_sys::{AsRawValue, protect};
use magnus::value::ReprValue;
use magnus::{Error, Ruby, Value};
use std::os::fd::RawFd;

/// What to wait for: the `RUBY_IO_READABLE` and `RUBY_IO_WRITABLE` of `ruby/io.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Readable = 1,
    Writable = 4,
}

/// Waits until `io` is ready, at most `timeout` s (no limit when none); false when the time is over.
///
/// # Errors
/// Whatever interrupts the wait: `Thread#kill`, `Timeout`, a signal's exception, the IO closed by another thread.
pub(crate) fn io_wait(ruby: &Ruby, io: Value, event: Event, timeout: Option<f64>) -> Result<bool, Error> {
    let started = LocalTime::now();
    let mut left = timeout;
    loop {
        if wait_once(ruby, io, event, left)? {
            return Ok(true);
        }
        // The word of a Fiber scheduler is not enough: a wakeup that an earlier wait of the fiber no longer needed may end this
        // one, too early, and that looks the same (async before 2.45).
        if let Some(seconds) = timeout {
            #[expect(clippy::cast_precision_loss, reason = "a few seconds, in ms")]
            let waited = LocalTime::now().ms_since(started) as f64 / 1_000.0;
            if waited >= seconds {
                return Ok(false);
            }
            left = Some(seconds - waited);
        }
    }
}

fn wait_once(ruby: &Ruby, io: Value, event: Event, timeout: Option<f64>) -> Result<bool, Error> {
    let events = ruby.integer_from_i64(event as i64);
    let timeout = timeout.map_or_else(|| ruby.qnil().as_value(), |seconds| ruby.float_from_f64(seconds).as_value());
    // SAFETY: the three are live Ruby objects on this stack, the GVL is held, and `protect` catches whatever is raised.
    let ready = protect(|| unsafe { rb_sys::rb_io_wait(io.as_raw(), events.as_raw(), timeout.as_raw()) })?;
    Ok(ready != ruby.qfalse().as_raw() && ready != ruby.qnil().as_raw())
}

/// The file descriptor of an open IO. Asked for before each use: an IO that someone closed must not lend its number to
/// another's file.
///
/// # Errors
/// IOError when the IO is closed.
pub(crate) fn descriptor(io: Value) -> Result<RawFd, Error> {
    let mut fd = -1;
    protect(|| {
        // SAFETY: `io` is a live IO on this stack, the GVL is held, and `protect` catches the IOError of a closed one.
        fd = unsafe { rb_sys::rb_io_descriptor(io.as_raw()) };
        rb_sys::Qnil as rb_sys::VALUE
    })?;
    Ok(fd)
}
