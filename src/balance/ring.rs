//! `hash KEY consistent`: nginx's own points, so a key leads to the same server as in stock nginx.
//!
//! Each server has 160 points for each 1 of its weight on a circle of 2^32. A key goes to the
//! first point at or behind its CRC-32. A server that leaves takes only its points with it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::hash::{TRIES_MAX, crc32, crc32_update, crc32_word};

/// Points a server has for each 1 of its weight.
const POINTS: u64 = 160;

/// Up to this many points, a sum of weights of 26,214, each server has as many as in nginx. A
/// point takes about 8.5 bytes (nginx: 16), and 16 while the ring is built.
pub const POINTS_MAX: u64 = 1 << 22;

/// Points for each entry of the index, more or less.
const INDEXED: usize = 8;

/// The points of all servers of a tier, by their hashes.
#[derive(Debug, Default)]
pub struct Ring {
    /// Ascending, none twice.
    hashes: Arc<[u32]>,
    /// The caller's number of the server of each point.
    servers: Arc<[u32]>,
    /// `starts[i]` is the first point whose hash shifted right by `shift` is `i` or more.
    starts: Arc<[u32]>,
    shift: u32,
    /// What the caller's numbers have become since the points were made; [`NOBODY`] has left.
    numbers: Option<Box<[u32]>>,
    /// One more than the highest of the numbers that the points have.
    count: u32,
}

/// No server's number.
const NOBODY: u32 = u32::MAX;

impl Ring {
    /// Builds the ring of `(server, text, weight)` in time linear in the number of points. The
    /// text is that of nginx's `server` directive: an address or a name, with a port or without
    /// one, or `unix:` and a path. Where points of two servers fall together, that of the first
    /// stays; so of servers with the same text only the first comes up, for all of them.
    ///
    /// Servers that are down are to be among them, as in nginx: a step that leads to one goes on
    /// to the next point.
    pub fn new<'a>(servers: impl IntoIterator<Item = (u32, &'a str, u32)>) -> Self {
        Self::within(POINTS_MAX, servers)
    }

    /// The ring, changed beyond `most` points.
    fn within<'a>(most: u64, servers: impl IntoIterator<Item = (u32, &'a str, u32)>) -> Self {
        let servers: Vec<_> = servers.into_iter().collect();
        let scale = Scale::new(most, servers.iter().map(|&(_, _, weight)| weight));
        let mut points = Vec::with_capacity(scale.total());
        let count = servers.iter().map(|&(server, ..)| server + 1).max().unwrap_or(0);
        for (server, text, weight) in servers {
            add_points(&mut points, server, text.as_bytes(), scale.points(weight));
        }
        Self { count, ..Self::of_sorted(sorted(points)) }
    }

    /// How many points a ring of servers with these weights has at the most, to tell beforehand
    /// how long [`Ring::new`] will take. Some may fall together.
    pub fn points(weights: impl IntoIterator<Item = u32>) -> usize {
        Scale::new(POINTS_MAX, weights).total()
    }

    /// How many points there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    fn of_sorted(mut points: Vec<u64>) -> Self {
        points.dedup_by_key(|point| hash_of(*point));
        let hashes: Arc<[u32]> = points.iter().map(|&point| hash_of(point)).collect();
        let servers = points.iter().map(|&point| point as u32).collect();
        let bits = (hashes.len() / INDEXED).checked_ilog2().unwrap_or(0);
        let shift = u32::BITS - bits;
        let mut starts = Vec::with_capacity((1 << bits) + 1);
        for (place, &hash) in hashes.iter().enumerate() {
            while starts.len() as u64 <= u64::from(hash) >> shift {
                starts.push(place as u32);
            }
        }
        starts.resize((1 << bits) + 1, hashes.len() as u32);
        Self { hashes, servers, starts: starts.into(), shift, numbers: None, count: 0 }
    }

    /// The same points for another list, in which `number` gives a server's number: those of servers
    /// that are not in it are passed over, and servers that are new have none. It serves until a ring
    /// of that list is made, and costs as much as the ring has servers.
    pub fn renumbered(&self, number: impl Fn(u32) -> Option<u32>) -> Self {
        let numbers = (0..self.count).map(|server| self.number(server).and_then(&number));
        Self {
            hashes: Arc::clone(&self.hashes),
            servers: Arc::clone(&self.servers),
            starts: Arc::clone(&self.starts),
            shift: self.shift,
            count: self.count,
            numbers: Some(numbers.map(|number| number.unwrap_or(NOBODY)).collect()),
        }
    }

    /// The caller's number of a server now.
    fn number(&self, server: u32) -> Option<u32> {
        let number = match &self.numbers {
            Some(numbers) => numbers.get(server as usize).copied()?,
            None => server,
        };
        (number != NOBODY).then_some(number)
    }

    /// The first point at or behind `hash`; the number of points if there is none.
    fn find(&self, hash: u32) -> usize {
        let bucket = (u64::from(hash) >> self.shift) as usize;
        let start = |bucket: usize| self.starts.get(bucket).map_or(0, |&start| start as usize);
        let (from, to) = (start(bucket), start(bucket + 1));
        let run = self.hashes.get(from..to).unwrap_or_default();
        from + run.partition_point(|&point| point < hash)
    }
}

