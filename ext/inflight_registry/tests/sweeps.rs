//! Whole sweeps over large registries: they find every orphan once, hold nobody up, and end; and two of them do not quarrel.

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

use inflight_registry::recovery::{Claimed, Plan, Settled, Sweep};
use inflight_registry::{Millis, ProcessId, RegistryId, entries};
use std::collections::BTreeMap;
use support::sweeping::{begin, begin_with, claim_all, leased, next_batch, recover_all, settle_uncounted};
use support::{Random, Server, TTL, id, ids, ttl};

const THRESHOLD: i64 = 300_000;
const LONG_AGO: Millis = Millis(1_000);

fn sorted(mut ids: Vec<RegistryId>) -> Vec<RegistryId> {
    ids.sort();
    ids
}

#[test]
fn a_sweep_of_an_empty_registry_ends_at_once() {
    let server = Server::start();
    let mut conn = server.connect();
    assert_eq!(begin(&mut conn, 0).claim(&mut conn).unwrap(), None);
}

#[test]
fn a_sweep_recovers_the_oldest_first() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let expected = ids("h:1:dead", 150);
    for (n, id) in (0..).zip(&expected) {
        raw.enter(id, LONG_AGO.ahead(n).0, b"{}");
    }
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(recover_all(&mut conn, &mut sweep), expected);
}

#[test]
fn a_sweep_ends_though_every_push_fails_and_claims_nothing_twice_whatever_the_threshold() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let all = ids("h:1:dead", 620);
    for threshold in [0, 1_000, -1_000, 1] {
        raw.enter_all(&all, LONG_AGO);
        let mut sweep = begin(&mut conn, threshold);
        let mut batches = Vec::new();
        // Slow enough for every lease to lie a moment back when the next pass comes by.
        while let Some(batch) = next_batch(&mut conn, &mut sweep) {
            batches.push(batch);
            assert!(batches.len() < 100, "a threshold of {threshold} ms: the sweep goes on for ever");
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        assert!(leased(&batches) == all, "a threshold of {threshold} ms: not each of them once");
        assert_eq!((raw.index_size(), raw.jobs_size()), (all.len(), all.len()), "nothing leaves unsettled");
    }
}

#[test]
fn orphans_behind_pages_of_live_entries_with_the_same_score_are_all_found() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("a:1:live", "10");
    raw.bring_to_life("m:1:live", "10");
    // Entries of equal score are in the order of their bytes: one pair in front of all orphans, one in their midst.
    let live = [ids("a:1:live", 1_700), ids("m:1:live", 800)].concat();
    let orphans = [ids("b:1:dead", 620), ids("z:1:dead", 700)].concat();
    raw.enter_all(&live, LONG_AGO);
    raw.enter_all(&orphans, LONG_AGO);

    let mut sweep = begin(&mut conn, THRESHOLD);
    assert!(leased(&claim_all(&mut conn, &mut sweep)) == orphans, "not each orphan once");

    assert_eq!(raw.run::<usize>(redis::cmd("ZCOUNT").arg(support::INDEX).arg(LONG_AGO.0).arg(LONG_AGO.0)), live.len());
}

#[test]
fn live_entries_that_move_away_in_mid_sweep_hide_no_orphan_behind_them() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("a:1:live", "10");
    let live = ids("a:1:live", 1_600);
    let orphans = ids("z:1:dead", 300);
    raw.enter_all(&live, LONG_AGO);
    raw.enter_all(&orphans, LONG_AGO);
    let mut sweep = begin(&mut conn, THRESHOLD);
    // Two pages are read when the entry that the second ended with, and no other, gets its heartbeat.
    for _ in 0..2 {
        assert!(sweep.claim(&mut conn).unwrap().unwrap().claimed.is_empty());
    }
    let now = raw.now();
    entries::heartbeat(&mut conn, &[live[999].clone()], now, ttl(TTL)).unwrap();
    raw.cli::<()>("CONFIG RESETSTAT");
    assert!(leased(&claim_all(&mut conn, &mut sweep)) == orphans, "not each orphan once");
    assert!(raw.calls_of("zrange") <= 9, "what was read is not read again but for the second pass");
}

#[test]
fn live_entries_that_leave_a_gap_in_front_of_the_next_page_hide_no_orphan() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("a:1:live", "10");
    let live = ids("a:1:live", 1_000);
    let orphans = ids("z:1:dead", 100);
    raw.enter_all(&live, LONG_AGO);
    raw.enter_all(&orphans, LONG_AGO);
    let mut sweep = begin(&mut conn, THRESHOLD);
    for _ in 0..2 {
        assert!(sweep.claim(&mut conn).unwrap().unwrap().claimed.is_empty());
    }
    // All but the one that the page ended with.
    let now = raw.now();
    entries::heartbeat(&mut conn, &live[..999], now, ttl(TTL)).unwrap();
    assert!(leased(&claim_all(&mut conn, &mut sweep)) == orphans, "not each orphan once");
}

