//! What every test needs: a Redis server of its own, plain commands to look at what is really stored, and connections that
//! fail on demand.
//!
//! Key names and formats are written out here and nowhere taken from the crate: other versions of the gem rely on them, so a
//! changed constant has to fail a test.

// Each test file uses a part of it.
#![allow(dead_code)]

pub mod sweeping;
pub mod wire;

use inflight_registry::processes::{self, Ping, PingReport};
use inflight_registry::{Error, Millis, ProcessId, RegistryId, Ttl};
use redis::{Cmd, Connection, FromRedisValue};
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

pub const INDEX: &str = "sidekiq:patient_http:inflight_index";
pub const JOBS: &str = "sidekiq:patient_http:inflight_jobs";
pub const PROCESSES: &str = "sidekiq:patient_http:processes";
pub const GC_LOCK: &str = "sidekiq:patient_http:gc_lock";
pub const GC_LAST_RUN: &str = "sidekiq:patient_http:gc_last_run";

/// The TTL of the registry in tests that do not care for it.
pub const TTL: f64 = 604_800.0;

/// No answer takes longer, so that a hang becomes a failure.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A redis-server on a free port that dies with this value.
pub struct Server {
    process: Child,
    port: u16,
    _dir: TempDir,
}

impl Server {
    pub fn start() -> Self {
        // Between finding a free port and using it another process may take it: then the server ends, and we try again.
        (0..20).find_map(|_| Self::try_start()).expect("redis-server must be on PATH and find a free port")
    }

    fn try_start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server must be on PATH");
        let mut server = Self { process, port, _dir: dir };
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if server.answers() {
                return Some(server);
            }
            if server.process.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Whether it is ready, and whether it is this very server that answers, not another test's on a port lost in a race.
    fn answers(&self) -> bool {
        let Ok(mut conn) = self.client("2").get_connection_with_timeout(TIMEOUT) else { return false };
        let pong: redis::RedisResult<String> = redis::cmd("PING").query(&mut conn);
        let info: redis::RedisResult<String> = redis::cmd("INFO").arg("server").query(&mut conn);
        pong.is_ok_and(|pong| pong == "PONG")
            && info.is_ok_and(|info| info.contains(&format!("process_id:{}\r\n", self.process.id())))
    }

    fn client(&self, protocol: &str) -> redis::Client {
        redis::Client::open(format!("redis://127.0.0.1:{}/?protocol={protocol}", self.port)).unwrap()
    }

    /// A connection for the crate under test.
    pub fn connect(&self) -> Connection {
        self.connect_speaking("2")
    }

    /// The same in RESP 2 or 3: redis-client asks for 3.
    pub fn connect_speaking(&self, protocol: &str) -> Connection {
        let conn = self.client(protocol).get_connection_with_timeout(TIMEOUT).unwrap();
        conn.set_read_timeout(Some(TIMEOUT)).unwrap();
        conn.set_write_timeout(Some(TIMEOUT)).unwrap();
        conn
    }

