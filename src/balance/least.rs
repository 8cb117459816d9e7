//! `least_conn` and `least_time`: the server with the least load for its weight.
//!
//! Each worker has a tournament of its own over the loads it saw last, so a pick costs the
//! logarithm of the number of servers. All workers change the loads: the winner's is read anew
//! before it is asked, which finds what others have added. What they take away is told by
//! [`Least::changed`]; what is not told is found by looking at one more server in each pick.
//!
//! Equally loaded servers have turns by their weights, as with nginx.
#![forbid(unsafe_code)]

mod tree;

use std::collections::VecDeque;

use super::Taken;
use tree::Tree;

/// So many servers are looked at one by one in each pick: that is less than a tournament needs.
const FEW: usize = 16;

/// Servers put back in one pick, so that none takes long.
const BACK_AT_ONCE: usize = 64;

/// Loads corrected in one pick. Then the winner is asked whatever it has by now.
const CORRECTIONS: usize = 64;

/// The servers of one list, ordered by their loads, which are below 2^48.
#[derive(Debug, Default)]
pub struct Least {
    /// The caller's numbers, rising. A server is known by its index here: its leaf.
    servers: Vec<u32>,
    tree: Tree,
    /// Of each leaf, the pick it was last asked in.
    asked: Vec<u64>,
    /// This pick's number.
    pick: u64,
    /// Leaves to put back when the second is over. One that is back before stays in here.
    parked: VecDeque<u32>,
    /// Whether a leaf is in `parked`.
    is_parked: Vec<bool>,
    /// So many in front of `parked` were parked before this second.
    due: usize,
    second: i64,
    /// All were asked in this second, in vain, and nothing was heard since.
    in_vain: bool,
    /// Leaves that the request of this pick cannot have.
    aside: Vec<u32>,
    /// The leaf that was last looked at in turn.
    looked_at: usize,
}

impl Least {
    /// Takes `(server, weight)`; those of weight 0 are left out. Time `n log n` at most, linear if
    /// the numbers rise.
    ///
    /// All loads are taken for 0 until [`Least::recount`]. `seed`, a random number, names the
    /// server to begin with.
    pub fn new(servers: impl IntoIterator<Item = (u32, u32)>, seed: u64) -> Self {
        let mut servers: Vec<_> = servers.into_iter().filter(|&(_, weight)| weight > 0).collect();
        servers.sort_by_key(|&(server, _)| server);
        servers.dedup_by_key(|&mut (server, _)| server);
        let (servers, weights): (Vec<u32>, Vec<u32>) = servers.into_iter().unzip();
        Self {
            tree: Tree::new(&weights, seed),
            asked: vec![0; servers.len()],
            is_parked: vec![false; servers.len()],
            servers,
            ..Self::default()
        }
    }

    /// How many servers can come up.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether no server can come up.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Whether picks hang on being told: of few servers all loads are read each time.
    pub fn wants_news(&self) -> bool {
        self.len() > FEW
    }

    /// A server's load is another, or it can be used again. An unknown server is ignored.
    pub fn changed(&mut self, server: u32, load: u64) {
        if let Ok(leaf) = self.servers.binary_search(&server) {
            self.tree.put(leaf, load);
            self.in_vain = false;
        }
    }

    /// Reads all loads anew and puts all servers back, in linear time.
    pub fn recount(&mut self, mut load: impl FnMut(u32) -> u64) {
        self.tree.recount(|leaf| load(self.servers[leaf]));
        self.parked.clear();
        self.is_parked.fill(false);
        self.in_vain = false;
        self.due = 0;
    }

    /// Picks the server with the least load of those that `take` gives.
    ///
    /// A server that is out is asked again when `second`, the clock's, is another, when
    /// [`Least::changed`] tells of it, or when no other is left. No server is asked twice in a pick;
    /// there is none only if `take` has refused all, now or, where nothing was heard since, in an
    /// earlier pick of the second.
    pub fn pick(
        &mut self,
        second: i64,
        load: impl Fn(u32) -> u64,
        mut take: impl FnMut(u32) -> Taken,
    ) -> Option<u32> {
        self.pick += 1;
        if !self.wants_news() {
            return self.best_of_few(&load, &mut take);
        }
        self.put_back(second, &load);
        self.look_at_next(&load);
        let found = self.best(&load, &mut take).or_else(|| self.any_parked(&load, &mut take));
        while let Some(leaf) = self.aside.pop() {
            self.tree.put(leaf as usize, self.tree.load(leaf as usize));
        }
        found
    }

