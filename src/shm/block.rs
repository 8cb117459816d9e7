//! One immutable list as a run of bytes: records, then the socket addresses and names that they
//! refer to. It is built outside shared memory and copied there and back as a whole.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::grammar;
use crate::model::{Address, Check, Endpoint, List, Method, Parameters, Peer};

const DOWN: u32 = 1;
const BACKUP: u32 = 2;
const DRAIN: u32 = 4;
const CRITICAL: u32 = 8;

/// The start of a block.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Head {
    /// Bytes, with this head; a multiple of 8.
    size: u64,
    /// Records.
    count: u64,
    /// The text of the method that came with the list, and its bytes; 0 if none did.
    method: u32,
    method_len: u32,
    /// The same of the checks that came with it.
    check: u32,
    check_len: u32,
}

/// One server of a block. Places are bytes from the block's start.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Record {
    /// Offset of its slot in the zone; 0 as long as it has none.
    pub slot: u64,
    /// The slot's generation while this server owns it.
    pub generation: u32,
    weight: u32,
    max_fails: u32,
    fail_timeout: u32,
    max_conns: u32,
    flags: u32,
    sockaddr: u32,
    socklen: u32,
    name: u32,
    name_len: u32,
    slow_start: u32,
}

impl Record {
    /// The server's parameters.
    pub fn parameters(&self) -> Parameters {
        Parameters {
            weight: self.weight,
            max_fails: self.max_fails,
            fail_timeout: self.fail_timeout,
            max_conns: self.max_conns,
            down: self.flags & DOWN != 0,
            critical: self.flags & CRITICAL != 0,
            backup: self.flags & BACKUP != 0,
            drain: self.flags & DRAIN != 0,
            slow_start: self.slow_start,
        }
    }

    /// Takes the slot of a record of the same server in another list.
    pub fn adopt(&mut self, other: &Self) {
        (self.slot, self.generation) = (other.slot, other.generation);
    }

    fn new(parameters: &Parameters) -> Self {
        Self {
            weight: parameters.weight,
            max_fails: parameters.max_fails,
            fail_timeout: parameters.fail_timeout,
            max_conns: parameters.max_conns,
            flags: [
                (parameters.down, DOWN),
                (parameters.critical, CRITICAL),
                (parameters.backup, BACKUP),
                (parameters.drain, DRAIN),
            ]
            .iter()
            .fold(0, |flags, &(is_set, flag)| if is_set { flags | flag } else { flags }),
            slow_start: parameters.slow_start,
            ..Self::default()
        }
    }
}

const HEAD: usize = size_of::<Head>();
const RECORD: usize = size_of::<Record>();

/// A block in this process's own memory. `u64`s keep it aligned for its records.
#[derive(Clone, Debug)]
pub struct Block(Box<[u64]>);

impl Block {
    /// The block of a list, its slots not yet known.
    pub fn new(list: &List) -> Self {
        let mut tail = Vec::with_capacity(list.len() * 48);
        let start = HEAD + list.len() * RECORD;
        let mut records: Vec<Record> = Vec::with_capacity(list.len());
        for peer in list.peers() {
            let mut record = Record::new(&peer.parameters);
            (record.sockaddr, record.socklen) =
                append(start, &mut tail, |tail| put_sockaddr(tail, &peer.address));
            // Writing into a vector cannot fail.
            let put_name = |tail: &mut Vec<u8>| drop(write!(tail, "{}", peer.address));
            (record.name, record.name_len) = append(start, &mut tail, put_name);
            records.push(record);
        }
        let mut append_text =
            |text: String| append(start, &mut tail, |tail| tail.extend_from_slice(text.as_bytes()));
        let (method, method_len) =
            append_text(list.method().map(Method::to_string).unwrap_or_default());
        let (check, check_len) =
            append_text(list.check().map(|check| grammar::check::text(check)).unwrap_or_default());
        tail.resize(tail.len().next_multiple_of(8), 0);
        let size = start + tail.len();
        let mut block = Self(vec![0; size / 8].into_boxed_slice());
        let bytes = block.bytes_mut();
        bytes[..8].copy_from_slice(&(size as u64).to_ne_bytes());
        bytes[8..16].copy_from_slice(&(list.len() as u64).to_ne_bytes());
        bytes[16..20].copy_from_slice(&method.to_ne_bytes());
        bytes[20..24].copy_from_slice(&method_len.to_ne_bytes());
        bytes[24..28].copy_from_slice(&check.to_ne_bytes());
        bytes[28..HEAD].copy_from_slice(&check_len.to_ne_bytes());
        bytes[start..].copy_from_slice(&tail);
        block.records_mut().copy_from_slice(&records);
        block
    }