/// The points of a server behind those before: nginx's `crc32(HOST \0 PORT PREVIOUS_HASH)`.
fn add_points(points: &mut Vec<u64>, server: u32, text: &[u8], count: usize) {
    let (host, port) = host_and_port(text);
    let base = [host, b"\0", port].iter().fold(u32::MAX, |state, part| crc32_update(state, part));
    let mut hash = 0;
    points.extend((0..count).map(|_| {
        hash = !crc32_word(base, hash);
        (u64::from(hash) << 32) | u64::from(server)
    }));
}

/// A server's text as nginx divides it for its points. No port is an empty one.
fn host_and_port(text: &[u8]) -> (&[u8], &[u8]) {
    if let Some((prefix, path)) = text.split_at_checked(5)
        && prefix.eq_ignore_ascii_case(b"unix:")
    {
        return (path, b"");
    }
    let digits = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    match text.split_at_checked(text.len().saturating_sub(digits)) {
        Some(([host @ .., b':'], port)) => (host, port),
        _ => (text, b""),
    }
}

fn hash_of(point: u64) -> u32 {
    (point >> 32) as u32
}

/// How many points a weight stands for: up to `most` in all, as many as in nginx. Beyond, the
/// points are dealt out by weight, at least one to each server: few for a weight far below the
/// others', but more would be more than its share. (To divide the weights first by what they have in
/// common would move most keys whenever one weight changes that.)
struct Scale {
    most: u64,
    /// Of the weights.
    sum: u64,
    /// Those that have a weight.
    servers: u64,
}

impl Scale {
    fn new(most: u64, weights: impl IntoIterator<Item = u32>) -> Self {
        let (mut sum, mut servers) = (0_u64, 0);
        for weight in weights.into_iter().filter(|&weight| weight > 0).map(u64::from) {
            sum = sum.saturating_add(weight);
            servers += 1;
        }
        Self { most, sum, servers }
    }

    /// The points of a server of this weight.
    fn points(&self, weight: u32) -> usize {
        let weight = u64::from(weight);
        let points = if self.fits() {
            weight * POINTS
        } else {
            (weight * self.most / self.sum.max(1)).max(weight.min(1))
        };
        points as usize
    }

    /// The points of all servers, or a few more.
    fn total(&self) -> usize {
        let most = self.most.saturating_add(self.servers);
        (if self.fits() { self.sum * POINTS } else { most }) as usize
    }

    fn fits(&self) -> bool {
        self.sum <= self.most / POINTS
    }
}

/// Sorts points by their hashes; of equal ones the first stays first. They are dealt out by each
/// byte of the hash, the lowest first, in the same time for any hashes.
fn sorted(mut points: Vec<u64>) -> Vec<u64> {
    let mut dealt = vec![0; points.len()];
    for (mut starts, byte) in byte_starts(&points).into_iter().zip(0..) {
        for &point in &points {
            let start = &mut starts[hash_byte(point, byte)];
            if let Some(slot) = dealt.get_mut(*start) {
                *slot = point;
            }
            *start += 1;
        }
        std::mem::swap(&mut points, &mut dealt);
    }
    points
}

/// For each byte of the hashes, the place of the first point with each of its values.
fn byte_starts(points: &[u64]) -> [[usize; 256]; 4] {
    let mut starts = [[0; 256]; 4];
    for &point in points {
        for (counts, byte) in starts.iter_mut().zip(0..) {
            counts[hash_byte(point, byte)] += 1;
        }
    }
    for counts in &mut starts {
        let mut sum = 0;
        for count in counts {
            sum += std::mem::replace(count, sum);
        }
    }
    starts
}

/// A byte of a point's hash, counted from the lowest; less than 256.
fn hash_byte(point: u64, byte: u32) -> usize {
    (hash_of(point) >> (8 * byte)) as usize & 0xff
}

/// The servers a request asks for its key, one after the other: those of the first point and of
/// the points behind it. As in nginx, a server may come up at several points in a row, and an
/// empty key leads nowhere.
///
/// A walk is on one ring; a request that goes on with another ring begins another walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingWalk {
    first: u32,
    tries: u8,
}

impl RingWalk {
    /// The server of the next point, by the caller's number. None after 21 points that were not
    /// [`taken`](RingWalk::taken), for an empty key and for an empty ring.
    pub fn next(&mut self, key: &[u8], ring: &Ring) -> Option<u32> {
        if self.tries > TRIES_MAX || key.is_empty() || ring.is_empty() {
            return None;
        }
        if self.tries == 0 {
            self.first = ring.find(crc32(&[key])) as u32;
        }
        while self.tries <= TRIES_MAX {
            let place = (self.first as usize + usize::from(self.tries)) % ring.len();
            self.tries += 1;
            let server = ring.servers.get(place).and_then(|&server| ring.number(server));
            if server.is_some() {
                return server;
            }
        }
        None
    }

    /// The request was sent to a server of the last point. The next step looks at that point
    /// again, where another server with the same text may not be tried yet; if there is none,
    /// that step is one of the 21.
    pub fn taken(&mut self) {
        self.tries = self.tries.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests;
