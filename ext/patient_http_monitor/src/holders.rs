//! Which threads are in the middle of a call of a pool. One that died there had fibers that never unwind, and each of them keeps
//! its connection until the garbage collector frees it. Nothing else is worth a run of the collector, for which every fiber of a
//! reactor waits.

use magnus::rb_sys::AsRawValue;
use magnus::value::{InnerValue, Opaque, ReprValue};
use magnus::{Error, Ruby, Value, gc};
use std::cell::RefCell;

/// How many threads there may be before the dead ones among them are forgotten.
const MANY: usize = 100;

#[derive(Clone, Copy)]
struct Holder {
    thread: Opaque<Value>,
    calls: usize,
}

/// The threads, each with the number of its calls. Only touched under the GVL, and never borrowed while Ruby runs.
#[derive(Default)]
pub(crate) struct Holders(RefCell<Vec<Holder>>);

/// One call, until its frame unwinds.
pub(crate) struct Call<'pool> {
    holders: &'pool Holders,
    ruby: &'pool Ruby,
    thread: Value,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut holders = self.holders.0.borrow_mut();
        if let Some(place) = place_of(self.ruby, &holders, self.thread)
            && let Some(holder) = holders.get_mut(place)
        {
            holder.calls = holder.calls.saturating_sub(1);
            if holder.calls == 0 {
                holders.swap_remove(place);
            }
        }
    }
}

impl Holders {
    pub(crate) fn mark(&self, marker: &gc::Marker) {
        if let Ok(holders) = self.0.try_borrow() {
            for holder in holders.iter() {
                marker.mark(holder.thread);
            }
        }
    }

    /// # Errors
    /// Interrupts.
    pub(crate) fn begin<'pool>(&'pool self, ruby: &'pool Ruby) -> Result<Call<'pool>, Error> {
        if self.0.borrow().len() > MANY {
            self.forget_dead(ruby)?;
        }
        let thread = ruby.thread_current().as_value();
        let mut holders = self.0.borrow_mut();
        match place_of(ruby, &holders, thread).and_then(|place| holders.get_mut(place)) {
            Some(holder) => holder.calls += 1,
            None => holders.push(Holder { thread: thread.into(), calls: 1 }),
        }
        Ok(Call { holders: self, ruby, thread })
    }

    /// Whether a thread died in the middle of a call.
    ///
    /// # Errors
    /// Interrupts.
    pub(crate) fn any_dead(&self, ruby: &Ruby) -> Result<bool, Error> {
        let threads = self.threads(ruby);
        for thread in threads {
            if !is_alive(thread)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// # Errors
    /// Interrupts.
    pub(crate) fn forget_dead(&self, ruby: &Ruby) -> Result<(), Error> {
        for thread in self.threads(ruby) {
            if !is_alive(thread)? {
                self.0.borrow_mut().retain(|holder| holder.thread.get_inner_with(ruby).as_raw() != thread.as_raw());
            }
        }
        Ok(())
    }

    /// In a forked child: the threads are the parent's.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// In an array of Ruby's: the list may change while Ruby runs.
    fn threads(&self, ruby: &Ruby) -> magnus::RArray {
        ruby.ary_from_iter(self.0.borrow().iter().map(|holder| holder.thread.get_inner_with(ruby)))
    }
}

fn place_of(ruby: &Ruby, holders: &[Holder], thread: Value) -> Option<usize> {
    holders.iter().position(|holder| holder.thread.get_inner_with(ruby).as_raw() == thread.as_raw())
}

fn is_alive(thread: Value) -> Result<bool, Error> {
    thread.funcall("alive?", ())
}
