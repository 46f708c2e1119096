//! The processes: a capacity key with a TTL proves that one lives, and tells how much it can carry.

use crate::entries::{self, PAGE, members, server_us};
use crate::exchange::{command, eval, transaction, typed};
use crate::ids::host_and_pid;
use crate::keys::{self, GC_LOCK, PROCESS_SET};
use crate::{Error, LocalTime, ProcessId, RegistryId, Result, Ttl, scripts};
use redis::{ConnectionLike, Pipeline, Value};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What a process says when it shows that it lives.
#[derive(Clone, Copy, Debug)]
pub struct Ping<'a> {
    /// Who.
    pub process: &'a ProcessId,
    /// How many requests it can have in flight.
    pub capacity: i64,
    /// How long this proof of life holds.
    pub ttl: Ttl,
    /// The load of each of its processors, as JSON.
    pub processors: Option<&'a [u8]>,
}

/// What a ping found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingReport {
    /// Whether the last proof of life still held. If not, this process was silent for too long, or Redis was.
    pub was_alive: bool,
}

/// A reading of the server's clock, to be handed to a [`crate::ServerClock`].
#[derive(Clone, Copy, Debug)]
pub struct TimeReading {
    /// When the request was sent.
    pub sent: LocalTime,
    /// When its reply was read.
    pub received: LocalTime,
    /// The server's time, in us since the epoch.
    pub server_us: i64,
}

/// What is known of the live processes of one host and pid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests in flight.
    pub inflight: u64,
    /// Sum of the capacities.
    pub max_capacity: i64,
    /// The load of the processors, as JSON, of each process that told it.
    pub processors: Vec<Vec<u8>>,
}

/// The commands of a ping, to stand first in a transaction: [`read_ping`] reads their replies.
pub(crate) fn add_ping(pipe: &mut Pipeline, ping: &Ping<'_>) {
    let key = keys::capacity(ping.process.as_bytes());
    pipe.cmd("EXISTS").arg(&key);
    pipe.cmd("SADD").arg(PROCESS_SET).arg(ping.process.as_bytes());
    pipe.cmd("SET").arg(&key).arg(ping.capacity).arg("EX").arg(ping.ttl.as_secs());
    if let Some(json) = ping.processors {
        pipe.cmd("SET").arg(keys::processors(ping.process.as_bytes())).arg(json).arg("EX").arg(ping.ttl.as_secs());
    }
}

pub(crate) fn read_ping(replies: Vec<Value>) -> Result<PingReport> {
    let exists = replies.into_iter().next().ok_or_else(|| Error::reply("EXISTS", "no reply"))?;
    Ok(PingReport { was_alive: typed("EXISTS", exists)? })
}

/// Shows that a process lives: member of the set, capacity with its TTL, in one atomic step. Reads the server's clock on the
/// way.
///
/// # Errors
/// Whatever Redis answers to any of the commands, and failures of the connection.
pub fn ping(conn: &mut impl ConnectionLike, ping: &Ping<'_>) -> Result<(PingReport, TimeReading)> {
    let mut pipe = Pipeline::new();
    add_ping(&mut pipe, ping);
    pipe.cmd("TIME");
    let sent = LocalTime::now();
    let mut replies = transaction(conn, &mut pipe)?;
    let received = LocalTime::now();
    let time = replies.pop().ok_or_else(|| Error::reply("TIME", "no reply"))?;
    let reading = TimeReading { sent, received, server_us: server_us(time)? };
    Ok((read_ping(replies)?, reading))
}

/// Takes a process out: set, capacity key and processors in one atomic step.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn remove(conn: &mut impl ConnectionLike, process: &ProcessId) -> Result<()> {
    let mut pipe = Pipeline::new();
    pipe.cmd("SREM").arg(PROCESS_SET).arg(process.as_bytes());
    pipe.cmd("DEL").arg(keys::capacity(process.as_bytes())).arg(keys::processors(process.as_bytes()));
    transaction(conn, &mut pipe).map(drop)
}

/// The members of the process set, dead or alive, in no order.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn registered(conn: &mut impl ConnectionLike) -> Result<Vec<Vec<u8>>> {
    // A scan may return a member twice.
    let mut found = HashSet::new();
    members(conn, |process| {
        found.insert(process);
    })?;
    Ok(found.into_iter().collect())
}

