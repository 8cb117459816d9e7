//! Tests against nginx's own choice.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

/// A server as all workers see it.
#[derive(Clone, Copy, Debug)]
struct Server {
    connections: u64,
    weight: u32,
    answer: Taken,
}

fn least(servers: &[Server], seed: u64) -> Least {
    Least::new(servers.iter().enumerate().map(|(i, s)| (i as u32, s.weight)), seed)
}

fn idle(weights: &[u32]) -> Vec<Server> {
    weights.iter().map(|&weight| Server { connections: 0, weight, answer: Taken::Yes }).collect()
}

/// Those from which `ngx_http_upstream_get_least_conn_peer` chooses.
fn best(servers: &[Server]) -> BTreeSet<u32> {
    let mut best: Option<Server> = None;
    let usable = |s: &Server| s.weight > 0 && s.answer == Taken::Yes;
    for peer in servers.iter().filter(|s| usable(s)) {
        let is_less = |best: &Server| {
            peer.connections * u64::from(best.weight) < best.connections * u64::from(peer.weight)
        };
        if best.as_ref().is_none_or(is_less) {
            best = Some(*peer);
        }
    }
    let equals = |s: &Server| {
        let best = best.unwrap();
        s.connections * u64::from(best.weight) == best.connections * u64::from(s.weight)
    };
    let all = (0..).zip(servers);
    all.filter(|(_, s)| usable(s) && equals(s)).map(|(i, _)| i).collect()
}

/// Picks and counts the connection.
fn pick(least: &mut Least, second: i64, servers: &mut [Server]) -> Option<u32> {
    let shared = RefCell::new(servers);
    let load = |s: u32| shared.borrow()[s as usize].connections;
    least.pick(second, load, |s| {
        let server = &mut shared.borrow_mut()[s as usize];
        server.connections += u64::from(server.answer == Taken::Yes);
        server.answer
    })
}

/// Picks of servers that are never loaded.
fn picks_of_idle(least: &mut Least, picks: usize, n: usize) -> Vec<u32> {
    let mut counts = vec![0; n];
    for _ in 0..picks {
        counts[least.pick(0, |_| 0, |_| Taken::Yes).unwrap() as usize] += 1;
    }
    counts
}

#[derive(Clone, Debug)]
enum Step {
    Pick,
    /// A connection of this worker, or one of another that is told of, ends.
    End(prop::sample::Index),
    /// Another worker's connection.
    Other(prop::sample::Index, u64),
    Answer(prop::sample::Index, Taken),
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![Just(Taken::Yes), Just(Taken::NotNow), Just(Taken::Out)];
    prop_oneof![
        4 => Just(Step::Pick),
        2 => any::<prop::sample::Index>().prop_map(Step::End),
        2 => (any::<prop::sample::Index>(), 1..4_u64).prop_map(|(i, n)| Step::Other(i, n)),
        1 => (any::<prop::sample::Index>(), answer).prop_map(|(i, a)| Step::Answer(i, a)),
    ]
}

