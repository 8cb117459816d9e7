//! `hash KEY` and `ip_hash`: the servers a key leads to, in nginx's own order.
//!
//! A key names a place among `sum(weights)`, the place names a server. nginx walks its list to
//! that place; here it is searched, so a pick costs the logarithm of the number of servers.
//!
//! nginx's numbers are small: 15 bits of a CRC-32 for `hash`, less than 6,271 for `ip_hash`.
//! Where the weights add up to more, the servers behind would never get a first request. There,
//! and only there, all 32 bits of a CRC-32 are spread over the weights instead.
#![forbid(unsafe_code)]

/// Steps of a walk that may lead to a server that cannot be used. One more is its end: nginx
/// gives up, and goes on with round robin, after the 21st.
pub(super) const TRIES_MAX: u8 = 20;

/// Up to this sum of weights, `hash` has nginx's 15 bits: each place has a number.
const KEY_PLACES_MAX: u64 = 1 << 15;

/// `ip_hash` counts modulo this prime; also the largest sum of weights where each place has a
/// number.
const ADDRESS_MODULUS: u64 = 6271;

/// nginx's first `ip_hash`.
const ADDRESS_START: u32 = 89;

/// `TABLES[n][byte]` is what a byte with `n` zero bytes behind it adds to the CRC-32.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let (mut state, mut zeros) = (byte as u32, 0);
        while zeros < 8 {
            let mut bit = 0;
            while bit < 8 {
                state = if state & 1 == 1 { (state >> 1) ^ 0xedb8_8320 } else { state >> 1 };
                bit += 1;
            }
            tables[zeros][byte] = state;
            zeros += 1;
        }
        byte += 1;
    }
    tables
}

/// The CRC-32 of the parts as one text, as nginx and zlib have it.
pub fn crc32(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(u32::MAX, |state, part| crc32_update(state, part))
}

/// The state after more bytes. It begins with all bits set; its complement is the CRC-32.
pub(super) fn crc32_update(state: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks();
    let state = words.iter().fold(state, |state, &word: &[u8; 8]| {
        let [a, b, c, d, e, f, g, h] = (u64::from_le_bytes(word) ^ u64::from(state)).to_le_bytes();
        let [t0, t1, t2, t3, t4, t5, t6, t7] = &TABLES;
        let first = t7[usize::from(a)] ^ t6[usize::from(b)] ^ t5[usize::from(c)];
        let middle = t4[usize::from(d)] ^ t3[usize::from(e)] ^ t2[usize::from(f)];
        first ^ middle ^ t1[usize::from(g)] ^ t0[usize::from(h)]
    });
    rest.iter().fold(state, |state, &byte| {
        let [low, ..] = state.to_le_bytes();
        TABLES[0][usize::from(low ^ byte)] ^ (state >> 8)
    })
}

/// The state after four more bytes, given as a number in little endian order.
#[inline]
pub(super) fn crc32_word(state: u32, word: u32) -> u32 {
    let [a, b, c, d] = (state ^ word).to_le_bytes();
    let [t0, t1, t2, t3, ..] = &TABLES;
    (t3[usize::from(a)] ^ t2[usize::from(b)]) ^ (t1[usize::from(c)] ^ t0[usize::from(d)])
}

/// The servers of a tier in the order of the list, each with as many places as its weight.
/// Those that are down have theirs, so that no key moves between two others when one goes down.
#[derive(Debug, Default)]
pub struct Table {
    /// The caller's numbers of the servers, those of weight 0 left out.
    servers: Box<[u32]>,
    /// `ends[i]` is the sum of the weights up to and with server `i`.
    ends: Box<[u64]>,
}

impl Table {
    /// Builds the table of `(server, weight)` in time linear in the number of servers. A server
    /// of weight 0 has no place.
    pub fn new(servers: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut sum = 0_u64;
        let (servers, ends): (Vec<u32>, Vec<u64>) = servers
            .into_iter()
            .filter(|&(_, weight)| weight > 0)
            .map(|(server, weight)| {
                sum = sum.saturating_add(u64::from(weight));
                (server, sum)
            })
            .unzip();
        Self { servers: servers.into(), ends: ends.into() }
    }