    /// Asks the best server of a few, then the next best.
    fn best_of_few(
        &mut self,
        load: &impl Fn(u32) -> u64,
        take: &mut impl FnMut(u32) -> Taken,
    ) -> Option<u32> {
        let (pick, servers) = (self.pick, &self.servers);
        for attempt in 0..servers.len() {
            let asked = &self.asked;
            let load = |leaf: usize| load(servers[leaf]);
            let (leaf, is_equalled) = match attempt {
                0 => self.tree.best_of(|_| true, load)?,
                _ => self.tree.best_of(|leaf| asked[leaf] != pick, load)?,
            };
            self.asked[leaf] = pick;
            let taken = take(self.servers[leaf]);
            if taken != Taken::Out && is_equalled {
                self.tree.use_turn(leaf);
            }
            if taken == Taken::Yes {
                return Some(self.servers[leaf]);
            }
        }
        None
    }

    /// Asks the best server, then the next best.
    fn best(
        &mut self,
        load: &impl Fn(u32) -> u64,
        take: &mut impl FnMut(u32) -> Taken,
    ) -> Option<u32> {
        let mut corrections = 0;
        while let Some(leaf) = self.tree.best() {
            let now = load(self.servers[leaf]);
            if now != self.tree.load(leaf) && corrections < CORRECTIONS {
                corrections += 1;
                self.tree.put(leaf, now);
            } else if self.ask(leaf, load, take) {
                return Some(self.servers[leaf]);
            }
        }
        None
    }

    /// Asks the servers that were out before this pick, the longest first.
    fn any_parked(
        &mut self,
        load: &impl Fn(u32) -> u64,
        take: &mut impl FnMut(u32) -> Taken,
    ) -> Option<u32> {
        if self.in_vain {
            return None;
        }
        for _ in 0..self.parked.len() {
            let leaf = self.next_parked()?;
            if self.asked[leaf] == self.pick {
                self.park(leaf);
            } else if self.ask(leaf, load, take) {
                return Some(self.servers[leaf]);
            }
        }
        self.in_vain = self.aside.is_empty();
        None
    }

    /// Asks a server, and does as it says. One that is not to be had now has had its turn all the
    /// same: it may be one that is to have a smaller share.
    fn ask(
        &mut self,
        leaf: usize,
        load: &impl Fn(u32) -> u64,
        take: &mut impl FnMut(u32) -> Taken,
    ) -> bool {
        self.asked[leaf] = self.pick;
        let taken = take(self.servers[leaf]);
        match taken {
            Taken::Yes => {
                self.tree.turn(leaf);
                self.tree.put(leaf, load(self.servers[leaf]));
            }
            Taken::NotNow => {
                self.tree.turn(leaf);
                self.tree.remove(leaf);
                self.aside.push(leaf as u32);
            }
            Taken::Out => {
                self.tree.remove(leaf);
                self.park(leaf);
            }
        }
        taken == Taken::Yes
    }

    fn park(&mut self, leaf: usize) {
        if !self.is_parked[leaf] {
            self.is_parked[leaf] = true;
            self.parked.push_back(leaf as u32);
        }
    }

    fn next_parked(&mut self) -> Option<usize> {
        let leaf = self.parked.pop_front()? as usize;
        self.is_parked[leaf] = false;
        self.due = self.due.saturating_sub(1);
        Some(leaf)
    }

    /// Puts servers back that were parked before this second.
    fn put_back(&mut self, second: i64, load: &impl Fn(u32) -> u64) {
        if second != self.second {
            self.second = second;
            self.in_vain = false;
            self.due = self.parked.len();
        }
        for _ in 0..BACK_AT_ONCE.min(self.due) {
            let Some(leaf) = self.next_parked() else { return };
            if !self.tree.has(leaf) {
                self.tree.put(leaf, load(self.servers[leaf]));
            }
        }
    }

    /// Looks at one more server, whose news may have been missed.
    fn look_at_next(&mut self, load: &impl Fn(u32) -> u64) {
        self.looked_at = if self.looked_at + 1 < self.len() { self.looked_at + 1 } else { 0 };
        if let Some(now) = self.servers.get(self.looked_at).map(|&server| load(server))
            && now != self.tree.load(self.looked_at)
        {
            self.tree.put(self.looked_at, now);
        }
    }
}

#[cfg(test)]
mod tests;
