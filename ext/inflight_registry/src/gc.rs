//! Who sweeps, and when the last sweep was: one collector at a time is enough, though two do no harm.

use crate::entries::{millis, server_us};
use crate::exchange::{Attempt, command, eval, pipeline, typed};
use crate::keys::{self, GC_LAST_RUN, GC_LOCK, PROCESS_SET};
use crate::{Error, Millis, ProcessId, Result, Ttl, scripts};
use redis::{ConnectionLike, Pipeline};

/// Takes the lock if nobody holds it, or if its holder is dead: a member of the process set without a capacity key.
///
/// Holding it already counts as not acquired, if the caller knows (`held`). If it does not, an earlier try took the lock, whose
/// answer was lost in a repeat or a timeout: then it counts as acquired, and has its full TTL again.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn acquire_lock(conn: &mut impl ConnectionLike, process: &ProcessId, ttl: Ttl, held: bool) -> Result<bool> {
    let (ttl, held) = (ttl.as_secs().to_string(), u8::from(held).to_string());
    let args = [process.as_bytes(), ttl.as_bytes(), held.as_bytes()];
    let holder: Option<Vec<u8>> = eval(conn, &scripts::ACQUIRE_LOCK, &[GC_LOCK.as_bytes()], &args)?;
    let Some(holder) = holder else { return Ok(true) };
    if holder == process.as_bytes() {
        return Ok(false);
    }
    eval(
        conn,
        &scripts::TAKE_OVER_LOCK,
        &[GC_LOCK.as_bytes(), PROCESS_SET.as_bytes(), &keys::capacity(&holder)],
        &[process.as_bytes(), ttl.as_bytes(), &holder],
    )
}

/// Gives the lock back, if it is ours. In a repeated call a lock that nobody holds counts as given back by the first try.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn release_lock(conn: &mut impl ConnectionLike, process: &ProcessId, attempt: Attempt) -> Result<bool> {
    let outcome: i64 = eval(conn, &scripts::RELEASE_LOCK, &[GC_LOCK.as_bytes()], &[process.as_bytes()])?;
    Ok(outcome == 1 || (outcome == -1 && attempt == Attempt::Repeat))
}

/// Gives the lock its full TTL again; false when it is not ours.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn renew_lock(conn: &mut impl ConnectionLike, process: &ProcessId, ttl: Ttl) -> Result<bool> {
    let ttl = ttl.as_secs().to_string();
    eval(conn, &scripts::RENEW_LOCK, &[GC_LOCK.as_bytes()], &[process.as_bytes(), ttl.as_bytes()])
}

/// Whether `interval_ms` have passed since the last run, or none is on record. Both times are the server's, `shift` ms added. A run
/// that lies further ahead than the next one is due is none: it would keep everyone from sweeping.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn is_due(conn: &mut impl ConnectionLike, interval_ms: i64, shift: i64) -> Result<bool> {
    let mut pipe = Pipeline::new();
    pipe.cmd("TIME");
    // As a list: a key of another type is as good as no record, and goes with the next one.
    pipe.cmd("MGET").arg(GC_LAST_RUN);
    let mut replies = pipeline(conn, &pipe)?.into_iter();
    let (Some(time), Some(last)) = (replies.next(), replies.next()) else {
        return Err(Error::reply("MGET", "two replies expected"));
    };
    let now = Millis(server_us(time)?.div_euclid(1_000)).ahead(shift);
    let last = typed::<Vec<Option<Vec<u8>>>>("MGET", last)?.into_iter().next().flatten();
    // What is no number was written by no version of ours: as good as no record.
    let last = last.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse().ok());
    let last = last.filter(|last: &f64| last.is_finite()).map(millis);
    Ok(last.is_none_or(|last| now >= last.ahead(interval_ms) || last > now.ahead(interval_ms)))
}

/// Records a run that ended now.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn record_run(conn: &mut impl ConnectionLike, now: Millis, ttl: Ttl) -> Result<()> {
    command::<()>(conn, "SET", redis::cmd("SET").arg(GC_LAST_RUN).arg(now.0).arg("EX").arg(ttl.as_secs()))
}
