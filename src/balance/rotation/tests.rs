//! Tests of shares.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;
use std::cell::Cell;

fn tickets() -> impl FnMut() -> u64 {
    let mut next = 0;
    move || {
        next += 1;
        next - 1
    }
}

fn weights(max: u32) -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0..=max, 1..40)
}

fn rotation(weights: &[u32]) -> Rotation {
    Rotation::new(weights.iter().enumerate().map(|(i, &w)| (i as u32, w)))
}

/// The first picks with all servers up.
fn first(rotation: &Rotation, picks: usize) -> Vec<u32> {
    let mut ticket = tickets();
    (0..picks).filter_map(|_| rotation.pick(0, &mut ticket, |_| true, |_| true)).collect()
}

/// Picks 100,000 times, 500 a second, and asks of each server what its weight gives it of the
/// picks that are not given to those that are out: within 2 %, or two picks.
fn assert_shares(weights: &[u32], out: impl Fn(u32) -> bool) {
    let rotation = rotation(weights);
    let (mut ticket, mut counts) = (tickets(), vec![0_u32; weights.len()]);
    for pick in 0..100_000 {
        let usable = |server: u32| !out(server);
        counts[rotation.pick(pick / 500, &mut ticket, usable, usable).unwrap() as usize] += 1;
    }
    let usable = |server: usize| if out(server as u32) { 0.0 } else { f64::from(weights[server]) };
    let sum: f64 = (0..weights.len()).map(usable).sum();
    for (server, &count) in counts.iter().enumerate() {
        let share = 100_000.0 * usable(server) / sum;
        let off = (f64::from(count) - share).abs();
        assert!(off <= (share * 0.02).max(2.0), "{server}: {count} instead of {share}");
        assert!(usable(server) > 0.0 || count == 0);
    }
}

#[test]
fn two_equal_servers_alternate() {
    assert_eq!(first(&rotation(&[7, 7]), 6), [0, 1, 0, 1, 0, 1]);
}

#[test]
fn short_equal_lists_keep_their_order() {
    assert_eq!(first(&rotation(&[1, 1, 1, 1]), 5), [0, 1, 2, 3, 0]);
}

#[test]
fn a_heavy_server_does_not_take_all_its_turns_in_a_row() {
    let picks = first(&rotation(&[5, 1, 1]), 7);
    assert!(!picks.windows(4).any(|w| w == [0, 0, 0, 0]), "{picks:?}");
}

#[test]
fn nothing_to_pick_from() {
    for rotation in [Rotation::default(), rotation(&[0, 0])] {
        assert_eq!(rotation.pick(0, || 0, |_| true, |_| true), None);
        assert_eq!(rotation.draws(9, || 0, |_| true), None);
        assert_eq!(rotation.at(u64::MAX), None);
    }
}

#[test]
fn the_only_usable_one_of_many_is_found() {
    for n in [1_u32, 2, 31, 32, 33, 63, 64, 65, 1000] {
        let rotation = rotation(&vec![1; n as usize]);
        let mut ticket = tickets();
        for only in 0..n {
            let is_it = |s| s == only;
            assert_eq!(rotation.pick(0, &mut ticket, is_it, is_it), Some(only));
            assert_eq!(rotation.pick(1, &mut ticket, |_| true, is_it), Some(only));
        }
        assert_eq!(rotation.pick(0, &mut ticket, |_| false, |_| false), None);
    }
}

#[test]
fn the_share_of_those_out_goes_to_all_others() {
    assert_shares(&[1; 100], |s| s.is_multiple_of(3) || (20..40).contains(&s));
    assert_shares(&[1; 1000], |s| s >= 7);
    assert_shares(&[1; 1000], |s| s < 970);
    let mixed: Vec<u32> = (0..100).map(|i| 1 + i * 7 % 10).collect();
    for out in [1, 10, 50, 90, 96, 99] {
        assert_shares(&mixed, |s| s < out);
        assert_shares(&mixed, |s| (s * 37) % 100 < out);
    }
}

#[test]
fn the_share_of_all_but_a_few_of_very_many_goes_to_those() {
    let mixed: Vec<u32> = (0..10_000).map(|i| 1 + i * 7 % 10).collect();
    for rest in [1, 2, 3, 10] {
        assert_shares(&[1; 10_000], |s| s >= rest);
        assert_shares(&mixed, |s| s % 1000 != 0 || s >= rest * 1000);
    }
}

#[test]
fn a_refusing_server_of_most_weight_leaves_nothing_to_its_neighbour() {
    for light in [[1, 2, 3, 1, 2], [2; 5]] {
        let rotation = rotation(&[&[1000][..], &light].concat());
        let (mut ticket, mut counts) = (tickets(), [0_u32; 6]);
        for pick in 0..10_000 {
            let server = rotation.pick(pick / 10, &mut ticket, |_| true, |s| s != 0).unwrap();
            counts[server as usize] += 1;
        }
        assert_eq!(counts[0], 0);
        for (count, weight) in counts[1..].iter().zip(light) {
            let share = 10_000 * weight / light.iter().sum::<u32>();
            assert!(count.abs_diff(share) <= share / 50, "{counts:?}");
        }
    }
}

