//! Data that no version of the gem should have written, but that may be there: it is coped with or refused clearly, and never
//! makes anything hang.

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

use inflight_registry::entries::Entry;
use inflight_registry::processes::{self, Ping};
use inflight_registry::recovery::{self, Begun, Plan, Sweep};
use inflight_registry::units::seconds_to_ms;
use inflight_registry::{Attempt, Millis, ProcessId, RegistryId, Ttl, entries, gc};
use support::sweeping::{begin, claim_all, leased, next_batch, recover_all};
use support::{
    GC_LAST_RUN, GC_LOCK, INDEX, JOBS, PROCESSES, Server, TTL, assert_fresh_ttl, assert_refused, capacity_key, id,
    recoveries_key, ttl,
};

const LONG_AGO: Millis = Millis(1_000);
const NOW: Millis = Millis(1_700_000_000_123);

#[test]
fn an_id_without_a_slash_is_its_own_process() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    for id in ["h:1:dead", "live", ""] {
        raw.enter(&RegistryId(id.into()), LONG_AGO.0, b"{}");
    }
    raw.bring_to_life("live", "10");
    raw.set(recoveries_key("h:1:dead"), "2");

    let mut sweep = begin(&mut conn, 0);
    let batches = claim_all(&mut conn, &mut sweep);

    assert_eq!(leased(&batches), [id(""), id("h:1:dead")]);
    assert_eq!(batches[0].claimed[1].recoveries, 2, "counted by the whole id");
    assert_eq!(raw.heartbeat(&id("live")), LONG_AGO);
}

#[test]
fn an_empty_task_id_and_an_empty_process_id_are_ids_like_others() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let empty_task = process.registry_id(b"");
    let empty_process = id("/task");
    for id in [&empty_task, &empty_process] {
        entries::register(&mut conn, &Entry::new(id, b"{}"), LONG_AGO, ttl(TTL), None).unwrap();
        entries::heartbeat(&mut conn, &[id.clone()], LONG_AGO.ahead(1), ttl(TTL)).unwrap();
        assert_eq!(entries::heartbeat_of(&mut conn, id).unwrap(), Some(LONG_AGO.ahead(1)));
    }
    assert_eq!(entries::of_process(&mut conn, &process).unwrap(), [empty_task.clone()]);
    raw.bring_to_life("", "10");
    let mut sweep = begin(&mut conn, 0);
    assert_eq!(recover_all(&mut conn, &mut sweep), [empty_task]);
    raw.let_die("");
    let mut sweep = begin(&mut conn, 0);
    assert_eq!(recover_all(&mut conn, &mut sweep), [empty_process]);
}

#[test]
fn very_long_ids_go_through_everything() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let tasks = (0..150).map(|n| process.registry_id(&[format!("{n:05}").as_bytes(), &[b'*'; 10_000]].concat()));
    let mut all: Vec<_> = tasks.collect();
    for id in &all {
        entries::register(&mut conn, &Entry::new(id, b"{}"), LONG_AGO, ttl(TTL), None).unwrap();
    }
    entries::heartbeat(&mut conn, &all, LONG_AGO.ahead(1), ttl(TTL)).unwrap();
    assert!(entries::of_process(&mut conn, &process).unwrap() == all);
    raw.let_die([b'p'; 10_000]);
    let of_long_process = RegistryId([&[b'p'; 10_000][..], b"/a"].concat());
    raw.enter(&of_long_process, LONG_AGO.0, b"{}");
    all.push(of_long_process);

    let mut sweep = begin(&mut conn, 0);
    let mut recovered = recover_all(&mut conn, &mut sweep);

    recovered.sort();
    all.sort();
    assert!(recovered == all, "not each of them once");
    assert!(raw.members().is_empty());
    assert_eq!((raw.index_size(), raw.jobs_size()), (0, 0));
}

#[test]
fn process_ids_with_a_meaning_elsewhere_stand_for_themselves() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let odd: [&[u8]; 7] =
        [b"%a+.-^$()%1:1:ff", b"h*?[a-z]\\:1:ff", b"\xff\xfe:1:ff", b"a\0b:1:ff", b"two\r\nlines", b"-1", b"nil"];
    // Asked about as patterns, the dead would be taken for these.
    raw.bring_to_life("hxya:1:ff", "1");
    raw.bring_to_life("a", "1");
    for process in odd {
        let entry = RegistryId([process, b"/task"].concat());
        raw.bring_to_life(process, "7");
        raw.enter(&entry, LONG_AGO.0, entry.as_bytes());
        let mut sweep = begin(&mut conn, 0);
        assert_eq!(next_batch(&mut conn, &mut sweep), None, "{process:?} lives");
        let load = &processes::loads(&mut conn, false).unwrap()[inflight_registry::ids::host_and_pid(process)];
        assert_eq!((load.inflight, load.max_capacity), (1, 7));

        raw.let_die(process);
        raw.set(GC_LOCK, process);
        let mut sweep = begin(&mut conn, 0);
        assert_eq!(recover_all(&mut conn, &mut sweep), [entry]);
        assert!(!raw.members().contains(process));
        assert!(!raw.exists(GC_LOCK));
    }
    assert_eq!(raw.members().len(), 2);
}