    /// Copies the block that starts at `from`.
    ///
    /// # Safety
    ///
    /// `from` is the start of a block that [`Block::new`] made, aligned to 8 bytes, and nobody
    /// writes it meanwhile.
    pub unsafe fn copy_of(from: *const u64) -> Self {
        // SAFETY: by the caller's word a whole block starts here, and its first word is its size.
        let words = unsafe { std::slice::from_raw_parts(from, *from as usize / 8) };
        Self(words.into())
    }

    /// The whole block.
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// The servers in the order of the list.
    pub fn records(&self) -> &[Record] {
        let count = self.0[1] as usize;
        debug_assert!(HEAD + count * RECORD <= self.0.len() * 8);
        // SAFETY: `new` laid out `count` records behind the head, a `Record` is plain integers
        // without padding, and `u64`s are aligned at least as a `Record` is.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().byte_add(HEAD).cast(), count) }
    }

    /// The servers, to give them slots.
    pub fn records_mut(&mut self) -> &mut [Record] {
        let count = self.0[1] as usize;
        // SAFETY: as in `records`; the block is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().byte_add(HEAD).cast(), count) }
    }

    /// The text of a server's address. It stays where it is as long as the block lives.
    pub fn name(&self, record: &Record) -> &[u8] {
        self.part(record.name, record.name_len)
    }

    /// A server's `struct sockaddr`, aligned to 8 bytes. It stays where it is as the name does.
    pub fn sockaddr(&self, record: &Record) -> &[u8] {
        self.part(record.sockaddr, record.socklen)
    }

    /// The servers as they are shown: the text of the address and the parameters.
    pub fn servers(&self) -> impl ExactSizeIterator<Item = (&str, Parameters)> {
        // Names were written from text, so no other bytes are there.
        let text = |record| std::str::from_utf8(self.name(record)).unwrap_or_default();
        self.records().iter().map(move |record| (text(record), record.parameters()))
    }

    /// The method that came with the list.
    pub fn method(&self) -> Option<Method> {
        grammar::method::parse(std::str::from_utf8(self.method_text()).ok()?)
    }

    /// Whether two lists came with the same method, or both with none.
    pub fn has_method_of(&self, other: &Self) -> bool {
        self.method_text() == other.method_text()
    }

    /// The checks that came with the list.
    pub fn check(&self) -> Option<Check> {
        grammar::check::parse(std::str::from_utf8(self.check_text()).ok()?)
    }

    /// Whether the list came with checks.
    pub fn has_check(&self) -> bool {
        !self.check_text().is_empty()
    }

    /// Whether two lists came with the same checks, or both with none.
    pub fn has_check_of(&self, other: &Self) -> bool {
        self.check_text() == other.check_text()
    }

    fn method_text(&self) -> &[u8] {
        self.text(2)
    }

    fn check_text(&self) -> &[u8] {
        self.text(3)
    }

    /// The text whose place and length are this word of the head.
    fn text(&self, word: usize) -> &[u8] {
        let [a, b, c, d, e, f, g, h] = self.0[word].to_ne_bytes();
        self.part(u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
    }

    /// The list this block was made from.
    pub fn list(&self) -> List {
        let list =
            List::new(self.servers().filter_map(|(name, parameters)| {
                match Endpoint::parse(name, None) {
                    Ok(Endpoint::Address(address)) => Some(Peer { address, parameters }),
                    _ => None,
                }
            }));
        list.with_method(self.method()).with_check(self.check().map(Arc::new))
    }

    fn part(&self, from: u32, len: u32) -> &[u8] {
        self.bytes().get(from as usize..from as usize + len as usize).unwrap_or_default()
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: any initialised memory may be read as bytes.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 8) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and any bytes make a `u64`; the block is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 8) }
    }
}

