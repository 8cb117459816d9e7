//! Tests of the schedule, and of workers that go by it.
#![forbid(unsafe_code)]

mod workers;

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn keep_only<K: Copy + Eq + Hash>(schedule: &mut Schedule<K>, keep: impl Fn(K) -> bool) {
    let gone: Vec<K> = schedule.known.keys().copied().filter(|&key| !keep(key)).collect();
    gone.into_iter().for_each(|key| schedule.remove(key));
}

#[test]
fn the_earliest_comes_first() {
    let mut schedule = Schedule::default();
    schedule.add('a', 30);
    schedule.add('b', 10);
    schedule.add('c', 10);
    schedule.add('b', 99);
    assert_eq!((schedule.known.len(), schedule.next(), schedule.pop(9)), (3, Some(10), None));
    assert_eq!(
        (schedule.pop(40), schedule.pop(40), schedule.pop(40)),
        (Some('b'), Some('c'), Some('a'))
    );
    assert_eq!((schedule.known.len(), schedule.next(), schedule.pop(u64::MAX)), (3, None, None));
}

#[test]
fn a_server_that_has_left_is_not_looked_at_again() {
    let mut schedule = Schedule::default();
    for key in 0..4_u8 {
        schedule.add(key, u64::from(key));
    }
    assert_eq!(schedule.pop(0), Some(0));
    keep_only(&mut schedule, |key| key % 2 == 1);
    schedule.again(0, 0);
    schedule.remove(1);
    assert_eq!((schedule.known.len(), schedule.next()), (1, Some(3)));
    assert!(schedule.known.contains_key(&3) && !schedule.known.contains_key(&0));
    schedule.add(1, 5);
    assert_eq!((schedule.pop(9), schedule.pop(9), schedule.pop(9)), (Some(3), Some(1), None));
    schedule.remove(3);
    schedule.remove(1);
    assert!(schedule.known.is_empty());
}

#[test]
fn a_server_has_one_turn() {
    let mut schedule = Schedule::default();
    schedule.add('a', 10);
    schedule.again('a', 20);
    assert_eq!((schedule.next(), schedule.pop(19), schedule.pop(20)), (Some(20), None, Some('a')));
    schedule.again('a', 40);
    schedule.again('a', 30);
    assert_eq!((schedule.pop(50), schedule.pop(50)), (Some('a'), None));
}

#[test]
fn memory_is_bounded() {
    let mut schedule = Schedule::default();
    for generation in 0..100_000_u64 {
        for slot in 0..3 {
            schedule.add((slot, generation), generation + 1_000_000);
        }
        keep_only(&mut schedule, |(_, kept)| kept == generation);
        assert_eq!(schedule.known.len(), 3);
    }
    assert!(schedule.turns.capacity() <= 2 * (2 * 6 + OUTDATED), "{}", schedule.turns.capacity());
    for turn in 0..100_000 {
        schedule.again((0, 99_999), 1_000_000 - turn);
    }
    assert!(schedule.turns.len() <= 2 * 3 + OUTDATED);
}

#[test]
fn workers_have_equal_shares() {
    for (step, workers) in [(1, 2), (256, 2), (256, 3), (128, 8), (4096, 16), (65_536, 5)] {
        let mut counts = vec![0_u64; workers as usize];
        for slot in 0..10_000 {
            counts[preferred(slot * step, workers) as usize] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 10_000 / workers / 4, "{step}, {workers}: {counts:?}");
    }
    assert_eq!((preferred(7, 1), preferred(7, 0)), (0, 0));
}

#[test]
fn the_others_wait() {
    for (interval, expected) in [(1, 10), (200, 10), (1000, 50), (30_000, 1000), (u32::MAX, 1000)] {
        assert_eq!(grace(interval), expected);
    }
}

