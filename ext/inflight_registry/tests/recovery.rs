//! How a sweep begins and what it leases: orphans alone, each of them, and never for good.

// What a test finds wrong it may say by a panic, and a clone costs it nothing.
#![allow(
    clippy::cloned_ref_to_slice_refs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs
)]

mod support;

use inflight_registry::recovery::{Begun, Plan, Settled, Sweep};
use inflight_registry::{Millis, ProcessId, entries};
use support::sweeping::{begin, begin_with, claim_all, ghosts, leased, next_batch, settle_uncounted};
use support::wire::Wire;
use support::{GC_LOCK, INDEX, JOBS, Server, TTL, assert_fresh_ttl, capacity_key, id, ids, ping, ttl};

const JOB: &[u8] = br#"{"class":"Fetch","jid":"abc","args":[1]}"#;
const THRESHOLD: i64 = 300_000;
/// A heartbeat that is stale by any threshold.
const LONG_AGO: Millis = Millis(1_000);

#[test]
fn an_orphan_is_leased_then_settled_and_is_in_the_registry_until_then() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id(b"h:1:dead/\xff task\n");
    raw.let_die("h:1:dead");
    raw.enter(&orphan, LONG_AGO.0, JOB);

    let before = raw.now();
    let mut sweep = begin(&mut conn, THRESHOLD);
    let batch = next_batch(&mut conn, &mut sweep).unwrap();
    let after = raw.now();

    assert!((before..=after).contains(&batch.lease));
    assert!(batch.ghosts.is_empty());
    let [claimed] = &batch.claimed[..] else { panic!("one orphan, not {:?}", batch.claimed) };
    assert_eq!((&claimed.id, &claimed.payload[..]), (&orphan, JOB));
    assert_eq!((&claimed.counted_by[..], claimed.recoveries), (&b"abc"[..], 0));
    assert_eq!(raw.heartbeat(&orphan), batch.lease, "the lease is the heartbeat");
    assert_eq!(raw.payload(&orphan).as_deref(), Some(JOB));

    assert_eq!(settle_uncounted(&mut conn, claimed, batch.lease), Settled::Removed);

    assert_eq!((raw.index_size(), raw.jobs_size()), (0, 0));
    assert_eq!(next_batch(&mut conn, &mut sweep), None);
}

#[test]
fn entries_of_live_processes_are_passed_over_untouched() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:live", "10");
    raw.set(capacity_key("h:2:live-outside-the-set"), "10");
    raw.let_die("h:3:dead");
    let live = [id("h:1:live/a"), id("h:1:live/b"), id("h:2:live-outside-the-set/a")];
    for id in &live {
        raw.enter(id, LONG_AGO.0, JOB);
    }
    raw.enter(&id("h:3:dead/a"), LONG_AGO.ahead(1).0, JOB);

    let mut sweep = begin(&mut conn, THRESHOLD);
    let batches = claim_all(&mut conn, &mut sweep);

    assert_eq!(leased(&batches), [id("h:3:dead/a")]);
    for id in &live {
        assert_eq!(raw.heartbeat(id), LONG_AGO);
    }
}

#[test]
fn a_sweep_drops_the_dead_from_the_process_set_with_their_lock() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:live", "10");
    raw.let_die("h:2:dead");
    raw.set(GC_LOCK, "h:2:dead");
    raw.enter(&id("h:2:dead/a"), LONG_AGO.0, JOB);
    let mut sweep = begin(&mut conn, THRESHOLD);
    claim_all(&mut conn, &mut sweep);
    assert_eq!(raw.members(), [b"h:1:live".to_vec()].into());
    assert!(!raw.exists(GC_LOCK));
}

#[test]
fn a_sweep_leaves_the_lock_of_its_collector_that_never_pinged() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    raw.set(GC_LOCK, process.as_bytes());
    // A request of its own that hangs without heartbeats.
    raw.enter(&process.registry_id(b"stale"), LONG_AGO.0, JOB);
    let mut sweep =
        begin_with(&mut conn, &Plan { process: &process, threshold_ms: THRESHOLD, shift: 0, ttl: ttl(TTL), restore_from: 0 });
    claim_all(&mut conn, &mut sweep);
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(process.as_bytes()));
}

