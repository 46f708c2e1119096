//! The Lua scripts as such: known to the server or not, the published one by itself, and all keys where a cluster looks for
//! them.

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

use inflight_registry::recovery::Settled;
use inflight_registry::{Attempt, ProcessId, REMOVE_IF_ORPHANED, gc, processes};
use redis::Value;
use support::sweeping::{begin, next_batch, settle_uncounted};
use support::wire::Wire;
use support::{GC_LOCK, INDEX, JOBS, Raw, Server, id, ids, ttl};

#[test]
fn a_script_goes_by_its_hash_and_in_full_only_where_the_server_does_not_know_it() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    let process = ProcessId::generate();
    let renew = |wire: &mut Wire| {
        wire.sent.clear();
        assert!(!gc::renew_lock(wire, &process, ttl(1.0)).unwrap());
        let is = |write: &Vec<u8>, name: &[u8]| write.windows(name.len()).any(|window| window == name);
        (wire.sent.len(), is(&wire.sent[0], b"\r\nEVALSHA\r\n"), is(wire.sent.last().unwrap(), b"\r\nEVAL\r\n"))
    };
    assert_eq!(renew(&mut wire), (2, true, true));
    assert_eq!(renew(&mut wire), (1, true, false));
    raw.cli::<()>("SCRIPT FLUSH");
    assert_eq!(renew(&mut wire), (2, true, true));
    assert_eq!(renew(&mut wire), (1, true, false));
}

#[test]
fn a_server_that_forgot_its_scripts_is_no_trouble_for_any_operation() {
    let server = Server::start();
    let (mut conn, mut raw, mut flush) = (server.connect(), server.raw(), server.raw());
    let mut forget = || flush.cli::<()>("SCRIPT FLUSH");
    let (one, other) = (ProcessId::generate(), ProcessId::generate());

    forget();
    assert!(gc::acquire_lock(&mut conn, &one, ttl(120.0), false).unwrap());
    forget();
    assert!(gc::renew_lock(&mut conn, &one, ttl(120.0)).unwrap());
    raw.let_die(one.as_str());
    forget();
    assert!(gc::acquire_lock(&mut conn, &other, ttl(120.0), false).unwrap(), "taken over");
    forget();
    assert!(gc::release_lock(&mut conn, &other, Attempt::First).unwrap());
    forget();
    assert!(processes::live(&mut conn, &[one.as_bytes().to_vec()]).unwrap().is_empty());
    assert!(raw.members().is_empty());
    forget();
    assert_eq!(begin(&mut conn, 0).count_refusal(&mut conn, b"abc", ttl(60.0)).unwrap(), 1);

    raw.enter_all(&ids("h:1:dead", 1), inflight_registry::Millis(1));
    raw.run::<()>(redis::cmd("HSET").arg(JOBS).arg("h:1:dead/lost").arg("{}"));
    let mut sweep = begin(&mut conn, 0);
    forget();
    assert_eq!(sweep.restore(&mut conn).unwrap(), Some(vec![id("h:1:dead/lost")]));
    forget();
    let mut batch = next_batch(&mut conn, &mut sweep).unwrap();
    let claimed = batch.claimed.pop().unwrap();
    forget();
    let (lease, ours) = sweep.renew(&mut conn, batch.lease, &[claimed.id.clone()]).unwrap();
    assert_eq!(ours, [claimed.id.clone()]);
    forget();
    assert_eq!(settle_uncounted(&mut conn, &claimed, lease), Settled::Removed);
}

#[test]
fn a_sweep_goes_on_over_a_server_that_forgets_its_scripts_between_any_two_steps() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter_all(&ids("h:1:dead", 350), inflight_registry::Millis(1));
    let mut sweep = begin(&mut conn, 1_000);
    let mut claimed = 0;
    while let Some(batch) = sweep.claim(&mut conn).unwrap() {
        claimed += batch.claimed.len();
        assert!(claimed <= 350, "claimed twice");
        raw.cli::<()>("SCRIPT FLUSH");
    }
    assert_eq!(claimed, 350);
}