#[test]
fn times_stay_in_phase() {
    assert_eq!(lease(100, 100, 50, 50), 150);
    assert_eq!(lease(100, 101, 50, 50), 200);
    assert_eq!(lease(100, 100, 50, 10), 150);
    assert_eq!(lease(100, 1000, 50, 10), 1050);
    assert_eq!(lease(100, 100, 10, 1000), 1100);
    assert_eq!(due_after(100, 120, 50), 150);
    assert_eq!(due_after(100, 150, 50), 150);
    assert_eq!(due_after(100, 151, 50), 150);
    assert_eq!(due_after(100, 271, 50), 250);
}

#[test]
fn first_checks_are_spread() {
    let spread = |random| first_due(5000, 1000, random) - 5000;
    assert_eq!((spread(0), spread(u64::MAX / 2 + 1), spread(u64::MAX)), (0, 500, 999));
    assert_eq!(first_due(0, 1000, 0), 1);
}

#[derive(Clone, Debug)]
enum Change {
    Add(u8, u64),
    Again(u8, u64),
    Remove(u8),
    Keep(u8),
    Pop(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let (key, time) = (0..20_u8, 0..50_u64);
    prop_oneof![
        4 => (key.clone(), time.clone()).prop_map(|(key, when)| Change::Add(key, when)),
        4 => (key.clone(), time.clone()).prop_map(|(key, when)| Change::Again(key, when)),
        2 => key.prop_map(Change::Remove),
        1 => (1..8_u8).prop_map(Change::Keep),
        4 => time.prop_map(Change::Pop),
    ]
}

/// The first of the turns, found by looking at all.
fn first(turns: &BTreeMap<u8, Option<(u64, usize)>>) -> Option<(u64, usize, u8)> {
    turns.iter().filter_map(|(&key, turn)| turn.map(|(when, at)| (when, at, key))).min()
}

proptest! {
    #[test]
    fn as_without_a_heap(changes in proptest::collection::vec(change(), 0..300)) {
        let (mut schedule, mut turns) = (Schedule::default(), BTreeMap::new());
        for (at, change) in changes.into_iter().enumerate() {
            match change {
                Change::Add(key, when) => {
                    schedule.add(key, when);
                    turns.entry(key).or_insert(Some((when, at)));
                }
                Change::Again(key, when) => {
                    schedule.again(key, when);
                    turns.entry(key).and_modify(|turn| *turn = Some((when, at)));
                }
                Change::Remove(key) => {
                    schedule.remove(key);
                    turns.remove(&key);
                }
                Change::Keep(divisor) => {
                    keep_only(&mut schedule, |key| key % divisor == 0);
                    turns.retain(|key, _| key % divisor == 0);
                }
                Change::Pop(now) => {
                    let expected = first(&turns).filter(|&(when, ..)| when <= now);
                    prop_assert_eq!(schedule.pop(now), expected.map(|(.., key)| key));
                    expected.and_then(|(.., key)| turns.insert(key, None));
                }
            }
            prop_assert_eq!(schedule.known.len(), turns.len());
            prop_assert_eq!(schedule.next(), first(&turns).map(|(when, ..)| when));
            prop_assert!(schedule.turns.len() <= 2 * schedule.known.len() + OUTDATED);
        }
    }

    #[test]
    fn a_time_is_the_first_in_phase(
        due in 0..1_u64 << 40, late in 0..1_u64 << 40, interval in 1..u32::MAX, timeout: u32,
    ) {
        let (now, step) = (due + late, u64::from(interval));
        let (next, earliest) = (lease(due, now, interval, timeout), now + u64::from(timeout));
        prop_assert!(next >= earliest && next > due && (next - due).is_multiple_of(step));
        prop_assert!(next - due == step || next - step < earliest);
        let next = due_after(due, now, interval);
        prop_assert!(next > due && (next - due).is_multiple_of(step) && next + step > now);
        prop_assert!(next - due == step || next <= now);
    }

    #[test]
    fn any_times(due: u64, now: u64, interval: u32, timeout: u32, random: u64) {
        prop_assert!(lease(due, now, interval, timeout) >= now.saturating_add(timeout.into()));
        let first = first_due(now, interval, random);
        prop_assert!(first >= now.max(1) && first <= now.saturating_add(interval.max(1).into()));
        prop_assert!(preferred(random, now.max(1)) < now.max(1));
    }
}