/// Appends at the next multiple of 8 and says where that is in the block. 8 bytes are what a
/// `struct sockaddr` may want at most.
fn append(start: usize, tail: &mut Vec<u8>, put: impl FnOnce(&mut Vec<u8>)) -> (u32, u32) {
    tail.resize(tail.len().next_multiple_of(8), 0);
    let place = tail.len();
    put(tail);
    ((start + place) as u32, (tail.len() - place) as u32)
}

/// A `struct sockaddr` of Linux as `connect()` takes it.
fn put_sockaddr(tail: &mut Vec<u8>, address: &Address) {
    let family = |family: i32| (family as libc::sa_family_t).to_ne_bytes();
    match address {
        Address::Ip(SocketAddr::V4(v4)) => {
            tail.extend(family(libc::AF_INET));
            tail.extend(v4.port().to_be_bytes());
            tail.extend(v4.ip().octets());
            tail.extend([0; 8]);
        }
        Address::Ip(SocketAddr::V6(v6)) => {
            tail.extend(family(libc::AF_INET6));
            tail.extend(v6.port().to_be_bytes());
            tail.extend(v6.flowinfo().to_ne_bytes());
            tail.extend(v6.ip().octets());
            tail.extend(v6.scope_id().to_ne_bytes());
        }
        Address::Unix(path) => {
            let end = tail.len() + size_of::<libc::sockaddr_un>();
            tail.extend(family(libc::AF_UNIX));
            tail.extend(path.as_bytes());
            tail.resize(end, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str, parameters: Parameters) -> Peer {
        match Endpoint::parse(address, None).unwrap() {
            Endpoint::Address(address) => Peer { address, parameters },
            Endpoint::Name { .. } => panic!("{address} is a name"),
        }
    }

    fn sample() -> List {
        let odd = Parameters {
            weight: 65_535,
            max_fails: 7,
            fail_timeout: 99,
            max_conns: 3,
            down: true,
            critical: true,
            backup: true,
            drain: true,
            slow_start: 30_000,
        };
        let method = Method::Hash { key: "$uri-${arg_a}".to_owned(), consistent: true };
        List::new([
            peer("127.0.0.1:80", Parameters::NGINX),
            peer("[2001:db8::1]:8080", odd),
            peer("unix:/run/a.sock", Parameters::CONSUL),
        ])
        .with_method(Some(method))
        .with_check(Some(Arc::new(check())))
    }

    fn check() -> Check {
        Check {
            send: Some("GET /\"\\ HTTP/1.0\r\n\r\n".to_owned()),
            port: Some(81),
            ..Check::default()
        }
    }

    #[test]
    fn a_list_comes_back_as_it_was() {
        assert_eq!(Block::new(&sample()).list(), sample());
        assert_eq!(Block::new(&List::default()).list(), List::default());
    }

    #[test]
    fn a_list_has_the_check_it_came_with() {
        let block = Block::new(&sample());
        let without = Block::new(&sample().with_check(None));
        let other = Block::new(&sample().with_check(Some(Arc::new(Check::default()))));
        assert_eq!((block.check(), without.check()), (Some(check()), None));
        assert!(block.has_check_of(&Block::new(&sample())) && without.has_check_of(&without));
        assert!(!block.has_check_of(&without) && !block.has_check_of(&other));
        assert!(block.has_method_of(&without));
    }

    #[test]
    fn a_copy_is_the_same() {
        let block = Block::new(&sample());
        // SAFETY: it is a block, and nobody writes it.
        let copy = unsafe { Block::copy_of(block.words().as_ptr()) };
        assert_eq!(copy.words(), block.words());
    }

    #[test]
    fn socket_addresses_are_those_of_the_system() {
        let block = Block::new(&sample());
        let of = |i: usize| block.sockaddr(&block.records()[i]);
        assert_eq!(of(0).len(), size_of::<libc::sockaddr_in>());
        assert_eq!(&of(0)[2..8], &[0, 80, 127, 0, 0, 1]);
        assert_eq!(of(1).len(), size_of::<libc::sockaddr_in6>());
        assert_eq!(&of(1)[2..4], &8080_u16.to_be_bytes());
        assert_eq!(of(1)[8..12], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(of(2).len(), size_of::<libc::sockaddr_un>());
        assert_eq!(&of(2)[2..14], b"/run/a.sock\0");
        for record in block.records() {
            assert_eq!(block.sockaddr(record).as_ptr() as usize % 8, 0);
        }
    }
}
