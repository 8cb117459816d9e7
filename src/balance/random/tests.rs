//! Tests of shares. The numbers are always the same, so no test fails by chance.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;
use std::cell::Cell;

/// Steele, Lea and Flood's SplitMix64.
fn numbers(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn rotation(weights: &[u32]) -> Rotation {
    Rotation::new(weights.iter().enumerate().map(|(i, &w)| (i as u32, w)))
}

fn assert_shares(weights: &[u32], out: &[u32], mut pick: impl FnMut() -> Option<u32>) {
    let mut counts = vec![0_u32; weights.len()];
    for _ in 0..100_000 {
        counts[pick().unwrap() as usize] += 1;
    }
    let usable = |s: usize| if out.contains(&(s as u32)) { 0 } else { weights[s] };
    let sum: u32 = (0..weights.len()).map(usable).sum();
    for (server, &count) in counts.iter().enumerate() {
        let share = 100_000.0 * f64::from(usable(server)) / f64::from(sum);
        let off = (f64::from(count) - share).abs();
        assert!(off <= share * 0.02, "{server}: {count} instead of {share}");
    }
}

#[test]
fn shares_are_by_weight() {
    let weights = [3, 1, 4, 2];
    for out in [&[][..], &[0], &[2], &[1, 3]] {
        let (rotation, usable) = (rotation(&weights), |s| !out.contains(&s));
        let mut number = numbers(1);
        assert_shares(&weights, out, || one(&rotation, &mut number, usable));
        let load = |server: u32| (0, weights[server as usize]);
        assert_shares(&weights, out, || two(&rotation, &mut number, usable, load, usable));
    }
}

#[test]
fn the_less_loaded_of_two_is_taken() {
    let rotation = rotation(&[1; 3]);
    let (mut number, mut counts) = (numbers(2), [0_u32; 3]);
    for _ in 0..30_000 {
        // 2 / 2 < 3 / 2 < 2 / 1
        let load = |server: u32| [(3, 2), (2, 2), (2, 1)][server as usize];
        let server = two(&rotation, &mut number, |_| true, load, |_| true).unwrap();
        counts[server as usize] += 1;
    }
    assert_eq!(counts[2], 0, "it loses against any other");
    assert!(counts[0].abs_diff(10_000) < 300 && counts[1].abs_diff(20_000) < 300, "{counts:?}");
}

#[test]
fn the_other_of_two_is_asked_then() {
    let rotation = rotation(&[1, 1]);
    let mut number = numbers(3);
    for _ in 0..100 {
        let load = |server: u32| (u64::from(server), 1);
        assert_eq!(two(&rotation, &mut number, |_| true, load, |_| true), Some(0));
        assert_eq!(two(&rotation, &mut number, |_| true, load, |s| s == 1), Some(1));
    }
}

#[test]
fn the_only_usable_one_is_found_by_chance_or_by_the_rotation() {
    let rotation = rotation(&[1, 1, 1]);
    let (usable, mut by_chance) = (|s| s == 1, 0);
    for seed in 0..1000 {
        let mut number = numbers(seed);
        let drawn = two(&rotation, &mut number, usable, |_| (0, 1), usable);
        by_chance += u32::from(drawn.is_some());
        let picked = drawn.or_else(|| rotation.pick(0, number, usable, usable));
        assert_eq!(picked, Some(1));
    }
    assert!(by_chance > 990, "{by_chance}");
}

proptest! {
    #[test]
    fn it_always_ends(
        weights in proptest::collection::vec(0..=65_535_u32, 0..20),
        seed: u64,
        answers: u64,
    ) {
        let rotation = rotation(&weights);
        let (asked, answer) = (Cell::new(0), |bit: u32| answers.rotate_right(bit) & 1 == 1);
        let take = |server| { asked.set(asked.get() + 1); answer(server + asked.get()) };
        let load = |server: u32| (answers.rotate_left(server), server);
        let picked = [
            one(&rotation, &mut numbers(seed), take),
            two(&rotation, &mut numbers(seed), |s| answer(s + 7), load, take),
            two(&rotation, &mut || seed, |_| true, load, take),
        ];
        prop_assert!(asked.get() <= 60);
        prop_assert!(picked.iter().flatten().all(|&s| weights[s as usize] > 0));
    }
}
