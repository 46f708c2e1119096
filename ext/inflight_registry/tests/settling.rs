//! What becomes of a lease: settled and counted, renewed, or lost.

// What a test finds wrong it may say by a panic, and a clone costs it nothing.
#![allow(
    clippy::cloned_ref_to_slice_refs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used,
    missing_docs
)]

mod support;

use inflight_registry::recovery::{Batch, Settled, settle};
use inflight_registry::{Millis, RegistryId, entries};
use redis::Connection;
use support::sweeping::{begin, next_batch};
use support::wire::Wire;
use support::{Raw, Server, TTL, assert_fresh_ttl, id, ids, recoveries_key, ttl};

const JOB: &[u8] = br#"{"class":"Fetch","jid":"abc","args":[1]}"#;
const THRESHOLD: i64 = 300_000;
/// A heartbeat that is stale by any threshold.
const LONG_AGO: Millis = Millis(1_000);

/// Leases one orphan of its own.
fn lease_one(conn: &mut Connection, raw: &mut Raw, orphan: &RegistryId) -> Batch {
    raw.enter(orphan, LONG_AGO.0, JOB);
    let mut sweep = begin(conn, THRESHOLD);
    next_batch(conn, &mut sweep).unwrap()
}

#[test]
fn settling_what_is_gone_already_says_so_and_counts_nothing() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id("h:1:dead/a");
    let batch = lease_one(&mut conn, &mut raw, &orphan);
    entries::unregister(&mut conn, &orphan, false).unwrap();
    assert_eq!(settle(&mut conn, &orphan, batch.lease, b"abc", Some(ttl(100.0))).unwrap(), Settled::Gone);
    assert!(!raw.exists(recoveries_key("abc")));
}

#[test]
fn a_settle_repeated_after_a_lost_answer_finds_the_entry_gone_and_counts_once() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id("h:1:dead/a");
    let mut wire = Wire::over(server.connect());
    settle(&mut wire, &id("warms/up"), Millis(1), b"other", None).unwrap();
    let batch = lease_one(&mut conn, &mut raw, &orphan);
    wire.answers_to_lose = 1;
    settle(&mut wire, &orphan, batch.lease, b"abc", Some(ttl(100.0))).unwrap_err();
    assert_eq!(settle(&mut wire, &orphan, batch.lease, b"abc", Some(ttl(100.0))).unwrap(), Settled::Gone);
    assert_eq!(raw.get(recoveries_key("abc")), Some(b"1".to_vec()));
    assert_eq!((raw.index_size(), raw.jobs_size()), (0, 0));
}

#[test]
fn a_heartbeat_after_the_claim_takes_the_lease_away() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id("h:1:not-dead-after-all/a");
    let batch = lease_one(&mut conn, &mut raw, &orphan);
    let heartbeat = batch.lease.ahead(1);
    entries::heartbeat(&mut conn, &[orphan.clone()], heartbeat, ttl(TTL)).unwrap();

    assert_eq!(settle(&mut conn, &orphan, batch.lease, b"abc", Some(ttl(100.0))).unwrap(), Settled::LeaseLost);

    assert_eq!(raw.heartbeat(&orphan), heartbeat);
    assert_eq!(raw.payload(&orphan).as_deref(), Some(JOB));
    assert!(!raw.exists(recoveries_key("abc")), "only what was removed counts");
}

#[test]
fn a_recovery_is_counted_for_a_window_that_begins_with_the_first() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id("h:1:dead/a");
    let window = Some(ttl(1_000.0));

    let batch = lease_one(&mut conn, &mut raw, &orphan);
    assert_eq!(settle(&mut conn, &orphan, batch.lease, b"abc", window).unwrap(), Settled::Removed);
    assert_eq!(raw.get(recoveries_key("abc")), Some(b"1".to_vec()));
    assert_fresh_ttl(raw.ttl(recoveries_key("abc")), 1_000);

    raw.expire(recoveries_key("abc"), 500);
    let batch = lease_one(&mut conn, &mut raw, &orphan);
    assert_eq!(settle(&mut conn, &orphan, batch.lease, b"abc", window).unwrap(), Settled::Removed);
    assert_eq!(raw.get(recoveries_key("abc")), Some(b"2".to_vec()));
    assert_fresh_ttl(raw.ttl(recoveries_key("abc")), 500);
}

