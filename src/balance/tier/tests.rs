//! Tests of all choosers over servers whose states are told. The numbers are always the same, so
//! no test fails by chance.
#![forbid(unsafe_code)]

use super::*;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

/// What becomes of asking for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Usable,
    /// By the request that asks.
    Tried,
    /// Not this request, though it has not tried it.
    Refuses,
    Out,
}

use State::{Out, Refuses, Tried, Usable};

struct Servers {
    states: Vec<Cell<State>>,
    weights: Vec<u32>,
    loads: Vec<u64>,
    key: Vec<u8>,
    tickets: Cell<u64>,
    random: Cell<u64>,
    second: Cell<i64>,
    /// Which `take` was called for, and whether it was given.
    asked: RefCell<Vec<(u32, bool)>>,
}

impl Servers {
    /// All are usable, and as busy as their weights are.
    fn new(weights: &[u32]) -> Self {
        Self {
            states: vec![Cell::new(Usable); weights.len()],
            weights: weights.to_vec(),
            loads: weights.iter().map(|&weight| 3 * u64::from(weight)).collect(),
            key: b"key".to_vec(),
            tickets: Cell::new(0),
            random: Cell::new(1),
            second: Cell::new(0),
            asked: RefCell::default(),
        }
    }

    fn state(&self, server: u32) -> State {
        self.states[server as usize].get()
    }

    fn set(&self, server: u32, state: State) {
        self.states[server as usize].set(state);
    }

    fn set_all(&self, state: State) {
        self.states.iter().for_each(|own| own.set(state));
    }

    /// Those that were asked since this was last called.
    fn asked(&self) -> Vec<u32> {
        self.asked.take().into_iter().map(|(server, _)| server).collect()
    }
}

impl Ask for Servers {
    fn ticket(&self) -> u64 {
        self.tickets.replace(self.tickets.get() + 1)
    }
    /// Steele, Lea and Flood's SplitMix64.
    fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    fn second(&self) -> i64 {
        self.second.get()
    }
    fn key(&self) -> &[u8] {
        &self.key
    }
    fn was_tried(&self, server: u32) -> bool {
        self.state(server) == Tried
    }
    fn may(&self, server: u32) -> bool {
        self.state(server) != Out
    }
    fn take(&self, server: u32) -> Taken {
        let taken = match self.state(server) {
            Usable => Taken::Yes,
            Tried | Refuses => Taken::NotNow,
            Out => Taken::Out,
        };
        self.asked.borrow_mut().push((server, taken == Taken::Yes));
        taken
    }
    fn load(&self, server: u32) -> u64 {
        self.loads[server as usize]
    }
    fn weight(&self, server: u32) -> u32 {
        self.weights[server as usize]
    }
}

const KEYED: [&str; 3] = ["hash", "hash consistent", "ip_hash"];
const SPREADING: [&str; 4] = ["round robin", "random", "random two", "least_conn"];

fn methods() -> impl Iterator<Item = &'static str> {
    SPREADING.into_iter().chain(KEYED)
}

fn table(weights: &[u32]) -> Table {
    Table::new((0..).zip(weights.iter().copied()))
}

fn ring(weights: &[u32]) -> Ring {
    let names: Vec<_> = (0..weights.len()).map(|i| format!("10.0.0.{i}:80")).collect();
    let named = (0..).zip(&names).zip(weights);
    Ring::new(named.map(|((server, name), &weight)| (server, &name[..], weight)))
}

fn tier(method: &str, weights: &[u32]) -> Tier {
    let servers = || (0..).zip(weights.iter().copied());
    let chooser = match method {
        "random" => Chooser::Random,
        "random two" => Chooser::Two,
        "hash" => Chooser::Key(table(weights)),
        "hash consistent" => Chooser::Ring(Arc::new(ring(weights))),
        "ip_hash" => Chooser::Address(table(weights)),
        "least_conn" => Chooser::Least(RefCell::new(Least::new(servers(), 1))),
        _ => Chooser::Turns,
    };
    Tier::new(Rotation::new(servers()), chooser)
}

/// The pick of a request that has tried none.
fn pick(tier: &Tier, servers: &Servers) -> Option<u32> {
    tier.pick(&Cell::default(), servers)
}