    /// The sum of the weights: the number of places.
    pub fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The server at `place` modulo [`Table::total`]; none if there is no place.
    pub fn at(&self, place: u64) -> Option<u32> {
        let place = place.checked_rem(self.total())?;
        self.servers.get(self.ends.partition_point(|&end| end <= place)).copied()
    }

    /// The server at the place that lies in the table where `hash` lies among all 32-bit numbers.
    fn at_share(&self, hash: u32) -> Option<u32> {
        let place = (u128::from(hash) * u128::from(self.total())) >> 32;
        self.at(place as u64)
    }
}

/// The servers a request asks for its `hash KEY`, one after the other. An empty key leads
/// nowhere: as in nginx, its requests go round robin.
///
/// Also as in nginx, the n-th server depends on the key and the table alone, and servers may
/// come up again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyWalk {
    hash: u32,
    /// Steps so far; the number in front of the key.
    rehash: u32,
    tries: u8,
}

impl KeyWalk {
    /// The next server to look at, by the caller's number. None after 21 that were not
    /// [`taken`](KeyWalk::taken), for an empty key and for a table without a place.
    pub fn next(&mut self, key: &[u8], table: &Table) -> Option<u32> {
        if self.tries > TRIES_MAX || key.is_empty() {
            return None;
        }
        let hash = self.numbered(key);
        self.tries += 1;
        self.rehash = self.rehash.saturating_add(1);
        if table.total() > KEY_PLACES_MAX {
            self.hash = self.hash.wrapping_add(hash);
            return table.at_share(self.hash);
        }
        self.hash = self.hash.wrapping_add((hash >> 16) & 0x7fff);
        table.at(u64::from(self.hash))
    }

    /// The request was sent to the server of the last step, so that step is none of the 21.
    pub fn taken(&mut self) {
        self.tries = self.tries.saturating_sub(1);
    }

    /// The CRC-32 of the key, from the second step on with the number of the step in front.
    fn numbered(&self, key: &[u8]) -> u32 {
        if self.rehash == 0 {
            return crc32(&[key]);
        }
        let (mut digits, mut rest) = ([0_u8; 10], self.rehash);
        let mut first = digits.len();
        for (place, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (rest % 10) as u8;
            first = place;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        crc32(&[digits.get(first..).unwrap_or_default(), key])
    }
}

/// The servers a request asks for its `ip_hash`, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressWalk {
    hash: u32,
    tries: u8,
}

impl Default for AddressWalk {
    fn default() -> Self {
        Self { hash: ADDRESS_START, tries: 0 }
    }
}

impl AddressWalk {
    /// The next server to look at, by the caller's number. `address` has the first 3 bytes of an
    /// IPv4 address, all 16 of an IPv6 address and 3 zero bytes for any other client. None after
    /// 21 servers that were not [`taken`](AddressWalk::taken), for no address and for a table
    /// without a place.
    pub fn next(&mut self, address: &[u8], table: &Table) -> Option<u32> {
        if self.tries > TRIES_MAX || address.is_empty() {
            return None;
        }
        self.tries += 1;
        if table.total() > ADDRESS_MODULUS {
            self.hash = crc32(&[&self.hash.to_le_bytes(), address]);
            return table.at_share(self.hash);
        }
        let hash = address.iter().fold(u64::from(self.hash), |hash, &byte| {
            (hash * 113 + u64::from(byte)) % ADDRESS_MODULUS
        });
        self.hash = hash as u32;
        table.at(hash)
    }

    /// The request was sent to the server of the last step, so that step is none of the 21.
    pub fn taken(&mut self) {
        self.tries = self.tries.saturating_sub(1);
    }
}

#[cfg(test)]
pub(super) mod tests;
