//! No panic reaches Ruby: magnus would raise `fatal`, which no `rescue` catches and which ends the process.

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