#[test]
fn scores_beyond_time_are_ordered_like_others() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let scores = ["-inf", "-1e300", "-5.5", "0", "1.25", "1.75", "1e300", "+inf"];
    for score in scores {
        raw.enter(&id(format!("h:1:dead/{score}")), score, b"{}");
    }
    let entry = |score: &&str| id(format!("h:1:dead/{score}"));

    // With the longest threshold that there is the cut-off lies before 1970.
    for (seconds, orphans) in [(f64::MAX, 2), (0.0, 6), (-f64::MAX, 6)] {
        for score in scores {
            raw.enter(&entry(&score), score, b"{}");
        }
        let mut sweep = begin(&mut conn, seconds_to_ms(seconds));
        let expected: Vec<_> = scores[..orphans].iter().map(entry).collect();
        assert_eq!(recover_all(&mut conn, &mut sweep), expected, "a threshold of {seconds} s");
        assert_eq!(raw.index_size(), scores.len() - orphans);
    }
}

#[test]
fn many_infinitely_old_entries_do_not_stop_the_paging() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("a:1:live", "10");
    for n in 0..1_100 {
        raw.index(&id(format!("a:1:live/{n}")), "-inf");
    }
    raw.enter(&id("z:1:dead/a"), "-inf", b"{}");
    raw.enter(&id("z:1:dead/b"), "0.5", b"{}");
    let mut sweep = begin(&mut conn, 0);
    assert_eq!(recover_all(&mut conn, &mut sweep), [id("z:1:dead/a"), id("z:1:dead/b")]);
}

/// Makes `key` a list, which no operation expects anywhere.
fn spoil(raw: &mut support::Raw, key: &str) {
    raw.delete(key);
    raw.run::<()>(redis::cmd("RPUSH").arg(key).arg("x"));
}

#[test]
fn an_index_of_another_type_is_refused_by_every_operation() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let ping = Ping { process: &process, capacity: 1, ttl: ttl(60.0), processors: None };
    let entry = id("h:1:dead/a");
    raw.enter(&entry, LONG_AGO.0, b"{}");
    raw.run::<()>(redis::cmd("HSET").arg(JOBS).arg("h:1:dead/lost").arg("{}"));
    let mut sweep = begin(&mut conn, 0);
    spoil(&mut raw, INDEX);

    for ping in [None, Some(&ping)] {
        assert_refused(entries::register(&mut conn, &Entry::new(&entry, b"{}"), NOW, ttl(TTL), ping), "WRONGTYPE");
    }
    assert_refused(entries::unregister(&mut conn, &id("h:1:ff/x"), false), "WRONGTYPE");
    assert_refused(entries::heartbeat(&mut conn, &[entry.clone()], NOW, ttl(TTL)), "WRONGTYPE");
    assert_refused(entries::heartbeat_of(&mut conn, &entry), "WRONGTYPE");
    assert_refused(entries::count(&mut conn), "WRONGTYPE");
    assert_refused(entries::of_process(&mut conn, &process), "WRONGTYPE");
    assert_refused(processes::loads(&mut conn, false), "WRONGTYPE");
    assert_refused(sweep.claim(&mut conn), "WRONGTYPE");
    assert_refused(sweep.restore(&mut conn), "WRONGTYPE");
    assert_refused(sweep.renew(&mut conn, NOW, &[entry.clone()]), "WRONGTYPE");
    assert_refused(recovery::settle(&mut conn, &entry, NOW, b"abc", None), "WRONGTYPE");
    assert_refused(begin_result(&mut conn), "WRONGTYPE");
    entries::clear(&mut conn).unwrap();
    assert_eq!(entries::count(&mut conn).unwrap(), 0);
}

fn begin_result(conn: &mut redis::Connection) -> inflight_registry::Result<Begun> {
    let process = ProcessId::generate();
    Sweep::begin(conn, &Plan { process: &process, threshold_ms: 0, shift: 0, ttl: ttl(TTL), restore_from: 0 }, false)
}

#[test]
fn jobs_of_another_type_are_refused_by_every_operation_that_needs_them() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let entry = id("h:1:dead/a");
    raw.enter(&entry, LONG_AGO.0, b"{}");
    raw.run::<()>(redis::cmd("HSET").arg(JOBS).arg("h:1:dead/lost").arg("{}"));
    let mut sweep = begin(&mut conn, 0);
    spoil(&mut raw, JOBS);

    assert_refused(entries::register(&mut conn, &Entry::new(&id("h:1:ff/b"), b"{}"), NOW, ttl(TTL), None), "WRONGTYPE");
    assert_refused(entries::unregister(&mut conn, &id("h:1:ff/b"), false), "WRONGTYPE");
    assert_refused(sweep.restore(&mut conn), "WRONGTYPE");
    assert_refused(begin_result(&mut conn), "WRONGTYPE");
    assert!(sweep.claim(&mut conn).unwrap().unwrap().claimed.is_empty(), "a page");
    assert_refused(sweep.claim(&mut conn), "WRONGTYPE");
    assert_eq!(raw.heartbeat(&entry), LONG_AGO, "not leased");
}

