//! How the jobs of a dead process find their way back: lease, push, settle.
//!
//! A collector first *leases* an orphan (its score becomes a fresh heartbeat), then pushes the job, then *settles*: removes the
//! entry if the lease is still its own. Whatever dies when, the job is in the registry, in the queue, or for a blink in both;
//! never in neither. The push is the caller's, between [`Sweep::claim`] and [`settle`].

use crate::entries::{add_expiry, server_us};
use crate::exchange::{command, eval, pipeline, typed};
use crate::keys::{self, INDEX, JOBS};
use crate::{Error, Millis, ProcessId, RegistryId, Result, Ttl, processes, scripts};
use redis::{ConnectionLike, Pipeline};
use serde::Deserialize;
use std::collections::{HashMap, HashSet, VecDeque};

/// How many stale entries a page holds.
const PAGE: usize = 500;
/// How many orphans a claim takes at most,
const CLAIM: usize = 100;
/// and how many bytes of jobs, unless a single one has more.
const CLAIM_BYTES: usize = 1_000_000;
/// How many jobs a page of [`Sweep::restore`] looks at.
const RESTORE: usize = 100;

/// Everything that a sweep must know from the start.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Who sweeps.
    pub process: &'a ProcessId,
    /// An entry is stale when its heartbeat is older than this, in ms. 0 or less takes everything before now.
    pub threshold_ms: i64,
    /// Added to the server's time, in ms: 0 but for tests that travel in time.
    pub shift: i64,
    /// The TTL of the registry's keys, which a sweep renews.
    pub ttl: Ttl,
}

/// An orphan on lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its entry.
    pub id: RegistryId,
    /// The job, byte for byte as it was registered.
    pub payload: Vec<u8>,
    /// What its recoveries are counted by: the jid, or the task id of a job that has none.
    pub counted_by: Vec<u8>,
    /// How often it was recovered within the window so far.
    pub recoveries: u64,
}

/// What one step of a sweep brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The lease that all of `claimed` have.
    pub lease: Millis,
    /// Orphans, now leased.
    pub claimed: Vec<Claimed>,
    /// Orphans that had no job, now removed.
    pub ghosts: Vec<RegistryId>,
}

/// What became of an entry whose job was handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Removed.
    Removed,
    /// Gone already: a try before this one removed it, or its process unregistered it.
    Gone,
    /// The lease is someone else's now, or its process is back: not removed.
    LeaseLost,
}

/// Ids with their payloads.
type Leased = Vec<(Vec<u8>, Vec<u8>)>;

/// Where the next page begins: behind this entry.
#[derive(Clone, Debug)]
struct Cursor {
    id: Vec<u8>,
    /// As the server wrote it: a float that went through a parser may differ.
    score: Vec<u8>,
    /// How many entries of this very score have been seen: the place, should the entry itself move away.
    equal: usize,
}

/// One sweep over the stale entries.
#[derive(Debug)]
pub struct Sweep {
    cutoff: Millis,
    shift: i64,
    ttl: Ttl,
    cursor: Option<Cursor>,
    /// Processes found alive in this pass: their entries are passed over without asking again.
    alive: HashSet<Vec<u8>>,
    /// Entries of dead processes that this page brought and no claim has looked at yet.
    candidates: VecDeque<RegistryId>,
    /// Whether this pass found anything: if so, another one looks for what it may have missed.
    progress: bool,
    /// Whether there are jobs that the index does not know.
    unindexed: bool,
    restore_cursor: Option<Vec<u8>>,
}

/// What a collector finds when it begins.
#[derive(Debug)]
pub enum Begun {
    /// It may sweep.
    Ready(Sweep),
    /// Its own proof of life has run out although it pinged: it was silent for too long, or Redis was down, and then everyone
    /// looks dead who is not.
    NotAlive,
}

impl Sweep {
    /// Begins: fixes the cut-off for the whole sweep and renews the TTL of the registry. `must_be_alive` makes a collector
    /// whose own capacity key is gone stop here.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection.
    pub fn begin(conn: &mut impl ConnectionLike, plan: &Plan<'_>, must_be_alive: bool) -> Result<Begun> {
        let mut pipe = Pipeline::new();
        pipe.cmd("TIME");
        pipe.cmd("EXISTS").arg(keys::capacity(plan.process.as_bytes()));
        pipe.cmd("HLEN").arg(JOBS);
        pipe.cmd("ZCARD").arg(INDEX);
        add_expiry(&mut pipe, plan.ttl);
        let replies = pipeline(conn, "EXISTS", &pipe)?;
        let mut replies = replies.into_iter();
        let mut next = || replies.next().ok_or_else(|| Error::reply("EXISTS", "too few replies"));
        let now = Millis(server_us(next()?)?.div_euclid(1_000)).ahead(plan.shift);
        let alive: bool = typed("EXISTS", next()?)?;
        let jobs: u64 = typed("HLEN", next()?)?;
        let entries: u64 = typed("ZCARD", next()?)?;
        if must_be_alive && !alive {
            return Ok(Begun::NotAlive);
        }
        Ok(Begun::Ready(Self {
            cutoff: now.back(plan.threshold_ms),
            shift: plan.shift,
            ttl: plan.ttl,
            cursor: None,
            alive: HashSet::new(),
            candidates: VecDeque::new(),
            progress: false,
            unindexed: jobs > entries,
            restore_cursor: None,
        }))
    }

