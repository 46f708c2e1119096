//! The entries of the registry: a request goes in when it starts, shows that it is alive, and goes out when it has ended.

use crate::exchange::{command, eval, pipeline, transaction_of, typed};
use crate::keys::{DETAILS, DETAILS_INDEX, INDEX, JOBS, PREFIX, PROCESS_SET};
use crate::processes::{self, Ping, PingReport};
use crate::{Error, Millis, ProcessId, RegistryId, Result, Ttl, details, keys, scripts};
use redis::{ConnectionLike, Pipeline};
use std::collections::HashMap;

/// How many ids one command takes at most, so that no one else waits long for Redis.
const CHUNK: usize = 500;
/// How many entries a page of a scan asks for.
pub(crate) const PAGE: usize = 1_000;

/// A request as it goes into the registry.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Whose it is, and which.
    pub id: &'a RegistryId,
    /// The Sidekiq job, as JSON.
    pub payload: &'a [u8],
    /// What people may see of the request, as JSON.
    pub details: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    /// One that shows nothing of itself.
    #[must_use]
    pub const fn new(id: &'a RegistryId, payload: &'a [u8]) -> Self {
        Self { id, payload, details: None }
    }
}

/// Enters a request: index entry, job, details and the TTL of their keys in one atomic step, with a ping of its process in the
/// same step where one is due.
///
/// # Errors
/// Whatever Redis answers to any of the commands but those of the details, and failures of the connection.
pub fn register(
    conn: &mut impl ConnectionLike,
    entry: &Entry<'_>,
    now: Millis,
    ttl: Ttl,
    ping: Option<&Ping<'_>>,
) -> Result<Option<PingReport>> {
    let mut pipe = Pipeline::new();
    if let Some(ping) = ping {
        processes::add_ping(&mut pipe, ping);
    }
    let id = entry.id.as_bytes();
    pipe.cmd("ZADD").arg(INDEX).arg(now.0).arg(id);
    pipe.cmd("HSET").arg(JOBS).arg(id).arg(entry.payload);
    add_expiry(&mut pipe, ttl);
    let essential = pipe.len();
    if let Some(json) = entry.details {
        details::add(&mut pipe, id, json, now);
        details::add_expiry(&mut pipe, ttl);
    }
    let replies = transaction_of(conn, &mut pipe, essential)?;
    ping.map(|_| processes::read_ping(replies)).transpose()
}

/// Takes a request out: index entry and job, and its details where it has some, in one atomic step. Not being there is no error.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn unregister(conn: &mut impl ConnectionLike, id: &RegistryId, has_details: bool) -> Result<()> {
    let mut pipe = Pipeline::new();
    pipe.cmd("ZREM").arg(INDEX).arg(id.as_bytes());
    pipe.cmd("HDEL").arg(JOBS).arg(id.as_bytes());
    let essential = pipe.len();
    if has_details {
        details::remove(&mut pipe, id.as_bytes());
    }
    match transaction_of(conn, &mut pipe, essential) {
        // When its memory is full, Redis 7.0 queues nothing, not even what makes room. A script that only removes may run.
        Err(full) if full.code() == Some("OOM") => {
            let keys = [INDEX, JOBS, DETAILS_INDEX, DETAILS].map(str::as_bytes);
            match eval::<()>(conn, &scripts::UNREGISTER, &keys, &[id.as_bytes()]) {
                // Scripts are forbidden, for instance: the caller is told what began it.
                Err(Error::Server { .. }) => Err(full),
                outcome => outcome,
            }
        }
        outcome => outcome.map(drop),
    }
}

/// Refreshes the scores of those entries that exist, and the TTL of the registry's keys, in one write. Adds nothing.
///
/// # Errors
/// Whatever Redis answers to any of the commands, and failures of the connection.
pub fn heartbeat(conn: &mut impl ConnectionLike, ids: &[RegistryId], now: Millis, ttl: Ttl) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut pipe = Pipeline::new();
    for chunk in ids.chunks(CHUNK) {
        pipe.cmd("ZADD").arg(INDEX).arg("XX");
        for id in chunk {
            pipe.arg(now.0).arg(id.as_bytes());
        }
    }
    add_expiry(&mut pipe, ttl);
    details::add_expiry(&mut pipe, ttl);
    pipeline(conn, &pipe).map(drop)
}

/// When the entry's last heartbeat was; none when it is not registered.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn heartbeat_of(conn: &mut impl ConnectionLike, id: &RegistryId) -> Result<Option<Millis>> {
    let score: Option<f64> = command(conn, "ZSCORE", redis::cmd("ZSCORE").arg(INDEX).arg(id.as_bytes()))?;
    Ok(score.map(millis))
}

