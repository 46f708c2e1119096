//! The core's own operations on a real server, in a state of Redis that the model names. Tick k of the clock lies k * 1,000 s
//! after the present: sweeps and leases get there by the shift of their plan, requests by the time they bring.

use crate::registry::{Answer, NEVER, Op, Owners, Protocol, Redis, Set, TASKS, has, set_of};
use crate::support::wire::Wire;
use crate::support::{INDEX, JOBS, Raw, Server, TTL, capacity_key, ttl};
use inflight_registry::entries::Entry;
use inflight_registry::processes::{self, Ping, PingReport};
use inflight_registry::recovery::{Begun, Plan, Settled, Sweep};
use inflight_registry::{Millis, ProcessId, RegistryId, Result, entries};
use std::collections::HashMap;

const TICK: i64 = 1_000_000;
const THRESHOLD: i64 = 500_000;
/// Where in its tick the lease lies that an operation brings, and the time that a request brings. Task n has its heartbeat n ms
/// after the beginning.
const LEASE: i64 = 7;
const SENT: i64 = 11;

type Scores = Vec<(Vec<u8>, i64)>;
type Jobs = HashMap<Vec<u8>, Vec<u8>>;

/// What is stored, to the ms and the byte.
#[derive(Clone, PartialEq, Debug)]
pub struct Stored {
    scores: [Option<i64>; 2],
    jobs: [Option<Vec<u8>>; 2],
    alive: [bool; 2],
    /// Entries and jobs of no task.
    strangers: usize,
}

/// What an operation did.
#[derive(Debug)]
pub struct Seen {
    /// None: it was lost.
    answer: Option<Answer>,
    before: [Option<i64>; 2],
    after: Stored,
    /// The moment that it wrote, or may have: the time or the new lease.
    moment: Option<i64>,
    /// The cut-off of its sweep.
    cutoff: Option<i64>,
}

pub struct Real {
    /// Dies with this value.
    _server: Server,
    wire: Wire,
    raw: Raw,
    origin: i64,
    owners: Owners,
    workers: [ProcessId; 2],
    collector: ProcessId,
    ids: [RegistryId; 2],
}