#[test]
fn a_fresh_entry_of_a_dead_process_is_not_claimed() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.let_die("h:1:dead");
    let (fresh, stale) = (id("h:1:dead/fresh"), id("h:1:dead/stale"));
    let now = raw.now();
    let recent = now.back(THRESHOLD - 5_000);
    raw.enter(&fresh, recent.0, JOB);
    raw.enter(&stale, now.back(THRESHOLD + 5).0, JOB);
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(leased(&claim_all(&mut conn, &mut sweep)), [stale]);
    assert_eq!(raw.heartbeat(&fresh), recent);
}

#[test]
fn an_entry_is_stale_strictly_below_the_cutoff() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/first"), LONG_AGO.0, JOB);
    // With a cut-off in the future the lease is the cut-off, which so becomes known.
    let mut sweep = begin(&mut conn, -60_000);
    let cutoff = next_batch(&mut conn, &mut sweep).unwrap().lease;
    raw.enter(&id("h:1:dead/at"), cutoff.0, JOB);
    raw.enter(&id("h:1:dead/just below"), format!("{}.75", cutoff.back(1).0), JOB);
    raw.enter(&id("h:1:dead/below"), cutoff.back(1).0, JOB);

    let claimed = leased(&claim_all(&mut conn, &mut sweep));

    assert_eq!(claimed, [id("h:1:dead/below"), id("h:1:dead/just below")]);
}

#[test]
fn a_lease_is_the_time_now_but_never_below_the_cutoff() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    for threshold in [0, 1_000, -1_000] {
        let orphan = id(format!("h:1:dead/{threshold}"));
        raw.enter(&orphan, LONG_AGO.0, JOB);
        let before_beginning = raw.now();
        let mut sweep = begin(&mut conn, threshold);
        let begun = raw.now();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let before = raw.now();
        let lease = next_batch(&mut conn, &mut sweep).unwrap().lease;
        let after = raw.now();

        let expected = if threshold < 0 { before_beginning.back(threshold)..=begun.back(threshold) } else { before..=after };
        assert!(expected.contains(&lease), "threshold {threshold}: a lease of {lease:?}, not in {expected:?}");
        assert_eq!(raw.heartbeat(&orphan), lease);
        raw.delete(INDEX);
    }
}

#[test]
fn a_test_that_travels_in_time_shifts_the_cutoff_and_every_lease() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let orphan = id("h:1:dead/a");
    let now = raw.now();
    raw.enter(&orphan, now.0, JOB);
    let plan = |shift| Plan { process: &process, threshold_ms: THRESHOLD, shift, ttl: ttl(TTL), restore_from: 0 };

    let mut sweep = begin_with(&mut conn, &plan(THRESHOLD - 5_000));
    assert_eq!(next_batch(&mut conn, &mut sweep), None);

    let before = raw.now();
    let mut sweep = begin_with(&mut conn, &plan(THRESHOLD + 5_000));
    let lease = next_batch(&mut conn, &mut sweep).unwrap().lease;
    let (renewed, _) = sweep.renew(&mut conn, lease, &[orphan]).unwrap();
    let shifted = before.ahead(THRESHOLD + 5_000)..=raw.now().ahead(THRESHOLD + 5_000);
    assert!(shifted.contains(&lease) && shifted.contains(&renewed), "{lease:?}, {renewed:?} not in {shifted:?}");
}

