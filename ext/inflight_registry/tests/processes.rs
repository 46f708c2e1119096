//! A process lives while its capacity key does: proving it, finding out, and clearing up after those that do not.

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

use inflight_registry::processes::{self, Load, Ping, PingReport};
use inflight_registry::{LocalTime, Millis, ProcessId, ServerClock};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use support::wire::Wire;
use support::{GC_LOCK, INDEX, PROCESSES, Server, assert_fresh_ttl, capacity_key, id, ids, ttl};

fn texts(processes: &[&str]) -> Vec<Vec<u8>> {
    processes.iter().map(|process| process.as_bytes().to_vec()).collect()
}

fn loads(expected: &[(&str, u64, i64)]) -> BTreeMap<Vec<u8>, Load> {
    expected
        .iter()
        .map(|&(name, inflight, max_capacity)| (name.as_bytes().to_vec(), Load { inflight, max_capacity, ..Load::default() }))
        .collect()
}

#[test]
fn a_ping_makes_a_member_with_a_capacity_that_runs_out() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    let process = ProcessId::generate();
    let capacity = capacity_key(process.as_str());

    let (report, _) =
        processes::ping(&mut wire, &Ping { process: &process, capacity: 256, ttl: ttl(119.5), processors: None }).unwrap();

    assert_eq!(report, PingReport { was_alive: false });
    assert_eq!(raw.members(), [process.as_bytes().to_vec()].into());
    assert_eq!(raw.get(&capacity), Some(b"256".to_vec()));
    assert_fresh_ttl(raw.ttl(&capacity), 120);
    assert_eq!(wire.sent.len(), 1);
    assert!(wire.sent[0].starts_with(b"*1\r\n$5\r\nMULTI\r\n"), "one atomic step");
}

#[test]
fn a_later_ping_finds_the_process_alive_unless_its_key_ran_out() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    assert!(!support::ping(&mut conn, &process, 10).was_alive);
    raw.expire(capacity_key(process.as_str()), 5);

    assert!(support::ping(&mut conn, &process, 20).was_alive);

    assert_eq!(raw.get(capacity_key(process.as_str())), Some(b"20".to_vec()));
    assert_fresh_ttl(raw.ttl(capacity_key(process.as_str())), 60);
    raw.delete(capacity_key(process.as_str()));
    assert!(!support::ping(&mut conn, &process, 10).was_alive);
}

#[test]
fn the_proof_of_life_runs_out_by_itself() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let ping = Ping { process: &process, capacity: 10, ttl: ttl(1.0), processors: None };
    processes::ping(&mut conn, &ping).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    assert!(!raw.exists(capacity_key(process.as_str())));
    assert!(!processes::ping(&mut conn, &ping).unwrap().0.was_alive);
}

#[test]
fn a_ping_brings_a_reading_of_the_servers_clock() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let before = raw.now();
    let (_, reading) =
        processes::ping(&mut conn, &Ping { process: &process, capacity: 1, ttl: ttl(60.0), processors: None }).unwrap();
    let after = raw.now();

    assert!((before.0..=after.0).contains(&(reading.server_us / 1_000)));
    assert!(reading.sent <= reading.received);
    let mut clock = ServerClock::default();
    clock.sample(reading.sent, reading.received, reading.server_us);
    let (before, told, after) = (raw.now(), clock.at(LocalTime::now()).unwrap(), raw.now());
    let tolerance = 1 + reading.received.ms_since(reading.sent);
    assert!((before.0 - tolerance..=after.0 + tolerance).contains(&told.0), "{before:?} {told:?} {after:?}");
}

#[test]
fn remove_takes_member_and_capacity_away_in_one_transaction() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let mut wire = Wire::over(server.connect());
    let (process, other) = (ProcessId::generate(), ProcessId::generate());
    support::ping(&mut conn, &process, 10);
    support::ping(&mut conn, &other, 10);

    processes::remove(&mut wire, &process).unwrap();

    assert_eq!(raw.members(), [other.as_bytes().to_vec()].into());
    assert!(!raw.exists(capacity_key(process.as_str())));
    assert!(raw.exists(capacity_key(other.as_str())));
    assert_eq!(wire.sent.len(), 1);
    assert!(wire.sent[0].starts_with(b"*1\r\n$5\r\nMULTI\r\n"));
    processes::remove(&mut conn, &process).unwrap();
}

