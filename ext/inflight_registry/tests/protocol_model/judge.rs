//! What must never be, of a state or of a step.

use crate::model::{Phase, State, seen};
use crate::registry::{Answer, NEVER, Op, Owners, Protocol, Redis, TASKS, has};

/// What a step can violate, one bit each, and how it is called.
pub type Wrong = u16;
pub const NOWHERE: Wrong = 1;
pub const HALF: Wrong = 1 << 1;
pub const ROBBED: Wrong = 1 << 2;
pub const FRESH_CLAIMED: Wrong = 1 << 3;
pub const LEASE_NOT_FRESH: Wrong = 1 << 4;
pub const NOT_OWN: Wrong = 1 << 5;
pub const NOT_REMOVED: Wrong = 1 << 6;
pub const NOT_QUEUED: Wrong = 1 << 7;
pub const FROM_NOTHING: Wrong = 1 << 8;
pub const CHANGED: Wrong = 1 << 9;
pub const NOT_RECOVERED: Wrong = 1 << 10;
const NAMES: [&str; 11] = [
    "an accepted job that has not run is in zero places",
    "half an entry",
    "a live worker is robbed",
    "an entry is claimed that is not stale any more",
    "a lease is no fresh heartbeat",
    "a lease is used on an entry that it is not on",
    "settled, and not removed",
    "removed before its job is queued",
    "an entry comes from elsewhere than a register",
    "an answer of `gone` or `lease lost` that changed something",
    "a last sweep does not bring everything back",
];

pub fn names(wrong: Wrong) -> Vec<&'static str> {
    NAMES.into_iter().enumerate().filter(|(bit, _)| wrong & 1 << bit != 0).map(|(_, name)| name).collect()
}

/// What is wrong with an operation, whatever becomes of it.
pub fn step(from: &State, owners: Owners, (op, answer): (Op, Answer), before: &Redis, after: &Redis) -> Wrong {
    let mut wrong = 0;
    let mut blame = |name: Wrong, if_so: bool| wrong |= if if_so { name } else { 0 };
    for t in TASKS {
        let appears = before.score[t] == NEVER && after.score[t] != NEVER;
        blame(FROM_NOTHING, appears && !matches!(op, Op::Register { task, .. } if task == t));
        match (op, answer) {
            (Op::Claim { cutoff, .. }, Answer::Claimed { leased, .. }) if has(leased, t) => {
                blame(ROBBED, before.alive[owners[t]]);
                blame(FRESH_CLAIMED, before.score[t] >= cutoff);
                blame(LEASE_NOT_FRESH, after.score[t] < before.clock.max(cutoff));
            }
            (_, Answer::Kept(kept)) => blame(NOT_OWN, has(kept, t) && !before.mine[t]),
            (Op::Settle { task }, Answer::Removed) if task == t => {
                let state = from.tasks[t];
                blame(NOT_OWN, !before.mine[t]);
                blame(NOT_QUEUED, !state.queued && state.phase != Phase::Ran);
                blame(NOT_REMOVED, after.score[t] != NEVER || after.job[t]);
            }
            (_, Answer::Gone | Answer::LeaseLost) => blame(CHANGED, after != before),
            _ => {}
        }
    }
    wrong
}

/// What is wrong with a state, whatever led to it.
pub fn state(s: &State, owners: Owners) -> Wrong {
    let mut wrong = 0;
    for task in &s.tasks {
        let open = matches!(task.phase, Phase::Unanswered | Phase::Registered);
        if open && !task.queued && !(task.score != NEVER && task.job) {
            wrong |= NOWHERE;
        }
        if (task.score != NEVER) != task.job {
            wrong |= HALF;
        }
    }
    if recovers(s, owners) { wrong } else { wrong | NOT_RECOVERED }
}

/// All die, their capacity keys run out, all that they wrote grows stale: does a single sweep of a new collector put everything
/// into the queue that has not run, and empty the registry? That last sweep is a right one, whatever went before.
fn recovers(s: &State, owners: Owners) -> bool {
    let old = |score: u8| if score == NEVER { NEVER } else { 0 };
    let now = seen(s, None);
    let clock = 1;
    let mut redis = Redis { clock, alive: [false; 2], mine: [false; 2], score: now.score.map(old), ..now };
    let mut queued = TASKS.map(|t| s.tasks[t].queued);
    let Answer::Found(ids) = redis.run(Op::Look { cutoff: clock }, owners, Protocol::Real) else { return false };
    let claim = redis.run(Op::Claim { cutoff: clock, ids }, owners, Protocol::Real);
    let Answer::Claimed { leased, .. } = claim else { return false };
    redis.mine = TASKS.map(|t| has(leased, t));
    for task in TASKS.into_iter().filter(|&t| has(leased, t)) {
        queued[task] = true;
        redis.run(Op::Settle { task }, owners, Protocol::Real);
    }
    TASKS.into_iter().all(|t| {
        let open = matches!(s.tasks[t].phase, Phase::Unanswered | Phase::Registered);
        redis.score[t] == NEVER && !redis.job[t] && (queued[t] || !open)
    })
}