/// Picks 100,000 times, 500 a second, and asks of each usable server what its weight gives it of
/// all picks: within 2 %, or two picks, or what a caller adds.
fn assert_shares(method: &str, weights: &[u32], is_out: impl Fn(u32) -> bool, sigmas: f64) {
    let (tier, servers) = (tier(method, weights), Servers::new(weights));
    (0..).zip(&servers.states).filter(|(s, _)| is_out(*s)).for_each(|(_, own)| own.set(Out));
    let mut counts = vec![0_u32; weights.len()];
    for number in 0..100_000 {
        servers.second.set(number / 500);
        counts[pick(&tier, &servers).unwrap() as usize] += 1;
        servers.asked.take();
    }
    let usable = |server: u32| if is_out(server) { 0 } else { weights[server as usize] };
    let sum: u32 = (0..weights.len() as u32).map(usable).sum();
    for (server, &count) in (0..).zip(&counts) {
        let share = 100_000.0 * f64::from(usable(server)) / f64::from(sum);
        let allowed = (share * 0.02).max(2.0).max(sigmas * share.sqrt());
        let is_right = (f64::from(count) - share).abs() <= allowed;
        assert!(is_right && (share > 0.0 || count == 0), "{method} {server}: {count} of {share}");
    }
}

#[test]
fn a_walk_is_small() {
    assert!(size_of::<Walk>() <= 24, "it is in each request");
}

#[test]
fn nothing_to_pick_from() {
    for method in methods() {
        for weights in [&[][..], &[0], &[0, 0]] {
            let (tier, servers) = (tier(method, weights), Servers::new(weights));
            assert_eq!((tier.is_empty(), tier.len(), tier.servers().count()), (true, 0, 0));
            assert_eq!(pick(&tier, &servers), None);
            assert_eq!((servers.asked().len(), servers.tickets.get()), (0, 0), "{method}");
        }
    }
}

#[test]
fn a_tier_knows_its_servers() {
    for method in methods() {
        let tier = tier(method, &[1, 0, 2]);
        assert_eq!((tier.len(), tier.is_empty()), (2, false));
        assert_eq!(tier.servers().collect::<Vec<_>>(), [0, 2]);
        assert_eq!(tier.least().is_some(), method == "least_conn");
    }
}

#[test]
fn the_only_usable_one_is_found() {
    for method in methods() {
        for n in [1, 2, 3, 16, 17, 32, 33, 64, 65, 128, 129, 1000] {
            let weights = vec![1; n];
            let (tier, mut servers) = (tier(method, &weights), Servers::new(&weights));
            for only in (0..n as u32).step_by(n.div_ceil(40)) {
                servers.key = only.to_le_bytes().to_vec();
                for others in [Out, Tried, Refuses] {
                    servers.set_all(others);
                    servers.set(only, Usable);
                    assert_eq!(pick(&tier, &servers), Some(only), "{method}, {n}, {others:?}");
                    servers.second.set(servers.second.get() + i64::from(only % 2));
                }
            }
        }
    }
}

#[test]
fn there_is_none_if_all_are_out_or_tried() {
    for method in methods() {
        for n in [1, 2, 16, 17, 65, 1000] {
            let weights = vec![1; n];
            let (tier, servers) = (tier(method, &weights), Servers::new(&weights));
            for state in [Tried, Refuses, Out] {
                servers.set_all(state);
                for _ in 0..3 {
                    assert_eq!(pick(&tier, &servers), None, "{method}, {n}, {state:?}");
                }
            }
            servers.set_all(Usable);
            servers.second.set(1);
            assert!(pick(&tier, &servers).is_some());
        }
    }
}

#[test]
fn turns_are_used_up_by_round_robin_alone() {
    for method in methods() {
        let (tier, servers) = (tier(method, &[1; 20]), Servers::new(&[1; 20]));
        let picked: Vec<_> = (0..100).filter_map(|_| pick(&tier, &servers)).collect();
        let drawn = if method == "round robin" { 100 } else { 0 };
        assert_eq!((picked.len(), servers.tickets.get()), (100, drawn), "{method}");
    }
}

#[test]
fn shares_are_by_weight() {
    for method in SPREADING {
        for out in [&[][..], &[0], &[2], &[1, 3]] {
            assert_shares(method, &[3, 1, 4, 2], |s| out.contains(&s), 0.0);
        }
    }
}

#[test]
fn the_share_of_those_out_goes_to_all_others() {
    for method in SPREADING {
        for out in [1, 3, 16, 60, 996] {
            // Those that are left stand together behind those that are out, or apart.
            let weights = vec![1; out as usize + 4];
            assert_shares(method, &weights, |s| s < out, 0.0);
            let apart = weights.len() as u32 / 4;
            assert_shares(method, &weights, |s| s % apart != 0 || s / apart > 3, 0.0);
        }
    }
    let mixed: Vec<u32> = (0..100).map(|i| 1 + i * 7 % 10).collect();
    for method in ["round robin", "least_conn"] {
        for out in [1, 10, 50, 90, 96] {
            assert_shares(method, &mixed, |s| s < out, 0.0);
            assert_shares(method, &mixed, |s| (s * 37) % 100 < out, 0.0);
        }
    }
}

