//! Who sweeps, and when the last sweep was.

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

use inflight_registry::{Attempt, Millis, ProcessId, gc, processes};
use support::wire::Wire;
use support::{GC_LAST_RUN, GC_LOCK, Server, assert_fresh_ttl, ping, ttl};

const INTERVAL: i64 = 60_000;

fn acquire(conn: &mut impl redis::ConnectionLike, process: &ProcessId) -> bool {
    gc::acquire_lock(conn, process, ttl(120.0), false).unwrap()
}

#[test]
fn a_free_lock_is_taken_with_its_ttl() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    assert!(acquire(&mut conn, &process));
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(process.as_bytes()));
    assert_fresh_ttl(raw.ttl(GC_LOCK), 120);
}

#[test]
fn holding_the_lock_already_is_no_acquisition_and_does_not_prolong_it() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    assert!(acquire(&mut conn, &process));
    raw.expire(GC_LOCK, 50);

    assert!(!gc::acquire_lock(&mut conn, &process, ttl(120.0), true).unwrap());

    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(process.as_bytes()));
    assert_fresh_ttl(raw.ttl(GC_LOCK), 50);
}

#[test]
fn a_try_after_a_lost_answer_finds_the_lock_that_the_first_took_and_prolongs_it() {
    let server = Server::start();
    let mut raw = server.raw();
    let process = ProcessId::generate();
    let mut wire = Wire::over(server.connect());
    // The script is known to the server, so that it is the answer to the acquisition that gets lost.
    assert!(acquire(&mut wire, &process));
    assert!(gc::release_lock(&mut wire, &process, Attempt::First).unwrap());

    wire.answers_to_lose = 1;
    gc::acquire_lock(&mut wire, &process, ttl(120.0), false).unwrap_err();
    raw.expire(GC_LOCK, 50);
    assert!(gc::acquire_lock(&mut wire, &process, ttl(120.0), false).unwrap());
    assert_fresh_ttl(raw.ttl(GC_LOCK), 120);
}

#[test]
fn who_wrongly_takes_itself_for_the_holder_takes_a_free_lock_and_no_one_elses() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let (one, other) = (ProcessId::generate(), ProcessId::generate());
    assert!(gc::acquire_lock(&mut conn, &one, ttl(120.0), true).unwrap());
    assert!(!gc::acquire_lock(&mut conn, &other, ttl(120.0), false).unwrap());
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(one.as_bytes()));
}

#[test]
fn the_lock_of_a_dead_member_is_taken_over_with_a_full_ttl() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.let_die("h:1:dead");
    raw.set(GC_LOCK, "h:1:dead");
    raw.expire(GC_LOCK, 50);
    let process = ProcessId::generate();

    assert!(acquire(&mut conn, &process));

    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(process.as_bytes()));
    assert_fresh_ttl(raw.ttl(GC_LOCK), 120);
}

#[test]
fn a_repeat_finds_the_lock_that_its_first_try_took_over() {
    let server = Server::start();
    let mut raw = server.raw();
    let process = ProcessId::generate();
    let mut wire = Wire::over(server.connect());
    raw.let_die("h:1:dead");
    for warming_up in [true, false] {
        raw.set(GC_LOCK, "h:1:dead");
        if warming_up {
            assert!(acquire(&mut wire, &process));
        } else {
            (wire.answers_to_spare, wire.answers_to_lose) = (1, 1);
            gc::acquire_lock(&mut wire, &process, ttl(120.0), false).unwrap_err();
        }
    }
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(process.as_bytes()));
    assert!(gc::acquire_lock(&mut wire, &process, ttl(120.0), false).unwrap());
}

#[test]
fn a_lock_is_not_taken_from_a_holder_that_lives() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let holder = ProcessId::generate();
    ping(&mut conn, &holder, 10);
    assert!(acquire(&mut conn, &holder));
    raw.expire(GC_LOCK, 50);
    assert!(!acquire(&mut conn, &ProcessId::generate()));
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(holder.as_bytes()));
    assert_fresh_ttl(raw.ttl(GC_LOCK), 50);
}

#[test]
fn a_lock_is_not_taken_from_a_holder_that_is_no_member_since_it_may_never_have_pinged() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let holder = ProcessId::generate();
    assert!(acquire(&mut conn, &holder));
    raw.let_die("h:1:another-dead-one");
    assert!(!acquire(&mut conn, &ProcessId::generate()));
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(holder.as_bytes()));
}

// Two find the same dead holder: the second must not take it from the first, whichever of the two is a member.
#[test]
fn only_one_of_two_takes_a_dead_holders_lock_over() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.let_die("h:1:dead");
    raw.set(GC_LOCK, "h:1:dead");
    let (one, other) = (ProcessId::generate(), ProcessId::generate());
    ping(&mut conn, &one, 10);
    assert!(acquire(&mut conn, &one));
    assert!(!acquire(&mut conn, &other));
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(one.as_bytes()));
}

