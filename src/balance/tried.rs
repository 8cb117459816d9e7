//! The servers a request has tried, so that a retry asks another.
#![forbid(unsafe_code)]

/// Servers by their numbers in one list. Most requests try one server, which costs no memory.
#[derive(Debug, Default)]
pub struct Tried {
    first: Option<u32>,
    more: Option<Box<Bits>>,
}

#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Tried {
    /// Adds a server.
    #[inline]
    pub fn add(&mut self, server: u32) {
        match self.first {
            None => self.first = Some(server),
            Some(_) => self.add_further(server),
        }
    }

    fn add_further(&mut self, server: u32) {
        let (word, bit) = place(server);
        let Bits(words) = &mut **self.more.get_or_insert_default();
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= bit;
    }

    /// Takes a server out again.
    pub fn remove(&mut self, server: u32) {
        if self.first == Some(server) {
            self.first = None;
        }
        let (word, bit) = place(server);
        if let Some(bits) = self.more.as_mut().and_then(|more| more.0.get_mut(word)) {
            *bits &= !bit;
        }
    }

    /// Whether the server was added.
    #[inline]
    pub fn has(&self, server: u32) -> bool {
        self.first == Some(server) || self.more.as_ref().is_some_and(|more| more.has(server))
    }
}

impl Bits {
    fn has(&self, server: u32) -> bool {
        let (word, bit) = place(server);
        self.0.get(word).is_some_and(|bits| bits & bit != 0)
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