#[test]
fn without_a_window_nothing_is_counted() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id("h:1:dead/a");
    let batch = lease_one(&mut conn, &mut raw, &orphan);
    assert_eq!(settle(&mut conn, &orphan, batch.lease, b"abc", None).unwrap(), Settled::Removed);
    assert!(!raw.exists(recoveries_key("abc")));

    raw.set(recoveries_key("abc"), "2");
    raw.expire(recoveries_key("abc"), 500);
    let batch = lease_one(&mut conn, &mut raw, &orphan);
    assert_eq!(settle(&mut conn, &orphan, batch.lease, b"abc", None).unwrap(), Settled::Removed);
    assert_eq!(raw.get(recoveries_key("abc")), Some(b"2".to_vec()));
    assert_fresh_ttl(raw.ttl(recoveries_key("abc")), 500);
}

#[test]
fn a_claim_tells_how_often_each_job_was_recovered_before() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    // The same job came back under another task of another process: it is known by its jid.
    let first = lease_one(&mut conn, &mut raw, &id("h:1:dead/first task"));
    let Batch { lease, claimed, .. } = first;
    settle(&mut conn, &claimed[0].id, lease, &claimed[0].counted_by, Some(ttl(100.0))).unwrap();
    raw.set(recoveries_key("often"), "7");
    raw.set(recoveries_key("task without jid"), "3");
    raw.enter(&id("h:2:dead/1"), 1, JOB);
    raw.enter(&id("h:2:dead/2"), 2, br#"{"jid":"often"}"#);
    raw.enter(&id("h:2:dead/3"), 3, br#"{"jid":"never"}"#);
    raw.enter(&id("h:2:dead/task without jid"), 4, b"{}");
    raw.enter(&id("h:2:dead/5"), 5, b"no JSON");

    let mut sweep = begin(&mut conn, THRESHOLD);
    let batch = next_batch(&mut conn, &mut sweep).unwrap();

    let told: Vec<_> =
        batch.claimed.iter().map(|claimed| (String::from_utf8_lossy(&claimed.counted_by), claimed.recoveries)).collect();
    let expected = [("abc", 1), ("often", 7), ("never", 0), ("task without jid", 3), ("5", 0)];
    assert_eq!(told, expected.map(|(counted_by, recoveries)| (counted_by.into(), recoveries)));
}

#[test]
fn a_counter_that_cannot_count_neither_stops_a_claim_nor_brings_a_settled_job_back() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id("h:1:dead/a");
    let tampered = ["SADD sidekiq:patient_http:recoveries:abc x", "SET sidekiq:patient_http:recoveries:abc many"];
    for tampering in tampered {
        raw.delete(recoveries_key("abc"));
        raw.cli::<redis::Value>(tampering);
        let batch = lease_one(&mut conn, &mut raw, &orphan);
        assert_eq!(batch.claimed[0].recoveries, 0);
        assert_eq!(settle(&mut conn, &orphan, batch.lease, b"abc", Some(ttl(100.0))).unwrap(), Settled::Removed);
        assert_eq!((raw.index_size(), raw.jobs_size()), (0, 0));
    }
}

#[test]
fn refusals_are_counted_for_a_window_that_begins_with_the_first() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let key = "sidekiq:patient_http:refusals:abc";
    assert_eq!(begin(&mut conn, THRESHOLD).count_refusal(&mut conn, b"abc", ttl(1_000.0)).unwrap(), 1);
    assert_fresh_ttl(raw.ttl(key), 1_000);
    raw.expire(key, 500);
    assert_eq!(begin(&mut conn, THRESHOLD).count_refusal(&mut conn, b"abc", ttl(1_000.0)).unwrap(), 2);
    assert_fresh_ttl(raw.ttl(key), 500);
    assert_eq!(begin(&mut conn, THRESHOLD).count_refusal(&mut conn, b"other", ttl(1_000.0)).unwrap(), 1);
}