#[test]
fn those_that_are_back_have_their_shares_in_the_next_second() {
    for method in SPREADING {
        let (tier, servers) = (tier(method, &[1; 1000]), Servers::new(&[1; 1000]));
        servers.set_all(Out);
        servers.set(0, Usable);
        (0..100).for_each(|_| assert_eq!(pick(&tier, &servers), Some(0)));
        (500..509).for_each(|server| servers.set(server, Usable));
        servers.second.set(1);
        let picked: Vec<_> = (0..1000).filter_map(|_| pick(&tier, &servers)).collect();
        for server in (500..509).chain([0]) {
            let count = picked.iter().filter(|picked| **picked == server).count();
            assert!((70..130).contains(&count), "{method} {server}: {count}");
        }
    }
}

#[test]
fn the_less_loaded_for_its_weight_is_taken() {
    for method in ["random two", "least_conn"] {
        let tier = tier(method, &[2, 1, 3]);
        let mut servers = Servers::new(&[2, 1, 3]);
        // 5 / 2 < 3 / 1. Were loads not divided by weights, or were the last drawn although it is
        // not to be had, the second would be taken.
        servers.loads = vec![5, 3, 0];
        for last in [Tried, Out] {
            servers.set(2, last);
            for _ in 0..1000 {
                assert_eq!(pick(&tier, &servers), Some(0), "{method}, {last:?}");
            }
        }
    }
}

#[test]
fn a_key_leads_to_its_server() {
    let weights: Vec<u32> = (0..50).map(|i| 1 + i % 5).collect();
    let (table, ring, mut servers) = (table(&weights), ring(&weights), Servers::new(&weights));
    let [hash, consistent, ip_hash] = KEYED.map(|method| tier(method, &weights));
    for number in 0..1000_u32 {
        let key = number.wrapping_mul(0x9e37_79b9).to_le_bytes();
        servers.key = key.to_vec();
        assert_eq!(pick(&hash, &servers), KeyWalk::default().next(&key, &table));
        assert_eq!(pick(&consistent, &servers), RingWalk::default().next(&key, &ring));
        assert_eq!(pick(&ip_hash, &servers), AddressWalk::default().next(&key, &table));
    }
    assert_eq!(servers.tickets.get(), 0, "no turn is used up");
}

#[test]
fn a_retry_goes_on_where_the_key_has_led() {
    for method in KEYED {
        for number in 0..200_u32 {
            let (tier, mut servers) = (tier(method, &[1; 8]), Servers::new(&[1; 8]));
            servers.key = number.to_le_bytes().to_vec();
            let (walk, mut last) = (Cell::default(), None);
            for _ in 0..4 {
                let before = servers.asked.borrow().len();
                let again = last.filter(|_| method == "hash consistent");
                last = tier.pick(&walk, &servers);
                servers.set(last.unwrap(), Tried);
                let first = servers.asked.borrow()[before].0;
                assert!(again.is_none_or(|again| first == again), "the last point once more");
            }
            let mut in_four = servers.asked();
            servers.set(last.unwrap(), Usable);
            assert_eq!(pick(&tier, &servers), last, "{method}");
            let mut at_once = servers.asked();
            in_four.dedup();
            at_once.dedup();
            assert_eq!(in_four, at_once, "{method}");
            assert_eq!(servers.tickets.get(), 0, "{method}");
        }
    }
}

#[test]
fn servers_that_were_taken_are_no_steps_in_vain() {
    for method in ["hash", "ip_hash"] {
        let (tier, servers) = (tier(method, &[1; 1000]), Servers::new(&[1; 1000]));
        let walk = Cell::default();
        for _ in 0..50 {
            servers.set(tier.pick(&walk, &servers).unwrap(), Tried);
        }
        assert_eq!(servers.tickets.get(), 0, "{method} leads on");
    }
}

#[test]
fn a_key_that_leads_nowhere_is_given_up_for_the_request() {
    for method in KEYED {
        let (tier, servers) = (tier(method, &[1; 500]), Servers::new(&[1; 500]));
        let walk = Cell::default();
        servers.set_all(Out);
        assert_eq!(tier.pick(&walk, &servers), None);
        servers.set_all(Usable);
        servers.asked();
        tier.pick(&walk, &servers);
        assert_eq!(servers.asked().len(), 1);
        let drawn = servers.tickets.get();
        tier.pick(&walk, &servers);
        assert_eq!(servers.tickets.get(), drawn + 1, "{method}: it has its turn");
    }
}

/// What `tier` picks for requests that have gone as far as `walk`, and how far they are then.
fn picks(tier: &Tier, servers: &Servers, walk: Walk) -> (Vec<Option<u32>>, Vec<String>) {
    servers.tickets.set(0);
    let one = |_| {
        let walk = Cell::new(walk);
        (tier.pick(&walk, servers), format!("{:?}", walk.get()))
    };
    (0..40).map(one).unzip()
}

