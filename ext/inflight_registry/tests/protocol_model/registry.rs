//! What each operation of the core does to Redis and what it answers, said a second time in the fewest words. `real.rs` holds
//! these words against the core.

/// Where an entry or a clock reading has no moment.
pub const NEVER: u8 = 3;

pub const TASKS: [usize; 2] = [0, 1];

/// Which worker has which task.
pub type Owners = [usize; 2];

/// A set of tasks, one bit each.
pub type Set = u8;

pub fn has(set: Set, task: usize) -> bool {
    set & 1 << task != 0
}

/// The protocol, and ways to get it wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Real,
    RemovesBeforePush,
    SettlesBeforePush,
    SettlesAfterFailedPush,
    SettlesWithoutLeaseCheck,
    SettlesIndexOnly,
    ClaimsTheLiving,
    ClaimsWithoutSecondLook,
    ClaimKeepsOldScore,
    RenewsWithoutLeaseCheck,
    HeartbeatAdds,
}

/// What one operation can see: ticks of the clock instead of ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Redis {
    pub clock: u8,
    pub score: [u8; 2],
    pub job: [bool; 2],
    /// Whether the score is, to the ms, the lease that the operation brings along.
    pub mine: [bool; 2],
    /// Whether each worker's capacity key is there.
    pub alive: [bool; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Ping { worker: usize },
    Register { task: usize, at: u8, ping: bool },
    Heartbeat { task: usize, at: u8 },
    Unregister { task: usize },
    Look { cutoff: u8 },
    Claim { cutoff: u8, ids: Set },
    Renew { cutoff: u8, ids: Set },
    Settle { task: usize },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Done,
    /// The answer to a ping: whether the last proof of life still held.
    WasAlive(bool),
    /// The candidates of a page.
    Found(Set),
    Claimed {
        leased: Set,
        ghosts: Set,
    },
    Kept(Set),
    Removed,
    Gone,
    LeaseLost,
}

impl Redis {
    fn remove(&mut self, task: usize) {
        self.score[task] = NEVER;
        self.job[task] = false;
    }

    /// Carries out one operation.
    pub fn run(&mut self, op: Op, owners: Owners, protocol: Protocol) -> Answer {
        match op {
            Op::Ping { worker } => return self.ping(worker),
            Op::Register { task, at, ping } => {
                self.score[task] = at;
                self.job[task] = true;
                if ping {
                    return self.ping(owners[task]);
                }
            }
            Op::Heartbeat { task, at } => {
                if self.score[task] != NEVER || protocol == Protocol::HeartbeatAdds {
                    self.score[task] = at;
                }
            }
            Op::Unregister { task } => self.remove(task),
            Op::Look { cutoff } => {
                return Answer::Found(set_of(|task| {
                    let dead = !self.alive[owners[task]] || protocol == Protocol::ClaimsTheLiving;
                    self.score[task] < cutoff && dead
                }));
            }
            Op::Claim { cutoff, ids } => return self.claim(cutoff, ids, owners, protocol),
            Op::Renew { cutoff, ids } => {
                let kept = set_of(|task| {
                    let mine = self.mine[task] || protocol == Protocol::RenewsWithoutLeaseCheck;
                    has(ids, task) && self.score[task] != NEVER && mine
                });
                let lease = self.clock.max(cutoff);
                TASKS.into_iter().filter(|&task| has(kept, task)).for_each(|task| self.score[task] = lease);
                return Answer::Kept(kept);
            }
            Op::Settle { task } => {
                if self.score[task] == NEVER {
                    return Answer::Gone;
                }
                if !self.mine[task] && protocol != Protocol::SettlesWithoutLeaseCheck {
                    return Answer::LeaseLost;
                }
                let job = self.job[task];
                self.remove(task);
                self.job[task] = job && protocol == Protocol::SettlesIndexOnly;
                return Answer::Removed;
            }
        }
        Answer::Done
    }

    fn ping(&mut self, worker: usize) -> Answer {
        Answer::WasAlive(std::mem::replace(&mut self.alive[worker], true))
    }