/// A plain EVAL, as callers of their own do it.
fn remove_if_orphaned(raw: &mut Raw, id: &[u8], threshold: &str) -> Value {
    raw.run(redis::cmd("EVAL").arg(REMOVE_IF_ORPHANED).arg(2).arg(INDEX).arg(JOBS).arg(id).arg(threshold))
}

fn not_removed() -> Value {
    Value::Array(vec![Value::Int(0), Value::Nil])
}

fn removed(payload: &[u8]) -> Value {
    Value::Array(vec![Value::Int(1), Value::BulkString(payload.to_vec())])
}

#[test]
fn the_published_script_removes_an_entry_that_is_strictly_below_the_threshold() {
    let server = Server::start();
    let mut raw = server.raw();
    let entry = id(b"h:1:dead/\xff\0");
    for (score, threshold, orphaned) in [
        ("1700000000000", "1700000000000", false),
        ("1700000000000", "1699999999999", false),
        ("1700000000000", "1700000000001", true),
        ("1700000000000.5", "1700000000000.5", false),
        ("1700000000000.25", "1700000000000.5", true),
        ("+inf", "1700000000000", false),
        ("-inf", "1700000000000", true),
    ] {
        raw.enter(&entry, score, b"{\"\xfe\":\0}");
        let reply = remove_if_orphaned(&mut raw, entry.as_bytes(), threshold);
        if orphaned {
            assert_eq!(reply, removed(b"{\"\xfe\":\0}"), "{score} below {threshold}");
            assert_eq!((raw.index_size(), raw.jobs_size()), (0, 0));
        } else {
            assert_eq!(reply, not_removed(), "{score} not below {threshold}");
            assert_eq!((raw.index_size(), raw.jobs_size()), (1, 1));
        }
    }
}

#[test]
fn the_published_script_leaves_everything_else_alone() {
    let server = Server::start();
    let mut raw = server.raw();
    assert_eq!(remove_if_orphaned(&mut raw, b"h:1:dead/a", "5"), not_removed());
    raw.enter(&id("h:1:dead/b"), 1, b"{}");
    // A job whose index entry was lost: nobody can tell how old it is.
    raw.run::<()>(redis::cmd("HSET").arg(JOBS).arg("h:1:dead/a").arg("{}"));
    assert_eq!(remove_if_orphaned(&mut raw, b"h:1:dead/a", "5"), not_removed());
    assert_eq!((raw.index_size(), raw.jobs_size()), (1, 2));
}

#[test]
fn the_published_script_removes_an_entry_without_a_job_and_tells_that_there_is_none() {
    let server = Server::start();
    let mut raw = server.raw();
    raw.index(&id("h:1:dead/a"), 1);
    assert_eq!(remove_if_orphaned(&mut raw, b"h:1:dead/a", "5"), Value::Array(vec![Value::Int(1), Value::Nil]));
    assert_eq!(raw.index_size(), 0);
}

// Whoever reads the set of a script's keys (a proxy, an ACL, a cluster) must find there all that it touches.
#[test]
fn every_script_takes_all_its_keys_from_keys() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut calls = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let code = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!code.contains("sidekiq:"), "a key by its name");
        for call in code.split("call('").skip(1) {
            let (command, rest) = call.split_once('\'').unwrap();
            let key = rest.trim_start_matches(", ");
            calls += 1;
            assert!(
                command == "TIME" || ["KEYS[", "index", "jobs"].iter().any(|start| key.starts_with(start)),
                "the key of {command} in {code}"
            );
        }
    }
    assert!(calls > 20);
}

// The lock's holder is a process id out of Redis; a script that is handed one as a key must not take it for anything else.
#[test]
fn an_odd_holder_of_the_lock_is_taken_as_it_is() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    for holder in [&b""[..], b"%d+", b"\xff\0\r\n", b"h:1:ff/x"] {
        raw.set(GC_LOCK, holder);
        let process = ProcessId::generate();
        assert!(!gc::acquire_lock(&mut conn, &process, ttl(9.0), false).unwrap());
        assert_eq!(raw.get(GC_LOCK).as_deref(), Some(holder));
        raw.let_die(holder);
        assert!(gc::acquire_lock(&mut conn, &process, ttl(9.0), false).unwrap());
    }
}
