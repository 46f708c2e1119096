//! The protocol as a model: register, heartbeat, unregister, ping, look, claim, push, renew, settle, crashes, lost answers and
//! steps of the clock, for 2 workers, 2 collectors and 2 tasks. Every state that can come about is visited, and the core is held
//! against the model in every situation that an operation meets there.
//!
//! - `registry.rs` says what an operation of the core does to Redis, `model.rs` what workers and collectors do, `judge.rs` what
//!   must never be, `explore.rs` goes everywhere, and `real.rs` carries out the core's operations on a real server.
//! - A tick of the clock is longer than the threshold and the TTL of a capacity key: every proof of life runs out, and every
//!   score so far is stale for a sweep that begins afterwards. In one exploration the clock goes on by two ticks, so that there
//!   are moments of now, of a lease that has run out, and of before that; in another it is set to and fro by one.
//! - A process that is stopped and goes on (SIGSTOP, SIGCONT) is one that is overtaken: between any two of its steps there can
//!   be any steps of the others and of the clock, and it goes on with the time it read, the cut-off it fixed, the candidates it
//!   found and the leases it believes to have.
//! - A crashed worker is one that takes no further step, and as none has to be taken, every state is also one in which all have
//!   crashed: from each, a single sweep must bring everything back. A collector that dies forgets what it had.
//! - An operation whose answer is lost was carried out all the same: a register is sent again as it was, a collector claims,
//!   pushes, renews or settles without knowing that it did, goes on, or begins again.
//!
//! That a push comes before its settle is the caller's business, not the core's: the model has it, but only the operations are
//! held against the core. The GC lock, the process set, the counters, ghosts, jobs without an entry and what a collector does
//! without a proof of life of its own are left out; other tests have them. So is a request that the server carries out after its
//! sender has given it up.

// What a test finds wrong it may say by a panic, and tasks, workers and collectors are numbers here.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable, clippy::unwrap_used, missing_docs)]

mod explore;
mod judge;
mod model;
mod real;
mod registry;
#[path = "../support/mod.rs"]
mod support;

use explore::{Explored, explore};
use judge::names;
use model::World;
use real::Real;
use registry::{Op, Owners, Protocol, Redis, unpack};
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Instant;

/// Both tasks at one worker, or one at each.
const OWNERS: [Owners; 2] = [[0, 0], [0, 1]];

/// The clock goes on by two ticks.
const ONWARD: World = World { protocol: Protocol::Real, owners: [0, 0], last: 2, back: false, plain: false };
/// It goes to and fro between two.
const BACK: World = World { last: 1, back: true, ..ONWARD };

/// Each broken protocol, and what it violates.
const BROKEN: [(Protocol, judge::Wrong); 10] = [
    (Protocol::RemovesBeforePush, judge::NOWHERE),
    (Protocol::SettlesBeforePush, judge::NOWHERE | judge::NOT_QUEUED),
    (Protocol::SettlesAfterFailedPush, judge::NOWHERE | judge::NOT_QUEUED),
    (Protocol::SettlesWithoutLeaseCheck, judge::NOT_OWN),
    (Protocol::SettlesIndexOnly, judge::NOT_REMOVED),
    (Protocol::ClaimsTheLiving, judge::ROBBED),
    (Protocol::ClaimsWithoutSecondLook, judge::FRESH_CLAIMED),
    (Protocol::ClaimKeepsOldScore, judge::LEASE_NOT_FRESH),
    (Protocol::RenewsWithoutLeaseCheck, judge::NOT_OWN),
    (Protocol::HeartbeatAdds, judge::FROM_NOTHING),
];

fn report(world: World) -> Explored {
    let started = Instant::now();
    let found = explore(world);
    println!(
        "{:?}, tasks at workers {:?}, clock up to {}{}{}: {} states, {} steps, depth {}, {} situations of an operation, {:.1?}, {}",
        world.protocol,
        world.owners,
        world.last,
        if world.back { " and back" } else { "" },
        if world.plain { ", nothing made equal" } else { "" },
        found.states,
        found.steps,
        found.depth,
        found.operations.len(),
        started.elapsed(),
        if found.counterexample.is_none() { "complete" } else { "found out:" }
    );
    if let Some((wrong, path)) = &found.counterexample {
        println!("  {}", names(*wrong).join("; "));
        path.iter().for_each(|step| println!("    {step}"));
    }
    found
}