/// How many entries there are.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn count(conn: &mut impl ConnectionLike) -> Result<u64> {
    command(conn, "ZCARD", redis::cmd("ZCARD").arg(INDEX))
}

/// The registry ids of one process, oldest heartbeat first. The server filters; what another process registered does not
/// travel.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn of_process(conn: &mut impl ConnectionLike, process: &ProcessId) -> Result<Vec<RegistryId>> {
    let prefix = [process.as_bytes(), b"/"].concat();
    let pattern = [escape_glob(&prefix).as_slice(), b"*"].concat();
    // A scan may return an entry twice.
    let mut found = HashMap::new();
    scan(conn, Some(&pattern), |id, score| {
        if id.starts_with(&prefix) {
            found.insert(RegistryId(id), millis(score));
        }
    })?;
    let mut found: Vec<_> = found.into_iter().map(|(id, score)| (score, id)).collect();
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

/// Deletes the registry: every key of this crate in this database.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn clear(conn: &mut impl ConnectionLike) -> Result<()> {
    // Capacity keys are found by their name, so that those of processes that left the set go too.
    let pattern = [escape_glob(PREFIX.as_bytes()).as_slice(), b"*"].concat();
    let mut cursor = 0_u64;
    loop {
        let (next, page): (u64, Vec<Vec<u8>>) =
            command(conn, "SCAN", redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(PAGE))?;
        let ours: Vec<_> = page.into_iter().filter(|key| keys::is_ours(key)).collect();
        if !ours.is_empty() {
            command::<u64>(conn, "UNLINK", redis::cmd("UNLINK").arg(&ours))?;
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Reads the whole index in pages, so that memory stays bounded however many entries there are. One that is there all the
/// time is seen at least once.
pub(crate) fn scan(conn: &mut impl ConnectionLike, pattern: Option<&[u8]>, mut each: impl FnMut(Vec<u8>, f64)) -> Result<()> {
    let mut cursor = 0_u64;
    loop {
        let mut cmd = redis::cmd("ZSCAN");
        cmd.arg(INDEX).arg(cursor);
        if let Some(pattern) = pattern {
            cmd.arg("MATCH").arg(pattern);
        }
        cmd.arg("COUNT").arg(PAGE);
        let (next, page): (u64, Vec<(Vec<u8>, f64)>) = command(conn, "ZSCAN", &cmd)?;
        for (id, score) in page {
            each(id, score);
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

/// Reads a set in pages.
pub(crate) fn members(conn: &mut impl ConnectionLike, mut each: impl FnMut(Vec<u8>)) -> Result<()> {
    let mut cursor = 0_u64;
    loop {
        let (next, page): (u64, Vec<Vec<u8>>) =
            command(conn, "SSCAN", redis::cmd("SSCAN").arg(PROCESS_SET).arg(cursor).arg("COUNT").arg(PAGE))?;
        page.into_iter().for_each(&mut each);
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

pub(crate) fn add_expiry(pipe: &mut Pipeline, ttl: Ttl) {
    for key in [INDEX, JOBS] {
        pipe.cmd("EXPIRE").arg(key).arg(ttl.as_secs());
    }
}

/// A score as a moment. Another version may have written a fraction; what lies beyond the range ends at its border.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, which is what is wanted")]
pub(crate) fn millis(score: f64) -> Millis {
    Millis(score as i64)
}

/// Escapes what MATCH takes for a pattern: a host name may hold any of it.
fn escape_glob(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for &byte in text {
        if matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'^' | b'-') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// The server's time out of a reply to TIME, in us since the epoch.
pub(crate) fn server_us(value: redis::Value) -> Result<i64> {
    let (seconds, us): (i64, i64) = typed("TIME", value)?;
    seconds
        .checked_mul(1_000_000)
        .and_then(|whole| whole.checked_add(us))
        .ok_or_else(|| Error::reply("TIME", "a time beyond the range of 64 bits"))
}

/// Asks the server for its time, in us since the epoch.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn server_time(conn: &mut impl ConnectionLike) -> Result<i64> {
    server_us(command(conn, "TIME", &redis::cmd("TIME"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glob_characters_of_a_host_name_stand_for_themselves() {
        assert_eq!(escape_glob(b"a*b?c[d]"), b"a\\*b\\?c\\[d\\]");
        assert_eq!(escape_glob(b"h:1/"), b"h:1/");
    }

    #[test]
    fn scores_of_other_versions_are_read_sensibly() {
        assert_eq!(millis(1_700_000_000_000.75), Millis(1_700_000_000_000));
        assert_eq!(millis(f64::INFINITY), Millis(i64::MAX));
        assert_eq!(millis(f64::NAN), Millis(0));
    }
}
