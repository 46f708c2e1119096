//! Workers, collectors and the clock: every step that can come next.

use crate::judge::{self, Wrong};
use crate::registry::{Answer, NEVER, Op, Owners, Protocol, Redis, Set, TASKS, has, set_of};

/// What is explored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct World {
    pub protocol: Protocol,
    pub owners: Owners,
    /// The last tick of the clock. One lets every capacity key run out and makes every score that was there before stale.
    pub last: u8,
    /// Whether the clock is set back too, by a tick at a time.
    pub back: bool,
    /// Whether nothing is left out or made equal that should make no difference: crashes, names, moments that are as good as each
    /// other, what still happens to a job that is safe.
    pub plain: bool,
}

/// How far a task is, as its worker sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Fresh,
    /// Registered, and the answer was lost: the same request will be sent again.
    Unanswered,
    Registered,
    Ran,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    pub score: u8,
    pub job: bool,
    pub phase: Phase,
    /// In Sidekiq's queue, once at least. Once the task has run it makes no difference.
    pub queued: bool,
    /// What its worker read off the clock in an earlier tick, or sent in vain, and is still to send.
    pub read: u8,
}

/// What a collector has to do with a task. `stands`: the score is its lease, to the ms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    Nothing,
    Candidate,
    Leased { stands: bool },
    Pushed { stands: bool },
}

impl Hold {
    fn stands(self) -> bool {
        matches!(self, Self::Leased { stands: true } | Self::Pushed { stands: true })
    }

    fn has_lease(self) -> bool {
        matches!(self, Self::Leased { .. } | Self::Pushed { .. })
    }

    fn with(self, stands: bool) -> Self {
        match self {
            Self::Leased { .. } => Self::Leased { stands },
            Self::Pushed { .. } => Self::Pushed { stands },
            other => other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collector {
    /// The tick that its sweep's cut-off lies in; 0: no sweep, or one that has found nothing and is as good as begun now.
    pub cutoff: u8,
    pub hold: [Hold; 2],
}

const IDLE: Collector = Collector { cutoff: 0, hold: [Hold::Nothing; 2] };

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    pub clock: u8,
    pub alive: [bool; 2],
    pub crashed: [bool; 2],
    pub tasks: [Task; 2],
    pub collectors: [Collector; 2],
}

pub const START: State = State {
    clock: 0,
    alive: [false; 2],
    crashed: [false; 2],
    tasks: [Task { score: NEVER, job: false, phase: Phase::Fresh, queued: false, read: NEVER }; 2],
    collectors: [IDLE; 2],
};

/// A step: what happens, to whom or what, the operation if it is one, and what it leads to.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub what: &'static str,
    pub who: usize,
    pub tasks: Set,
    pub operation: Option<(Op, Redis)>,
    pub to: State,
    pub wrong: Wrong,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let who = ["A", "B"][self.who];
        let tasks = [" no task", " task 0", " task 1", " tasks 0 and 1"][usize::from(self.tasks)];
        write!(f, "{}", self.what.replace("NAME", who).replace(" TASKS", tasks))?;
        match self.operation {
            Some((Op::Register { at, .. } | Op::Heartbeat { at, .. }, redis)) if at != redis.clock => {
                write!(f, " with the time of tick {at}")
            }
            _ => Ok(()),
        }
    }
}

/// The state of Redis as the operation of one collector, or of a worker, sees it.
pub fn seen(s: &State, collector: Option<usize>) -> Redis {
    Redis {
        clock: s.clock,
        score: s.tasks.map(|task| task.score),
        job: s.tasks.map(|task| task.job),
        mine: TASKS.map(|t| collector.is_some_and(|c| s.collectors[c].hold[t].stands())),
        alive: s.alive,
    }
}

/// All steps from one state.
pub struct Steps<'a> {
    pub world: World,
    pub from: State,
    pub out: &'a mut Vec<Step>,
}

