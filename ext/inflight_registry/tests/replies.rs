//! What the server says, and what becomes of it: both protocols, its errors word for word, and answers that never come.

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
use inflight_registry::processes::Ping;
use inflight_registry::recovery::{Settled, Sweep, settle};
use inflight_registry::{Attempt, Error, Millis, ProcessId, entries, gc, processes};
use redis::{ConnectionLike, RedisResult, Value};
use support::sweeping::{begin, next_batch, settle_uncounted};
use support::wire::Wire;
use support::{INDEX, PROCESSES, Server, TTL, assert_refused, capacity_key, id, ids, ping, ttl};

const WRONGTYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NOW: Millis = Millis(1_700_000_000_123);

/// One of everything.
fn whole_life(conn: &mut redis::Connection, raw: &mut support::Raw) {
    let process = ProcessId::generate();
    let entry = process.registry_id(b"\xff task");
    let proof = Ping { process: &process, capacity: 42, ttl: ttl(60.0), processors: None };

    assert!(!entries::register(conn, &Entry::new(&entry, b"{}"), NOW, ttl(TTL), Some(&proof)).unwrap().unwrap().was_alive);
    let (report, reading) = processes::ping(conn, &proof).unwrap();
    assert!(report.was_alive);
    assert!((reading.server_us / 1_000 - raw.now().0).abs() < 5_000);
    entries::heartbeat(conn, &[entry.clone()], NOW.ahead(1), ttl(TTL)).unwrap();
    assert_eq!(entries::heartbeat_of(conn, &entry).unwrap(), Some(NOW.ahead(1)));
    assert_eq!(entries::heartbeat_of(conn, &id("no such")).unwrap(), None);
    assert_eq!(entries::count(conn).unwrap(), 1);
    assert_eq!(entries::of_process(conn, &process).unwrap(), [entry.clone()]);
    assert_eq!(processes::registered(conn).unwrap(), [process.as_bytes().to_vec()]);
    assert_eq!(processes::total_capacity(conn).unwrap(), 42);
    let load = processes::loads(conn, false).unwrap().into_values().next().unwrap();
    assert_eq!((load.inflight, load.max_capacity), (1, 42));

    assert!(gc::is_due(conn, 60_000, 0).unwrap());
    assert!(gc::acquire_lock(conn, &process, ttl(120.0), false).unwrap());
    assert!(!gc::acquire_lock(conn, &ProcessId::generate(), ttl(120.0), false).unwrap());
    assert!(gc::renew_lock(conn, &process, ttl(120.0)).unwrap());
    assert!(gc::release_lock(conn, &process, Attempt::First).unwrap());
    gc::record_run(conn, raw.now(), ttl(90.0)).unwrap();
    assert!(!gc::is_due(conn, 60_000, 0).unwrap());

    raw.run::<()>(redis::cmd("HSET").arg(support::JOBS).arg("h:1:dead/lost").arg("{}"));
    raw.index(&id("h:1:dead/ghost"), 1.5);
    raw.let_die(process.as_str());
    let mut sweep = begin(conn, 1_000);
    assert_eq!(sweep.restore(conn).unwrap(), Some(vec![id("h:1:dead/lost")]));
    let batch = next_batch(conn, &mut sweep).unwrap();
    assert_eq!(batch.ghosts, [id("h:1:dead/ghost")]);
    let [claimed] = &batch.claimed[..] else { panic!("one orphan, not {:?}", batch.claimed) };
    assert_eq!(claimed.payload, b"{}");
    let (lease, ours) = sweep.renew(conn, batch.lease, &[entry.clone()]).unwrap();
    assert_eq!(ours, [entry.clone()]);
    assert_eq!(settle_uncounted(conn, claimed, lease), Settled::Removed);
    assert_eq!(next_batch(conn, &mut sweep), None);

    entries::unregister(conn, &id("h:1:dead/lost"), false).unwrap();
    processes::remove(conn, &process).unwrap();
    entries::clear(conn).unwrap();
    assert_eq!(raw.cli::<usize>("DBSIZE"), 0);
}

#[test]
fn a_whole_life_is_the_same_in_both_protocols() {
    for protocol in ["2", "3"] {
        let server = Server::start();
        whole_life(&mut server.connect_speaking(protocol), &mut server.raw());
    }
}

#[test]
fn an_error_within_a_transaction_is_seen_and_leaves_the_connection_in_step() {
    for protocol in ["2", "3"] {
        let server = Server::start();
        let (mut conn, mut raw) = (server.connect_speaking(protocol), server.raw());
        raw.set(INDEX, "no sorted set");
        let result = entries::register(&mut conn, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None);
        let Err(error @ Error::Server { .. }) = result else { panic!("looks like success: {result:?}") };
        assert_eq!(error.code(), Some("WRONGTYPE"));
        assert_eq!(error.to_string(), WRONGTYPE);
        assert_refused(entries::unregister(&mut conn, &id("h:1:ff/a"), false), "WRONGTYPE");

        raw.delete(INDEX);
        assert_eq!(entries::count(&mut conn).unwrap(), 0);
        entries::register(&mut conn, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None).unwrap();
        assert_eq!(entries::count(&mut conn).unwrap(), 1);
    }
}

