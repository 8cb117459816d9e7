//! Servers whose checks wait for room.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

/// Upstreams take turns, so that one of many servers that hang does not hold up the others.
pub struct Waiting<T> {
    /// Those that have a server here, in the order of their turns.
    turns: VecDeque<u64>,
    servers: HashMap<u64, VecDeque<T>, foldhash::fast::RandomState>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), servers: HashMap::default() }
    }
}

impl<T> Waiting<T> {
    /// Adds a server of an upstream, behind those of the same.
    pub fn push(&mut self, upstream: u64, server: T) {
        let servers = self.servers.entry(upstream).or_default();
        if servers.is_empty() {
            self.turns.push_back(upstream);
        }
        servers.push_back(server);
    }

    /// Whose turn it is.
    pub fn first(&self) -> Option<&T> {
        self.servers.get(self.turns.front()?)?.front()
    }

    /// Takes it away.
    pub fn pop(&mut self) -> Option<T> {
        let upstream = self.turns.pop_front()?;
        let servers = self.servers.get_mut(&upstream)?;
        let server = servers.pop_front();
        if servers.is_empty() {
            self.servers.remove(&upstream);
        } else {
            self.turns.push_back(upstream);
        }
        server
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
        for (upstream, server) in [(1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")] {
            waiting.push(upstream, server);
        }
        let order: Vec<_> = std::iter::from_fn(|| waiting.pop()).collect();
        assert_eq!(order, ["a", "d", "e", "b", "f", "c"]);
        assert!(waiting.is_empty());
    }

    proptest! {
        #[test]
        fn nobody_is_lost(steps in proptest::collection::vec(proptest::option::of(0..5_u64), 0..100)) {
            let mut waiting = Waiting::default();
            let (mut pushed, mut popped) = (0, 0);
            for step in steps {
                match step {
                    Some(upstream) => {
                        waiting.push(upstream, pushed);
                        pushed += 1;
                    }
                    None => {
                        let first = waiting.first().copied();
                        prop_assert_eq!(waiting.pop(), first);
                        popped += usize::from(first.is_some());
                    }
                }
                prop_assert_eq!(waiting.is_empty(), pushed == popped);
            }
        }
    }
}
