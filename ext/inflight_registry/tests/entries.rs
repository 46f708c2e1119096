//! A request goes in when it starts, shows that it is alive, and goes out when it has ended: looked at in Redis itself.

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
use inflight_registry::processes::{Ping, PingReport};
use inflight_registry::{Millis, ProcessId, RegistryId, entries};
use support::wire::Wire;
use support::{
    GC_LAST_RUN, GC_LOCK, INDEX, JOBS, PROCESSES, Random, Server, assert_fresh_ttl, capacity_key, id, ids, recoveries_key, ttl,
};

const NOW: Millis = Millis(1_700_000_000_123);
const JOB: &[u8] = br#"{"class":"Fetch","jid":"abc","args":[1]}"#;

#[test]
fn register_writes_the_score_the_job_and_the_ttl_of_both_keys() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let id = ProcessId::generate().registry_id(b"task-1");

    let report = entries::register(&mut conn, &Entry::new(&id, JOB), NOW, ttl(900.0), None).unwrap();

    assert_eq!(report, None);
    assert_eq!(raw.score(&id).as_deref(), Some("1700000000123"));
    assert_eq!(raw.payload(&id).as_deref(), Some(JOB));
    assert_fresh_ttl(raw.ttl(INDEX), 900);
    assert_fresh_ttl(raw.ttl(JOBS), 900);
    assert!(!raw.exists(PROCESSES), "no ping was asked for");
}

#[test]
fn register_is_one_transaction_in_one_write_also_with_a_ping() {
    let server = Server::start();
    let process = ProcessId::generate();
    let id = process.registry_id(b"task-1");
    let ping = Ping { process: &process, capacity: 10, ttl: ttl(120.0), processors: None };
    for ping in [None, Some(&ping)] {
        let mut wire = Wire::over(server.connect());
        entries::register(&mut wire, &Entry::new(&id, JOB), NOW, ttl(900.0), ping).unwrap();
        assert_eq!(wire.sent.len(), 1);
        assert!(wire.sent[0].starts_with(b"*1\r\n$5\r\nMULTI\r\n"));
        assert!(wire.sent[0].ends_with(b"*1\r\n$4\r\nEXEC\r\n"));
    }
}

#[test]
fn register_again_replaces_score_and_job_and_renews_the_ttl() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let id = id("h:1:ff/task");
    entries::register(&mut conn, &Entry::new(&id, JOB), NOW, ttl(900.0), None).unwrap();
    raw.expire(INDEX, 5);
    raw.expire(JOBS, 5);

    entries::register(&mut conn, &Entry::new(&id, b"{}"), NOW.ahead(7), ttl(900.0), None).unwrap();

    assert_eq!(raw.heartbeat(&id), NOW.ahead(7));
    assert_eq!(raw.payload(&id).as_deref(), Some(&b"{}"[..]));
    assert_eq!((raw.index_size(), raw.jobs_size()), (1, 1));
    assert_fresh_ttl(raw.ttl(INDEX), 900);
    assert_fresh_ttl(raw.ttl(JOBS), 900);
}

#[test]
fn ids_and_jobs_are_stored_byte_for_byte() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let mut random = Random::new();
    let every_byte: Vec<u8> = (0..=255).collect();
    let tasks: [Vec<u8>; 6] = [
        b"with \"quotes\" and 'quotes'".to_vec(),
        b"two\r\nlines\n".to_vec(),
        b"NUL \0 inside".to_vec(),
        b"\xff\xfe not UTF-8".to_vec(),
        every_byte.clone(),
        random.bytes(40),
    ];
    let process = ProcessId::generate();
    for task in &tasks {
        let id = process.registry_id(task);
        for payload in [every_byte.clone(), Vec::new(), random.bytes(1_000_000)] {
            entries::register(&mut conn, &Entry::new(&id, &payload), NOW, ttl(900.0), None).unwrap();
            assert_eq!(raw.heartbeat(&id), NOW);
            assert!(raw.payload(&id) == Some(payload), "another payload than was registered");
        }
    }
    assert_eq!((raw.index_size(), raw.jobs_size()), (tasks.len(), tasks.len()));
}

#[test]
fn a_ping_due_goes_with_the_registration_and_tells_whether_the_last_one_still_held() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let ping = Ping { process: &process, capacity: 42, ttl: ttl(120.0), processors: None };
    let mut register = |task: &[u8]| {
        entries::register(&mut conn, &Entry::new(&process.registry_id(task), JOB), NOW, ttl(900.0), Some(&ping))
            .unwrap()
            .unwrap()
    };

    assert_eq!(register(b"1"), PingReport { was_alive: false });
    assert_eq!(raw.members(), [process.as_bytes().to_vec()].into());
    assert_eq!(raw.get(capacity_key(process.as_str())), Some(b"42".to_vec()));
    assert_fresh_ttl(raw.ttl(capacity_key(process.as_str())), 120);
    assert_eq!(raw.heartbeat(&process.registry_id(b"1")), NOW);

    assert_eq!(register(b"2"), PingReport { was_alive: true });
    raw.delete(capacity_key(process.as_str()));
    assert_eq!(register(b"3"), PingReport { was_alive: false });
    assert_eq!(raw.jobs_size(), 3);
}