#[test]
fn a_lock_that_changed_hands_before_it_could_be_taken_over_stays_with_its_new_holder() {
    let server = Server::start();
    let (mut conn, mut raw, mut rival) = (server.connect(), server.raw(), server.raw());
    let new_holder = ProcessId::generate();
    ping(&mut conn, &new_holder, 10);
    let name = new_holder.as_str().to_owned();
    let mut wire = Wire::over(server.connect());
    raw.let_die("h:1:dead");
    raw.set(GC_LOCK, "h:1:dead");
    assert!(acquire(&mut wire, &new_holder), "both scripts are known now, so that each is one write");
    raw.set(GC_LOCK, "h:1:dead");

    wire.meanwhile = Some((1, Box::new(move || rival.set(GC_LOCK, name))));
    assert!(!acquire(&mut wire, &ProcessId::generate()));

    assert!(wire.meanwhile.is_none());
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(new_holder.as_bytes()));
}

#[test]
fn release_deletes_our_own_lock_alone() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let (holder, other) = (ProcessId::generate(), ProcessId::generate());
    assert!(acquire(&mut conn, &holder));

    for attempt in [Attempt::First, Attempt::Repeat] {
        assert!(!gc::release_lock(&mut conn, &other, attempt).unwrap());
        assert_eq!(raw.get(GC_LOCK).as_deref(), Some(holder.as_bytes()));
    }

    assert!(gc::release_lock(&mut conn, &holder, Attempt::First).unwrap());
    assert!(!raw.exists(GC_LOCK));
}

#[test]
fn release_of_a_lock_that_nobody_holds_is_true_only_in_a_repeat() {
    let server = Server::start();
    let process = ProcessId::generate();
    let mut wire = Wire::over(server.connect());
    assert!(!gc::release_lock(&mut wire, &process, Attempt::First).unwrap());
    assert!(gc::release_lock(&mut wire, &process, Attempt::Repeat).unwrap());

    assert!(acquire(&mut wire, &process));
    wire.answers_to_lose = 1;
    gc::release_lock(&mut wire, &process, Attempt::First).unwrap_err();
    assert!(gc::release_lock(&mut wire, &process, Attempt::Repeat).unwrap(), "the first try gave it back");
}

#[test]
fn renew_gives_our_own_lock_its_full_ttl_again() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let (holder, other) = (ProcessId::generate(), ProcessId::generate());
    assert!(!gc::renew_lock(&mut conn, &holder, ttl(120.0)).unwrap());
    assert!(!raw.exists(GC_LOCK), "renewing takes nothing");
    assert!(acquire(&mut conn, &holder));
    raw.expire(GC_LOCK, 5);

    assert!(!gc::renew_lock(&mut conn, &other, ttl(120.0)).unwrap());
    assert_fresh_ttl(raw.ttl(GC_LOCK), 5);

    assert!(gc::renew_lock(&mut conn, &holder, ttl(120.0)).unwrap());
    assert_fresh_ttl(raw.ttl(GC_LOCK), 120);
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(holder.as_bytes()));
}

#[test]
fn a_run_is_due_when_none_is_on_record() {
    let server = Server::start();
    assert!(gc::is_due(&mut server.connect(), INTERVAL, 0).unwrap());
}

#[test]
fn a_run_is_due_once_the_interval_has_passed_since_the_last() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let now = raw.now();
    for (last, due) in [
        (now, false),
        (now.back(INTERVAL - 5_000), false),
        (now.back(INTERVAL), true),
        (now.back(INTERVAL + 5_000), true),
        (Millis(0), true),
    ] {
        raw.set(GC_LAST_RUN, last.0.to_string());
        assert_eq!(gc::is_due(&mut conn, INTERVAL, 0).unwrap(), due, "the last run {} ms ago", now.0 - last.0);
    }
}

#[test]
fn a_run_is_due_by_the_shifted_time_of_a_test_that_travels() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let now = raw.now();
    raw.set(GC_LAST_RUN, now.0.to_string());
    assert!(gc::is_due(&mut conn, INTERVAL, INTERVAL).unwrap());
    raw.set(GC_LAST_RUN, now.back(INTERVAL).0.to_string());
    assert!(!gc::is_due(&mut conn, INTERVAL, -5_000).unwrap());
}

#[test]
fn a_record_that_is_no_number_is_as_good_as_none() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    for garbage in [&b""[..], b"yesterday", b"\xff\0", b"12:30", b"NaN"] {
        raw.set(GC_LAST_RUN, garbage);
        assert!(gc::is_due(&mut conn, INTERVAL, 0).unwrap(), "{garbage:?}");
    }
}

#[test]
fn a_record_of_another_version_is_understood() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let now = raw.now().0;
    for recent in [format!("{now}.25"), format!(" {now}\n")] {
        raw.set(GC_LAST_RUN, &recent);
        assert!(!gc::is_due(&mut conn, INTERVAL, 0).unwrap(), "{recent:?}");
    }
}

#[test]
fn a_recorded_run_is_the_moment_given_and_runs_out() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let now = raw.now();
    gc::record_run(&mut conn, now, ttl(90.0)).unwrap();
    assert_eq!(raw.get(GC_LAST_RUN), Some(now.0.to_string().into_bytes()));
    assert_fresh_ttl(raw.ttl(GC_LAST_RUN), 90);
    assert!(!gc::is_due(&mut conn, INTERVAL, 0).unwrap());
}

#[test]
fn a_holder_that_never_pinged_keeps_its_lock_when_someone_asks_who_lives() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let holder = ProcessId::generate();
    assert!(acquire(&mut conn, &holder));
    processes::live(&mut conn, &[holder.as_bytes().to_vec()]).unwrap();
    assert_eq!(raw.get(GC_LOCK).as_deref(), Some(holder.as_bytes()));
}