#[test]
fn all_are_asked_anew_in_the_next_second() {
    let rotation = rotation(&[1; 1000]);
    let (mut ticket, mut counts) = (tickets(), [0_u32; 10]);
    for _ in 0..50 {
        assert!(rotation.pick(1, &mut ticket, |s| s < 2, |s| s < 2).is_some());
    }
    for _ in 0..1000 {
        counts[rotation.pick(2, &mut ticket, |s| s < 10, |s| s < 10).unwrap() as usize] += 1;
    }
    assert!(counts.iter().all(|count| count.abs_diff(100) <= 4), "{counts:?}");
}

#[test]
fn all_are_asked_once_a_second_only() {
    let rotation = rotation(&[1; 10_000]);
    let (mut ticket, asked) = (tickets(), Cell::new(0));
    let usable = |server: u32| {
        asked.set(asked.get() + 1);
        server < 3
    };
    for pick in 0..100_000 {
        assert!(rotation.pick(pick / 10_000, &mut ticket, usable, usable).is_some());
    }
    assert!(asked.get() < 10 * 10_100 + 100_000 * 6, "{}", asked.get());
}

#[test]
fn whoever_comes_back_is_found_within_the_second() {
    let rotation = rotation(&[1; 100]);
    let mut ticket = tickets();
    let only = |server| server == 5;
    assert_eq!(rotation.pick(1, &mut ticket, only, only), Some(5));
    let mut pick = || rotation.pick(1, &mut ticket, |s| s < 50, |s| s < 50).unwrap();
    let seen: std::collections::BTreeSet<_> = (0..1000).map(|_| pick()).collect();
    assert_eq!(seen.len(), 50);
}

#[test]
fn few_draws_find_nothing_where_most_are_out() {
    let rotation = rotation(&[1; 100]);
    let mut asked = 0;
    let take = |_| {
        asked += 1;
        false
    };
    assert_eq!(rotation.draws(5, tickets(), take), None);
    assert_eq!(asked, 5);
    assert_eq!(rotation.draws(5, tickets(), |_| true), Some(0));
}

proptest! {
    #[test]
    fn any_period_gives_each_its_weight(weights in weights(300), start in 0_u64..1_000_000) {
        let rotation = rotation(&weights);
        let mut counts = vec![0_u64; weights.len()];
        let divisor = weights.iter().fold(0, |a, &w| gcd(a, u64::from(w))).max(1);
        for ticket in start..start + rotation.period {
            counts[rotation.turn(ticket).unwrap() as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(&weights) {
            prop_assert_eq!(count * divisor, u64::from(*weight));
        }
    }

    #[test]
    fn any_number_is_a_place_by_weight(weights in weights(65_535)) {
        let rotation = rotation(&weights);
        let width = (1_u128 << 64).checked_div(u128::from(rotation.period)).unwrap_or(0);
        let mut end = 0;
        for (server, &weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0) {
            let of = |place: u128| (place * width + width / 2).min(u128::from(u64::MAX)) as u64;
            let divisor = weights.iter().fold(0, |a, &w| gcd(a, u64::from(w)));
            let begin = end;
            end += u128::from(u64::from(weight) / divisor);
            prop_assert_eq!(rotation.at(of(begin)), Some(server as u32));
            prop_assert_eq!(rotation.at(of(end - 1)), Some(server as u32));
        }
        prop_assert_eq!(rotation.at(u64::MAX).is_some(), end > 0);
    }

    #[test]
    fn any_ticket_has_a_server(weights in weights(65_535), ticket: u64) {
        let rotation = rotation(&weights);
        let picked = rotation.pick(0, || ticket, |_| true, |_| true);
        prop_assert_eq!(picked.is_some(), weights.iter().any(|&w| w > 0));
    }

    #[test]
    fn every_server_is_asked(weights in weights(65_535), start: u32, second in 0_i64..2) {
        let rotation = rotation(&weights);
        let mut next = u64::from(start);
        let mut ticket = || { next += 1; next };
        rotation.pick(1, &mut ticket, |s| s % 2 == 0, |_| false);
        let mut asked = vec![false; weights.len()];
        let picked = rotation.pick(second, ticket, |_| true, |s| { asked[s as usize] = true; false });
        prop_assert_eq!(picked, None);
        for (asked, weight) in asked.iter().zip(&weights) {
            prop_assert_eq!(*asked, *weight > 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_window_gives_each_its_weight(
        weights in proptest::collection::vec(1..=65_535_u32, 1..6),
        start: u32,
    ) {
        let rotation = rotation(&weights);
        let mut next = u64::from(start);
        let mut counts = vec![0_u32; weights.len()];
        for _ in 0..weights.iter().sum::<u32>() {
            let ticket = || { next += 1; next };
            counts[rotation.pick(0, ticket, |_| true, |_| true).unwrap() as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(&weights) {
            prop_assert!(count.abs_diff(*weight) <= 1);
        }
    }

    #[test]
    fn any_servers_out_leave_their_share_to_all_others(
        servers in proptest::collection::vec((1..=20_u32, any::<bool>()), 1..60),
        all_but: Option<prop::sample::Index>,
    ) {
        let weights: Vec<u32> = servers.iter().map(|(weight, _)| *weight).collect();
        let one = all_but.map(|index| index.index(weights.len()));
        let is_out = |s: usize| one.map_or(servers[s].1, |one| s != one);
        prop_assume!((0..weights.len()).any(|s| !is_out(s)));
        assert_shares(&weights, |s| is_out(s as usize));
    }
}