#[test]
fn a_process_that_dies_during_the_sweep_is_found_by_its_next_pass() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("a:1:live", "10");
    raw.let_die("z:1:dead");
    let (dying, orphans) = (ids("a:1:live", 10), ids("z:1:dead", 10));
    raw.enter_all(&dying, LONG_AGO);
    raw.enter_all(&orphans, LONG_AGO);
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(next_batch(&mut conn, &mut sweep).unwrap().claimed.len(), orphans.len());
    raw.let_die("a:1:live");
    assert_eq!(leased(&claim_all(&mut conn, &mut sweep)), dying);
}

#[test]
fn fresh_entries_are_not_paged_through() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let now = raw.now();
    raw.enter_all(&ids("h:1:busy", 5_000), now);
    raw.enter_all(&ids("h:2:dead", 1), LONG_AGO);
    raw.cli::<()>("CONFIG RESETSTAT");
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert_eq!(leased(&claim_all(&mut conn, &mut sweep)), ids("h:2:dead", 1));
    assert!(raw.calls_of("zrange") <= 3, "{} pages", raw.calls_of("zrange"));
}

#[test]
fn orphans_of_many_processes_are_each_claimed_once_in_a_sweep() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    let mut random = Random::new();
    raw.bring_to_life("h:0:live", "10");
    let live = ids("h:0:live", 700);
    let orphans: Vec<_> = sorted((1..=6).flat_map(|n| ids(&format!("h:{n}:dead"), 200)).collect());
    let mut all = [live.clone(), orphans.clone()].concat();
    // All of one score, a few scores, and hardly two of one.
    for scores in [1, 5, 1_000_000] {
        for id in &all {
            raw.enter(id, LONG_AGO.ahead(i64::try_from(random.below(scores)).unwrap()).0, id.as_bytes());
        }
        let mut sweep = begin(&mut conn, THRESHOLD);
        let batches = claim_all(&mut conn, &mut sweep);
        assert!(leased(&batches) == orphans, "{scores} scores: not each orphan once");
        assert!(batches.iter().flat_map(|batch| &batch.claimed).all(|claimed| claimed.payload == claimed.id.as_bytes()));
    }

    let mut sweep = begin_at(&mut conn, 2 * THRESHOLD);
    assert!(sorted(recover_all(&mut conn, &mut sweep)) == orphans, "not each orphan recovered once");
    all.retain(|id| raw.payload(id).is_some());
    assert!(all == live, "the live ones stay, and nothing else");
    assert_eq!(raw.index_size(), live.len());
}

#[test]
fn a_sweep_asks_once_a_pass_whether_a_process_lives() {
    let server = Server::start();
    let (mut conn, mut raw) = (server.connect(), server.raw());
    raw.bring_to_life("h:1:live", "10");
    raw.enter_all(&ids("h:1:live", 5_000), LONG_AGO);
    raw.cli::<()>("CONFIG RESETSTAT");
    let mut sweep = begin(&mut conn, THRESHOLD);
    assert!(claim_all(&mut conn, &mut sweep).is_empty());
    // One EXISTS is for the collector's own key.
    assert_eq!(raw.calls_of("exists"), 2);
    assert_eq!(raw.calls_of("zrange"), 11);
}

/// Begins a sweep of a collector whose clock is so many ms ahead: time travel without waiting.
fn begin_at(conn: &mut redis::Connection, shift: i64) -> Sweep {
    let process = ProcessId::generate();
    begin_with(conn, &Plan { process: &process, threshold_ms: THRESHOLD, shift, ttl: ttl(TTL), restore_from: 0 })
}

#[test]
fn a_second_sweep_leaves_the_leases_of_the_first_alone() {
    let server = Server::start();
    let (mut one, mut other, mut raw) = (server.connect(), server.connect(), server.raw());
    let all = ids("h:1:dead", 150);
    raw.enter_all(&all, LONG_AGO);
    let mut first = begin(&mut one, THRESHOLD);
    let batch = next_batch(&mut one, &mut first).unwrap();
    let mut second = begin(&mut other, THRESHOLD);

    let rest = claim_all(&mut other, &mut second);

    assert_eq!(leased(&rest).len(), 50);
    assert_eq!(sorted([leased(&rest), batch.claimed.iter().map(|claimed| claimed.id.clone()).collect()].concat()), all);
    assert_eq!(next_batch(&mut one, &mut first), None);
    for claimed in &batch.claimed {
        assert_eq!(settle_uncounted(&mut one, claimed, batch.lease), Settled::Removed);
    }
}