#[test]
fn an_error_within_a_pipeline_is_seen_and_leaves_the_connection_in_step() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.set(INDEX, "no sorted set");
    assert_refused(entries::heartbeat(&mut conn, &ids("h:1:ff", 1_200), NOW, ttl(TTL)), "WRONGTYPE");
    raw.delete(INDEX);
    assert_eq!(entries::count(&mut conn).unwrap(), 0);
}

#[test]
fn a_request_is_taken_out_of_a_redis_that_is_too_full_to_queue_that() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    wire.queues_nothing = true;
    for request in ids("h:1:ff", 2) {
        raw.enter(&request, 1, b"{}");
    }
    raw.cli::<()>("CONFIG SET maxmemory 1");
    entries::unregister(&mut wire, &id("h:1:ff/task-00001"), false).unwrap();
    assert_eq!((raw.index_size(), raw.jobs_size()), (1, 1));
    assert_refused(entries::register(&mut wire, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None), "OOM");
}

#[test]
fn a_full_memory_is_seen_when_a_command_is_queued_and_nothing_is_written() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    raw.enter(&id("h:1:ff/old"), 1, b"{}");
    raw.cli::<()>("CONFIG SET maxmemory 1");

    assert_refused(entries::register(&mut conn, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None), "OOM");
    assert_refused(
        processes::ping(&mut conn, &Ping { process: &process, capacity: 1, ttl: ttl(60.0), processors: None }),
        "OOM",
    );
    entries::unregister(&mut conn, &id("h:1:ff/old"), false).unwrap();

    assert_eq!((raw.index_size(), raw.jobs_size(), raw.members().len()), (0, 0, 0));
}

#[test]
fn a_full_memory_loses_no_orphan() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter_all(&ids("h:1:dead", 3), Millis(1));
    let mut sweep = begin(&mut conn, 0);
    raw.cli::<()>("CONFIG SET maxmemory 1");
    let mut refused = || (0..5).find_map(|_| sweep.claim(&mut conn).err()).expect("a claim that is refused");
    assert_eq!(refused().code(), Some("OOM"));
    raw.cli::<()>("CONFIG SET maxmemory 0");
    assert_eq!((raw.index_size(), raw.jobs_size()), (3, 3));
    assert_eq!(next_batch(&mut conn, &mut sweep).unwrap().claimed.len(), 3, "the sweep goes on afterwards");
}

#[test]
fn a_replica_says_readonly_to_commands_transactions_and_scripts() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    raw.enter(&id("h:1:dead/a"), 1, b"{}");
    raw.let_die("h:1:dead");
    // Of a master that cannot be reached.
    raw.cli::<()>("REPLICAOF 127.0.0.1 1");

    assert_refused(entries::register(&mut conn, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None), "READONLY");
    assert_refused(entries::unregister(&mut conn, &id("h:1:dead/a"), false), "READONLY");
    assert_refused(entries::heartbeat(&mut conn, &[id("h:1:ff/a")], NOW, ttl(TTL)), "READONLY");
    assert_refused(gc::record_run(&mut conn, NOW, ttl(90.0)), "READONLY");
    assert_refused(gc::acquire_lock(&mut conn, &process, ttl(120.0), false), "READONLY");
    assert_refused(processes::live(&mut conn, &[b"h:1:dead".to_vec()]), "READONLY");
    assert_eq!(entries::count(&mut conn).unwrap(), 1, "reading goes on");
}

#[test]
fn a_server_that_died_is_a_failure_of_the_connection() {
    let mut server = Server::start();
    let mut conn = server.connect();
    let process = ProcessId::generate();
    server.kill();
    let failures = [
        entries::register(&mut conn, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None).unwrap_err(),
        entries::count(&mut conn).unwrap_err(),
        entries::heartbeat(&mut conn, &[id("h:1:ff/a")], NOW, ttl(TTL)).unwrap_err(),
        gc::acquire_lock(&mut conn, &process, ttl(120.0), false).unwrap_err(),
        entries::clear(&mut conn).unwrap_err(),
    ];
    for error in failures {
        assert!(matches!(error, Error::Connection(_)), "{error:?}");
        assert_eq!(error.code(), None);
    }
}

#[test]
fn a_register_repeated_after_a_lost_answer_leaves_one_entry() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    wire.answers_to_lose = 1;
    let mut register = || entries::register(&mut wire, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None);
    assert!(matches!(register().unwrap_err(), Error::Connection(_)));
    register().unwrap();
    assert_eq!((raw.index_size(), raw.jobs_size()), (1, 1));
}

