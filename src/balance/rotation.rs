//! Weighted round robin without shared state but a counter.
//!
//! Every pick takes the next ticket from a counter that all workers share, and a ticket alone
//! decides the server. In each period of `sum(weights)` tickets every server comes up exactly
//! as often as its weight says, so an order shared by all workers needs no lock.
//!
//! A server that cannot be used is passed over by drawing the next ticket. The order is then
//! the same order without that server, so its share goes to all others by their weights.
#![forbid(unsafe_code)]

/// Up to this many servers of equal weight are taken in the order of the list, as users expect
/// of round robin. Longer lists are strewn, so that a run of unusable neighbours is not walked.
const LISTED_ORDER_MAX: usize = 64;

/// Tickets drawn before all servers are walked. With half of the servers out, one pick in
/// 2^32 comes to that.
const DRAWS: usize = 32;

/// The order in which a set of servers is asked.
#[derive(Debug, Default)]
pub struct Rotation {
    /// The caller's numbers of the servers, those of weight 0 left out.
    servers: Vec<u32>,
    /// `ends[i]` is the sum of the weights up to and with server `i`; empty if all are equal.
    ends: Vec<u64>,
    /// The sum of the weights, divided by their greatest common divisor: tickets in a period.
    period: u64,
    /// Coprime with `period`: ticket `t` stands at place `t * step mod period`.
    step: u64,
}

impl Rotation {
    /// Builds the order of `(server, weight)` in time linear in the number of servers.
    pub fn new(servers: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let (servers, weights): (Vec<u32>, Vec<u32>) =
            servers.into_iter().filter(|&(_, weight)| weight > 0).unzip();
        let divisor = weights.iter().fold(0, |a, &b| gcd(a, u64::from(b))).max(1);
        let equal = weights.iter().all(|&weight| u64::from(weight) == divisor);
        let ends: Vec<u64> = if equal { Vec::new() } else { running_sums(&weights, divisor) };
        let period = ends.last().copied().unwrap_or(servers.len() as u64);
        let step = if equal && servers.len() <= LISTED_ORDER_MAX { 1 } else { golden(period) };
        Self { servers, ends, period, step }
    }

    /// How many servers can come up.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether no server can come up.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// All servers, by the caller's numbers.
    pub fn servers(&self) -> impl Iterator<Item = u32> {
        self.servers.iter().copied()
    }

    /// The server of a ticket, by its index in this rotation; 0 if it is empty.
    fn index(&self, ticket: u64) -> usize {
        let turn = ticket % self.period.max(1);
        let place =
            ((u128::from(turn) * u128::from(self.step)) % u128::from(self.period.max(1))) as u64;
        if self.ends.is_empty() {
            place as usize
        } else {
            self.ends.partition_point(|&end| end <= place)
        }
    }

    /// Picks a server that `take` accepts. `ticket` draws the next one; `take` is asked at least
    /// once about every server before there is none.
    pub fn pick(
        &self,
        mut ticket: impl FnMut() -> u64,
        mut take: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let mut index = 0;
        for _ in 0..DRAWS.min(2 * self.len()) {
            index = self.index(ticket());
            if take(self.servers[index]) {
                return Some(self.servers[index]);
            }
        }
        let (before, from) = self.servers.split_at(index);
        from.iter().chain(before).copied().find(|&server| take(server))
    }
}