#[test]
fn a_lease_older_than_the_second_sweeps_cutoff_passes_to_it_and_the_first_can_settle_no_more() {
    let server = Server::start();
    let (mut one, mut other, mut raw) = (server.connect(), server.connect(), server.raw());
    let orphan = id("h:1:dead/a");
    raw.enter(&orphan, LONG_AGO.0, b"{}");
    let mut first = begin(&mut one, THRESHOLD);
    let old = next_batch(&mut one, &mut first).unwrap();

    let mut too_early = begin_at(&mut other, THRESHOLD - 5_000);
    assert_eq!(next_batch(&mut other, &mut too_early), None);
    let mut second = begin_at(&mut other, THRESHOLD + 5_000);
    let new = next_batch(&mut other, &mut second).unwrap();

    assert!(new.lease > old.lease);
    assert_eq!(settle_uncounted(&mut one, &old.claimed[0], old.lease), Settled::LeaseLost);
    assert_eq!(first.renew(&mut one, old.lease, &[orphan.clone()]).unwrap().1, []);
    assert_eq!(raw.heartbeat(&orphan), new.lease);
    assert_eq!(settle_uncounted(&mut other, &new.claimed[0], new.lease), Settled::Removed);
    assert_eq!(settle_uncounted(&mut one, &old.claimed[0], old.lease), Settled::Gone);
}

/// What a collector believes to hold.
struct Collector {
    conn: redis::Connection,
    sweep: Option<Sweep>,
    held: BTreeMap<RegistryId, (Millis, Claimed)>,
}

// Three collectors with clocks and thresholds of their own take steps in a random order, drop what they hold as if killed, and
// never does an entry have two valid leases, leave twice, or get lost.
#[test]
fn collectors_in_any_order_never_hold_two_valid_leases_on_one_entry() {
    let server = Server::start();
    let mut raw = server.raw();
    let mut random = Random::new();
    let all = [ids("h:1:dead", 120), ids("h:2:dead", 60)].concat();
    raw.enter_all(&all, LONG_AGO);
    let mut collectors: Vec<_> =
        (0..3).map(|_| Collector { conn: server.connect(), sweep: None, held: BTreeMap::new() }).collect();
    let mut removed: BTreeMap<RegistryId, usize> = BTreeMap::new();

    for _ in 0..1_500 {
        let turn = random.below(collectors.len());
        let Collector { conn, sweep, held } = &mut collectors[turn];
        match (random.below(12), sweep.take()) {
            (0, _) => held.clear(),
            (1..=4, Some(mut active)) => {
                if let Some(batch) = active.claim(conn).unwrap() {
                    held.extend(batch.claimed.into_iter().map(|claimed| (claimed.id.clone(), (batch.lease, claimed))));
                    *sweep = Some(active);
                }
            }
            (1..=5, None) => {
                let threshold_ms = [-5, 0, 3, 20][random.below(4)];
                let shift = i64::try_from(random.below(30)).unwrap();
                let process = ProcessId::generate();
                *sweep =
                    Some(begin_with(conn, &Plan { process: &process, threshold_ms, shift, ttl: ttl(TTL), restore_from: 0 }));
            }
            (6..=7, Some(active)) => {
                if let Some((lease, _)) = held.values().next().cloned() {
                    let (mine, rest): (Vec<_>, Vec<_>) = std::mem::take(held).into_iter().partition(|(_, (l, _))| *l == lease);
                    held.extend(rest);
                    let ids: Vec<_> = mine.iter().map(|(id, _)| id.clone()).collect();
                    let (renewed, kept) = active.renew(conn, lease, &ids).unwrap();
                    held.extend(
                        mine.into_iter().filter(|(id, _)| kept.contains(id)).map(|(id, (_, claimed))| (id, (renewed, claimed))),
                    );
                }
                *sweep = Some(active);
            }
            (8, active) => {
                std::thread::sleep(std::time::Duration::from_millis(1));
                *sweep = active;
            }
            (_, active) => {
                if let Some((id, (lease, claimed))) = held.pop_first()
                    && settle_uncounted(conn, &claimed, lease) == Settled::Removed
                {
                    *removed.entry(id).or_default() += 1;
                }
                *sweep = active;
            }
        }
        assert_no_two_valid_leases(&mut raw, &collectors);
    }

    // Whatever is left is found by a last one.
    let mut last = begin_at(&mut collectors[0].conn, 2 * THRESHOLD);
    for id in recover_all(&mut collectors[0].conn, &mut last) {
        *removed.entry(id).or_default() += 1;
    }
    assert!(removed.keys().eq(sorted(all).iter()), "an entry got lost");
    assert!(removed.values().all(|&times| times == 1), "an entry left twice");
    assert_eq!((raw.index_size(), raw.jobs_size()), (0, 0));
}

fn assert_no_two_valid_leases(raw: &mut support::Raw, collectors: &[Collector]) {
    let scores: BTreeMap<Vec<u8>, i64> = raw.run(redis::cmd("ZRANGE").arg(support::INDEX).arg(0).arg(-1).arg("WITHSCORES"));
    for (id, score) in scores {
        let id = RegistryId(id);
        let holders = collectors.iter().filter(|collector| collector.held.get(&id).is_some_and(|held| held.0.0 == score));
        assert!(holders.count() <= 1, "two valid leases on {id:?}");
    }
}