/// The live ones among `processes` with their capacities. Those that do not live leave the process set, in the same atomic
/// step in which they are found dead.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn live(conn: &mut impl ConnectionLike, processes: &[Vec<u8>]) -> Result<HashMap<Vec<u8>, i64>> {
    let mut found = HashMap::new();
    for page in processes.chunks(PAGE / 2) {
        let capacity_keys: Vec<_> = page.iter().map(|process| keys::capacity(process)).collect();
        let mut all_keys = vec![PROCESS_SET.as_bytes(), GC_LOCK.as_bytes()];
        all_keys.extend(capacity_keys.iter().map(Vec::as_slice));
        let args: Vec<_> = page.iter().map(Vec::as_slice).collect();
        let capacities: Vec<Option<Vec<u8>>> = eval(conn, &scripts::CAPACITIES, &all_keys, &args)?;
        for (process, capacity) in page.iter().zip(capacities) {
            if let Some(text) = capacity {
                found.insert(process.clone(), capacity_from(&text));
            }
        }
    }
    Ok(found)
}

/// Load by `HOST:PID`, for every live member of the process set; two processes with one host and pid are summed. What their
/// processors carry is read only where it is wanted.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn loads(conn: &mut impl ConnectionLike, with_processors: bool) -> Result<BTreeMap<Vec<u8>, Load>> {
    let members = registered(conn)?;
    let mut by_process: HashMap<Vec<u8>, Load> = live(conn, &members)?
        .into_iter()
        .map(|(process, max_capacity)| (process, Load { max_capacity, ..Load::default() }))
        .collect();
    if with_processors {
        add_processors(conn, &mut by_process)?;
    }
    if !by_process.is_empty() {
        entries::scan(conn, None, |id, _| {
            if let Some(load) = by_process.get_mut(RegistryId(id).process()) {
                load.inflight += 1;
            }
        })?;
    }
    let mut loads: BTreeMap<Vec<u8>, Load> = BTreeMap::new();
    for (process, load) in by_process {
        let sum = loads.entry(host_and_pid(&process).to_vec()).or_default();
        sum.inflight += load.inflight;
        sum.max_capacity = sum.max_capacity.saturating_add(load.max_capacity);
        sum.processors.extend(load.processors);
    }
    Ok(loads)
}

fn add_processors(conn: &mut impl ConnectionLike, loads: &mut HashMap<Vec<u8>, Load>) -> Result<()> {
    let processes: Vec<_> = loads.keys().cloned().collect();
    for page in processes.chunks(PAGE / 2) {
        let texts = texts_of(conn, page, keys::processors)?;
        for (process, text) in page.iter().zip(texts) {
            if let Some(load) = loads.get_mut(process) {
                load.processors.extend(text);
            }
        }
    }
    Ok(())
}

/// What stands under a key of each process. Keys of another type hold nothing.
fn texts_of(
    conn: &mut impl ConnectionLike,
    processes: &[Vec<u8>],
    key: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<Vec<Option<Vec<u8>>>> {
    let mut cmd = redis::cmd("MGET");
    for process in processes {
        cmd.arg(key(process));
    }
    command(conn, "MGET", &cmd)
}

/// Sum of the capacities of the members of the process set.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn total_capacity(conn: &mut impl ConnectionLike) -> Result<i64> {
    let members = registered(conn)?;
    let mut sum = 0_i64;
    for page in members.chunks(PAGE / 2) {
        for text in texts_of(conn, page, keys::capacity)?.into_iter().flatten() {
            sum = sum.saturating_add(capacity_from(&text));
        }
    }
    Ok(sum)
}

/// Another version may have written something else than a whole number: a fraction is cut, what is no number, or less than
/// nothing, carries nothing.
#[expect(clippy::cast_possible_truncation, reason = "`as` saturates, which is what is wanted")]
fn capacity_from(text: &[u8]) -> i64 {
    let Ok(text) = std::str::from_utf8(text) else { return 0 };
    let text = text.trim();
    let finite = || text.parse::<f64>().ok().filter(|number| number.is_finite()).map(|number| number as i64);
    text.parse().ok().or_else(finite).unwrap_or(0).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capacity_that_is_no_whole_number_is_read_sensibly() {
        assert_eq!(capacity_from(b"256"), 256);
        assert_eq!(capacity_from(b" 10.9 "), 10);
        assert_eq!(capacity_from(b"many"), 0);
        assert_eq!(capacity_from(b"inf"), 0);
        assert_eq!(capacity_from(b"-1000"), 0);
        assert_eq!(capacity_from(b""), 0);
        assert_eq!(capacity_from(b"\xff"), 0);
    }
}