proptest! {
    #[test]
    fn it_is_nginx_s_choice(
        weights in proptest::collection::vec(prop_oneof![0..5_u32, 0..=65_535_u32], 1..60),
        steps in proptest::collection::vec(step(), 1..400),
        seed: u64,
    ) {
        let mut servers = idle(&weights);
        let (mut least, mut second) = (least(&servers, seed), 0);
        for step in steps {
            match step {
                Step::Pick => {
                    let best = best(&servers);
                    let picked = pick(&mut least, second, &mut servers);
                    prop_assert_eq!(picked.is_some(), !best.is_empty());
                    prop_assert!(picked.is_none_or(|s| best.contains(&s)), "{picked:?} of {best:?}");
                }
                Step::End(index) => {
                    let number = index.index(servers.len());
                    let server = &mut servers[number];
                    server.connections = server.connections.saturating_sub(1);
                    least.changed(number as u32, server.connections);
                }
                Step::Other(index, more) => index.get_mut(&mut servers).connections += more,
                Step::Answer(index, answer) => {
                    // What was out is looked at again when the second is over.
                    second += 1;
                    index.get_mut(&mut servers).answer = answer;
                }
            }
        }
    }

    #[test]
    fn any_answers_end(
        weights in proptest::collection::vec(0..=u32::MAX, 0..100),
        seconds in proptest::collection::vec(any::<i64>(), 1..20),
        numbers: u64,
    ) {
        let servers = idle(&weights);
        let mut least = least(&servers, numbers);
        let state = Cell::new(numbers | 1);
        let random = || {
            state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            state.get() >> 7
        };
        for second in seconds {
            least.changed(random() as u32 % 128, random() << 7);
            let (asked, read) = (RefCell::new(Vec::new()), Cell::new(0));
            let load = |_| { read.set(read.get() + 1); random() << (random() % 8) };
            least.pick(second, load, |server| {
                asked.borrow_mut().push(server);
                [Taken::Yes, Taken::NotNow, Taken::Out, Taken::Out][random() as usize % 4]
            });
            let (mut asked, count) = (asked.into_inner(), servers.len());
            prop_assert!(read.get() <= 2 * BACK_AT_ONCE + 2 + count);
            asked.sort_unstable();
            prop_assert!(asked.windows(2).all(|w| w[0] != w[1]), "asked twice");
        }
        if servers.iter().any(|s| s.weight > 0) {
            prop_assert!(least.pick(0, |_| random(), |_| Taken::Yes).is_some());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn equals_have_turns_by_weight(
        weights in prop_oneof![
            proptest::collection::vec(1..=65_535_u32, 1..5),
            proptest::collection::vec(1..=100_u32, 1..80),
        ],
        seed: u64,
        before in 0..10_000_usize,
    ) {
        let mut least = least(&idle(&weights), seed);
        picks_of_idle(&mut least, before, weights.len());
        let window = weights.iter().sum::<u32>() as usize;
        let counts = picks_of_idle(&mut least, window, weights.len());
        for (count, weight) in counts.iter().zip(&weights) {
            prop_assert!(count.abs_diff(*weight) <= 1, "{counts:?}");
        }
    }

    #[test]
    fn those_out_leave_their_turns_to_all_others(
        servers in proptest::collection::vec((1..=20_u32, any::<bool>()), 2..200),
    ) {
        let weights: Vec<u32> = servers.iter().map(|(weight, _)| *weight).collect();
        let sum: u32 = servers.iter().filter(|(_, out)| !out).map(|(weight, _)| weight).sum();
        prop_assume!(sum > 0);
        let (mut least, mut counts) = (least(&idle(&weights), 1), vec![0_u32; weights.len()]);
        for pick in 0..100_000 {
            let take = |s: u32| if servers[s as usize].1 { Taken::Out } else { Taken::Yes };
            counts[least.pick(pick / 500, |_| 0, take).unwrap() as usize] += 1;
        }
        for (count, (weight, out)) in counts.iter().zip(&servers) {
            let share = if *out { 0.0 } else { 100_000.0 * f64::from(*weight) / f64::from(sum) };
            let off = (f64::from(*count) - share).abs();
            prop_assert!(off <= (share * 0.02).max(2.0), "{count} instead of {share}");
        }
    }
}

#[test]
fn nothing_to_pick_from() {
    for mut least in [Least::default(), least(&idle(&[0, 0]), 7)] {
        least.changed(0, 1);
        least.recount(|_| 1);
        assert!(least.is_empty());
        assert_eq!(least.pick(0, |_| 0, |_| Taken::Yes), None);
    }
}

#[test]
fn numbers_are_the_caller_s() {
    let mut least = Least::new([(u32::MAX, 1), (7, 1), (7, 1), (1_000_000, 1), (3, 0)], 0);
    assert_eq!(least.len(), 3);
    least.changed(3, 0);
    least.changed(8, 0);
    least.recount(|server| if server == 7 { 1 } else { 2 });
    assert_eq!(least.pick(0, |s| if s == 7 { 1 } else { 2 }, |_| Taken::Yes), Some(7));
}

#[test]
fn a_fresh_worker_begins_anywhere() {
    let first = |seed| {
        let mut least = least(&idle(&[1; 10]), seed);
        least.pick(0, |_| 0, |_| Taken::Yes).unwrap()
    };
    let seeds = (0..100_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    assert_eq!(seeds.map(first).collect::<BTreeSet<_>>().len(), 10);
}

#[test]
fn equal_servers_keep_their_order() {
    let mut least = least(&idle(&[1; 4]), 0);
    let picks: Vec<_> = (0..6).filter_map(|_| least.pick(0, |_| 0, |_| Taken::Yes)).collect();
    assert_eq!(picks, [0, 1, 2, 3, 0, 1]);
}

#[test]
fn loads_up_to_the_largest_are_compared_exactly() {
    let most = (1 << 48) - 1;
    let load = |server: u32| if server == 0 { most } else { most - 1 };
    let mut least = Least::new([(0, 65_535), (1, 65_535)], 0);
    least.recount(load);
    assert_eq!(least.pick(0, load, |_| Taken::Yes), Some(1));
}

#[test]
fn whoever_was_away_gets_no_more_than_its_turns() {
    let (mut least, away) = (least(&idle(&[1; 4]), 0), Cell::new(true));
    let load = |s: u32| if s == 2 && away.get() { 9 } else { 0 };
    least.recount(load);
    for _ in 0..3000 {
        assert_ne!(least.pick(0, load, |_| Taken::Yes), Some(2));
    }
    away.set(false);
    least.changed(2, 0);
    assert!(picks_of_idle(&mut least, 40, 4).iter().all(|n| (9..=11).contains(n)));
}

#[test]
fn who_is_alone_the_best_uses_up_no_turn() {
    let (mut least, mut counts) = (least(&idle(&[1; 3]), 0), [0; 3]);
    for _ in 0..300 {
        least.changed(1, 1);
        least.changed(2, 1);
        assert_eq!(least.pick(0, |s| u64::from(s > 0), |_| Taken::Yes), Some(0));
        least.changed(1, 0);
        least.changed(2, 0);
        counts[least.pick(0, |_| 0, |_| Taken::Yes).unwrap() as usize] += 1;
    }
    assert_eq!(counts, [100; 3]);
}

#[test]
fn one_that_is_out_is_asked_once_a_second() {
    let (mut least, mut asked) = (least(&idle(&[1; 20]), 0), 0);
    for pick in 0..1000 {
        least.pick(
            pick / 100,
            |_| 0,
            |s| {
                asked += u32::from(s == 2);
                if s == 2 { Taken::Out } else { Taken::Yes }
            },
        );
    }
    assert_eq!(asked, 10);
    least.changed(2, 0);
    assert_eq!(picks_of_idle(&mut least, 200, 20)[2], 10);
}

#[test]
fn of_very_many_that_are_out_a_few_come_back_at_a_time() {
    let mut least = least(&idle(&[1; 1000]), 0);
    let mut ask = |second, out: fn(u32) -> bool| {
        let mut asked = 0;
        let picked = least.pick(
            second,
            |_| 0,
            |s| {
                asked += 1;
                if out(s) { Taken::Out } else { Taken::Yes }
            },
        );
        (picked, asked)
    };
    assert_eq!(ask(0, |s| s != 999), (Some(999), 1000));
    for _ in 0..100 {
        let (picked, asked) = ask(1, |s| s != 999);
        assert!(picked == Some(999) && asked <= 65);
    }
    assert_eq!(ask(1, |s| s == 999).1, 2, "all are asked before there is none");
    let (picked, asked) = ask(1, |_| true);
    assert!(picked.is_none() && asked == 1000, "{asked}");
    let back: BTreeSet<_> = (0..1016).filter_map(|_| ask(2, |_| false).0).collect();
    assert_eq!(back.len(), 1000);
}

#[test]
fn a_smaller_share_of_turns_is_a_smaller_share() {
    let (mut least, mut turns, mut counts) = (least(&idle(&[1; 20]), 0), 0, [0_u32; 20]);
    for _ in 0..19_100 {
        let picked = least.pick(
            0,
            |_| 0,
            |s| {
                turns += u32::from(s == 4);
                if s == 4 && turns % 10 != 0 { Taken::NotNow } else { Taken::Yes }
            },
        );
        counts[picked.unwrap() as usize] += 1;
    }
    assert!(counts[4].abs_diff(100) <= 2 && counts[5].abs_diff(1000) <= 2, "{counts:?}");
}

#[test]
fn news_that_was_missed_is_found() {
    let mut servers = idle(&[1; 50]);
    servers.iter_mut().for_each(|s| s.connections = 10);
    let mut least = least(&servers, 0);
    least.recount(|_| 10);
    servers[33].connections = 3;
    let found =
        |least: &mut Least| least.pick(0, |s| servers[s as usize].connections, |_| Taken::Yes);
    assert!((0..50).any(|_| found(&mut least) == Some(33)));
    assert_eq!(found(&mut least), Some(33));
}