// A `ConnectionLike` may hand an error of the server over as a value or as an `Err`.
#[test]
fn errors_are_the_same_whichever_way_the_connection_hands_them_over() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    wire.errors_as_err = true;
    raw.set(INDEX, "no sorted set");
    settle(&mut server.connect(), &id("h:1:ff/a"), NOW, b"jid", None).unwrap_err();

    let result = entries::register(&mut wire, &Entry::new(&id("h:1:ff/a"), b"{}"), NOW, ttl(TTL), None);
    assert_eq!(result.as_ref().unwrap_err().to_string(), WRONGTYPE);
    assert_refused(result, "WRONGTYPE");
    assert_refused(entries::count(&mut wire), "WRONGTYPE");
    assert_refused(entries::heartbeat(&mut wire, &[id("h:1:ff/a")], NOW, ttl(TTL)), "WRONGTYPE");
    assert_refused(settle(&mut wire, &id("h:1:ff/a"), NOW, b"jid", None), "WRONGTYPE");
}

#[test]
fn an_unknown_script_is_sent_in_full_whichever_way_the_connection_hands_errors_over() {
    let server = Server::start();
    let mut wire = Wire::over(server.connect());
    wire.errors_as_err = true;
    let process = ProcessId::generate();
    assert!(gc::acquire_lock(&mut wire, &process, ttl(120.0), false).unwrap());
}

/// A server that answers everything alike.
struct Canned(Value);

impl ConnectionLike for Canned {
    fn req_packed_command(&mut self, _: &[u8]) -> RedisResult<Value> {
        Ok(self.0.clone())
    }

    fn req_packed_commands(&mut self, _: &[u8], _: usize, count: usize) -> RedisResult<Vec<Value>> {
        Ok(vec![self.0.clone(); count])
    }

    fn get_db(&self) -> i64 {
        0
    }

    fn check_connection(&mut self) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        true
    }
}

#[test]
fn an_answer_that_no_command_gives_is_an_error_that_quotes_no_job() {
    const SECRET: &str = "card number 4111";
    let process = ProcessId::generate();
    let answers = [
        Value::Nil,
        Value::Okay,
        Value::Int(-7),
        Value::BulkString(SECRET.into()),
        Value::SimpleString(SECRET.to_owned()),
        Value::Array(vec![]),
        Value::Array(vec![Value::BulkString(SECRET.into()); 3]),
        Value::Map(vec![(Value::BulkString(SECRET.into()), Value::Nil)]),
        Value::Boolean(true),
        Value::Double(0.5),
    ];
    for answer in answers {
        let mut conn = Canned(answer.clone());
        let conn = &mut conn;
        let failures = [
            entries::register(conn, &Entry::new(&id("h:1:ff/a"), SECRET.as_bytes()), NOW, ttl(TTL), None).err(),
            entries::unregister(conn, &id("h:1:ff/a"), false).err(),
            entries::count(conn).err(),
            entries::heartbeat_of(conn, &id("h:1:ff/a")).err(),
            entries::of_process(conn, &process).err(),
            entries::server_time(conn).err(),
            processes::ping(conn, &Ping { process: &process, capacity: 1, ttl: ttl(60.0), processors: None }).err(),
            processes::registered(conn).err(),
            processes::live(conn, &[b"h:1:ff".to_vec()]).err(),
            gc::is_due(conn, 1, 0).err(),
            gc::acquire_lock(conn, &process, ttl(120.0), false).err(),
            begin_error(conn),
        ];
        for error in failures.iter().flatten() {
            assert!(matches!(error, Error::Reply { .. }), "{answer:?}: {error:?}");
            assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
        }
        let must_fail = [&failures[0], &failures[1], &failures[6], &failures[11]];
        assert!(must_fail.iter().all(|failure| failure.is_some()), "{answer:?} passes for an answer: {failures:?}");
    }
}

fn begin_error(conn: &mut Canned) -> Option<Error> {
    let process = ProcessId::generate();
    let plan =
        inflight_registry::recovery::Plan { process: &process, threshold_ms: 0, shift: 0, ttl: ttl(TTL), restore_from: 0 };
    Sweep::begin(conn, &plan, false).err()
}

#[test]
fn an_error_names_no_argument() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.set(INDEX, "no sorted set");
    raw.set(PROCESSES, "no set");
    let secret = b"card number 4111";
    let error = entries::register(&mut conn, &Entry::new(&id(secret), secret), NOW, ttl(TTL), None).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("4111"));
    let error = processes::live(&mut conn, &[secret.to_vec()]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("4111"));
}

#[test]
fn a_ping_after_an_outage_of_redis_says_that_the_proof_of_life_was_gone() {
    let mut server = Server::start();
    let process = ProcessId::generate();
    ping(&mut server.connect(), &process, 10);
    server.kill();
    let server = Server::start();
    let mut conn = server.connect();
    assert!(!ping(&mut conn, &process, 10).was_alive);
    assert!(server.raw().exists(capacity_key(process.as_str())));
}