    /// The next step: up to 100 orphans on lease, or an empty batch where there was nothing to lease on this page. None when a
    /// whole pass found nothing more.
    ///
    /// Repeating it after a lost answer is harmless: what the first try leased is no longer stale, and turns stale again when
    /// the lease runs out.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection. The sweep can go on afterwards.
    pub fn claim(&mut self, conn: &mut impl ConnectionLike) -> Result<Option<Batch>> {
        if !self.candidates.is_empty() {
            return self.claim_candidates(conn).map(Some);
        }
        if self.next_page(conn)? {
            return Ok(Some(self.empty_batch()));
        }
        if !self.progress {
            return Ok(None);
        }
        self.progress = false;
        self.cursor = None;
        self.alive.clear();
        Ok(Some(self.empty_batch()))
    }

    fn empty_batch(&self) -> Batch {
        Batch { lease: self.cutoff, claimed: Vec::new(), ghosts: Vec::new() }
    }

    /// Reads a page and keeps the entries whose process is dead. False at the end of the stale entries.
    fn next_page(&mut self, conn: &mut impl ConnectionLike) -> Result<bool> {
        let (cutoff, size) = (self.cutoff.0.to_string(), PAGE.to_string());
        let mut args = vec![cutoff.as_bytes(), size.as_bytes()];
        let equal;
        if let Some(cursor) = &self.cursor {
            equal = cursor.equal.to_string();
            args.extend([cursor.id.as_slice(), cursor.score.as_slice(), equal.as_bytes()]);
        }
        let page: Vec<(Vec<u8>, Vec<u8>)> = eval(conn, &scripts::PAGE, &[INDEX.as_bytes()], &args)?;
        let Some((last_id, last_score)) = page.last().cloned() else { return Ok(false) };

        let ids: Vec<_> = page.iter().map(|(id, _)| RegistryId(id.clone())).collect();
        let unknown: HashSet<_> =
            ids.iter().map(RegistryId::process).filter(|process| !self.alive.contains(*process)).collect();
        let unknown: Vec<_> = unknown.into_iter().map(<[u8]>::to_vec).collect();
        self.alive.extend(processes::live(conn, &unknown)?.into_keys());
        self.candidates.extend(ids.into_iter().filter(|id| !self.alive.contains(id.process())));

        let in_page = page.iter().filter(|(_, score)| *score == last_score).count();
        let before = match &self.cursor {
            Some(cursor) if cursor.score == last_score => cursor.equal,
            _ => 0,
        };
        self.cursor = Some(Cursor { id: last_id, score: last_score, equal: before + in_page });
        Ok(true)
    }

    fn claim_candidates(&mut self, conn: &mut impl ConnectionLike) -> Result<Batch> {
        let ids: Vec<_> = self.candidates.iter().take(CLAIM).cloned().collect();
        let mut positions: HashMap<&[u8], usize> = HashMap::new();
        let mut capacity_keys = Vec::new();
        for id in &ids {
            positions.entry(id.process()).or_insert_with(|| {
                capacity_keys.push(keys::capacity(id.process()));
                capacity_keys.len() + 2
            });
        }
        let mut all_keys = vec![INDEX.as_bytes(), JOBS.as_bytes()];
        all_keys.extend(capacity_keys.iter().map(Vec::as_slice));
        let numbers = [self.cutoff.0.to_string(), self.shift.to_string(), CLAIM_BYTES.to_string()];
        let positions: Vec<_> =
            ids.iter().map(|id| positions.get(id.process()).copied().unwrap_or_default().to_string()).collect();
        let mut args: Vec<&[u8]> = numbers.iter().map(String::as_bytes).collect();
        for (id, position) in ids.iter().zip(&positions) {
            args.extend([id.as_bytes(), position.as_bytes()]);
        }
        let (looked, lease, leased, ghosts): (usize, i64, Leased, Vec<Vec<u8>>) =
            eval(conn, &scripts::CLAIM, &all_keys, &args)?;
        // From here on the entries are leased: whatever fails, they are not candidates any more.
        self.candidates.drain(..looked.min(self.candidates.len()));
        self.progress |= !leased.is_empty() || !ghosts.is_empty();
        let claimed = count_recoveries(conn, leased)?;
        Ok(Batch { lease: Millis(lease), claimed, ghosts: ghosts.into_iter().map(RegistryId).collect() })
    }