#[test]
fn a_process_set_of_another_type_is_refused_by_every_operation_that_needs_it() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let ping = Ping { process: &process, capacity: 1, ttl: ttl(60.0), processors: None };
    spoil(&mut raw, PROCESSES);
    raw.set(GC_LOCK, "h:1:another");
    raw.set(capacity_key("h:1:live"), "10");

    assert_refused(processes::ping(&mut conn, &ping), "WRONGTYPE");
    assert_refused(entries::register(&mut conn, &Entry::new(&id("h:1:ff/b"), b"{}"), NOW, ttl(TTL), Some(&ping)), "WRONGTYPE");
    assert_refused(processes::remove(&mut conn, &process), "WRONGTYPE");
    assert_refused(processes::registered(&mut conn), "WRONGTYPE");
    assert_refused(processes::loads(&mut conn, false), "WRONGTYPE");
    assert_refused(processes::total_capacity(&mut conn), "WRONGTYPE");
    assert_refused(processes::live(&mut conn, &[b"h:1:dead".to_vec()]), "WRONGTYPE");
    assert_refused(gc::acquire_lock(&mut conn, &process, ttl(120.0), false), "WRONGTYPE");
    assert_eq!(processes::live(&mut conn, &[b"h:1:live".to_vec()]).unwrap().len(), 1);
}

#[test]
fn a_lock_of_another_type_is_nobodys_and_does_not_hide_who_lives() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    spoil(&mut raw, GC_LOCK);
    raw.let_die("h:1:dead");
    raw.bring_to_life("h:2:live", "10");

    assert!(!gc::release_lock(&mut conn, &process, Attempt::First).unwrap());
    assert!(!gc::renew_lock(&mut conn, &process, ttl(120.0)).unwrap());
    assert_eq!(processes::live(&mut conn, &[b"h:1:dead".to_vec(), b"h:2:live".to_vec()]).unwrap().len(), 1);
    assert_eq!(raw.members(), [b"h:2:live".to_vec()].into());
    assert!(gc::acquire_lock(&mut conn, &process, ttl(120.0), false).unwrap());
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(process.as_bytes()));
    assert_fresh_ttl(raw.ttl(GC_LOCK), 120);
}

#[test]
fn a_lock_without_a_ttl_gets_one_from_whoever_wants_it() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.set(GC_LOCK, "stranger");
    assert!(!gc::acquire_lock(&mut conn, &ProcessId::generate(), ttl(120.0), false).unwrap());
    assert_fresh_ttl(raw.ttl(GC_LOCK), 120);
}

#[test]
fn a_record_of_the_last_run_of_another_type_is_as_good_as_none_and_goes_with_the_next_one() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    spoil(&mut raw, GC_LAST_RUN);
    assert!(gc::is_due(&mut conn, 1_000, 0).unwrap());
    let now = raw.now();
    gc::record_run(&mut conn, now, ttl(90.0)).unwrap();
    assert!(!gc::is_due(&mut conn, 60_000, 0).unwrap());
}

#[test]
fn a_refusal_counter_that_cannot_count_stops_nothing() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    spoil(&mut raw, "sidekiq:patient_http:refusals:abc");
    raw.set("sidekiq:patient_http:refusals:text", "many");
    for job in [&b"abc"[..], b"text"] {
        assert_eq!(begin(&mut conn, 0).count_refusal(&mut conn, job, ttl(60.0)).unwrap(), 1);
        assert_eq!(begin(&mut conn, 0).count_refusal(&mut conn, job, ttl(60.0)).unwrap(), 2);
    }
}

#[test]
fn a_run_that_lies_in_the_far_future_is_as_good_as_none() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let now = raw.now();
    for (last, due) in [(now.0 * 1_000, true), (now.0 + 61_000, true), (now.0 + 30_000, false)] {
        raw.set(GC_LAST_RUN, last.to_string());
        assert_eq!(gc::is_due(&mut conn, 60_000, 0).unwrap(), due, "{last}");
    }
}

#[test]
fn a_record_of_a_run_at_the_end_of_time_is_as_good_as_none() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    for endless in ["inf", "infinity", "1e400"] {
        raw.set(GC_LAST_RUN, endless);
        assert!(gc::is_due(&mut conn, 1_000, 0).unwrap(), "{endless:?}");
    }
}

#[test]
fn a_ttl_of_no_number_is_still_at_least_one_second() {
    assert_eq!(Ttl::from_seconds(f64::NAN).as_secs(), 1);
    assert_eq!(Ttl::of_capacity(f64::NAN).as_secs(), 1);
}