fn payload(task: usize) -> Vec<u8> {
    format!(r#"{{"class":"Fetch","jid":"job-{task}","args":[{task}]}}"#).into_bytes()
}

fn was_alive(report: PingReport) -> Answer {
    Answer::WasAlive(report.was_alive)
}

/// A cut-off can be made to lie one tick ahead of the clock, not two.
pub fn can_be_staged(op: Op, redis: &Redis) -> bool {
    match op {
        Op::Look { cutoff } | Op::Claim { cutoff, .. } | Op::Renew { cutoff, .. } => cutoff <= redis.clock + 1,
        _ => true,
    }
}

impl Real {
    pub fn new(owners: Owners) -> Self {
        let server = Server::start();
        let (wire, mut raw) = (Wire::over(server.connect()), server.raw());
        let workers = [ProcessId::generate(), ProcessId::generate()];
        let ids = TASKS.map(|t| workers[owners[t]].registry_id(format!("task-{t}").as_bytes()));
        let origin = raw.now().0;
        let collector = ProcessId::generate();
        let mut real = Self { _server: server, wire, raw, origin, owners, workers, collector, ids };
        // From here on the server knows the scripts, so that each operation is one request with one answer to lose.
        let orphan = Redis { clock: 2, score: [0, 1], job: [true; 2], mine: [false; 2], alive: [false; 2] };
        real.carry_out(Op::Claim { cutoff: 2, ids: 3 }, &orphan, false);
        real.carry_out(Op::Renew { cutoff: 2, ids: 3 }, &orphan, false);
        real.carry_out(Op::Settle { task: 0 }, &orphan, false);
        real
    }

    fn moment(&self, tick: u8, ms: i64) -> i64 {
        self.origin + i64::from(tick) * TICK + ms
    }

    /// The tick of a moment; what is of no tick of the model is of none here.
    fn tick(&self, moment: i64) -> Option<u8> {
        u8::try_from((moment - self.origin).div_euclid(TICK)).ok()
    }

    /// The lease that the operation brings: where it stands, it is of the tick of the score.
    fn lease(&self, redis: &Redis) -> i64 {
        let tick = TASKS.into_iter().find(|&t| redis.mine[t]).map_or(redis.clock, |t| redis.score[t]);
        self.moment(tick, LEASE)
    }

    /// Brings Redis into a state, and tells the scores.
    fn store(&mut self, redis: &Redis) -> [Option<i64>; 2] {
        let mut pipe = redis::pipe();
        pipe.del(INDEX).del(JOBS);
        for worker in 0..2 {
            let key = capacity_key(self.workers[worker].as_bytes());
            if redis.alive[worker] {
                pipe.set(key, 10)
            } else {
                pipe.del(key)
            };
        }
        let scores = TASKS.map(|t| match redis.score[t] {
            NEVER => None,
            _ if redis.mine[t] => Some(self.lease(redis)),
            tick => Some(self.moment(tick, t.try_into().unwrap())),
        });
        for t in TASKS {
            if let Some(score) = scores[t] {
                pipe.zadd(INDEX, self.ids[t].as_bytes(), score);
            }
            if redis.job[t] {
                pipe.hset(JOBS, self.ids[t].as_bytes(), payload(t));
            }
        }
        self.raw.pipe::<()>(&pipe);
        scores
    }

    fn stored(&mut self) -> Stored {
        let mut pipe = redis::pipe();
        pipe.zrange_withscores(INDEX, 0, -1).hgetall(JOBS);
        for worker in &self.workers {
            pipe.exists(capacity_key(worker.as_bytes()));
        }
        let (scores, mut jobs, one, other): (Scores, Jobs, bool, bool) = self.raw.pipe(&pipe);
        let mut scores: HashMap<_, _> = scores.into_iter().collect();
        Stored {
            scores: TASKS.map(|t| scores.remove(self.ids[t].as_bytes())),
            jobs: TASKS.map(|t| jobs.remove(self.ids[t].as_bytes())),
            alive: [one, other],
            strangers: scores.len() + jobs.len(),
        }
    }

    fn set(&self, ids: &[RegistryId]) -> Set {
        set_of(|t| ids.contains(&self.ids[t]))
    }

    fn in_set(&self, set: Set) -> Vec<RegistryId> {
        TASKS.into_iter().filter(|&t| has(set, t)).map(|t| self.ids[t].clone()).collect()
    }

    /// A sweep that began in the tick of its cut-off and now is in another one: a higher threshold gives the same cut-off. Where
    /// the clock was set back meanwhile, the cut-off lies ahead as far as one can, which is 1 s, and so before the next tick.
    fn sweep(&mut self, cutoff: u8, clock: u8) -> Sweep {
        let plan = Plan {
            process: &self.collector,
            threshold_ms: if clock < cutoff { -THRESHOLD } else { THRESHOLD + TICK * i64::from(clock - cutoff) },
            shift: TICK * i64::from(clock),
            ttl: ttl(TTL),
            restore_from: 0,
        };
        match Sweep::begin(&mut self.wire, &plan, false).unwrap() {
            Begun::Ready(sweep) => *sweep,
            Begun::NotAlive => panic!("it need not be alive"),
        }
    }

    /// A sweep whose page brought these tasks, whatever has become of them since.
    fn sweep_that_found(&mut self, ids: Set, cutoff: u8, clock: u8) -> (Sweep, Option<i64>) {
        let score = TASKS.map(|t| if has(ids, t) { cutoff - 1 } else { NEVER });
        let job = score.map(|score| score != NEVER);
        self.store(&Redis { clock: cutoff, score, job, mine: [false; 2], alive: [false; 2] });
        let mut sweep = self.sweep(cutoff, clock);
        let batch = sweep.claim(&mut self.wire).unwrap().unwrap();
        assert!(batch.claimed.is_empty() && batch.ghosts.is_empty(), "the first step reads the page");
        (sweep, Some(batch.lease.0))
    }

    /// Brings Redis into this state and carries out the operation, with its answer or with the answer lost.
    pub fn carry_out(&mut self, op: Op, redis: &Redis, lose: bool) -> Seen {
        let (mut sweep, cutoff) = match op {
            Op::Claim { cutoff, ids } | Op::Renew { cutoff, ids } => {
                let (sweep, cutoff) = self.sweep_that_found(ids, cutoff, redis.clock);
                (Some(sweep), cutoff)
            }
            Op::Look { cutoff } => (Some(self.sweep(cutoff, redis.clock)), None),
            Op::Settle { .. } => (Some(self.sweep(redis.clock, redis.clock)), None),
            _ => (None, None),
        };
        let before = self.store(redis);
        self.wire.sent.clear();
        self.wire.answers_to_lose = usize::from(lose);
        let result = self.call(op, redis, sweep.as_mut());
        self.wire.answers_to_lose = 0;
        assert_eq!(result.is_err(), lose, "{op:?} {redis:?} {result:?}");
        let after = self.stored();
        let (answer, moment) = result.map_or((None, None), |(answer, moment)| (Some(answer), moment));
        let answer = match (answer, sweep) {
            // What a claim leased is not leased again, though nobody knows that it is.
            (None, Some(mut sweep)) if matches!(op, Op::Claim { .. }) => {
                let batch = sweep.claim(&mut self.wire).unwrap().unwrap();
                assert!(batch.claimed.is_empty() && batch.ghosts.is_empty(), "{op:?} {redis:?} {batch:?}");
                None
            }
            // What a page brought shows in what the next claim takes.
            (Some(Answer::Found(1..)), Some(mut sweep)) => {
                let batch = sweep.claim(&mut self.wire).unwrap();
                let claimed = batch.map_or_else(Vec::new, |batch| batch.claimed);
                Some(Answer::Found(self.set(&claimed.into_iter().map(|claimed| claimed.id).collect::<Vec<_>>())))
            }
            (answer, _) => answer,
        };
        Seen { answer, before, after, moment, cutoff }
    }

    fn call(&mut self, op: Op, redis: &Redis, sweep: Option<&mut Sweep>) -> Result<(Answer, Option<i64>)> {
        let proof = |worker: usize| Ping { process: &self.workers[worker], capacity: 10, ttl: ttl(60.0), processors: None };
        let lease = Millis(self.lease(redis));
        let conn = &mut self.wire;
        Ok(match (op, sweep) {
            (Op::Ping { worker }, _) => (was_alive(processes::ping(conn, &proof(worker))?.0), None),
            (Op::Register { task, at, ping }, _) => {
                let now = self.origin + i64::from(at) * TICK + SENT;
                let proof = proof(self.owners[task]);
                let proof = ping.then_some(&proof);
                let report =
                    entries::register(conn, &Entry::new(&self.ids[task], &payload(task)), Millis(now), ttl(TTL), proof)?;
                (report.map_or(Answer::Done, was_alive), Some(now))
            }
            (Op::Heartbeat { task, at }, _) => {
                let now = self.origin + i64::from(at) * TICK + SENT;
                let ids = std::slice::from_ref(&self.ids[task]);
                entries::heartbeat(conn, ids, Millis(now), ttl(TTL)).map(|()| (Answer::Done, Some(now)))?
            }
            (Op::Unregister { task }, _) => entries::unregister(conn, &self.ids[task], false).map(|()| (Answer::Done, None))?,
            (Op::Look { cutoff }, Some(sweep)) => {
                let batch = sweep.claim(conn)?;
                if let Some(batch) = &batch {
                    assert!(batch.claimed.is_empty() && batch.ghosts.is_empty(), "{batch:?}");
                    // The cut-off, for want of a lease.
                    let began = batch.lease.0 + if redis.clock < cutoff { 0 } else { THRESHOLD };
                    assert_eq!(self.tick(began), Some(cutoff.min(redis.clock)));
                }
                (Answer::Found(batch.map_or(0, |_| 3)), None)
            }
            (Op::Claim { .. }, Some(sweep)) => {
                let batch = sweep.claim(conn)?.unwrap();
                for claimed in &batch.claimed {
                    let task = TASKS.into_iter().find(|&t| self.ids[t] == claimed.id).unwrap();
                    assert_eq!(claimed.payload, payload(task));
                }
                let leased: Vec<_> = batch.claimed.into_iter().map(|claimed| claimed.id).collect();
                (Answer::Claimed { leased: self.set(&leased), ghosts: self.set(&batch.ghosts) }, Some(batch.lease.0))
            }
            (Op::Renew { ids, .. }, Some(sweep)) => {
                let ids = self.in_set(ids);
                let (lease, kept) = sweep.renew(&mut self.wire, lease, &ids)?;
                (Answer::Kept(self.set(&kept)), Some(lease.0))
            }
            (Op::Settle { task }, Some(sweep)) => {
                let settled = sweep.settle(conn, &self.ids[task], lease, b"job", Some(ttl(60.0)))?;
                let answer = match settled {
                    Settled::Removed => Answer::Removed,
                    Settled::Gone => Answer::Gone,
                    Settled::LeaseLost => Answer::LeaseLost,
                };
                (answer, None)
            }
            _ => unreachable!("a sweep was begun for all that needs one"),
        })
    }

    /// Whether the operation changes anything, as the model has it.
    pub fn changes(&self, op: Op, redis: &Redis) -> bool {
        let mut after = *redis;
        after.run(op, self.owners, Protocol::Real);
        after != *redis
    }

    /// Whether what was seen is what the model says.
    pub fn agrees(&self, op: Op, redis: &Redis, protocol: Protocol, seen: &Seen) -> bool {
        let mut model = *redis;
        let answer = model.run(op, self.owners, protocol);
        if seen.answer.is_some_and(|seen| seen != answer) {
            return false;
        }
        let written = op.written(answer);
        // A new lease whose answer was lost is known by the first entry that has it.
        let new = TASKS.into_iter().find(|&t| has(written, t)).and_then(|t| seen.after.scores[t]);
        let moment = seen.moment.or(new);
        // A lease on the cut-off, which lies ahead then, is of the cut-off's tick.
        let tick_of = |moment: i64| match op {
            Op::Claim { cutoff, .. } | Op::Renew { cutoff, .. } if Some(moment) == seen.cutoff => Some(cutoff),
            _ => self.tick(moment),
        };
        let expected = TASKS.map(|t| match model.score[t] {
            NEVER => None,
            tick if has(written, t) && moment.and_then(tick_of) == Some(tick) => moment,
            tick if tick == redis.score[t] => seen.before[t],
            // A moment that nothing can have written.
            _ => Some(i64::MIN),
        });
        let jobs = TASKS.map(|t| model.job[t].then(|| payload(t)));
        seen.after == Stored { scores: expected, jobs, alive: model.alive, strangers: 0 }
    }
}