    /// Puts a page of jobs that have no index entry back into the index, with the score of now. None when all have been looked
    /// at, or when there are no more jobs than index entries to begin with.
    ///
    /// Every version writes and removes both together, so such a job's entry was lost; it is never deleted.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection.
    pub fn restore(&mut self, conn: &mut impl ConnectionLike) -> Result<Option<Vec<RegistryId>>> {
        if !self.unindexed {
            return Ok(None);
        }
        let cursor = self.restore_cursor.clone().unwrap_or_else(|| b"0".to_vec());
        let numbers = [RESTORE.to_string(), self.shift.to_string(), self.ttl.as_secs().to_string()];
        let mut args = vec![cursor.as_slice()];
        args.extend(numbers.iter().map(String::as_bytes));
        let mut result: VecDeque<Vec<u8>> =
            eval::<Vec<Vec<u8>>>(conn, &scripts::RESTORE, &[JOBS.as_bytes(), INDEX.as_bytes()], &args)?.into();
        let next = result.pop_front().ok_or_else(|| Error::reply("EVALSHA", "no cursor"))?;
        self.unindexed = next != b"0";
        self.restore_cursor = Some(next);
        Ok(Some(result.into_iter().map(RegistryId).collect()))
    }

    /// Gives the rest of a batch a new lease. Returns it and those of `ids` that still had the old one; the others belong to
    /// someone else now.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection.
    pub fn renew(
        &self,
        conn: &mut impl ConnectionLike,
        lease: Millis,
        ids: &[RegistryId],
    ) -> Result<(Millis, Vec<RegistryId>)> {
        let numbers = [self.cutoff.0.to_string(), self.shift.to_string(), lease.0.to_string()];
        let mut args: Vec<&[u8]> = numbers.iter().map(String::as_bytes).collect();
        args.extend(ids.iter().map(RegistryId::as_bytes));
        let mut kept: VecDeque<Vec<u8>> = eval::<Vec<Vec<u8>>>(conn, &scripts::RENEW, &[INDEX.as_bytes()], &args)?.into();
        let lease = kept.pop_front().and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        let lease = lease.ok_or_else(|| Error::reply("EVALSHA", "no lease"))?;
        Ok((Millis(lease), kept.into_iter().map(RegistryId).collect()))
    }
}

/// Removes an entry whose job was handed on, if its lease is still `lease`, and counts the recovery for `window` by
/// [`Claimed::counted_by`]; without a window nothing is counted.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn settle(
    conn: &mut impl ConnectionLike,
    id: &RegistryId,
    lease: Millis,
    counted_by: &[u8],
    window: Option<Ttl>,
) -> Result<Settled> {
    let numbers = [lease.0.to_string(), window.map_or(0, Ttl::as_secs).to_string()];
    let mut args = vec![id.as_bytes()];
    args.extend(numbers.iter().map(String::as_bytes));
    let outcome: i64 =
        eval(conn, &scripts::SETTLE, &[INDEX.as_bytes(), JOBS.as_bytes(), &keys::recoveries(counted_by)], &args)?;
    match outcome {
        1 => Ok(Settled::Removed),
        0 => Ok(Settled::LeaseLost),
        _ => Ok(Settled::Gone),
    }
}

/// Counts that Sidekiq refused the job for good, and returns how often it has within `window`.
///
/// # Errors
/// Whatever Redis answers, and failures of the connection.
pub fn count_refusal(conn: &mut impl ConnectionLike, counted_by: &[u8], window: Ttl) -> Result<u64> {
    let window = window.as_secs().to_string();
    eval(conn, &scripts::COUNT, &[&keys::refusals(counted_by)], &[window.as_bytes()])
}

fn count_recoveries(conn: &mut impl ConnectionLike, leased: Leased) -> Result<Vec<Claimed>> {
    if leased.is_empty() {
        return Ok(Vec::new());
    }
    let mut cmd = redis::cmd("MGET");
    let claimed: Vec<_> = leased
        .into_iter()
        .map(|(id, payload)| {
            let id = RegistryId(id);
            let counted_by = counted_by(&id, &payload);
            cmd.arg(keys::recoveries(&counted_by));
            Claimed { id, payload, counted_by, recoveries: 0 }
        })
        .collect();
    let counts: Vec<Option<Vec<u8>>> = command(conn, "MGET", &cmd)?;
    let counts =
        counts.into_iter().map(|text| text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or(0));
    Ok(claimed.into_iter().zip(counts).map(|(claimed, recoveries)| Claimed { recoveries, ..claimed }).collect())
}

/// A job comes back under its jid; one without is known by its task alone.
fn counted_by(id: &RegistryId, payload: &[u8]) -> Vec<u8> {
    #[derive(Deserialize)]
    struct Head {
        jid: Option<String>,
    }
    match serde_json::from_slice(payload) {
        Ok(Head { jid: Some(jid) }) if !jid.is_empty() => jid.into_bytes(),
        _ => id.task().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_counted_by_its_jid() {
        let id = RegistryId(b"h:1:ff/task-7".to_vec());
        assert_eq!(counted_by(&id, br#"{"class":"A","args":[{"jid":"inner"}],"jid":"abc"}"#), b"abc");
        assert_eq!(counted_by(&id, br#"{"class":"A","args":[]}"#), b"task-7");
        assert_eq!(counted_by(&id, br#"{"jid":""}"#), b"task-7");
        assert_eq!(counted_by(&id, br#"{"jid":42}"#), b"task-7");
        assert_eq!(counted_by(&id, b"not json"), b"task-7");
        assert_eq!(counted_by(&id, b"[1]"), b"task-7");
    }
}