#[test]
fn registered_lists_every_member_dead_or_alive_once() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    assert!(processes::registered(&mut conn).unwrap().is_empty());
    raw.bring_to_life("h:1:aa", "10");
    raw.let_die(b"h:2:\xff\0");
    let mut expected: BTreeSet<Vec<u8>> = [b"h:1:aa".to_vec(), b"h:2:\xff\0".to_vec()].into();
    let mut more = redis::cmd("SADD");
    more.arg(PROCESSES);
    for n in 0..2_500 {
        let process = format!("h:{n}:bb");
        more.arg(&process);
        expected.insert(process.into_bytes());
    }
    raw.run::<()>(&mut more);

    let found = processes::registered(&mut conn).unwrap();

    assert_eq!(found.len(), expected.len());
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn live_tells_the_capacities_and_drops_the_dead_from_the_set() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:aa", "10");
    raw.bring_to_life("h:2:bb", "20");
    raw.let_die("h:3:cc");
    raw.let_die("h:4:not-asked-about");

    let live = processes::live(&mut conn, &texts(&["h:1:aa", "h:2:bb", "h:3:cc", "h:5:unheard-of"])).unwrap();

    assert_eq!(live, HashMap::from([(b"h:1:aa".to_vec(), 10), (b"h:2:bb".to_vec(), 20)]));
    assert_eq!(raw.members(), texts(&["h:1:aa", "h:2:bb", "h:4:not-asked-about"]).into_iter().collect());
}

#[test]
fn a_process_outside_the_set_lives_while_its_capacity_key_does() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.set(capacity_key("h:1:aa"), "7");
    assert_eq!(processes::live(&mut conn, &texts(&["h:1:aa"])).unwrap(), HashMap::from([(b"h:1:aa".to_vec(), 7)]));
    assert!(raw.members().is_empty(), "asking makes no member");
}

#[test]
fn live_prunes_in_the_very_script_that_looked() {
    let server = Server::start();
    let mut raw = server.raw();
    raw.let_die("h:3:cc");
    processes::live(&mut server.connect(), &texts(&["h:9:warms-up-the-script"])).unwrap();
    let mut wire = Wire::over(server.connect());
    processes::live(&mut wire, &texts(&["h:3:cc"])).unwrap();
    assert_eq!(wire.sent.len(), 1);
    assert!(raw.members().is_empty());
}

#[test]
fn live_takes_the_lock_of_a_dead_member_away_since_nobody_else_would_know_it_to_be_dead() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.let_die("h:3:cc");
    raw.set(GC_LOCK, "h:3:cc");
    processes::live(&mut conn, &texts(&["h:3:cc"])).unwrap();
    assert!(!raw.exists(GC_LOCK));
}

#[test]
fn live_leaves_the_lock_of_a_live_member() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:aa", "10");
    raw.let_die("h:3:cc");
    raw.set(GC_LOCK, "h:1:aa");
    processes::live(&mut conn, &texts(&["h:1:aa", "h:3:cc"])).unwrap();
    assert_eq!(raw.get(GC_LOCK), Some(b"h:1:aa".to_vec()));
}

#[test]
fn live_asks_about_any_number_of_processes() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    assert!(processes::live(&mut conn, &[]).unwrap().is_empty());
    let all: Vec<_> = (0..1_300).map(|n| format!("h:{n}:ff").into_bytes()).collect();
    for (n, process) in all.iter().enumerate() {
        if n % 3 == 0 { raw.let_die(process) } else { raw.bring_to_life(process, n.to_string()) }
    }

    let live = processes::live(&mut conn, &all).unwrap();

    let expected: HashMap<_, _> = all.iter().cloned().zip(0_i64..).filter(|(_, n)| n % 3 != 0).collect();
    assert_eq!(live, expected);
    assert_eq!(raw.members(), expected.into_keys().collect());
}

#[test]
fn loads_sums_the_processes_of_one_host_and_pid() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:aa", "10");
    raw.bring_to_life("h:1:bb", "5");
    raw.bring_to_life("h:2:cc", "7");
    raw.bring_to_life("idle:3:dd", "9");
    raw.enter_all(&ids("h:1:aa", 2), Millis(1));
    raw.enter_all(&ids("h:1:bb", 3), Millis(1));
    raw.enter_all(&ids("h:2:cc", 1), Millis(1));

    assert_eq!(processes::loads(&mut conn, false).unwrap(), loads(&[("h:1", 5, 15), ("h:2", 1, 7), ("idle:3", 0, 9)]));
}

