//! What must reach Ruby, and what must not. No panic does: magnus would raise `fatal`, which no `rescue` catches and which ends the
//! process. A kill always does: lost once, it can never be made again.

use magnus::{Error, Ruby};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the body of a method; a panic in it becomes a RuntimeError that says so.
pub(crate) fn method<T>(ruby: &Ruby, body: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let message =
            format!("patient_http_monitor: internal error, please report it: {}", text.unwrap_or("a panic without a message"));
        Err(Error::new(ruby.exception_runtime_error(), message))
    })
}

/// Clears away while `held` is on its way to the caller, and returns what goes on: of two the kill.
pub(crate) fn clearing_away(held: Error, mut clear_away: impl FnMut() -> Result<(), Error>) -> Error {
    if is_kill(&held) {
        in_ensure(|| drop(clear_away()));
        return held;
    }
    match clear_away() {
        Err(second) if is_kill(&second) => second,
        _ => held,
    }
}

/// Whether it is no exception: a kill, or a throw.
fn is_kill(error: &Error) -> bool {
    error.value().is_none()
}

/// A kill lives in Ruby's `$!` as a number until it goes on. There Ruby code that rescues anything would wipe it out, and putting it
/// back after an exception raises TypeError. `rb_ensure` alone takes it out of the way and puts it back.
fn in_ensure<F: FnMut()>(mut clear_away: F) {
    unsafe extern "C" fn nothing(_: rb_sys::VALUE) -> rb_sys::VALUE {
        rb_sys::Qnil as rb_sys::VALUE
    }
    unsafe extern "C" fn call<F: FnMut()>(data: rb_sys::VALUE) -> rb_sys::VALUE {
        // SAFETY: the address of the closure below, which lives on the same stack until `rb_ensure` returns.
        let clear_away = unsafe { &mut *(data as *mut F) };
        let _ = catch_unwind(AssertUnwindSafe(clear_away));
        rb_sys::Qnil as rb_sys::VALUE
    }
    let data = std::ptr::from_mut(&mut clear_away) as rb_sys::VALUE;
    // SAFETY: the GVL is held, and neither function raises: every call into Ruby within the closure is protected.
    unsafe { rb_sys::rb_ensure(Some(nothing), rb_sys::Qnil as rb_sys::VALUE, Some(call::<F>), data) };
}
