//! How the jobs of a dead process find their way back: lease, push, settle.
//!
//! A collector first *leases* an orphan (its score becomes a fresh heartbeat), then pushes the job, then *settles*: removes the
//! entry if the lease is still its own. Whatever dies when, the job is in the registry, in the queue, or for a blink in both;
//! never in neither. The push is the caller's, between [`Sweep::claim`] and [`Sweep::settle`].

use crate::entries::{add_expiry, server_us};
use crate::exchange::{command, eval, pipeline, typed};
use crate::job::counted_by;
use crate::keys::{self, DETAILS, DETAILS_INDEX, INDEX, JOBS};
use crate::{Error, Millis, ProcessId, RegistryId, Result, Ttl, details, processes, scripts};
use redis::{ConnectionLike, Pipeline};
use std::collections::{HashMap, HashSet, VecDeque};

/// How many stale entries a page holds.
const PAGE: usize = 500;
/// How many orphans a claim takes at most,
pub const CLAIM: usize = 100;
/// and how many bytes of jobs, unless a single one has more.
const CLAIM_BYTES: usize = 1_000_000;
/// How many jobs a page of [`Sweep::restore`] looks at,
const RESTORE: usize = 100;
/// how many where the server cannot leave the jobs themselves out of it,
const RESTORE_WITH_PAYLOADS: usize = 10;
/// and how many pages a sweep looks at when the numbers of jobs and entries give no reason to look.
const RESTORE_PAGES: usize = 10;

/// How far a negative threshold reaches beyond now, in ms.
const MOMENT: i64 = 1_000;

/// Everything that a sweep must know from the start.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Who sweeps.
    pub process: &'a ProcessId,
    /// An entry is stale when its heartbeat is older than this, in ms. 0 takes everything before now, less than 0 what is of this
    /// very moment too.
    pub threshold_ms: i64,
    /// Added to the server's time, in ms: 0 but for tests that travel in time.
    pub shift: i64,
    /// The TTL of the registry's keys, which a sweep renews.
    pub ttl: Ttl,
    /// Where the look for jobs without an index entry goes on: [`Sweep::restore_cursor`] of the last sweep, 0 at first.
    pub restore_from: u64,
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
    /// The collector's own proof of life, and whether it must hold.
    own_capacity: Vec<u8>,
    must_be_alive: bool,
    found_dead: bool,
    cursor: Option<Cursor>,
    /// Processes found alive in this pass: their entries are passed over without asking again.
    alive: HashSet<Vec<u8>>,
    /// Entries of dead processes that this page brought and no claim has looked at yet.
    candidates: VecDeque<RegistryId>,
    /// Whether this pass found anything: if so, another one looks for what it may have missed.
    progress: bool,
    /// Recoveries of a job as they were when this sweep first met it. A job may have had several requests in flight: one death of
    /// its process is one recovery, however many there were.
    recoveries: HashMap<Vec<u8>, u64>,
    counted: HashSet<Vec<u8>>,
    /// Refusals of a job, as they are once this sweep's has been counted.
    refusals: HashMap<Vec<u8>, u64>,
    refused: HashSet<Vec<u8>>,
    restore_cursor: u64,
    /// How many pages of jobs are still to be looked at.
    restore_pages: usize,
}

