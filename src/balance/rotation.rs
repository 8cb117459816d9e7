//! Weighted round robin without shared state but a counter.
//!
//! Every pick takes the next ticket from a counter that all workers share, and a ticket alone
//! decides the server. In each period of `sum(weights)` tickets every server comes up exactly
//! as often as its weight says, so an order shared by all workers needs no lock.
//!
//! A server that cannot be used is passed over by drawing the next ticket. The order is then
//! the same order without that server, so its share goes to all others by their weights. Where so
//! many are out that draws are in vain, a smaller order of the usable ones goes on.
#![forbid(unsafe_code)]

use std::cell::RefCell;

/// Up to this many servers of equal weight are taken in the order of the list, as users expect
/// of round robin. Longer lists are strewn, so that a run of unusable neighbours is not walked.
const LISTED_ORDER_MAX: usize = 64;

/// Tickets drawn before all servers are asked. With half of the servers out, one pick in
/// 2^32 comes to that.
const DRAWS: usize = 32;

/// Tickets drawn while it is known which servers are usable: they find those that came back since.
const DRAWS_BESIDE_REST: usize = 4;

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
    /// Made when it is first needed.
    rest: RefCell<Option<Box<Rest>>>,
}

/// The servers that were usable when all were last asked.
#[derive(Debug)]
struct Rest {
    /// When they were asked, by the caller's clock.
    second: i64,
    usable: Rotation,
    /// Tickets drawn, by this worker alone. They go on when all are asked again, so that no
    /// second begins as the one before.
    ticket: u64,
    /// The same, where those that were drawn have refused: one counter for both would be in step
    /// with the number of servers.
    retry: u64,
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
        Self { servers, ends, period, step, rest: RefCell::default() }
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

    /// The server of any number: of evenly spread numbers each server has a share by its weight.
    pub fn at(&self, number: u64) -> Option<u32> {
        self.server(((u128::from(number) * u128::from(self.period)) >> 64) as u64)
    }

    /// The server of a place, which is below `period`.
    fn server(&self, place: u64) -> Option<u32> {
        let index = if self.ends.is_empty() {
            place as usize
        } else {
            self.ends.partition_point(|&end| end <= place)
        };
        self.servers.get(index).copied()
    }

    /// The server of a ticket.
    fn turn(&self, ticket: u64) -> Option<u32> {
        let turn = ticket.checked_rem(self.period)?;
        let place = match turn.checked_mul(self.step) {
            Some(product) => product % self.period,
            None => {
                let product = u128::from(turn) * u128::from(self.step);
                (product % u128::from(self.period)) as u64
            }
        };
        self.server(place)
    }

    /// Asks the servers of the next tickets until `take` accepts one. At most `limit` are drawn,
    /// and no more than two for each server.
    pub fn draws(
        &self,
        limit: usize,
        mut ticket: impl FnMut() -> u64,
        mut take: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        (0..limit.min(2 * self.len()))
            .filter_map(|_| self.turn(ticket()))
            .find(|&server| take(server))
    }

    /// Picks a server that `take` accepts. `ticket` draws the next one; `second` is the clock's.
    ///
    /// `may` tells, without effect, whether some request could have a server now. There is none
    /// only if `take` has refused all of which it says so.
    #[inline]
    pub fn pick(
        &self,
        second: i64,
        mut ticket: impl FnMut() -> u64,
        may: impl Fn(u32) -> bool,
        mut take: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        // Nearly always it ends here.
        if let Some(server) = self.turn(ticket()).filter(|&server| take(server)) {
            return Some(server);
        }
        self.pick_on(second, ticket, may, take)
    }

    /// Goes on after the first draw.
    #[inline(never)]
    fn pick_on(
        &self,
        second: i64,
        mut ticket: impl FnMut() -> u64,
        may: impl Fn(u32) -> bool,
        mut take: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        let known = self.rest.borrow().as_ref().is_some_and(|rest| rest.second == second);
        let limit = if known { DRAWS_BESIDE_REST } else { DRAWS } - 1;
        if let Some(server) = self.draws(limit, &mut ticket, &mut take) {
            return Some(server);
        }
        // Out of its cell while it is used: no closure can find it borrowed.
        let mut rest = self.rest.take().unwrap_or_else(|| Rest::starting(&mut ticket));
        let mut found = if known { rest.draw(&mut take) } else { None };
        if found.is_none() {
            rest.second = second;
            rest.usable = self.only(may);
            found = rest.search(&mut take);
        }
        self.rest.replace(Some(rest));
        found
    }

    /// The order of those servers that `may` names.
    fn only(&self, may: impl Fn(u32) -> bool) -> Self {
        let weight = |index: usize| match self.ends.get(index) {
            Some(end) => end - index.checked_sub(1).map_or(0, |before| self.ends[before]),
            None => 1,
        };
        let all = self.servers.iter().enumerate();
        // A weight was one of 32 bits, before it was divided.
        Self::new(all.filter(|&(_, &server)| may(server)).map(|(i, &s)| (s, weight(i) as u32)))
    }
}

impl Rest {
    /// None yet. Workers start apart, as the shared counter goes on.
    fn starting(mut ticket: impl FnMut() -> u64) -> Box<Self> {
        let ticket = ticket();
        Box::new(Self { second: 0, usable: Rotation::default(), ticket, retry: ticket })
    }

    /// Draws from the usable servers.
    fn draw(&mut self, take: impl FnMut(u32) -> bool) -> Option<u32> {
        self.usable.draws(DRAWS, counting(&mut self.ticket), take)
    }

    /// Asks all usable servers. If those that were drawn refuse, which had the weight, the others
    /// share by theirs.
    fn search(&mut self, mut take: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut refused = Vec::with_capacity(DRAWS);
        let drawn = self.draw(|server| {
            let taken = take(server);
            if !taken {
                refused.push(server);
            }
            taken
        });
        drawn
            .or_else(|| {
                let others = self.usable.only(|server| !refused.contains(&server));
                others.draws(DRAWS, counting(&mut self.retry), &mut take)
            })
            .or_else(|| self.usable.servers().find(|&server| take(server)))
    }
}

fn counting(next: &mut u64) -> impl FnMut() -> u64 {
    move || {
        *next = next.wrapping_add(1);
        *next
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
mod tests;