#[test]
fn an_orphan_without_a_job_is_removed_and_reported() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:2:live", "10");
    let (ghost, fresh_ghost, live_ghost) = (id("h:1:dead/ghost"), id("h:1:dead/fresh"), id("h:2:live/ghost"));
    let (orphan, empty_job) = (id("h:1:dead/orphan"), id("h:1:dead/empty job"));
    let now = raw.now();
    raw.index(&ghost, LONG_AGO.0);
    raw.index(&fresh_ghost, now.0);
    raw.index(&live_ghost, LONG_AGO.0);
    raw.enter(&orphan, LONG_AGO.0, JOB);
    raw.enter(&empty_job, LONG_AGO.0, b"");

    let mut sweep = begin(&mut conn, THRESHOLD);
    let batches = claim_all(&mut conn, &mut sweep);

    assert_eq!(ghosts(&batches), [ghost.clone()]);
    assert_eq!(leased(&batches), [empty_job, orphan]);
    assert_eq!(raw.score(&ghost), None);
    assert_eq!((raw.heartbeat(&fresh_ghost), raw.heartbeat(&live_ghost)), (now, LONG_AGO));
}

#[test]
fn a_claim_takes_a_hundred_orphans_at_most() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter_all(&ids("h:1:dead", 250), LONG_AGO);
    let mut sweep = begin(&mut conn, THRESHOLD);
    let sizes: Vec<_> = claim_all(&mut conn, &mut sweep).iter().map(|batch| batch.claimed.len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[test]
fn a_claim_takes_a_megabyte_of_jobs_at_most_unless_one_job_alone_has_more() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let kilobytes = [400, 400, 400, 3_000, 10, 400];
    for (n, size) in (0_i64..).zip(kilobytes) {
        raw.enter(&id(format!("h:1:dead/{n}")), LONG_AGO.ahead(n).0, &vec![b'x'; size * 1_000]);
    }
    let mut sweep = begin(&mut conn, THRESHOLD);
    let batches = claim_all(&mut conn, &mut sweep);
    let sizes: Vec<Vec<_>> =
        batches.iter().map(|batch| batch.claimed.iter().map(|claimed| claimed.payload.len() / 1_000).collect()).collect();
    assert_eq!(sizes, [vec![400, 400], vec![400], vec![3_000], vec![10, 400]]);
}

#[test]
fn a_process_that_comes_back_during_the_sweep_keeps_the_rest_of_its_entries() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let all = ids("h:1:back", 150);
    raw.let_die("h:1:back");
    raw.enter_all(&all, LONG_AGO);
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(next_batch(&mut conn, &mut sweep).unwrap().claimed.len(), 100);

    raw.bring_to_life("h:1:back", "10");

    assert_eq!(next_batch(&mut conn, &mut sweep), None);
    let untouched = all.iter().filter(|id| raw.heartbeat(id) == LONG_AGO).count();
    assert_eq!(untouched, 50);
}

#[test]
fn an_entry_refreshed_between_its_page_and_its_claim_is_left_alone() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let all = ids("h:1:slow", 101);
    for threshold in [THRESHOLD, -60_000] {
        raw.enter_all(&all, LONG_AGO);
        let mut sweep = begin(&mut conn, threshold);
        let batch = next_batch(&mut conn, &mut sweep).unwrap();
        assert_eq!(batch.claimed.len(), 100);
        let last = all.iter().find(|id| raw.heartbeat(id) == LONG_AGO).unwrap();
        // With a cut-off in the future the lease is the cut-off, and to have reached it is enough.
        let heartbeat = if threshold < 0 { batch.lease } else { raw.now() };
        entries::heartbeat(&mut conn, &[last.clone()], heartbeat, ttl(TTL)).unwrap();

        assert_eq!(next_batch(&mut conn, &mut sweep), None);
        assert_eq!(raw.heartbeat(last), heartbeat);
    }
}

#[test]
fn beginning_renews_the_ttl_of_both_keys() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/a"), LONG_AGO.0, JOB);
    raw.expire(INDEX, 5);
    raw.expire(JOBS, 5);
    let process = ProcessId::generate();
    begin_with(&mut conn, &Plan { process: &process, threshold_ms: THRESHOLD, shift: 0, ttl: ttl(900.0), restore_from: 0 });
    assert_fresh_ttl(raw.ttl(INDEX), 900);
    assert_fresh_ttl(raw.ttl(JOBS), 900);
}

