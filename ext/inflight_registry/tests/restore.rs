//! Jobs that lost their index entry are put back into the index, never deleted.

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

use inflight_registry::recovery::{Plan, Sweep};
use inflight_registry::{Millis, ProcessId, RegistryId};
use redis::ConnectionLike;
use support::sweeping::{begin, begin_with, claim_all, leased, next_batch};
use support::wire::Wire;
use support::{INDEX, Server, TTL, assert_fresh_ttl, id, ids, ttl};

const THRESHOLD: i64 = 300_000;
const SCORE: Millis = Millis(7);

/// All pages, each sorted.
fn restore_all(conn: &mut impl ConnectionLike, sweep: &mut Sweep) -> Vec<Vec<RegistryId>> {
    let mut pages = Vec::new();
    while let Some(mut page) = sweep.restore(conn).unwrap() {
        page.sort();
        pages.push(page);
        assert!(pages.len() < 1_000, "restoring does not end");
    }
    pages
}

#[test]
fn a_job_without_an_index_entry_gets_one_with_the_score_of_now() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let (lost, binary) = (id("h:1:dead/lost"), id(b"h:1:dead/\xff\0\n"));
    for id in [&lost, &binary] {
        raw.enter(id, 1, id.as_bytes());
        raw.run::<()>(redis::cmd("ZREM").arg(INDEX).arg(id.as_bytes()));
    }

    let before = raw.now();
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(restore_all(&mut conn, &mut sweep).concat(), [lost.clone(), binary.clone()]);
    let after = raw.now();

    for id in [lost, binary] {
        assert!((before..=after).contains(&raw.heartbeat(&id)));
        assert_eq!(raw.payload(&id).as_deref(), Some(id.as_bytes()));
    }
}

#[test]
fn an_index_that_was_lost_as_a_whole_comes_back_with_its_ttl() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/lost"), 1, b"{}");
    raw.delete(INDEX);
    let process = ProcessId::generate();
    let mut sweep =
        begin_with(&mut conn, &Plan { process: &process, threshold_ms: THRESHOLD, shift: 0, ttl: ttl(900.0), restore_from: 0 });
    restore_all(&mut conn, &mut sweep);
    assert_fresh_ttl(raw.ttl(INDEX), 900);
}

#[test]
fn restoring_never_overwrites_a_score() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/known"), 7, b"{}");
    raw.enter(&id("h:1:dead/lost"), 7, b"{}");
    raw.run::<()>(redis::cmd("ZREM").arg(INDEX).arg("h:1:dead/lost"));

    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(restore_all(&mut conn, &mut sweep).concat(), [id("h:1:dead/lost")]);

    assert_eq!(raw.score(&id("h:1:dead/known")).as_deref(), Some("7"));
}

#[test]
fn restoring_goes_through_the_jobs_a_page_at_a_time() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let known = ids("h:1:live", 1_000);
    let lost = ids("h:2:dead", 1_500);
    raw.enter_all(&known, SCORE);
    for id in &lost {
        raw.run::<()>(redis::cmd("HSET").arg(support::JOBS).arg(id.as_bytes()).arg("{}"));
    }

    let mut sweep = begin(&mut conn, THRESHOLD);
    let pages = restore_all(&mut conn, &mut sweep);

    // A page of a scan may hold a few more than it was asked for, hardly ever twice as many.
    assert!(pages.len() > 10, "in {} pages", pages.len());
    assert!(pages.iter().all(|page| page.len() <= 200), "a page of {:?}", pages.iter().map(Vec::len).max());
    let mut restored = pages.concat();
    restored.sort();
    assert!(restored == lost, "not each lost job once");
    assert_eq!(raw.index_size(), 2_500);
}

#[test]
fn nothing_is_looked_for_where_there_are_no_jobs() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.cli::<()>("CONFIG RESETSTAT");
    assert_eq!(begin(&mut conn, THRESHOLD).restore(&mut conn).unwrap(), None);
    assert_eq!(raw.calls_of("hscan"), 0);
}

#[test]
fn a_sweep_looks_at_a_few_pages_where_the_jobs_are_no_more_than_the_index_entries_and_the_next_goes_on() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let known = ids("h:1:live", 3_000);
    raw.enter_all(&known, SCORE);
    // As many entries without a job as jobs without an entry: the numbers do not tell.
    let lost = ids("h:2:dead", 5);
    raw.enter_all(&lost, SCORE);
    for id in &lost {
        raw.run::<()>(redis::cmd("ZREM").arg(INDEX).arg(id.as_bytes()));
        raw.run::<()>(redis::cmd("ZADD").arg(INDEX).arg(SCORE.0).arg([id.as_bytes(), b"/ghost"].concat()));
    }

    let process = ProcessId::generate();
    let (mut restored, mut sweeps, mut cursor) = (Vec::new(), 0, 0);
    loop {
        let plan = Plan { process: &process, threshold_ms: THRESHOLD, shift: 0, ttl: ttl(TTL), restore_from: cursor };
        let mut sweep = begin_with(&mut conn, &plan);
        let pages = restore_all(&mut conn, &mut sweep);
        assert!(pages.len() <= 10, "{} pages in a sweep", pages.len());
        restored.extend(pages.concat());
        sweeps += 1;
        cursor = sweep.restore_cursor();
        if cursor == 0 {
            break;
        }
    }
    restored.sort();
    assert_eq!(restored, lost);
    assert!((3..=4).contains(&sweeps), "in {sweeps} sweeps");
}

#[test]
fn a_restored_job_is_no_orphan_until_its_new_heartbeat_is_stale() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/lost"), 1, b"{}");
    raw.delete(INDEX);
    let mut sweep = begin(&mut conn, 0);
    restore_all(&mut conn, &mut sweep);
    assert_eq!(next_batch(&mut conn, &mut sweep), None);

    let process = ProcessId::generate();
    let later = Plan { process: &process, threshold_ms: THRESHOLD, shift: THRESHOLD + 1_000, ttl: ttl(TTL), restore_from: 0 };
    let mut later = begin_with(&mut conn, &later);
    assert_eq!(leased(&claim_all(&mut conn, &mut later)), [id("h:1:dead/lost")]);
}

#[test]
fn a_restored_job_has_the_shifted_time_of_a_test_that_travels() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:dead/lost"), 1, b"{}");
    raw.delete(INDEX);
    let process = ProcessId::generate();
    let before = raw.now().ahead(90_000);
    let mut sweep = begin_with(
        &mut conn,
        &Plan { process: &process, threshold_ms: THRESHOLD, shift: 90_000, ttl: ttl(TTL), restore_from: 0 },
    );
    restore_all(&mut conn, &mut sweep);
    assert!((before..=raw.now().ahead(90_000)).contains(&raw.heartbeat(&id("h:1:dead/lost"))));
}

#[test]
fn a_page_repeated_after_a_lost_answer_skips_nothing() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    let lost = ids("h:1:dead", 700);
    raw.enter_all(&lost, SCORE);
    raw.delete(INDEX);
    let mut sweep = begin(&mut wire, THRESHOLD);
    assert!(sweep.restore(&mut wire).unwrap().is_some());
    wire.answers_to_lose = 1;
    sweep.restore(&mut wire).unwrap_err();
    restore_all(&mut wire, &mut sweep);
    assert_eq!(raw.index_size(), 700);
}
