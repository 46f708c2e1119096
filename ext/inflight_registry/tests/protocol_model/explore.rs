//! Breadth-first through every state there is.

use crate::judge::{self, Wrong};
use crate::model::{Collector, Hold, Phase, START, State, Step, Steps, Task, World};
use crate::registry::{NEVER, Owners, TASKS, pack};
use std::collections::BTreeSet;

pub struct Explored {
    pub states: usize,
    pub steps: u64,
    pub depth: usize,
    /// Each operation with all that it can see, packed.
    pub operations: BTreeSet<usize>,
    /// What was wrong, and the shortest way there.
    pub counterexample: Option<(Wrong, Vec<Step>)>,
}

/// States that were met, by number: open addressing, since the standard set takes three times as long.
struct Known {
    slots: Vec<u64>,
    /// Those asked for lately: steps from neighbours lead to the same states, and this much stays in the processor's cache.
    lately: Vec<u64>,
    shift: u32,
    len: usize,
}

impl Known {
    fn new() -> Self {
        Self { slots: vec![0; 1 << 16], lately: vec![0; 1 << 15], shift: 48, len: 0 }
    }

    /// Whether it is new. No number is 0.
    fn insert(&mut self, number: u64) -> bool {
        let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let lately = &mut self.lately[usize::try_from(hash >> 49).unwrap()];
        if *lately == number {
            return false;
        }
        *lately = number;
        self.insert_into_slots(number)
    }