impl Steps<'_> {
    pub fn collect(mut self) {
        self.out.clear();
        let (world, s) = (self.world, self.from);
        if s.clock < world.last {
            // Every capacity key runs out.
            self.clock(State { clock: s.clock + 1, alive: [false; 2], ..s });
        }
        if world.back && s.clock > 0 {
            self.clock(State { clock: s.clock - 1, ..s });
        }
        let workers = if world.owners[0] == world.owners[1] { 1 } else { 2 };
        for worker in (0..workers).filter(|&worker| !s.crashed[worker]) {
            let (call, to) = self.call(Op::Ping { worker }, None);
            self.add("worker NAME pings", worker, 0, Some(call), to);
            if world.plain {
                let mut to = s;
                to.crashed[worker] = true;
                self.add("worker NAME crashes", worker, 0, None, to);
            }
        }
        TASKS.into_iter().filter(|&task| !s.crashed[world.owners[task]]).for_each(|task| self.worker(task));
        (0..2).for_each(|collector| self.collector(collector));
    }

    fn add(&mut self, what: &'static str, who: usize, tasks: Set, call: Option<Call>, to: State) {
        let operation = call.map(|call| (call.op, call.before));
        self.out.push(Step { what, who, tasks, operation, to, wrong: call.map_or(0, |call| call.wrong) });
    }

    /// Whoever has read the clock, for a request or for a cut-off, and not used it when the tick comes keeps the old time. Within
    /// a tick a reading makes no difference, so that this is all there is to being stopped between reading and sending.
    fn clock(&mut self, then: State) {
        let s = self.from;
        for choice in 0..16_u8 {
            let mut to = then;
            let mut possible = true;
            for t in TASKS.into_iter().filter(|&t| has(choice & 3, t)) {
                let task = &mut to.tasks[t];
                possible &= task.read == NEVER && task.phase != Phase::Unanswered;
                possible &= !s.crashed[self.world.owners[t]];
                task.read = s.clock;
            }
            for c in TASKS.into_iter().filter(|&c| has(choice >> 2, c)) {
                possible &= s.clock > 0 && s.collectors[c].cutoff == 0;
                to.collectors[c].cutoff = s.clock;
            }
            if possible {
                let what = match choice & 3 {
                    0 if then.clock < s.clock => "the clock is set back",
                    0 => "the clock ticks",
                    _ if then.clock < s.clock => {
                        "the clock is set back while what is to be sent for TASKS has its time already"
                    }
                    _ => "the clock ticks while what is to be sent for TASKS has its time already",
                };
                self.add(what, 0, choice & 3, None, to);
            }
        }
    }

    fn worker(&mut self, t: usize) {
        let (s, set) = (self.from, 1 << t);
        let task = s.tasks[t];
        let worker = self.world.owners[t];
        let at = if task.read == NEVER { s.clock } else { task.read };
        let then = |mut to: State, phase: Phase, read: u8| {
            to.tasks[t].phase = phase;
            to.tasks[t].read = read;
            to.tasks[t].queued &= phase != Phase::Ran;
            to
        };
        match task.phase {
            Phase::Fresh | Phase::Unanswered => {
                for ping in [false, true] {
                    let (call, to) = self.call(Op::Register { task: t, at, ping }, None);
                    for to in with_coincidences(to, t, at) {
                        let known = then(to, Phase::Registered, NEVER);
                        self.add("worker NAME registers TASKS", worker, set, Some(call), known);
                        let unknown = then(to, Phase::Unanswered, at);
                        self.add("worker NAME registers TASKS, the answer is lost", worker, set, Some(call), unknown);
                    }
                }
                if task.phase == Phase::Unanswered {
                    let to = then(s, Phase::Registered, NEVER);
                    self.add("worker NAME does not repeat the register of TASKS", worker, set, None, to);
                }
            }
            Phase::Registered | Phase::Ran => {
                // One that has run is on the worker's list until it is unregistered, and what was sent before may come later.
                let (call, to) = self.call(Op::Heartbeat { task: t, at }, None);
                for to in with_coincidences(to, t, at) {
                    let to = then(to, task.phase, NEVER);
                    self.add("worker NAME sends a heartbeat of TASKS", worker, set, Some(call), to);
                }
                if task.phase == Phase::Registered {
                    self.add("worker NAME is done with TASKS", worker, set, None, then(s, Phase::Ran, task.read));
                } else {
                    let (call, to) = self.call(Op::Unregister { task: t }, None);
                    self.add("worker NAME unregisters TASKS", worker, set, Some(call), to);
                }
            }
        }
        if task.read != NEVER && task.phase != Phase::Unanswered {
            let to = then(s, task.phase, NEVER);
            self.add("a request of worker NAME for TASKS is lost on the way", worker, set, None, to);
        }
    }

    fn collector(&mut self, c: usize) {
        let s = self.from;
        let who = s.collectors[c];
        let sets = [Hold::has_lease, |hold| hold == Hold::Candidate, |hold| matches!(hold, Hold::Pushed { .. })];
        let [leased, candidates, pushed] = sets.map(|is| set_of(|t| is(who.hold[t])));
        if who != IDLE {
            let mut to = s;
            to.collectors[c] = IDLE;
            self.add("collector NAME dies, or ends its sweep", c, 0, None, to);
        }
        match (leased, candidates) {
            (0, 0) => self.look(c),
            (0, _) => (1..=candidates).filter(|set| set & !candidates == 0).for_each(|set| self.claim(c, set)),
            _ if pushed != 0 => self.settle(c, TASKS.into_iter().find(|&t| has(pushed, t)).unwrap()),
            _ => {
                self.renew(c, leased);
                TASKS.into_iter().filter(|&t| has(leased, t)).for_each(|t| self.push(c, t));
            }
        }
    }

    fn look(&mut self, c: usize) {
        let cutoff = match self.from.collectors[c].cutoff {
            0 => self.from.clock,
            cutoff => cutoff,
        };
        let (call, mut to) = self.call(Op::Look { cutoff }, Some(c));
        let Answer::Found(found) = call.answer else { unreachable!() };
        to.collectors[c] =
            Collector { cutoff, hold: TASKS.map(|t| if has(found, t) { Hold::Candidate } else { Hold::Nothing }) };
        self.add("collector NAME looks and finds TASKS", c, found, Some(call), to);
    }

    /// A page's candidates may be claimed in parts: a claim takes so many bytes of jobs.
    fn claim(&mut self, c: usize, ids: Set) {
        let cutoff = self.from.collectors[c].cutoff;
        let (call, to) = self.call(Op::Claim { cutoff, ids }, Some(c));
        let Answer::Claimed { leased, .. } = call.answer else { unreachable!() };
        let (mut known, mut unknown) = (to, to);
        for t in TASKS.into_iter().filter(|&t| has(ids, t)) {
            unknown.collectors[c].hold[t] = Hold::Nothing;
            known.collectors[c].hold[t] = if has(leased, t) { Hold::Leased { stands: true } } else { Hold::Nothing };
        }
        self.add("collector NAME claims TASKS", c, ids, Some(call), known);
        self.add("collector NAME claims TASKS, the answer is lost", c, ids, Some(call), to);
        self.add("collector NAME claims TASKS, and fails before it goes on", c, ids, Some(call), unknown);
    }

    fn renew(&mut self, c: usize, ids: Set) {
        let cutoff = self.from.collectors[c].cutoff;
        let (call, to) = self.call(Op::Renew { cutoff, ids }, Some(c));
        let Answer::Kept(kept) = call.answer else { unreachable!() };
        let mut known = to;
        for t in TASKS.into_iter().filter(|&t| has(ids, t)) {
            known.collectors[c].hold[t] = if has(kept, t) { Hold::Leased { stands: true } } else { Hold::Nothing };
        }
        self.add("collector NAME renews TASKS", c, ids, Some(call), known);
        self.add("collector NAME renews TASKS, the answer is lost", c, ids, Some(call), to);
    }

    fn push(&mut self, c: usize, t: usize) {
        let s = self.from;
        let hold = s.collectors[c].hold[t];
        let pushed = Hold::Pushed { stands: hold.stands() };
        if self.world.protocol == Protocol::SettlesBeforePush {
            return self.settle(c, t);
        }
        let mut to = s;
        let failed = if self.world.protocol == Protocol::SettlesAfterFailedPush { pushed } else { Hold::Nothing };
        to.collectors[c].hold[t] = failed;
        self.add("collector NAME: the push of TASKS fails", c, 1 << t, None, to);
        to.tasks[t].queued = to.tasks[t].phase != Phase::Ran;
        to.collectors[c].hold[t] = Hold::Nothing;
        self.add("collector NAME pushes TASKS, the answer is lost", c, 1 << t, None, to);
        to.collectors[c].hold[t] = pushed;
        self.add("collector NAME pushes TASKS", c, 1 << t, None, to);
    }

    fn settle(&mut self, c: usize, t: usize) {
        let (call, to) = self.call(Op::Settle { task: t }, Some(c));
        let mut known = to;
        known.collectors[c].hold[t] = Hold::Nothing;
        self.add("collector NAME settles TASKS", c, 1 << t, Some(call), known);
        self.add("collector NAME settles TASKS, the answer is lost", c, 1 << t, Some(call), to);
    }

    /// Carries out an operation. Whatever it writes is no one's lease until its sender learns that it is.
    fn call(&self, op: Op, collector: Option<usize>) -> (Call, State) {
        let mut to = self.from;
        let before = seen(&to, collector);
        let mut after = before;
        let answer = after.run(op, self.world.owners, self.world.protocol);
        let written = op.written(answer);
        to.alive = after.alive;
        for t in TASKS {
            to.tasks[t].score = after.score[t];
            to.tasks[t].job = after.job[t];
            for collector in to.collectors.iter_mut().filter(|_| has(written, t)) {
                collector.hold[t] = collector.hold[t].with(false);
            }
        }
        let wrong = judge::step(&self.from, self.world.owners, (op, answer), &before, &after);
        (Call { op, before, answer, wrong }, to)
    }
}

#[derive(Clone, Copy)]
struct Call {
    op: Op,
    before: Redis,
    answer: Answer,
    wrong: Wrong,
}

/// A score that was just written may fall into the very ms of a lease that a collector believes to have. Which ms that was is
/// not kept: of its tick, any may have been it.
fn with_coincidences(s: State, t: usize, at: u8) -> impl Iterator<Item = State> {
    let possible = |c: usize| {
        let hold = s.collectors[c].hold;
        at > 0 && hold[t].has_lease() && (!hold[1 - t].stands() || s.tasks[1 - t].score == at)
    };
    let possible = if s.tasks[t].score == at { set_of(possible) } else { 0 };
    (0..4_u8).filter(move |choice| choice & !possible == 0).map(move |choice| {
        let mut to = s;
        for c in TASKS.into_iter().filter(|&c| has(choice, c)) {
            to.collectors[c].hold[t] = to.collectors[c].hold[t].with(true);
        }
        to
    })
}
