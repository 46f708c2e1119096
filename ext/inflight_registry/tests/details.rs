//! What people may see of the requests in flight comes and goes with them, and stops nothing.

// What a test finds wrong it may say by a panic.
#![allow(
    clippy::cloned_ref_to_slice_refs,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs
)]

mod support;

use inflight_registry::details::{self, Details};
use inflight_registry::entries::Entry;
use inflight_registry::processes::{self, Load, Ping};
use inflight_registry::recovery::Settled;
use inflight_registry::{Millis, ProcessId, RegistryId, entries};
use redis::Connection;
use std::collections::BTreeMap;
use support::sweeping::{begin, next_batch, recover_all, settle_uncounted};
use support::wire::Wire;
use support::{INDEX, JOBS, PROCESSES, Raw, Server, TTL, assert_fresh_ttl, id, ids, ttl};

const DETAILS: &str = "sidekiq:patient_http:inflight_details";
const DETAILS_INDEX: &str = "sidekiq:patient_http:inflight_details_index";
const NOW: Millis = Millis(1_700_000_000_123);
const LONG_AGO: Millis = Millis(1_000);
const THRESHOLD: i64 = 300_000;
const JSON: &[u8] = br#"{"url":"https://example.com/a"}"#;

fn entry(id: &RegistryId) -> Entry<'_> {
    Entry { details: Some(JSON), ..Entry::new(id, b"{}") }
}

fn register(conn: &mut Connection, id: &RegistryId, now: Millis) {
    entries::register(conn, &entry(id), now, ttl(TTL), None).unwrap();
}

fn sizes(raw: &mut Raw) -> (usize, usize) {
    (raw.run(redis::cmd("ZCARD").arg(DETAILS_INDEX)), raw.run(redis::cmd("HLEN").arg(DETAILS)))
}

/// Writes details alone, as a version of 1.4 or later left them.
fn write(raw: &mut Raw, id: &RegistryId, score: impl ToString) {
    raw.run::<()>(redis::cmd("ZADD").arg(DETAILS_INDEX).arg(score.to_string()).arg(id.as_bytes()));
    raw.run::<()>(redis::cmd("HSET").arg(DETAILS).arg(id.as_bytes()).arg(JSON));
}

#[test]
fn they_are_written_in_the_transaction_that_registers_and_removed_in_the_one_that_unregisters() {
    let server = Server::start();
    let (mut raw, request) = (server.raw(), id("h:1:ff/a"));
    let mut wire = Wire::over(server.connect());
    entries::register(&mut wire, &entry(&request), NOW, ttl(900.0), None).unwrap();
    assert_eq!(wire.sent.len(), 1);
    assert!(wire.sent[0].starts_with(b"*1\r\n$5\r\nMULTI\r\n") && wire.sent[0].ends_with(b"*1\r\n$4\r\nEXEC\r\n"));
    assert_eq!(raw.run::<String>(redis::cmd("ZSCORE").arg(DETAILS_INDEX).arg(request.as_bytes())), "1700000000123");
    assert_eq!(raw.run::<Vec<u8>>(redis::cmd("HGET").arg(DETAILS).arg(request.as_bytes())), JSON);
    for key in [DETAILS, DETAILS_INDEX] {
        assert_fresh_ttl(raw.ttl(key), 900);
    }

    entries::unregister(&mut wire, &request, true).unwrap();
    assert_eq!(wire.sent.len(), 2);
    assert_eq!(sizes(&mut raw), (0, 0));
}

#[test]
fn nothing_is_written_for_those_who_want_none() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let request = id("h:1:ff/a");
    entries::register(&mut conn, &Entry::new(&request, b"{}"), NOW, ttl(TTL), None).unwrap();
    entries::heartbeat(&mut conn, &[request], NOW, ttl(TTL)).unwrap();
    assert!(!raw.exists(DETAILS) && !raw.exists(DETAILS_INDEX));
}

#[test]
fn heartbeats_and_sweeps_renew_the_ttl_of_those_of_any_version() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let request = id("h:1:ff/a");
    raw.enter(&request, NOW.0, b"{}");
    write(&mut raw, &request, NOW.0);
    entries::heartbeat(&mut conn, &[request], NOW, ttl(900.0)).unwrap();
    for key in [INDEX, JOBS, DETAILS, DETAILS_INDEX] {
        assert_fresh_ttl(raw.ttl(key), 900);
    }
    begin(&mut conn, THRESHOLD);
    for key in [INDEX, JOBS, DETAILS, DETAILS_INDEX] {
        assert_fresh_ttl(raw.ttl(key), 604_800);
    }
}

#[test]
fn a_page_tells_the_oldest_first_and_what_has_no_text() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let all = ids("h:1:ff", 1_203);
    for (place, request) in all.iter().enumerate() {
        write(&mut raw, request, 2_000 - place);
    }
    raw.run::<()>(redis::cmd("HDEL").arg(DETAILS).arg(all[1_202].as_bytes()));
    let mut seen = Vec::new();
    loop {
        let page = details::page(&mut conn, seen.len(), 500).unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    let place = |details: &Details| (details.id.clone(), details.registered.0);
    let expected: Vec<_> =
        all.iter().enumerate().rev().map(|(place, request)| (request.clone(), 2_000 - i64::try_from(place).unwrap())).collect();
    assert_eq!(seen.iter().map(place).collect::<Vec<_>>(), expected);
    assert_eq!(seen[0].json, None);
    assert!(seen.iter().skip(1).all(|details| details.json.as_deref() == Some(JSON)));
    assert_eq!(details::page(&mut conn, 0, 0).unwrap(), []);
    assert_eq!(details::page(&mut conn, 0, 2).unwrap().len(), 2);
}

