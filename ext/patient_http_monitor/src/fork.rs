//! Tells a forked child from its parent by one atomic read.

use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Counts forks from now on, by whatever means they happen: `Process._fork` is not called by every daemonizer.
pub(crate) fn watch() {
    // SAFETY: the handler only adds to an atomic, which is safe in a child of a process with threads.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
}

/// A number that is another one in each forked child.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}