    /// A connection for looking at, and tampering with, what is stored.
    pub fn raw(&self) -> Raw {
        Raw(self.connect())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Plain commands, without the crate under test.
pub struct Raw(Connection);

impl Raw {
    pub fn run<T: FromRedisValue>(&mut self, cmd: &mut Cmd) -> T {
        cmd.query(&mut self.0).unwrap()
    }

    /// Several commands at once.
    pub fn pipe<T: FromRedisValue>(&mut self, pipe: &redis::Pipeline) -> T {
        pipe.query(&mut self.0).unwrap()
    }

    /// A command in the notation of redis-cli.
    pub fn cli<T: FromRedisValue>(&mut self, words: &str) -> T {
        let mut words = words.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        for word in words {
            cmd.arg(word);
        }
        self.run(&mut cmd)
    }

    /// The server's time.
    pub fn now(&mut self) -> Millis {
        let (seconds, us): (i64, i64) = self.cli("TIME");
        Millis(seconds * 1_000 + us / 1_000)
    }

    /// The score as the server writes it.
    pub fn score(&mut self, id: &RegistryId) -> Option<String> {
        self.run(redis::cmd("ZSCORE").arg(INDEX).arg(id.as_bytes()))
    }

    /// The score of an entry that must be there, in ms.
    pub fn heartbeat(&mut self, id: &RegistryId) -> Millis {
        Millis(self.score(id).expect("an entry in the index").parse().expect("whole ms"))
    }

    pub fn payload(&mut self, id: &RegistryId) -> Option<Vec<u8>> {
        self.run(redis::cmd("HGET").arg(JOBS).arg(id.as_bytes()))
    }

    /// Writes an entry as any version of the gem does.
    pub fn enter(&mut self, id: &RegistryId, score: impl ToString, payload: &[u8]) {
        self.index(id, score);
        self.run::<()>(redis::cmd("HSET").arg(JOBS).arg(id.as_bytes()).arg(payload));
    }

    /// Writes an index entry alone.
    pub fn index(&mut self, id: &RegistryId, score: impl ToString) {
        self.run::<()>(redis::cmd("ZADD").arg(INDEX).arg(score.to_string()).arg(id.as_bytes()));
    }

    /// Writes many entries that share a score, in one command each, with their ids as payloads.
    pub fn enter_all(&mut self, ids: &[RegistryId], score: Millis) {
        for chunk in ids.chunks(500) {
            let (mut index, mut jobs) = (redis::cmd("ZADD"), redis::cmd("HSET"));
            index.arg(INDEX);
            jobs.arg(JOBS);
            for id in chunk {
                index.arg(score.0).arg(id.as_bytes());
                jobs.arg(id.as_bytes()).arg(id.as_bytes());
            }
            self.run::<()>(&mut index);
            self.run::<()>(&mut jobs);
        }
    }

    pub fn index_size(&mut self) -> usize {
        self.run(redis::cmd("ZCARD").arg(INDEX))
    }

    pub fn jobs_size(&mut self) -> usize {
        self.run(redis::cmd("HLEN").arg(JOBS))
    }

    pub fn exists(&mut self, key: impl AsRef<[u8]>) -> bool {
        self.run(redis::cmd("EXISTS").arg(key.as_ref()))
    }

    pub fn get(&mut self, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        self.run(redis::cmd("GET").arg(key.as_ref()))
    }

    pub fn set(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.run(redis::cmd("SET").arg(key.as_ref()).arg(value.as_ref()))
    }

    pub fn delete(&mut self, key: impl AsRef<[u8]>) {
        self.run(redis::cmd("DEL").arg(key.as_ref()))
    }

    /// -1: it stays for ever; -2: there is no such key.
    pub fn ttl(&mut self, key: impl AsRef<[u8]>) -> i64 {
        self.run(redis::cmd("TTL").arg(key.as_ref()))
    }

    pub fn expire(&mut self, key: impl AsRef<[u8]>, seconds: u64) {
        self.run(redis::cmd("EXPIRE").arg(key.as_ref()).arg(seconds))
    }

    /// The members of the process set.
    pub fn members(&mut self) -> BTreeSet<Vec<u8>> {
        self.run(redis::cmd("SMEMBERS").arg(PROCESSES))
    }

    pub fn add_member(&mut self, process: impl AsRef<[u8]>) {
        self.run(redis::cmd("SADD").arg(PROCESSES).arg(process.as_ref()))
    }

    /// Makes a process live, as any version of the gem does.
    pub fn bring_to_life(&mut self, process: impl AsRef<[u8]>, capacity: impl AsRef<[u8]>) {
        self.add_member(&process);
        self.set(capacity_key(process), capacity);
    }

    /// Makes a process dead as `kill -9` does once its capacity key has run out: it stays in the set.
    pub fn let_die(&mut self, process: impl AsRef<[u8]>) {
        self.add_member(&process);
        self.delete(capacity_key(process));
    }

    /// How often the server was given a command since `CONFIG RESETSTAT`.
    pub fn calls_of(&mut self, command: &str) -> usize {
        let stats: String = self.cli("INFO commandstats");
        let prefix = format!("cmdstat_{command}:calls=");
        stats
            .lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }
}

pub fn capacity_key(process: impl AsRef<[u8]>) -> Vec<u8> {
    [b"sidekiq:patient_http:processes:", process.as_ref(), b":max_connections"].concat()
}

pub fn recoveries_key(counted_by: &str) -> String {
    format!("sidekiq:patient_http:recoveries:{counted_by}")
}

pub fn id(text: impl AsRef<[u8]>) -> RegistryId {
    RegistryId(text.as_ref().to_vec())
}

/// `count` ids of one process.
pub fn ids(process: &str, count: usize) -> Vec<RegistryId> {
    (0..count).map(|n| id(format!("{process}/task-{n:05}"))).collect()
}

pub fn ttl(seconds: f64) -> Ttl {
    Ttl::from_seconds(seconds)
}

/// Pings for a minute.
pub fn ping(conn: &mut Connection, process: &ProcessId, capacity: i64) -> PingReport {
    processes::ping(conn, &Ping { process, capacity, ttl: ttl(60.0), processors: None }).unwrap().0
}

/// A TTL that was set a moment ago.
#[track_caller]
pub fn assert_fresh_ttl(actual: i64, expected: i64) {
    assert!((expected - 3..=expected).contains(&actual), "a TTL of {actual} s, not of {expected} s");
}

/// The operation failed because the server refused it, with this code.
#[track_caller]
pub fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, code: &str) {
    match result {
        Err(error @ Error::Server { .. }) => assert_eq!(error.code(), Some(code), "{error}"),
        other => panic!("expected the server to refuse with {code}, got {other:?}"),
    }
}

/// A generator for what is random in a test. Prints its seed; `SEED=... cargo test` repeats a run.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let seed = std::env::var("SEED").map_or_else(
            |_| u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() & 0xffff_ffff).unwrap(),
            |text| text.parse().unwrap(),
        );
        println!("SEED={seed}");
        Self(seed)
    }

    /// Less than `limit` (splitmix64).
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(limit).unwrap()).unwrap()
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| u8::try_from(self.below(256)).unwrap()).collect()
    }
}
