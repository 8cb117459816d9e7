//! When a worker looks at which server, and when a server's next check is due. There is no clock in
//! here: times are milliseconds of the monotonic clock, whatever its start.
//!
//! The time when a server is due stands in shared memory; 0 says that there is none yet. Whoever
//! begins a check moves it on first ([`lease`]), so that nobody else begins one meanwhile, and again
//! when the check has ended, if it still stands there ([`due_after`]). One worker looks when a server
//! is due ([`preferred`]), the others a little later ([`grace`]): they find that it has been moved on,
//! or else take over from a worker that is gone.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

/// So many outdated turns are kept in any case.
const OUTDATED: usize = 64;

/// The servers that a worker knows, and when it looks at each. Adding and taking out cost the
/// logarithm of their number.
#[derive(Debug)]
pub struct Schedule<K> {
    turns: BinaryHeap<Turn<K>>,
    /// The serial number of a server's turn; none while it has been taken out. Turns with another
    /// number are outdated. The first of `turns` never is.
    known: HashMap<K, Option<u64>, foldhash::fast::RandomState>,
    serial: u64,
}

/// Servers with the same time come in the order in which they were put in.
#[derive(Clone, Copy, Debug)]
struct Turn<K> {
    when: u64,
    serial: u64,
    key: K,
}

impl<K: Copy + Eq + Hash> Schedule<K> {
    /// Looks at a server at `when`. No effect if it is known.
    pub fn add(&mut self, key: K, when: u64) {
        if !self.known.contains_key(&key) {
            self.put(key, when);
        }
    }

    /// Looks at a server at `when`, and not at the time before. No effect if it is not known, as
    /// one that has left while it was checked.
    pub fn again(&mut self, key: K, when: u64) {
        if self.known.contains_key(&key) {
            self.put(key, when);
        }
    }

    /// Forgets a server.
    pub fn remove(&mut self, key: K) {
        self.known.remove(&key);
        self.tidy();
    }

    /// When the first server is to be looked at; none if there is none to wait for.
    pub fn next(&self) -> Option<u64> {
        self.turns.peek().map(|turn| turn.when)
    }

    /// Takes out a server whose time has come. It stays known, but has no turn until [`Self::again`].
    pub fn pop(&mut self, now: u64) -> Option<K> {
        let key = self.turns.peek().filter(|turn| turn.when <= now)?.key;
        self.turns.pop();
        self.known.insert(key, None);
        self.tidy();
        Some(key)
    }

    fn put(&mut self, key: K, when: u64) {
        self.serial = self.serial.wrapping_add(1);
        self.known.insert(key, Some(self.serial));
        self.turns.push(Turn { when, serial: self.serial, key });
        self.tidy();
    }

    /// Drops outdated turns: those in front, and all if they are more than the servers.
    fn tidy(&mut self) {
        let known = &self.known;
        let holds = |turn: &Turn<K>| known.get(&turn.key) == Some(&Some(turn.serial));
        if self.turns.len() > 2 * known.len() + OUTDATED {
            self.turns.retain(holds);
            self.turns.shrink_to(2 * known.len() + OUTDATED);
        }
        while self.turns.peek().is_some_and(|turn| !holds(turn)) {
            self.turns.pop();
        }
    }
}

impl<K> Default for Schedule<K> {
    fn default() -> Self {
        Self { turns: BinaryHeap::new(), known: HashMap::default(), serial: 0 }
    }
}

impl<K> Turn<K> {
    fn order(&self) -> (u64, u64) {
        (self.when, self.serial)
    }
}

impl<K> Ord for Turn<K> {
    /// The heap has the greatest in front, which is to be the first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.order().cmp(&self.order())
    }
}

impl<K> PartialOrd for Turn<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> PartialEq for Turn<K> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl<K> Eq for Turn<K> {}

/// The worker, below `workers`, that looks at the server of this slot when it is due.
pub fn preferred(slot: u64, workers: u64) -> u64 {
    share(mixed(slot), workers)
}

/// How long after a server was due the other workers look at it: a twentieth of the interval, but
/// 10 ms at least and 1 s at most.
pub fn grace(interval: u32) -> u64 {
    (u64::from(interval) / 20).clamp(10, 1000)
}

/// When a new server is due: by `random` within one interval from now, so that servers that come
/// together are not checked together. Never 0.
pub fn first_due(now: u64, interval: u32, random: u64) -> u64 {
    now.saturating_add(share(random, interval.into())).max(1)
}

/// When a server is due next while its check goes on, which begins at `now` and takes `timeout` at
/// most: whole intervals after `due`, one at least, and not before the check has ended. If whoever
/// checks it is killed, the server is checked then.
pub fn lease(due: u64, now: u64, interval: u32, timeout: u32) -> u64 {
    in_phase(due, now.saturating_add(timeout.into()), interval)
}

/// When a server is due next whose check, for the time `due`, has ended: one interval after `due`. Of
/// the times that passed while the check went on the last one counts, so that it is made up for.
pub fn due_after(due: u64, now: u64, interval: u32) -> u64 {
    let interval = u64::from(interval.max(1));
    let intervals = (now.saturating_sub(due) / interval).max(1);
    due.saturating_add(intervals.saturating_mul(interval))
}

/// The first time not before `earliest` that is whole intervals after `due`, one at least.
fn in_phase(due: u64, earliest: u64, interval: u32) -> u64 {
    let interval = u64::from(interval.max(1));
    let intervals = earliest.saturating_sub(due).div_ceil(interval).max(1);
    due.saturating_add(intervals.saturating_mul(interval))
}

/// A number below `parts` (0 if there are none), each for as many values of `of`.
fn share(of: u64, parts: u64) -> u64 {
    ((u128::from(of) * u128::from(parts)) >> 64) as u64
}

/// The finisher of SplitMix64: each bit of the result depends on each of the number.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
