//! Servers whose checks wait for room.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

/// Upstreams take turns, so that one of many servers that hang does not hold up the others. Each server
/// waits once, for a reason.
pub struct Waiting<K, R> {
    /// Upstreams that have a server here, in the order of their turns.
    turns: VecDeque<u64>,
    servers: HashMap<u64, VecDeque<(K, R)>, foldhash::fast::RandomState>,
    known: HashSet<K, foldhash::fast::RandomState>,
}

impl<K, R> Default for Waiting<K, R> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), servers: HashMap::default(), known: HashSet::default() }
    }
}

impl<K: Copy + Eq + Hash, R: Copy> Waiting<K, R> {
    /// Adds a server of an upstream, behind those of the same, unless it waits already.
    pub fn push(&mut self, upstream: u64, server: K, reason: R) {
        if !self.known.insert(server) {
            return;
        }
        let servers = self.servers.entry(upstream).or_default();
        if servers.is_empty() {
            self.turns.push_back(upstream);
        }
        servers.push_back((server, reason));
    }

    /// Takes a server away that does not wait any more.
    pub fn remove(&mut self, upstream: u64, server: K) {
        if !self.known.remove(&server) {
            return;
        }
        if let Some(servers) = self.servers.get_mut(&upstream) {
            servers.retain(|(other, _)| *other != server);
            if servers.is_empty() {
                self.servers.remove(&upstream);
                self.turns.retain(|other| *other != upstream);
            }
        }
    }

    /// Whose turn it is.
    pub fn first(&self) -> Option<(K, R)> {
        self.servers.get(self.turns.front()?)?.front().copied()
    }

    /// Takes it away.
    pub fn pop(&mut self) -> Option<(K, R)> {
        let upstream = self.turns.pop_front()?;
        let servers = self.servers.get_mut(&upstream)?;
        let first = servers.pop_front()?;
        if servers.is_empty() {
            self.servers.remove(&upstream);
        } else {
            self.turns.push_back(upstream);
        }
        self.known.remove(&first.0);
        Some(first)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn upstreams_take_turns() {
        let mut waiting = Waiting::default();
        assert!(waiting.is_empty() && waiting.first().is_none() && waiting.pop().is_none());
        for (upstream, server) in
            [(1, "a"), (1, "b"), (1, "a"), (1, "c"), (2, "d"), (3, "e"), (2, "f"), (4, "g")]
        {
            waiting.push(upstream, server, ());
        }
        waiting.remove(4, "g");
        waiting.remove(4, "x");
        let order: Vec<_> =
            std::iter::from_fn(|| waiting.pop()).map(|(server, ())| server).collect();
        assert_eq!(order, ["a", "d", "e", "b", "f", "c"]);
        assert!(waiting.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Push(u64),
        Remove(u64),
        Pop,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0..20_u64).prop_map(Act::Push),
            (0..20_u64).prop_map(Act::Remove),
            Just(Act::Pop)
        ]
    }

    proptest! {
        #[test]
        fn each_waits_once_and_nobody_is_lost(acts in proptest::collection::vec(act(), 0..100)) {
            let mut waiting = Waiting::default();
            let mut expected = HashSet::new();
            for act in acts {
                match act {
                    Act::Push(server) => {
                        waiting.push(server % 3, server, ());
                        expected.insert(server);
                    }
                    Act::Remove(server) => {
                        waiting.remove(server % 3, server);
                        expected.remove(&server);
                    }
                    Act::Pop => {
                        let first = waiting.first();
                        prop_assert_eq!(waiting.pop(), first);
                        prop_assert_eq!(first.is_some(), !expected.is_empty());
                        prop_assert!(first.is_none_or(|(server, ())| expected.remove(&server)));
                    }
                }
                prop_assert_eq!(waiting.is_empty(), expected.is_empty());
            }
        }
    }
}