#[test]
fn renewing_keeps_what_is_still_ours_under_a_new_lease() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let all = ids("h:1:dead", 4);
    raw.enter_all(&all, LONG_AGO);
    let mut sweep = begin(&mut conn, THRESHOLD);
    let lease = next_batch(&mut conn, &mut sweep).unwrap().lease;
    let [kept, refreshed, gone, also_kept] = &all[..] else { unreachable!() };
    entries::heartbeat(&mut conn, &[refreshed.clone()], lease.ahead(3), ttl(TTL)).unwrap();
    entries::unregister(&mut conn, gone, false).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(5));

    let before = raw.now();
    let (renewed, ours) = sweep.renew(&mut conn, lease, &all).unwrap();

    assert_eq!(ours, [kept.clone(), also_kept.clone()]);
    assert!((before..=raw.now()).contains(&renewed));
    assert_eq!((raw.heartbeat(kept), raw.heartbeat(also_kept)), (renewed, renewed));
    assert_eq!(raw.heartbeat(refreshed), lease.ahead(3));
    assert_eq!(raw.score(gone), None, "renewing adds nothing");
    assert_eq!(settle(&mut conn, kept, lease, b"1", None).unwrap(), Settled::LeaseLost);
    assert_eq!(settle(&mut conn, kept, renewed, b"1", None).unwrap(), Settled::Removed);
}

#[test]
fn a_renewed_lease_is_never_below_the_cutoff() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let orphan = id("h:1:dead/a");
    raw.enter(&orphan, LONG_AGO.0, JOB);
    let mut sweep = begin(&mut conn, -60_000);
    let lease = next_batch(&mut conn, &mut sweep).unwrap().lease;
    assert_eq!(sweep.renew(&mut conn, lease, &[orphan.clone()]).unwrap(), (lease, vec![orphan]));
    assert_eq!(next_batch(&mut conn, &mut sweep), None, "or the sweep would claim its own leases");
}

#[test]
fn renewing_nothing_is_no_error() {
    let server = Server::start();
    let mut conn = server.connect();
    let sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(sweep.renew(&mut conn, Millis(1), &[]).unwrap().1, []);
}

#[test]
fn a_job_with_many_requests_is_recovered_once_in_a_sweep() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    // More than a claim takes, so that the counter is asked for again in between.
    let orphans = support::ids("h:1:dead", 150);
    for orphan in &orphans {
        raw.enter(orphan, 1, JOB);
    }
    let mut sweep = begin(&mut conn, THRESHOLD);
    let mut settled = 0;
    while let Some(batch) = sweep.claim(&mut conn).unwrap() {
        for claimed in &batch.claimed {
            assert_eq!(claimed.recoveries, 0, "as it was when the sweep began");
            let outcome = sweep.settle(&mut conn, &claimed.id, batch.lease, &claimed.counted_by, Some(ttl(100.0))).unwrap();
            assert_eq!(outcome, Settled::Removed);
            settled += 1;
        }
    }
    assert_eq!(settled, 150);
    assert_eq!(raw.get(recoveries_key("abc")), Some(b"1".to_vec()));

    lease_one(&mut conn, &mut raw, &id("h:2:dead/next"));
    raw.enter(&id("h:2:dead/another"), 1, JOB);
    let mut next = begin(&mut conn, THRESHOLD);
    assert_eq!(next_batch(&mut conn, &mut next).unwrap().claimed[0].recoveries, 1);
}

#[test]
fn a_job_with_many_requests_is_refused_once_in_a_sweep() {
    let server = Server::start();
    let mut conn = server.connect();
    let mut sweep = begin(&mut conn, THRESHOLD);
    let counts: Vec<_> = (0..3).map(|_| sweep.count_refusal(&mut conn, b"abc", ttl(60.0)).unwrap()).collect();
    assert_eq!(counts, [1, 1, 1]);
    assert_eq!(begin(&mut conn, THRESHOLD).count_refusal(&mut conn, b"abc", ttl(60.0)).unwrap(), 2);
}

#[test]
fn a_refusal_whose_answer_was_lost_is_counted_once_by_a_repeat() {
    let server = Server::start();
    let mut wire = Wire::over(server.connect());
    let mut raw = server.raw();
    begin(&mut wire, THRESHOLD).count_refusal(&mut wire, b"warm", ttl(60.0)).unwrap();
    for spared in 0..2 {
        let mut sweep = begin(&mut wire, THRESHOLD);
        (wire.answers_to_spare, wire.answers_to_lose) = (spared, 1);
        assert!(sweep.count_refusal(&mut wire, b"abc", ttl(60.0)).is_err());
        assert_eq!(sweep.count_refusal(&mut wire, b"abc", ttl(60.0)).unwrap(), 1 + spared as u64);
        assert_eq!(raw.get("sidekiq:patient_http:refusals:abc"), Some((1 + spared).to_string().into_bytes()));
    }
}
