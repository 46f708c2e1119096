//! The native part of the gem: Ruby objects become the core's types, the core's replies become Ruby objects, and a socket that
//! belongs to Ruby carries the bytes between. It knows no Redis command beyond those that open a connection.

#![allow(missing_docs, reason = "the one public function is written by a macro, for Ruby alone")]

mod class_methods;
mod connection;
mod connector;
mod convert;
mod fork;
mod guard;
mod handshake;
mod holders;
mod pool;
mod session;
mod sidekiq;
mod sweep;
mod task_monitor;
mod testing;
mod unreadable;
mod wait;
mod waiters;

use magnus::{Error, Ruby};

/// Called once by Ruby when the extension is loaded.
#[magnus::init]
fn init(ruby: &Ruby) -> Result<(), Error> {
    fork::watch();
    let module = ruby.define_module("PatientHttpMonitor")?;
    connection::init(ruby, module)?;
    pool::init(ruby, module)?;
    task_monitor::init(ruby, module)?;
    sweep::init(ruby, module)
}