    fn insert_into_slots(&mut self, number: u64) -> bool {
        if self.len * 2 > self.slots.len() {
            let old = std::mem::take(&mut self.slots);
            self.slots = vec![0; old.len() * 2];
            self.shift -= 1;
            self.len = 0;
            old.into_iter().filter(|&number| number != 0).for_each(|number| {
                self.insert_into_slots(number);
            });
        }
        let mut at = usize::try_from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift).unwrap();
        while self.slots[at] != 0 {
            if self.slots[at] == number {
                return false;
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = number;
        self.len += 1;
        true
    }
}

const PHASES: [Phase; 4] = [Phase::Fresh, Phase::Unanswered, Phase::Registered, Phase::Ran];
const HOLDS: [Hold; 6] = [
    Hold::Nothing,
    Hold::Candidate,
    Hold::Leased { stands: false },
    Hold::Leased { stands: true },
    Hold::Pushed { stands: false },
    Hold::Pushed { stands: true },
];

fn pack_task(task: &Task) -> u64 {
    let flags = u64::from(task.job) << 1 | u64::from(task.queued);
    ((flags << 2 | task.phase as u64) << 2 | u64::from(task.score)) << 2 | u64::from(task.read)
}

fn unpack_task(bits: u64) -> Task {
    let small = |from: u32| u8::try_from(bits >> from & 3).unwrap();
    Task {
        read: small(0),
        score: small(2),
        phase: PHASES[usize::from(small(4))],
        queued: small(6) & 1 == 1,
        job: small(6) & 2 == 2,
    }
}

fn hold_bits(hold: Hold) -> u64 {
    match hold {
        Hold::Nothing => 0,
        Hold::Candidate => 1,
        Hold::Leased { stands } => 2 | u64::from(stands),
        Hold::Pushed { stands } => 4 | u64::from(stands),
    }
}

/// The state as a number, its tasks in this order. Which collector is which makes no difference.
fn pack_state(s: &State, order: [usize; 2], owners: Owners) -> u64 {
    let worker = |w: usize| if owners[0] == owners[1] { w } else { order[w] };
    let collector = |c: &Collector| (u64::from(c.cutoff) << 3 | hold_bits(c.hold[order[0]])) << 3 | hold_bits(c.hold[order[1]]);
    let [one, other] = [0, 1].map(|c| collector(&s.collectors[c]));
    let pair = |of: [bool; 2]| u64::from(of[worker(0)]) << 1 | u64::from(of[worker(1)]);
    let head = (pair(s.crashed) << 2 | u64::from(s.clock)) << 2 | pair(s.alive);
    let tasks = (head << 8 | pack_task(&s.tasks[order[0]])) << 8 | pack_task(&s.tasks[order[1]]);
    (tasks << 8 | one.max(other)) << 8 | one.min(other)
}

fn unpack_state(bits: u64) -> State {
    let part = |from: u32, count: u32| bits >> from & ((1 << count) - 1);
    let small = |from: u32, count: u32| u8::try_from(part(from, count)).unwrap();
    let hold = |from: u32| HOLDS[usize::from(small(from, 3))];
    let collector = |from: u32| Collector { cutoff: small(from + 6, 2), hold: [hold(from + 3), hold(from)] };
    State {
        clock: small(34, 2),
        alive: [small(33, 1) == 1, small(32, 1) == 1],
        crashed: [small(37, 1) == 1, small(36, 1) == 1],
        tasks: [unpack_task(part(24, 8)), unpack_task(part(16, 8))],
        collectors: [collector(8), collector(0)],
    }
}

/// Makes equal what no step can tell apart, and takes the later of two states where it can do all that the earlier can.
fn simplified(mut s: State, world: World) -> State {
    for t in TASKS {
        let task = &mut s.tasks[t];
        // A job in the queue is as safe as one that has run, and may have run by now.
        if task.phase == Phase::Registered && task.queued {
            (task.phase, task.queued) = (Phase::Ran, false);
        }
        // Nothing brings this entry back. Who still has something to do with it can be done with it.
        if task.phase == Phase::Ran && task.score == NEVER {
            task.read = NEVER;
            s.collectors.iter_mut().for_each(|collector| collector.hold[t] = Hold::Nothing);
        }
    }
    for collector in &mut s.collectors {
        if collector.cutoff == s.clock && collector.hold == [Hold::Nothing; 2] {
            collector.cutoff = 0;
        }
    }
    // What is stale by every cut-off that there is or will be.
    let last = world.last;
    if !world.back && s.clock == last && s.collectors.iter().all(|collector| [0, last].contains(&collector.cutoff)) {
        for moment in s.tasks.iter_mut().flat_map(|task| [&mut task.score, &mut task.read]) {
            *moment = (*moment).max(last - 1);
        }
    }
    s
}

/// The number of a state: unless `plain`, the same for all that differ in names alone, or in nothing that matters.
fn number(s: &State, world: World) -> u64 {
    let owners = world.owners;
    if world.plain {
        return pack_state(s, [0, 1], owners);
    }
    let s = simplified(*s, world);
    pack_state(&s, [0, 1], owners).min(pack_state(&s, [1, 0], owners))
}

/// Explores until something is wrong or nothing is left.
pub fn explore(world: World) -> Explored {
    let first = number(&START, world);
    let (mut known, mut all, mut parents) = (Known::new(), vec![first], vec![0_u32]);
    known.insert(first);
    let mut seen = vec![false; 1 << 20];
    let (mut at, mut steps, mut depth, mut level_ends) = (0, 0, 0, 1);
    let mut next = Vec::new();
    let mut counterexample = None;
    'search: while at < all.len() {
        if at == level_ends {
            level_ends = all.len();
            depth += 1;
        }
        Steps { world, from: unpack_state(all[at]), out: &mut next }.collect();
        for step in &next {
            steps += 1;
            if let Some((op, redis)) = step.operation {
                seen[pack(op, &redis.as_seen_by(op))] = true;
            }
            let number = number(&step.to, world);
            let new = number != all[at] && known.insert(number);
            let wrong = if new { step.wrong | judge::state(&step.to, world.owners) } else { step.wrong };
            if wrong != 0 {
                let mut path = vec![*step];
                let mut back = at;
                while back != 0 {
                    let parent = usize::try_from(parents[back]).unwrap();
                    path.push(step_to(all[back], world, all[parent]));
                    back = parent;
                }
                path.reverse();
                counterexample = Some((wrong, path));
                break 'search;
            }
            if new {
                all.push(number);
                parents.push(u32::try_from(at).unwrap());
            }
        }
        at += 1;
    }
    let operations = (0..seen.len()).filter(|&packed| seen[packed]).collect();
    Explored { states: all.len(), steps, depth, operations, counterexample }
}

fn step_to(to: u64, world: World, from: u64) -> Step {
    let mut next = Vec::new();
    Steps { world, from: unpack_state(from), out: &mut next }.collect();
    next.into_iter().find(|step| number(&step.to, world) == to).unwrap()
}
