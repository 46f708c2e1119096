//! The registry of HTTP requests in flight, kept in Redis: which process has which request open, the Sidekiq job that asked
//! for it, and how the jobs of a process that died find their way back.
//!
//! Everything here is written against [`redis::ConnectionLike`] and has never heard of Ruby. Whoever calls supplies the
//! connection, the time (a [`ServerClock`]) and the push to Sidekiq's queue.

pub mod clock;
pub mod details;
pub mod entries;
pub mod error;
mod exchange;
pub mod gc;
pub mod ids;
mod job;
pub mod keys;
pub mod processes;
pub mod recovery;
mod scripts;
pub mod units;

pub use clock::{LocalTime, ServerClock};
pub use error::{Error, Result};
pub use exchange::Attempt;
pub use ids::{ProcessId, RegistryId};
pub use scripts::{RELEASE_IF_HELD, REMOVE_IF_ORPHANED, sha1};
pub use units::{Millis, Ttl};