fn running_sums(weights: &[u32], divisor: u64) -> Vec<u64> {
    let mut sum = 0;
    weights
        .iter()
        .map(|&weight| {
            sum += u64::from(weight) / divisor;
            sum
        })
        .collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A step near `period` over the golden ratio and coprime with it. Multiples of that ratio are
/// spread as evenly as any, so the turns of a heavy server lie apart.
fn golden(period: u64) -> u64 {
    let near = (period as f64 / 1.618_033_988_749_895) as u64;
    (near.max(1)..=period).find(|&step| gcd(step, period) == 1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    #[test]
    fn two_equal_servers_alternate() {
        let rotation = rotation(&[7, 7]);
        let mut ticket = tickets();
        let picks: Vec<_> = (0..6).filter_map(|_| rotation.pick(&mut ticket, |_| true)).collect();
        assert_eq!(picks, [0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn short_equal_lists_keep_their_order() {
        let rotation = rotation(&[1, 1, 1, 1]);
        let mut ticket = tickets();
        let picks: Vec<_> = (0..5).filter_map(|_| rotation.pick(&mut ticket, |_| true)).collect();
        assert_eq!(picks, [0, 1, 2, 3, 0]);
    }

    #[test]
    fn a_heavy_server_does_not_take_all_its_turns_in_a_row() {
        let rotation = rotation(&[5, 1, 1]);
        let mut ticket = tickets();
        let picks: Vec<_> = (0..7).filter_map(|_| rotation.pick(&mut ticket, |_| true)).collect();
        assert!(!picks.windows(4).any(|w| w == [0, 0, 0, 0]), "{picks:?}");
    }

    #[test]
    fn nothing_to_pick_from() {
        assert_eq!(Rotation::default().pick(|| 0, |_| true), None);
        assert_eq!(rotation(&[0, 0]).pick(|| 0, |_| true), None);
    }

    #[test]
    fn the_only_usable_one_of_many_is_found() {
        for n in [1_u32, 2, 31, 32, 33, 63, 64, 65, 1000] {
            let rotation = rotation(&vec![1; n as usize]);
            let mut ticket = tickets();
            for only in 0..n {
                assert_eq!(rotation.pick(&mut ticket, |s| s == only), Some(only));
            }
            assert_eq!(rotation.pick(&mut ticket, |_| false), None);
        }
    }

    #[test]
    fn the_share_of_those_out_goes_to_all_others() {
        let n = 100;
        let rotation = rotation(&vec![1; n]);
        let out = |s: u32| s.is_multiple_of(3) || (20..40).contains(&s);
        let (mut ticket, mut counts) = (tickets(), vec![0_u32; n]);
        for _ in 0..100_000 {
            counts[rotation.pick(&mut ticket, |s| !out(s)).unwrap() as usize] += 1;
        }
        let rest = (0..n).filter(|&s| !out(s as u32)).count();
        let share = 100_000.0 / rest as f64;
        for (server, &count) in counts.iter().enumerate() {
            let expected = if out(server as u32) { 0.0 } else { share };
            assert!((f64::from(count) - expected).abs() <= share * 0.02, "{server}: {count}");
        }
    }

    proptest! {
        #[test]
        fn any_period_gives_each_its_weight(weights in weights(300), start in 0_u64..1_000_000) {
            let rotation = rotation(&weights);
            let mut counts = vec![0_u64; weights.len()];
            let divisor = weights.iter().fold(0, |a, &w| gcd(a, u64::from(w))).max(1);
            if !rotation.is_empty() {
                for ticket in start..start + rotation.period {
                    counts[rotation.servers[rotation.index(ticket)] as usize] += 1;
                }
            }
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert_eq!(count * divisor, u64::from(*weight));
            }
        }

        #[test]
        fn any_ticket_has_a_server(weights in weights(65_535), ticket: u64) {
            let rotation = rotation(&weights);
            prop_assert_eq!(rotation.pick(|| ticket, |_| true).is_some(), weights.iter().any(|&w| w > 0));
        }

        #[test]
        fn every_server_is_asked(weights in weights(65_535), start: u32) {
            let rotation = rotation(&weights);
            let (mut asked, mut next) = (vec![false; weights.len()], u64::from(start));
            let ticket = || { next += 1; next };
            let picked = rotation.pick(ticket, |s| { asked[s as usize] = true; false });
            prop_assert_eq!(picked, None);
            for (asked, weight) in asked.iter().zip(&weights) {
                prop_assert_eq!(*asked, *weight > 0);
            }
        }
    }
}