#[test]
fn unregister_removes_the_entry_from_both_keys_in_one_transaction() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    let (gone, stays) = (id(b"h:1:ff/\0\xff"), id("h:1:ff/other"));
    raw.enter(&gone, 1, JOB);
    raw.enter(&stays, 2, JOB);

    entries::unregister(&mut wire, &gone, false).unwrap();

    assert_eq!((raw.score(&gone), raw.payload(&gone)), (None, None));
    assert_eq!((raw.index_size(), raw.jobs_size()), (1, 1));
    assert_eq!(raw.payload(&stays).as_deref(), Some(JOB));
    assert_eq!(wire.sent.len(), 1);
    assert!(wire.sent[0].starts_with(b"*1\r\n$5\r\nMULTI\r\n"));
}

#[test]
fn unregister_of_what_is_not_there_is_no_error() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    entries::unregister(&mut conn, &id("h:1:ff/never"), false).unwrap();
    raw.enter(&id("h:1:ff/other"), 1, JOB);
    entries::unregister(&mut conn, &id("h:1:ff/never"), false).unwrap();
    assert_eq!((raw.index_size(), raw.jobs_size()), (1, 1));
}

#[test]
fn a_heartbeat_refreshes_what_exists_and_adds_nothing() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let (known, other, unknown) = (id("h:1:ff/known"), id("h:1:ff/other"), id("h:1:ff/unknown"));
    raw.enter(&known, 5, JOB);
    raw.enter(&other, 6, JOB);

    entries::heartbeat(&mut conn, &[unknown.clone(), known.clone()], NOW, ttl(900.0)).unwrap();

    assert_eq!(raw.heartbeat(&known), NOW);
    assert_eq!(raw.heartbeat(&other), Millis(6));
    assert_eq!(raw.score(&unknown), None);
    assert_eq!((raw.index_size(), raw.jobs_size()), (2, 2));
}

#[test]
fn a_heartbeat_does_not_bring_an_empty_registry_into_being() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    entries::heartbeat(&mut conn, &[id("h:1:ff/1")], NOW, ttl(900.0)).unwrap();
    assert!(!raw.exists(INDEX));
    assert!(!raw.exists(JOBS));
}

#[test]
fn a_heartbeat_renews_the_ttl_of_both_keys_that_another_version_shortened() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:ff/1"), 1, JOB);
    raw.expire(INDEX, 5);
    raw.expire(JOBS, 5);
    entries::heartbeat(&mut conn, &[id("h:1:ff/unknown")], NOW, ttl(900.0)).unwrap();
    assert_fresh_ttl(raw.ttl(INDEX), 900);
    assert_fresh_ttl(raw.ttl(JOBS), 900);
}

#[test]
fn a_heartbeat_of_many_ids_is_one_write_of_commands_that_hold_nobody_up() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut wire = Wire::over(server.connect());
    let ids = ids("h:1:ff", 1_201);
    raw.enter_all(&ids, Millis(1));
    raw.cli::<()>("CONFIG RESETSTAT");

    entries::heartbeat(&mut wire, &ids, NOW, ttl(900.0)).unwrap();

    let refreshed: usize = raw.run(redis::cmd("ZCOUNT").arg(INDEX).arg(NOW.0).arg(NOW.0));
    assert_eq!(refreshed, ids.len());
    assert_eq!(wire.sent.len(), 1);
    assert_eq!(raw.calls_of("zadd"), 3, "500 ids a command");
    assert_eq!(raw.calls_of("expire"), 4);
}

#[test]
fn a_heartbeat_of_nothing_does_not_go_to_redis() {
    let server = Server::start();
    let mut wire = Wire::over(server.connect());
    entries::heartbeat(&mut wire, &[], NOW, ttl(900.0)).unwrap();
    assert!(wire.sent.is_empty());
}

#[test]
fn the_last_heartbeat_is_read_as_whole_ms_whatever_the_score() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let id = id("h:1:ff/1");
    assert_eq!(entries::heartbeat_of(&mut conn, &id).unwrap(), None);
    for (score, expected) in [
        ("1700000000123", 1_700_000_000_123),
        ("1700000000123.75", 1_700_000_000_123),
        ("+inf", i64::MAX),
        ("-inf", i64::MIN),
        ("0", 0),
    ] {
        raw.enter(&id, score, JOB);
        assert_eq!(entries::heartbeat_of(&mut conn, &id).unwrap(), Some(Millis(expected)), "score {score}");
    }
}