/// Explores what the core's operations meet where the tasks are at these workers, once, whichever test asks first.
fn explored(which: usize) -> &'static [Explored; 2] {
    static FOUND: [OnceLock<[Explored; 2]>; 2] = [OnceLock::new(), OnceLock::new()];
    FOUND[which].get_or_init(|| [ONWARD, BACK].map(|world| report(World { owners: OWNERS[which], ..world })))
}

#[test]
fn with_both_tasks_at_one_worker_no_job_is_nowhere_and_settled_means_removed() {
    assert!(explored(0).iter().all(|found| found.counterexample.is_none()));
}

#[test]
fn with_a_task_at_each_worker_no_job_is_nowhere_and_settled_means_removed() {
    assert!(explored(1).iter().all(|found| found.counterexample.is_none()));
}

/// Takes minutes and some GB, so it needs `SOAK=1`.
#[test]
fn the_same_holds_when_nothing_is_left_out_or_made_equal() {
    if std::env::var("SOAK").is_err() {
        return;
    }
    for owners in OWNERS {
        let found = [World { plain: true, ..BACK }, World { last: 2, ..BACK }, World { plain: true, ..ONWARD }]
            .map(|world| report(World { owners, ..world }));
        assert!(found.iter().all(|found| found.counterexample.is_none()));
        hold_against_core(owners, &found.into_iter().flat_map(|found| found.operations).collect());
    }
}

#[test]
fn each_broken_protocol_is_found_out() {
    for (protocol, expected) in BROKEN {
        let found = report(World { protocol, owners: [0, 1], plain: true, ..ONWARD });
        let (wrong, _) = found.counterexample.unwrap_or_else(|| panic!("{protocol:?} was not found out"));
        assert_eq!(wrong & expected, expected, "{protocol:?}: {:?}", names(wrong));
    }
}

/// Carries out what the core meets on a real server, and returns what tells each broken protocol from it.
fn hold_against_core(owners: Owners, operations: &BTreeSet<usize>) -> Vec<Option<(Op, Redis)>> {
    let (mut real, started) = (Real::new(owners), Instant::now());
    let (mut count, mut answers_lost) = (0, 0);
    let mut told_apart = vec![None; BROKEN.len()];
    for &packed in operations {
        let (op, redis) = unpack(packed);
        if !real::can_be_staged(op, &redis) {
            continue;
        }
        count += 1;
        // With the answer, and where it matters that it was carried out, once more with the answer lost.
        for lose in [false, true].into_iter().take(1 + usize::from(real.changes(op, &redis))) {
            answers_lost += u32::from(lose);
            let seen = real.carry_out(op, &redis, lose);
            assert!(real.agrees(op, &redis, Protocol::Real, &seen), "{op:?} in {redis:?}: {seen:?}");
            for (told_apart, (broken, _)) in told_apart.iter_mut().zip(BROKEN) {
                if !real.agrees(op, &redis, broken, &seen) {
                    told_apart.get_or_insert((op, redis));
                }
            }
        }
    }
    println!(
        "tasks at workers {owners:?}: the core agrees in {count} of {} situations, in {answers_lost} again with the answer lost, {:.1?}",
        operations.len(),
        started.elapsed()
    );
    told_apart
}

#[test]
fn the_core_does_what_the_model_says_and_not_what_a_broken_one_says() {
    let mut told_apart = vec![None; BROKEN.len()];
    for (which, owners) in OWNERS.into_iter().enumerate() {
        let [on, back] = explored(which);
        let found = hold_against_core(owners, &on.operations.union(&back.operations).copied().collect());
        told_apart.iter_mut().zip(found).for_each(|(all, one)| *all = all.or(one));
    }
    for ((protocol, _), situation) in BROKEN.into_iter().zip(told_apart) {
        // In what order a collector pushes and settles is up to the core's caller.
        let by_order = matches!(protocol, Protocol::SettlesBeforePush | Protocol::SettlesAfterFailedPush);
        assert_eq!(situation.is_none(), by_order, "{protocol:?}: {situation:?}");
        if let Some((op, redis)) = situation {
            println!("{protocol:?} is not the core: {op:?} in {redis:?}");
        }
    }
}