#[test]
fn a_collector_whose_proof_of_life_ran_out_does_not_begin_until_it_pings() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let plan = Plan { process: &process, threshold_ms: THRESHOLD, shift: 0, ttl: ttl(TTL), restore_from: 0 };
    raw.enter(&id("h:1:looks-dead/a"), LONG_AGO.0, JOB);
    raw.let_die(process.as_str());

    assert!(matches!(Sweep::begin(&mut conn, &plan, true).unwrap(), Begun::NotAlive));
    assert_eq!(raw.heartbeat(&id("h:1:looks-dead/a")), LONG_AGO);

    ping(&mut conn, &process, 10);
    assert!(matches!(Sweep::begin(&mut conn, &plan, true).unwrap(), Begun::Ready(_)));
}

#[test]
fn a_collector_that_never_pinged_begins_at_once() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/a"), LONG_AGO.0, JOB);
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(leased(&claim_all(&mut conn, &mut sweep)), [id("h:1:dead/a")]);
}

#[test]
fn a_claim_repeated_after_a_lost_answer_leases_nothing_twice_and_loses_nothing() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    raw.enter(&id("h:1:dead/warms up"), LONG_AGO.0, JOB);
    let mut sweep = begin(&mut wire, THRESHOLD);
    claim_all(&mut wire, &mut sweep);
    raw.delete(INDEX);
    let all = ids("h:1:dead", 150);
    let process = ProcessId::generate();
    let plan = |shift| Plan { process: &process, threshold_ms: THRESHOLD, shift, ttl: ttl(TTL), restore_from: 0 };

    // The answer that is lost is that to the page, to the question who lives, to the claim, and to the counters, in turn.
    for spared in 0..4 {
        raw.enter_all(&all, LONG_AGO);
        let mut sweep = begin_with(&mut wire, &plan(0));
        (wire.answers_to_spare, wire.answers_to_lose) = (spared, 1);
        let mut claimed = Vec::new();
        let mut failures = 0;
        for _ in 0..50 {
            match sweep.claim(&mut wire) {
                Ok(None) => break,
                Ok(Some(batch)) => claimed.push(batch),
                Err(_) => failures += 1,
            }
        }
        let claimed = leased(&claimed);
        assert_eq!(failures, 1);
        assert_eq!(claimed.len(), if spared < 2 { 150 } else { 50 }, "{spared} answers spared");
        assert!(claimed.windows(2).all(|pair| pair[0] != pair[1]), "leased twice");

        // The leases of which nobody learned run out, and the next sweep finds everything.
        let mut later = begin_with(&mut wire, &plan(THRESHOLD + 1_000));
        assert_eq!(leased(&claim_all(&mut wire, &mut later)), all);
    }
}

#[test]
fn a_collector_whose_own_proof_of_life_runs_out_in_the_middle_claims_no_more() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let capacity = format!("sidekiq:patient_http:processes:{}:max_connections", process.as_str());
    raw.set(&capacity, "1");
    for orphan in support::ids("h:1:dead", 150) {
        raw.enter(&orphan, LONG_AGO.0, JOB);
    }
    let plan = Plan { process: &process, threshold_ms: THRESHOLD, shift: 0, ttl: ttl(TTL), restore_from: 0 };
    let Begun::Ready(mut sweep) = Sweep::begin(&mut conn, &plan, true).unwrap() else { panic!("it is alive") };
    assert_eq!(next_batch(&mut conn, &mut sweep).unwrap().claimed.len(), 100);

    raw.delete(&capacity);

    assert_eq!(next_batch(&mut conn, &mut sweep), None);
    assert!(sweep.found_dead());
    let left: usize = raw.run(redis::cmd("ZCOUNT").arg(support::INDEX).arg(LONG_AGO.0).arg(LONG_AGO.0));
    assert_eq!(left, 50);
}

#[test]
fn a_lease_lies_a_second_ahead_at_most_however_far_a_negative_threshold_reaches() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/a"), LONG_AGO.0, JOB);
    let mut sweep = begin(&mut conn, -3_155_760_000_000);
    let lease = next_batch(&mut conn, &mut sweep).unwrap().lease;
    assert!(lease <= raw.now().ahead(1_000));
}
