//! The servers a request has tried, so that a retry asks another.
#![forbid(unsafe_code)]

/// Servers by their numbers in one list. Most requests try one server, which costs no memory.
#[derive(Debug, Default)]
pub struct Tried {
    first: Option<u32>,
    more: Vec<u64>,
}

impl Tried {
    /// Adds a server.
    pub fn add(&mut self, server: u32) {
        if self.first.is_none() {
            self.first = Some(server);
            return;
        }
        let (word, bit) = place(server);
        if self.more.len() <= word {
            self.more.resize(word + 1, 0);
        }
        self.more[word] |= bit;
    }

    /// Takes a server out again.
    pub fn remove(&mut self, server: u32) {
        if self.first == Some(server) {
            self.first = None;
        }
        let (word, bit) = place(server);
        if let Some(bits) = self.more.get_mut(word) {
            *bits &= !bit;
        }
    }

    /// Whether the server was added.
    pub fn has(&self, server: u32) -> bool {
        let (word, bit) = place(server);
        self.first == Some(server) || self.more.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

fn place(server: u32) -> (usize, u64) {
    (server as usize / 64, 1 << (server % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holds_what_was_added(servers in proptest::collection::hash_set(0_u32..500, 0..80)) {
            let mut tried = Tried::default();
            for &server in &servers {
                tried.add(server);
                prop_assert!(tried.has(server));
            }
            for server in 0..600 {
                prop_assert_eq!(tried.has(server), servers.contains(&server));
            }
            for &server in &servers {
                tried.remove(server);
                prop_assert!(!tried.has(server));
            }
        }
    }
}
