//! A tournament: the winner of each pair meets that of the pair beside it, up to the best of all.
#![forbid(unsafe_code)]

use std::cmp::Ordering;

/// Virtual time between two turns of a server of weight 1. It is large because a share of it is
/// cut to a whole number: in 65,535 turns of weight 65,535 that comes to a 250th of a turn.
const STRIDE: u64 = 1 << 40;

/// No leaf.
const NONE: u32 = u32::MAX;

/// A server as the tournament knows it.
#[derive(Clone, Copy, Debug)]
struct Leaf {
    load: u64,
    /// When it has its next turn among equals.
    turn: u64,
    /// Not 0.
    weight: u32,
}

/// The leaves, and who wins.
#[derive(Debug, Default)]
pub(super) struct Tree {
    leaves: Vec<Leaf>,
    /// The winners, as leaves: the best of all at 1, those it was found of at `2 i` and `2 i + 1`,
    /// the leaves themselves from `leaves.len()` on. [`NONE`] where none takes part.
    nodes: Vec<u32>,
    /// Virtual time: when the last turn among equals was due. It wraps around, so of two times
    /// the later is that which is less than 2^63 ahead.
    now: u64,
}

impl Leaf {
    fn stride(&self) -> u64 {
        STRIDE / u64::from(self.weight)
    }

    /// nginx's order of `least_conn`. Exact for loads below 2^48, as weights are below 2^16.
    #[inline]
    fn compare_load(&self, other: &Self) -> Ordering {
        let own = self.load.wrapping_mul(u64::from(other.weight));
        own.cmp(&other.load.wrapping_mul(u64::from(self.weight)))
    }

    fn beats(&self, other: &Self) -> bool {
        match self.compare_load(other) {
            Ordering::Equal => !other.is_due_before(self),
            order => order.is_lt(),
        }
    }

    fn is_due_before(&self, other: &Self) -> bool {
        other.turn.wrapping_sub(self.turn).cast_signed() > 0
    }

    /// Whoever was away keeps no turns for later. Whole strides, so that servers do not come to
    /// have their turns all at once.
    fn catch_up(&mut self, now: u64) {
        let strides = behind(now, self.turn).div_ceil(self.stride());
        self.turn = self.turn.wrapping_add(strides * self.stride());
    }
}

/// How far `turn` is before `now`; 0 if it is not.
fn behind(now: u64, turn: u64) -> u64 {
    let distance = now.wrapping_sub(turn);
    if distance < 1 << 63 { distance } else { 0 }
}

impl Tree {
    /// All leaves without load and taking part, their first turns in order from one that `seed`
    /// names. A weight is 1 at least.
    pub fn new(weights: &[u32], seed: u64) -> Self {
        let part = u64::MAX / (weights.len() as u64).max(1);
        let leaf = |(i, &weight): (usize, &u32)| {
            let mut leaf = Leaf { load: 0, turn: 0, weight: weight.max(1) };
            let phase = seed.wrapping_add((i as u64).wrapping_mul(part));
            leaf.turn = ((u128::from(leaf.stride()) * u128::from(phase)) >> 64) as u64;
            leaf
        };
        let leaves: Vec<Leaf> = weights.iter().enumerate().map(leaf).collect();
        let nodes = vec![NONE; 2 * leaves.len()];
        let mut tree = Self { leaves, nodes, now: 0 };
        tree.recount(|_| 0);
        tree
    }

    /// How many leaves there are.
    pub fn len(&self) -> usize {
        self.leaves.len()
    }

    /// The load of a leaf.
    pub fn load(&self, leaf: usize) -> u64 {
        self.leaves[leaf].load
    }

    /// The best of those that take part.
    pub fn best(&self) -> Option<usize> {
        self.nodes.get(1).filter(|&&leaf| leaf != NONE).map(|&leaf| leaf as usize)
    }

    /// Whether the leaf takes part.
    pub fn has(&self, leaf: usize) -> bool {
        self.nodes[self.len() + leaf] != NONE
    }

    /// Every leaf takes part with the load that is told.
    pub fn recount(&mut self, mut load: impl FnMut(usize) -> u64) {
        let (len, now) = (self.len(), self.now);
        for (i, leaf) in self.leaves.iter_mut().enumerate() {
            leaf.load = load(i);
            leaf.catch_up(now);
            self.nodes[len + i] = i as u32;
        }
        for node in (1..len).rev() {
            self.nodes[node] = self.winner(node);
        }
    }

    /// The leaf takes part, with this load.
    pub fn put(&mut self, leaf: usize, load: u64) {
        let now = self.now;
        self.leaves[leaf].load = load;
        self.leaves[leaf].catch_up(now);
        self.play(leaf, leaf as u32);
    }

    /// The leaf takes part no more.
    pub fn remove(&mut self, leaf: usize) {
        self.play(leaf, NONE);
    }

    /// The best leaf has its turn. It uses one up only if others are as good: as with nginx, who
    /// is alone the best takes nothing from those that are equal.
    pub fn turn(&mut self, leaf: usize) {
        if self.is_equalled(leaf) {
            self.use_turn(leaf);
        }
    }

    /// The leaf has its turn among equals.
    pub fn use_turn(&mut self, leaf: usize) {
        let own = &mut self.leaves[leaf];
        if behind(self.now, own.turn) == 0 {
            self.now = own.turn;
            own.turn = own.turn.wrapping_add(own.stride());
        }
        own.catch_up(self.now);
    }

    /// The best of those that take part by what is told, with the loads that are told, and whether
    /// another is as good. Looks at all leaves, and not at the winners.
    #[inline]
    pub fn best_of(
        &self,
        has: impl Fn(usize) -> bool,
        load: impl Fn(usize) -> u64,
    ) -> Option<(usize, bool)> {
        let mut all = self.leaves.iter().enumerate().filter(|&(i, _)| has(i));
        let (mut best, mut leaf_of_best) = all.next()?;
        let (mut least, mut is_equalled) = (load(best), false);
        for (i, leaf) in all {
            let load = load(i);
            // As `compare_load`, of what was told.
            let own = load.wrapping_mul(u64::from(leaf_of_best.weight));
            let other = least.wrapping_mul(u64::from(leaf.weight));
            if own > other {
                continue;
            }
            is_equalled = own == other;
            if !is_equalled || leaf.is_due_before(leaf_of_best) {
                (best, leaf_of_best, least) = (i, leaf, load);
            }
        }
        Some((best, is_equalled))
    }

    /// Whether one that lost to this leaf, the best, has no more load.
    fn is_equalled(&self, leaf: usize) -> bool {
        let equals = |node: usize| {
            let other = self.leaves.get(self.nodes[node ^ 1] as usize);
            other.is_some_and(|other| other.compare_load(&self.leaves[leaf]).is_eq())
        };
        let mut node = self.len() + leaf;
        while node > 1 {
            if equals(node) {
                return true;
            }
            node /= 2;
        }
        false
    }

    /// Finds the winners anew on the way up from a leaf, as far as something changes.
    fn play(&mut self, leaf: usize, now: u32) {
        let mut node = self.len() + leaf;
        self.nodes[node] = now;
        while node > 1 {
            node /= 2;
            let (before, winner) = (self.nodes[node], self.winner(node));
            if winner == before && winner != leaf as u32 {
                return;
            }
            self.nodes[node] = winner;
        }
    }

    fn winner(&self, node: usize) -> u32 {
        let (a, b) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
        match (self.leaves.get(a as usize), self.leaves.get(b as usize)) {
            (Some(one), Some(other)) if one.beats(other) => a,
            (_, Some(_)) => b,
            _ => a,
        }
    }
}