#[test]
fn the_count_is_that_of_the_index() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    assert_eq!(entries::count(&mut conn).unwrap(), 0);
    raw.enter_all(&ids("h:1:ff", 1_234), NOW);
    raw.index(&id("h:1:ff/without a job"), 1);
    assert_eq!(entries::count(&mut conn).unwrap(), 1_235);
}

#[test]
fn of_process_returns_the_ids_of_that_process_alone() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    let own = process.as_str();
    let mut tasks: Vec<&[u8]> = vec![b"plain", b"a/b", b"*", b"[x]?\\", b"two\nlines", b"\0\xff", b""];
    for task in &tasks {
        raw.enter(&process.registry_id(task), 1, JOB);
    }
    let foreign = [
        format!("{own}x/task"),
        format!("x{own}/task"),
        own.to_owned(),
        format!("{own}*/task"),
        format!("other/{own}/task"),
        "*/task".to_owned(),
        "*".to_owned(),
        format!("[{own}]/task"),
        format!("{}?/task", &own[..own.len() - 1]),
        format!("{}/task", own.to_uppercase()),
        format!("{}/task", ProcessId::generate()),
    ];
    for foreign in &foreign {
        raw.enter(&id(foreign), 1, JOB);
    }

    let found = entries::of_process(&mut conn, &process).unwrap();

    tasks.sort_unstable();
    assert_eq!(found, tasks.iter().map(|task| process.registry_id(task)).collect::<Vec<_>>());
}

#[test]
fn of_process_finds_more_than_one_page_oldest_heartbeat_first() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let mut random = Random::new();
    let process = ProcessId::generate();
    raw.enter_all(&ids(ProcessId::generate().as_str(), 3_000), NOW);
    let mut expected: Vec<(Millis, RegistryId)> = ids(process.as_str(), 2_500)
        .into_iter()
        .map(|id| (NOW.ahead(i64::try_from(random.below(1_000)).unwrap()), id))
        .collect();
    for (score, id) in &expected {
        raw.index(id, score.0);
    }
    expected.sort();

    let found = entries::of_process(&mut conn, &process).unwrap();

    assert_eq!(found.len(), expected.len());
    assert!(found.into_iter().eq(expected.into_iter().map(|(_, id)| id)), "not in the order of the heartbeats");
}

#[test]
fn of_process_is_empty_for_a_process_without_requests() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let process = ProcessId::generate();
    assert_eq!(entries::of_process(&mut conn, &process).unwrap(), []);
    raw.enter_all(&ids("h:1:ff", 10), NOW);
    assert_eq!(entries::of_process(&mut conn, &process).unwrap(), []);
}

#[test]
fn clear_deletes_the_registry_and_leaves_what_others_keep_under_its_prefix() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.enter(&id("h:1:ff/1"), 1, JOB);
    raw.bring_to_life("h:1:ff", "10");
    // A process that left the set, but whose capacity key is still there.
    raw.set(capacity_key("h:2:ff"), "10");
    raw.set(GC_LOCK, "h:1:ff");
    raw.set(GC_LAST_RUN, "1");
    raw.set(recoveries_key("abc"), "1");
    raw.set("sidekiq:patient_http:refusals:abc", "1");
    let foreign = [
        "sidekiq:patient_http:payloads:1",
        "sidekiq:patient_http:processes_archive",
        "sidekiq:patient_http:inflight_index:archive",
        "sidekiq:patient_http",
        "sidekiq:patient_http:",
        "sidekiq:queues",
        "x:sidekiq:patient_http:gc_lock",
    ];
    for key in foreign {
        raw.set(key, "mine");
    }

    entries::clear(&mut conn).unwrap();

    let mut left: Vec<String> = raw.cli("KEYS *");
    left.sort();
    let mut expected = foreign.map(str::to_owned);
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn clear_goes_through_all_pages_of_a_large_database_and_touches_no_other() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let mut keys = redis::cmd("MSET");
    for n in 0..3_000 {
        keys.arg(capacity_key(format!("h:{n}:ff"))).arg("10");
        keys.arg(format!("sidekiq:patient_http:payloads:{n}")).arg("mine");
    }
    raw.run::<()>(&mut keys);
    raw.cli::<()>("SELECT 1");
    raw.set(GC_LOCK, "another database's");
    raw.cli::<()>("SELECT 0");

    entries::clear(&mut conn).unwrap();

    assert_eq!(raw.cli::<usize>("DBSIZE"), 3_000);
    assert_eq!(raw.cli::<usize>("EXISTS sidekiq:patient_http:payloads:0 sidekiq:patient_http:payloads:2999"), 2);
    raw.cli::<()>("SELECT 1");
    assert!(raw.exists(GC_LOCK));
}

#[test]
fn clear_of_nothing_is_no_error() {
    let server = Server::start();
    entries::clear(&mut server.connect()).unwrap();
}

#[test]
fn the_servers_time_is_the_servers() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let before = raw.now();
    let time = entries::server_time(&mut conn).unwrap();
    assert!((before.0..=raw.now().0).contains(&(time / 1_000)));
}