/// What a collector finds when it begins.
#[derive(Debug)]
pub enum Begun {
    /// It may sweep.
    Ready(Box<Sweep>),
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
        details::add_expiry(&mut pipe, plan.ttl);
        let replies = pipeline(conn, &pipe)?;
        let mut replies = replies.into_iter();
        let mut next = || replies.next().ok_or_else(|| Error::reply("EXISTS", "too few replies"));
        let now = Millis(server_us(next()?)?.div_euclid(1_000)).ahead(plan.shift);
        let alive: bool = typed("EXISTS", next()?)?;
        let jobs: u64 = typed("HLEN", next()?)?;
        let entries: u64 = typed("ZCARD", next()?)?;
        if must_be_alive && !alive {
            return Ok(Begun::NotAlive);
        }
        Ok(Begun::Ready(Box::new(Self {
            // A lease is never below the cut-off: one far in the future would keep a job whose push failed from everyone.
            cutoff: now.back(plan.threshold_ms.max(-MOMENT)),
            shift: plan.shift,
            ttl: plan.ttl,
            own_capacity: keys::capacity(plan.process.as_bytes()),
            must_be_alive,
            found_dead: false,
            recoveries: HashMap::new(),
            counted: HashSet::new(),
            refusals: HashMap::new(),
            refused: HashSet::new(),
            cursor: None,
            alive: HashSet::new(),
            candidates: VecDeque::new(),
            progress: false,
            // More jobs than entries: some have none, and all are looked at. Otherwise some may still have none, where as many
            // entries have no job, so that each sweep looks at a few.
            restore_cursor: if jobs > entries { 0 } else { plan.restore_from },
            restore_pages: match jobs {
                0 => 0,
                _ if jobs > entries => usize::MAX,
                _ => RESTORE_PAGES,
            },
        })))
    }

    /// The next step: up to 100 orphans on lease, or an empty batch where there was nothing to lease on this page. None when a
    /// whole pass found nothing more, or when the collector's own proof of life is gone ([`Sweep::found_dead`]).
    ///
    /// Repeating it after a lost answer is harmless: what the first try leased is no longer stale, and turns stale again when
    /// the lease runs out.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection. The sweep can go on afterwards.
    pub fn claim(&mut self, conn: &mut impl ConnectionLike) -> Result<Option<Batch>> {
        if !self.candidates.is_empty() {
            return self.claim_candidates(conn);
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

    fn claim_candidates(&mut self, conn: &mut impl ConnectionLike) -> Result<Option<Batch>> {
        let ids: Vec<_> = self.candidates.iter().take(CLAIM).cloned().collect();
        let mut positions: HashMap<&[u8], usize> = HashMap::new();
        let mut capacity_keys = Vec::new();
        for id in &ids {
            positions.entry(id.process()).or_insert_with(|| {
                capacity_keys.push(keys::capacity(id.process()));
                capacity_keys.len() + 5
            });
        }
        let mut all_keys: Vec<&[u8]> =
            vec![INDEX.as_bytes(), JOBS.as_bytes(), &self.own_capacity, DETAILS_INDEX.as_bytes(), DETAILS.as_bytes()];
        all_keys.extend(capacity_keys.iter().map(Vec::as_slice));
        let must_be_alive = u8::from(self.must_be_alive).to_string();
        let numbers = [self.cutoff.0.to_string(), self.shift.to_string(), CLAIM_BYTES.to_string(), must_be_alive];
        let positions: Vec<_> =
            ids.iter().map(|id| positions.get(id.process()).copied().unwrap_or_default().to_string()).collect();
        let mut args: Vec<&[u8]> = numbers.iter().map(String::as_bytes).collect();
        for (id, position) in ids.iter().zip(&positions) {
            args.extend([id.as_bytes(), position.as_bytes()]);
        }
        let (looked, lease, leased, ghosts): (i64, i64, Leased, Vec<Vec<u8>>) = eval(conn, &scripts::CLAIM, &all_keys, &args)?;
        let Ok(looked) = usize::try_from(looked) else {
            self.found_dead = true;
            return Ok(None);
        };
        // From here on the entries are leased: whatever fails, they are not candidates any more.
        self.candidates.drain(..looked.min(self.candidates.len()));
        self.progress |= !leased.is_empty() || !ghosts.is_empty();
        let claimed = self.with_recoveries(conn, leased)?;
        Ok(Some(Batch { lease: Millis(lease), claimed, ghosts: ghosts.into_iter().map(RegistryId).collect() }))
    }

    /// Puts a page of jobs that have no index entry back into the index, with the score of now. None when the last page has been
    /// looked at, or as many as a sweep looks at without a reason; the next one goes on from [`Sweep::restore_cursor`].
    ///
    /// Every version writes and removes both together, so such a job's entry was lost; it is never deleted. At the end the details
    /// of requests that are no longer registered are forgotten.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection.
    pub fn restore(&mut self, conn: &mut impl ConnectionLike) -> Result<Option<Vec<RegistryId>>> {
        if self.restore_pages == 0 {
            details::forget_lost(conn)?;
            return Ok(None);
        }
        let cursor = self.restore_cursor.to_string();
        let numbers =
            [RESTORE.to_string(), RESTORE_WITH_PAYLOADS.to_string(), self.shift.to_string(), self.ttl.as_secs().to_string()];
        let mut args = vec![cursor.as_bytes()];
        args.extend(numbers.iter().map(String::as_bytes));
        let mut result: VecDeque<Vec<u8>> =
            eval::<Vec<Vec<u8>>>(conn, &scripts::RESTORE, &[JOBS.as_bytes(), INDEX.as_bytes()], &args)?.into();
        let next = result.pop_front().and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        self.restore_cursor = next.ok_or_else(|| Error::reply("EVALSHA", "no cursor"))?;
        self.restore_pages = if self.restore_cursor == 0 { 0 } else { self.restore_pages - 1 };
        Ok(Some(result.into_iter().map(RegistryId).collect()))
    }

    /// Whether the sweep ended because the collector's own proof of life had run out, although it must hold: Redis was away, or
    /// the collector stood still, and its peers may look dead who are not.
    #[must_use]
    pub fn found_dead(&self) -> bool {
        self.found_dead
    }

    /// As [`settle`], but counts a job once in a sweep.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection.
    pub fn settle(
        &mut self,
        conn: &mut impl ConnectionLike,
        id: &RegistryId,
        lease: Millis,
        counted_by: &[u8],
        window: Option<Ttl>,
    ) -> Result<Settled> {
        let window = window.filter(|_| !self.counted.contains(counted_by));
        let settled = settle(conn, id, lease, counted_by, window)?;
        if window.is_some() && settled != Settled::LeaseLost {
            self.counted.insert(counted_by.to_vec());
        }
        Ok(settled)
    }

    /// Counts that Sidekiq refused the job for good, once in a sweep, and returns how often it has within `window`.
    ///
    /// Repeating it after a lost answer is harmless: what the counter comes to is settled before anything is written.
    ///
    /// # Errors
    /// Whatever Redis answers, and failures of the connection.
    pub fn count_refusal(&mut self, conn: &mut impl ConnectionLike, counted_by: &[u8], window: Ttl) -> Result<u64> {
        let key = keys::refusals(counted_by);
        let count = match self.refusals.get(counted_by) {
            Some(&count) => count,
            None => {
                let counts: Vec<Option<Vec<u8>>> = command(conn, "MGET", redis::cmd("MGET").arg(&key))?;
                let count = count_from(counts.into_iter().next().flatten()).saturating_add(1);
                self.refusals.insert(counted_by.to_vec(), count);
                count
            }
        };
        if !self.refused.contains(counted_by) {
            let numbers = [count.to_string(), window.as_secs().to_string()];
            let args: Vec<&[u8]> = numbers.iter().map(String::as_bytes).collect();
            eval::<()>(conn, &scripts::COUNT, &[&key], &args)?;
            self.refused.insert(counted_by.to_vec());
        }
        Ok(count)
    }

    fn with_recoveries(&mut self, conn: &mut impl ConnectionLike, leased: Leased) -> Result<Vec<Claimed>> {
        let mut claimed: Vec<_> = leased
            .into_iter()
            .map(|(id, payload)| {
                let id = RegistryId(id);
                let counted_by = counted_by(&id, &payload);
                Claimed { id, payload, counted_by, recoveries: 0 }
            })
            .collect();
        let unknown: HashSet<&Vec<u8>> =
            claimed.iter().map(|claimed| &claimed.counted_by).filter(|job| !self.recoveries.contains_key(*job)).collect();
        if !unknown.is_empty() {
            let unknown: Vec<_> = unknown.into_iter().cloned().collect();
            let mut cmd = redis::cmd("MGET");
            for job in &unknown {
                cmd.arg(keys::recoveries(job));
            }
            let counts: Vec<Option<Vec<u8>>> = command(conn, "MGET", &cmd)?;
            self.recoveries.extend(unknown.into_iter().zip(counts.into_iter().map(count_from)));
        }
        for orphan in &mut claimed {
            orphan.recoveries = self.recoveries.get(&orphan.counted_by).copied().unwrap_or_default();
        }
        Ok(claimed)
    }

    /// Where the next sweep's look for jobs without an index entry begins.
    #[must_use]
    pub fn restore_cursor(&self) -> u64 {
        self.restore_cursor
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

/// Removes an entry whose job was handed on, if its lease is still `lease`, and counts a recovery by `counted_by` for `window`;
/// without a window nothing is counted.
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
    let counter = keys::recoveries(counted_by);
    let all_keys = [INDEX.as_bytes(), JOBS.as_bytes(), &counter, DETAILS_INDEX.as_bytes(), DETAILS.as_bytes()];
    let outcome: i64 = eval(conn, &scripts::SETTLE, &all_keys, &args)?;
    match outcome {
        1 => Ok(Settled::Removed),
        0 => Ok(Settled::LeaseLost),
        _ => Ok(Settled::Gone),
    }
}

/// What a counter says: nothing, where it is not there or of another type.
fn count_from(text: Option<Vec<u8>>) -> u64 {
    text.and_then(|text| std::str::from_utf8(&text).ok()?.parse().ok()).unwrap_or_default()
}