#[test]
fn loads_leaves_out_the_dead_with_their_entries_and_prunes_them() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:aa", "10");
    raw.let_die("h:1:dead");
    raw.let_die("h:2:dead");
    raw.set(capacity_key("h:3:no-member"), "10");
    for process in ["h:1:aa", "h:1:dead", "h:2:dead", "h:3:no-member", "no-such:process"] {
        raw.enter_all(&ids(process, 2), Millis(1));
    }
    raw.index(&id("h:1:aa"), 1);
    raw.index(&id("without-slash"), 1);

    assert_eq!(processes::loads(&mut conn, false).unwrap(), loads(&[("h:1", 3, 10)]));
    assert_eq!(raw.members(), texts(&["h:1:aa"]).into_iter().collect());
}

#[test]
fn loads_counts_entries_beyond_one_page() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:aa", "10");
    raw.bring_to_life("h:2:bb", "10");
    raw.enter_all(&ids("h:1:aa", 2_600), Millis(1));
    raw.enter_all(&ids("h:2:bb", 1_400), Millis(1));
    assert_eq!(processes::loads(&mut conn, false).unwrap(), loads(&[("h:1", 2_600, 10), ("h:2", 1_400, 10)]));
}

#[test]
fn loads_is_empty_when_nobody_lives_and_then_does_not_read_the_index() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    assert!(processes::loads(&mut conn, false).unwrap().is_empty());
    raw.let_die("h:1:aa");
    raw.enter_all(&ids("h:1:aa", 2), Millis(1));
    raw.cli::<()>("CONFIG RESETSTAT");
    assert!(processes::loads(&mut conn, false).unwrap().is_empty());
    assert_eq!(raw.calls_of("zscan"), 0);
    assert!(raw.exists(INDEX));
}

#[test]
fn a_capacity_that_is_no_number_proves_life_and_counts_as_none() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    for (n, capacity) in ["many", "", "12.9", " 3 ", "99999999999999999999", "-4"].iter().enumerate() {
        raw.bring_to_life(format!("h:{n}:aa"), capacity);
    }
    raw.enter_all(&ids("h:0:aa", 1), Millis(1));

    let expected = loads(&[("h:0", 1, 0), ("h:1", 0, 0), ("h:2", 0, 12), ("h:3", 0, 3), ("h:4", 0, i64::MAX), ("h:5", 0, 0)]);
    assert_eq!(processes::loads(&mut conn, false).unwrap(), expected);
    assert_eq!(raw.members().len(), 6);
}

#[test]
fn a_capacity_key_of_another_type_proves_life_and_counts_as_none() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.add_member("h:1:aa");
    raw.run::<()>(redis::cmd("RPUSH").arg(capacity_key("h:1:aa")).arg("10"));
    raw.bring_to_life("h:2:bb", "5");

    assert_eq!(processes::loads(&mut conn, false).unwrap(), loads(&[("h:1", 0, 0), ("h:2", 0, 5)]));
    assert_eq!(processes::total_capacity(&mut conn).unwrap(), 5);
    assert_eq!(raw.members().len(), 2);
}

#[test]
fn the_total_is_the_sum_of_the_members_capacities() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    assert_eq!(processes::total_capacity(&mut conn).unwrap(), 0);
    raw.let_die("h:0:dead");
    raw.set(capacity_key("h:0:no-member"), "1000");
    for n in 1..=1_100 {
        raw.bring_to_life(format!("h:{n}:aa"), n.to_string());
    }
    assert_eq!(processes::total_capacity(&mut conn).unwrap(), (1..=1_100).sum::<i64>());
}

#[test]
fn a_total_beyond_64_bits_ends_there() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:aa", i64::MAX.to_string());
    raw.bring_to_life("h:1:bb", i64::MAX.to_string());
    assert_eq!(processes::total_capacity(&mut conn).unwrap(), i64::MAX);
    assert_eq!(processes::loads(&mut conn, false).unwrap(), loads(&[("h:1", 0, i64::MAX)]));
}