#[test]
fn without_a_key_it_is_round_robin() {
    let weights: Vec<u32> = (0..20).map(|i| 1 + i % 3).collect();
    let mut servers = Servers::new(&weights);
    servers.key.clear();
    servers.set(7, Out);
    let (expected, _) = picks(&tier("round robin", &weights), &servers, Walk::None);
    for method in KEYED {
        let (picked, _) = picks(&tier(method, &weights), &servers, Walk::None);
        assert_eq!(picked, expected, "{method}");
    }
}

#[test]
fn a_walk_of_another_kind_ends_in_round_robin() {
    let weights: Vec<u32> = (0..20).map(|i| 1 + i % 3).collect();
    let servers = Servers::new(&weights);
    let (expected, _) = picks(&tier("round robin", &weights), &servers, Walk::None);
    let walks = [
        Walk::Key(KeyWalk::default()),
        Walk::Ring(RingWalk::default()),
        Walk::Address(AddressWalk::default()),
    ];
    for (i, method) in KEYED.into_iter().enumerate() {
        for (j, walk) in walks.into_iter().enumerate().filter(|(j, _)| *j != i) {
            let (picked, then) = picks(&tier(method, &weights), &servers, walk);
            assert_eq!(picked, expected, "{method} with {j}");
            assert!(then.iter().all(|then| *then == format!("{walk:?}")), "it stays where it is");
        }
    }
    for method in SPREADING {
        let (_, then) = picks(&tier(method, &weights), &servers, Walk::None);
        assert!(then.iter().all(|then| then == "None"), "{method} begins none");
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// By a new request, or as a retry of the last one.
    Pick {
        is_new: bool,
    },
    Set(prop::sample::Index, State),
    Second,
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![Just(Usable), Just(Tried), Just(Refuses), Just(Out)];
    prop_oneof![
        4 => any::<bool>().prop_map(|is_new| Step::Pick { is_new }),
        3 => (any::<prop::sample::Index>(), state).prop_map(|(i, state)| Step::Set(i, state)),
        1 => Just(Step::Second),
    ]
}

/// Picks, and whether that is right: a usable one, taken once; none only if all were asked.
fn check(method: &str, tier: &Tier, walk: &Cell<Walk>, servers: &Servers) -> TestCaseResult {
    servers.asked.take();
    let picked = tier.pick(walk, servers);
    let asked = servers.asked.take();
    let taken: Vec<u32> = asked.iter().filter(|(_, taken)| *taken).map(|(s, _)| *s).collect();
    prop_assert_eq!(&taken, &Vec::from_iter(picked), "{}", method);
    if let Some(server) = picked {
        prop_assert!(servers.state(server) == Usable && servers.weight(server) > 0);
        return Ok(());
    }
    for server in tier.servers().filter(|&server| servers.may(server)) {
        prop_assert!(asked.contains(&(server, false)), "{method}: {server} was not asked");
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_usable_server_is_taken_if_there_is_one(
        weights in proptest::collection::vec(0..=20_u32, 1..80),
        begin in prop_oneof![Just(Usable), Just(Tried), Just(Out)],
        steps in proptest::collection::vec(step(), 1..40),
        key in proptest::collection::vec(any::<u8>(), 0..20),
        random: u64,
    ) {
        for method in methods() {
            let (tier, mut servers) = (tier(method, &weights), Servers::new(&weights));
            servers.set_all(begin);
            servers.key.clone_from(&key);
            servers.random.set(random);
            let walk = Cell::default();
            for step in &steps {
                match step {
                    Step::Pick { is_new } => {
                        walk.set(if *is_new { Walk::None } else { walk.get() });
                        check(method, &tier, &walk, &servers)?;
                    }
                    Step::Set(index, state) => {
                        let server = index.index(weights.len()) as u32;
                        servers.set(server, *state);
                        if let Some(least) = tier.least() {
                            least.borrow_mut().changed(server, servers.load(server));
                        }
                    }
                    Step::Second => servers.second.set(servers.second.get() + 1),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_servers_out_leave_their_share_to_all_others(
        servers in proptest::collection::vec((1..=20_u32, any::<bool>()), 1..40),
    ) {
        let weights: Vec<u32> = servers.iter().map(|(weight, _)| *weight).collect();
        prop_assume!(servers.iter().any(|(_, is_out)| !is_out));
        for method in SPREADING {
            // Chance spreads small shares by more than 2 %.
            let sigmas = if method.starts_with("random") { 5.0 } else { 0.0 };
            assert_shares(method, &weights, |s| servers[s as usize].1, sigmas);
        }
    }
}
