//! Sweeps, started and driven the way a collector does it.

use super::{TTL, ttl};
use inflight_registry::recovery::{Batch, Begun, Claimed, Plan, Settled, Sweep, settle};
use inflight_registry::{Millis, ProcessId, RegistryId};
use redis::ConnectionLike;

/// More steps than any sweep of these tests needs: a sweep that goes on for ever fails instead of hanging.
const STEPS: usize = 500;

/// Begins a sweep as a process that never pinged, so that it may always sweep.
pub fn begin(conn: &mut impl ConnectionLike, threshold_ms: i64) -> Sweep {
    let process = ProcessId::generate();
    begin_with(conn, &Plan { process: &process, threshold_ms, shift: 0, ttl: ttl(TTL), restore_from: 0 })
}

pub fn begin_with(conn: &mut impl ConnectionLike, plan: &Plan<'_>) -> Sweep {
    match Sweep::begin(conn, plan, false).unwrap() {
        Begun::Ready(sweep) => *sweep,
        Begun::NotAlive => panic!("a sweep that need not be alive must begin"),
    }
}

/// The next batch that brings anything.
pub fn next_batch(conn: &mut impl ConnectionLike, sweep: &mut Sweep) -> Option<Batch> {
    for _ in 0..STEPS {
        let batch = sweep.claim(conn).unwrap()?;
        if !batch.claimed.is_empty() || !batch.ghosts.is_empty() {
            return Some(batch);
        }
    }
    panic!("the sweep does not end");
}

/// Runs a sweep to its end without settling anything, as a collector does whose every push fails.
pub fn claim_all(conn: &mut impl ConnectionLike, sweep: &mut Sweep) -> Vec<Batch> {
    let mut batches = Vec::new();
    while let Some(batch) = next_batch(conn, sweep) {
        batches.push(batch);
        assert!(batches.len() < STEPS, "the sweep does not end");
    }
    batches
}

/// Runs a sweep to its end, settling what it claims, and returns the ids in the order of their recovery.
pub fn recover_all(conn: &mut impl ConnectionLike, sweep: &mut Sweep) -> Vec<RegistryId> {
    let mut recovered = Vec::new();
    while let Some(batch) = next_batch(conn, sweep) {
        for claimed in batch.claimed {
            assert_eq!(settle_uncounted(conn, &claimed, batch.lease), Settled::Removed);
            recovered.push(claimed.id);
        }
    }
    recovered
}

pub fn settle_uncounted(conn: &mut impl ConnectionLike, claimed: &Claimed, lease: Millis) -> Settled {
    settle(conn, &claimed.id, lease, &claimed.counted_by, None).unwrap()
}

/// The ids that these batches leased, sorted, each as often as it was leased.
pub fn leased(batches: &[Batch]) -> Vec<RegistryId> {
    let mut ids: Vec<_> = batches.iter().flat_map(|batch| &batch.claimed).map(|claimed| claimed.id.clone()).collect();
    ids.sort();
    ids
}

/// The ids that these batches removed for want of a job, sorted.
pub fn ghosts(batches: &[Batch]) -> Vec<RegistryId> {
    let mut ids: Vec<_> = batches.iter().flat_map(|batch| batch.ghosts.clone()).collect();
    ids.sort();
    ids
}