    fn claim(&mut self, cutoff: u8, ids: Set, owners: Owners, protocol: Protocol) -> Answer {
        let (mut leased, mut ghosts) = (0, 0);
        for task in TASKS.into_iter().filter(|&task| has(ids, task)) {
            let exists = self.score[task] != NEVER;
            let stale = self.score[task] < cutoff || protocol == Protocol::ClaimsWithoutSecondLook;
            let dead = !self.alive[owners[task]] || protocol == Protocol::ClaimsTheLiving;
            if !(exists && stale && dead) {
                continue;
            }
            if !self.job[task] {
                self.score[task] = NEVER;
                ghosts |= 1 << task;
                continue;
            }
            leased |= 1 << task;
            match protocol {
                Protocol::RemovesBeforePush => self.remove(task),
                Protocol::ClaimKeepsOldScore => {}
                _ => self.score[task] = self.clock.max(cutoff),
            }
        }
        Answer::Claimed { leased, ghosts }
    }

    /// What differs for this operation and no other is left out, so that the same is not held against the core twice.
    pub fn as_seen_by(mut self, op: Op) -> Self {
        let leases = match op {
            Op::Renew { ids, .. } => ids,
            Op::Settle { task } => 1 << task,
            _ => 0,
        };
        self.mine = TASKS.map(|task| has(leases, task) && self.mine[task]);
        self
    }
}

impl Op {
    /// The tasks whose entries it wrote or removed, going by the answer.
    pub fn written(self, answer: Answer) -> Set {
        match (self, answer) {
            (Self::Register { task, .. } | Self::Heartbeat { task, .. } | Self::Unregister { task }, _)
            | (Self::Settle { task }, Answer::Removed) => 1 << task,
            (_, Answer::Claimed { leased, ghosts }) => leased | ghosts,
            (_, Answer::Kept(kept)) => kept,
            _ => 0,
        }
    }
}

pub fn set_of(is_in: impl Fn(usize) -> bool) -> Set {
    Set::from(is_in(0)) | Set::from(is_in(1)) << 1
}

/// An operation and all that it can see, in a number below 2^20 and back.
pub fn pack(op: Op, redis: &Redis) -> usize {
    let (kind, a, b, flag) = match op {
        Op::Ping { worker } => (0, worker, 0, false),
        Op::Register { task, at, ping } => (1, task, at, ping),
        Op::Heartbeat { task, at } => (2, task, at, false),
        Op::Unregister { task } => (3, task, 0, false),
        Op::Look { cutoff } => (4, 0, cutoff, false),
        Op::Claim { cutoff, ids } => (5, usize::from(ids), cutoff, false),
        Op::Renew { cutoff, ids } => (6, usize::from(ids), cutoff, false),
        Op::Settle { task } => (7, task, 0, false),
    };
    let pairs = [redis.job, redis.mine, redis.alive].map(|pair| usize::from(set_of(|at| pair[at])));
    let [job, mine, alive] = pairs;
    let score = usize::from(redis.score[0]) << 2 | usize::from(redis.score[1]);
    let seen = ((score << 2 | job) << 2 | mine) << 2 | alive;
    ((((kind << 2 | a) << 2 | usize::from(b)) << 1 | usize::from(flag)) << 2 | usize::from(redis.clock)) << 10 | seen
}

pub fn unpack(number: usize) -> (Op, Redis) {
    let bits = |from: u32, count: u32| u8::try_from(number >> from & ((1 << count) - 1)).unwrap();
    let pair = |from: u32| [bits(from, 1) == 1, bits(from + 1, 1) == 1];
    let redis = Redis { alive: pair(0), mine: pair(2), job: pair(4), score: [bits(8, 2), bits(6, 2)], clock: bits(10, 2) };
    let (flag, b, ids) = (bits(12, 1) == 1, bits(13, 2), bits(15, 2));
    let a = usize::from(ids);
    let op = match bits(17, 3) {
        0 => Op::Ping { worker: a },
        1 => Op::Register { task: a, at: b, ping: flag },
        2 => Op::Heartbeat { task: a, at: b },
        3 => Op::Unregister { task: a },
        4 => Op::Look { cutoff: b },
        5 => Op::Claim { cutoff: b, ids },
        6 => Op::Renew { cutoff: b, ids },
        _ => Op::Settle { task: a },
    };
    (op, redis)
}