#[test]
fn recovery_removes_those_of_what_it_removes() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let (orphan, ghost, lost_lease) = (id("h:1:dead/a"), id("h:1:dead/ghost"), id("h:1:dead/taken"));
    for request in [&orphan, &ghost, &lost_lease] {
        register(&mut conn, request, LONG_AGO);
    }
    raw.run::<()>(redis::cmd("HDEL").arg(JOBS).arg(ghost.as_bytes()));
    let mut sweep = begin(&mut conn, THRESHOLD);
    let batch = next_batch(&mut conn, &mut sweep).unwrap();
    assert_eq!(batch.ghosts, [ghost]);
    assert_eq!(sizes(&mut raw), (2, 2), "those of the ghost are gone");
    raw.index(&lost_lease, NOW.0);
    let settled: Vec<_> = batch.claimed.iter().map(|claimed| settle_uncounted(&mut conn, claimed, batch.lease)).collect();
    assert!(settled.contains(&Settled::Removed) && settled.contains(&Settled::LeaseLost));
    let left: Vec<Vec<u8>> = raw.run(redis::cmd("HKEYS").arg(DETAILS));
    assert_eq!(left, [lost_lease.as_bytes()]);
}

#[test]
fn a_sweep_forgets_those_whose_request_another_version_has_recovered() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    // More of the living are older than one step looks at.
    for request in ids("h:1:ff", 700) {
        raw.enter(&request, NOW.0, b"{}");
        write(&mut raw, &request, 1);
    }
    for request in ids("h:1:old", 20) {
        write(&mut raw, &request, LONG_AGO.0);
    }
    let living = id("h:1:ff/a");
    register(&mut conn, &living, NOW);
    raw.bring_to_life(b"h:1:ff", "7");
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(recover_all(&mut conn, &mut sweep), []);
    while sweep.restore(&mut conn).unwrap().is_some() {}
    assert_eq!(sizes(&mut raw), (701, 701));
}

#[test]
fn keys_of_another_type_keep_nothing_from_being_recovered() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let (orphan, ghost) = (id("h:1:dead/a"), id("h:1:dead/ghost"));
    raw.enter(&orphan, LONG_AGO.0, b"{}");
    raw.index(&ghost, LONG_AGO.0);
    raw.set(DETAILS, "text");
    raw.set(DETAILS_INDEX, "text");
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(recover_all(&mut conn, &mut sweep), [orphan]);
    while sweep.restore(&mut conn).unwrap().is_some() {}
    assert_eq!((raw.index_size(), raw.jobs_size()), (0, 0));
}

#[test]
fn clearing_the_registry_clears_them_too() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    register(&mut conn, &process.registry_id(b"a"), NOW);
    processes::ping(&mut conn, &Ping { process: &process, capacity: 1, ttl: ttl(60.0), processors: Some(b"{}") }).unwrap();
    entries::clear(&mut conn).unwrap();
    assert_eq!(raw.run::<usize>(&mut redis::cmd("DBSIZE")), 0);
}

#[test]
fn processors_are_told_with_the_proof_of_life_and_go_with_it() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let key = format!("{PROCESSES}:{process}:processors");
    let ping = Ping { process: &process, capacity: 7, ttl: ttl(60.0), processors: Some(b"{\"a\":1}") };
    processes::ping(&mut conn, &ping).unwrap();
    assert_eq!(raw.get(&key).as_deref(), Some(&b"{\"a\":1}"[..]));
    assert_fresh_ttl(raw.ttl(&key), 60);
    raw.cli::<()>(&format!("DEL {key}"));
    entries::register(&mut conn, &Entry::new(&process.registry_id(b"a"), b"{}"), NOW, ttl(TTL), Some(&ping)).unwrap();
    assert!(raw.exists(&key));
    processes::remove(&mut conn, &process).unwrap();
    assert_eq!((raw.exists(&key), raw.cli::<usize>(&format!("EXISTS {PROCESSES}"))), (false, 0));
}

#[test]
fn loads_tell_what_the_processors_of_each_live_process_carry_where_that_is_wanted() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    for (process, processors) in [("h:1:aa", Some("one")), ("h:1:bb", Some("two")), ("h:2:cc", None), ("h:3:dd", Some("dead"))]
    {
        raw.bring_to_life(process.as_bytes(), "5");
        if let Some(text) = processors {
            raw.set(format!("{PROCESSES}:{process}:processors"), text);
        }
    }
    raw.cli::<()>(&format!("LPUSH {PROCESSES}:h:2:cc:processors x"));
    raw.let_die(b"h:3:dd");
    let loads = processes::loads(&mut conn, true).unwrap();
    let mut processors: BTreeMap<_, _> =
        loads.iter().map(|(name, Load { processors, .. })| (name.as_slice(), processors.clone())).collect();
    processors.values_mut().for_each(|texts| texts.sort());
    assert_eq!(processors, BTreeMap::from([(&b"h:1"[..], vec![b"one".to_vec(), b"two".to_vec()]), (&b"h:2"[..], vec![])]));
    assert!(processes::loads(&mut conn, false).unwrap().values().all(|load| load.processors.is_empty()));
}
