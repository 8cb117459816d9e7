use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

/// CRC-32 bit by bit, as its definition has it.
pub(in super::super) fn plain_crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |state, &byte| {
        (0..8).fold(state ^ u32::from(byte), |state, _| (state >> 1) ^ ((state & 1) * 0xedb8_8320))
    })
}

/// A peer of the plain models of nginx's methods, which walk the list as nginx does.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Peer {
    pub weight: u32,
    pub down: bool,
    pub tried: bool,
}

pub(in super::super) fn peers() -> impl Strategy<Value = Vec<Peer>> {
    let peer = (1..=100_u32, prop::bool::weighted(0.3)).prop_map(|(weight, down)| Peer {
        weight,
        down,
        tried: false,
    });
    proptest::collection::vec(peer, 1..=200)
}

fn at_weight(peers: &[Peer], mut place: u64) -> usize {
    let mut peers = peers.iter().enumerate();
    loop {
        let (number, peer) = peers.next().unwrap();
        if place < u64::from(peer.weight) {
            return number;
        }
        place -= u64::from(peer.weight);
    }
}

fn total(peers: &[Peer]) -> u64 {
    peers.iter().map(|peer| u64::from(peer.weight)).sum()
}

/// One get of nginx's `hash` or `ip_hash`: `step` has the next hash. None is round robin.
fn plain_get(peers: &mut [Peer], tries: &mut u32, mut step: impl FnMut() -> u64) -> Option<usize> {
    if *tries > 20 {
        return None;
    }
    loop {
        let number = at_weight(peers, step() % total(peers));
        if !peers[number].tried && !peers[number].down {
            peers[number].tried = true;
            return Some(number);
        }
        *tries += 1;
        if *tries > 20 {
            return None;
        }
    }
}

/// The servers a request is sent to one after the other until nginx turns to round robin.
fn plain_key_gets(mut peers: Vec<Peer>, key: &[u8]) -> Vec<usize> {
    let (mut hash, mut rehash, mut tries) = (0_u32, 0, 0);
    let mut step = || {
        let number = if rehash > 0 { format!("{rehash}") } else { String::new() };
        let value = plain_crc32(&[number.as_bytes(), key].concat());
        hash = hash.wrapping_add((value >> 16) & 0x7fff);
        rehash += 1;
        u64::from(hash)
    };
    std::iter::from_fn(|| plain_get(&mut peers, &mut tries, &mut step)).collect()
}

fn plain_address_gets(mut peers: Vec<Peer>, address: &[u8]) -> Vec<usize> {
    let (mut hash, mut tries) = (89_u64, 0);
    let mut step = || {
        for &byte in address {
            hash = (hash * 113 + u64::from(byte)) % 6271;
        }
        hash
    };
    std::iter::from_fn(|| plain_get(&mut peers, &mut tries, &mut step)).collect()
}

/// The same by a walk: `next` is its next step, or tells it that the last server was taken.
fn gets(mut peers: Vec<Peer>, mut next: impl FnMut(bool) -> Option<u32>) -> Vec<usize> {
    let (mut gets, mut taken) = (Vec::new(), false);
    while let Some(number) = next(taken) {
        let peer = &mut peers[number as usize];
        taken = !peer.tried && !peer.down;
        if taken {
            peer.tried = true;
            gets.push(number as usize);
        }
    }
    gets
}

fn key_gets(peers: Vec<Peer>, key: &[u8]) -> Vec<usize> {
    let (table, mut walk) = (table(&peers), KeyWalk::default());
    gets(peers, |taken| {
        if taken {
            walk.taken();
        }
        walk.next(key, &table)
    })
}

fn address_gets(peers: Vec<Peer>, address: &[u8]) -> Vec<usize> {
    let (table, mut walk) = (table(&peers), AddressWalk::default());
    gets(peers, |taken| {
        if taken {
            walk.taken();
        }
        walk.next(address, &table)
    })
}

fn table(peers: &[Peer]) -> Table {
    Table::new((0..).zip(peers).map(|(number, peer)| (number, peer.weight)))
}

fn equal(servers: u32, weight: u32) -> Table {
    Table::new((0..servers).map(|server| (server, weight)))
}

#[test]
fn known_checksums() {
    assert_eq!(crc32(&[]), 0);
    assert_eq!(crc32(&[b"", b""]), 0);
    assert_eq!(crc32(&[b"a"]), 0xe8b7_be43);
    assert_eq!(crc32(&[b"123456789"]), 0xcbf4_3926);
    assert_eq!(crc32(&[b"1234", b"", b"56789"]), 0xcbf4_3926);
    assert_eq!(crc32(&[b"The quick brown fox jumps over the lazy dog"]), 0x414f_a339);
    assert_eq!(crc32(&[&[0; 32]]), 0x190a_55ad);
}

#[test]
fn places_follow_the_list() {
    let table = Table::new([(7, 2), (3, 0), (9, 1)]);
    assert_eq!(table.total(), 3);
    let at: Vec<_> = (0..5).map(|place| table.at(place)).collect();
    assert_eq!(at, [Some(7), Some(7), Some(9), Some(7), Some(7)]);
    assert_eq!(table.at(u64::MAX), Some(7));
}

#[test]
fn nothing_to_choose_from() {
    for table in [Table::default(), Table::new([]), Table::new([(1, 0), (2, 0)])] {
        assert_eq!((table.total(), table.at(0), table.at(9)), (0, None, None));
        assert_eq!(KeyWalk::default().next(b"key", &table), None);
        assert_eq!(AddressWalk::default().next(&[10, 0, 0], &table), None);
    }
    assert_eq!(KeyWalk::default().next(b"", &equal(2, 1)), None);
    assert_eq!(AddressWalk::default().next(b"", &equal(2, 1)), None);
}

#[test]
fn walks_end_after_21_steps_for_nothing() {
    for weight in [1, 65_535] {
        let table = equal(50, weight);
        let (mut key, mut address) = (KeyWalk::default(), AddressWalk::default());
        for _ in 0..21 {
            assert!(key.next(b"/a", &table).is_some());
            assert!(address.next(&[127, 0, 0], &table).is_some());
        }
        for _ in 0..2 {
            assert_eq!(key.next(b"/a", &table), None);
            assert_eq!(address.next(&[127, 0, 0], &table), None);
        }
    }
}

#[test]
fn a_step_that_was_taken_is_not_for_nothing() {
    let (table, mut walk) = (equal(50, 1), KeyWalk::default());
    walk.taken();
    for _ in 0..1000 {
        assert!(walk.next(b"/a", &table).is_some());
        walk.taken();
    }
    assert_eq!((0..30).filter_map(|_| walk.next(b"/a", &table)).count(), 21);
}

#[test]
fn one_server_that_goes_down_moves_only_its_keys() {
    let up: Vec<Peer> = vec![Peer { weight: 3, down: false, tried: false }; 20];
    let mut one_down = up.clone();
    one_down[7].down = true;
    for number in 0..10_000 {
        let key = format!("/file/{number}");
        let (before, after) = (
            key_gets(up.clone(), key.as_bytes())[0],
            key_gets(one_down.clone(), key.as_bytes())[0],
        );
        assert!(if before == 7 { after != 7 } else { after == before }, "{key}");
    }
}

/// How many of `tries` first steps go to each of `servers`.
fn counts(servers: u32, tries: u32, pick: impl Fn(u32) -> Option<u32>) -> Vec<u32> {
    let mut counts = vec![0; servers as usize];
    for number in 0..tries {
        counts[pick(number).unwrap() as usize] += 1;
    }
    counts
}

#[test]
fn at_nginxs_limits_every_place_has_a_number() {
    for (servers, weight) in [(32_768, 1), (4_096, 8)] {
        let table = equal(servers, weight);
        let key = |n: u32| KeyWalk::default().next(format!("/{n}").as_bytes(), &table);
        assert!(counts(servers, 1_000_000, key).iter().all(|&count| count > 0));
    }
    let table = equal(6271, 1);
    let address = |n: u32| AddressWalk::default().next(&n.to_be_bytes()[1..], &table);
    assert!(counts(6271, 1_000_000, address).iter().all(|&count| count > 0));
}

#[test]
fn beyond_nginxs_limits_every_server_has_its_share() {
    // Sums of weights of 32,769, 100,000, and of more than 32 bits can tell.
    for (servers, weight) in [(32_769, 1), (10_000, 10), (200, 1_000), (300, u32::MAX)] {
        let (table, tries) = (equal(servers, weight), servers * 40);
        let key = |n: u32| KeyWalk::default().next(format!("/{n}").as_bytes(), &table);
        let address = |n: u32| {
            AddressWalk::default().next(&n.wrapping_mul(0x9e37_79b9).to_be_bytes()[..3], &table)
        };
        for counts in [counts(servers, tries, key), counts(servers, tries, address)] {
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(*least >= 5 && *most <= 100, "{servers} of {weight}: {least} to {most}");
        }
    }
}

#[test]
fn beyond_nginxs_limits_steps_lead_to_different_servers() {
    let table = equal(40_000, 1);
    for number in 0..1000_u32 {
        let (mut key, mut address) = (KeyWalk::default(), AddressWalk::default());
        let (text, bytes) = (number.to_string(), number.to_be_bytes());
        let keys: HashSet<_> =
            (0..21).map(|_| key.next(text.as_bytes(), &table).unwrap()).collect();
        let addresses: HashSet<_> =
            (0..21).map(|_| address.next(&bytes[1..], &table).unwrap()).collect();
        assert!(keys.len() >= 19 && addresses.len() >= 19, "{number}");
    }
}

proptest! {
    #[test]
    fn checksums_of_parts(parts in proptest::collection::vec(any::<Vec<u8>>(), 0..5)) {
        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(crc32(&slices), plain_crc32(&parts.concat()));
    }

    #[test]
    fn checksums_of_words(state: u32, word: u32) {
        prop_assert_eq!(crc32_word(state, word), crc32_update(state, &word.to_le_bytes()));
    }

    #[test]
    fn keys_go_as_in_nginx(peers in peers(), start: u32) {
        // 256 cases of 40 keys each.
        for number in 0..40 {
            let key = format!("/{}?{number}", start.wrapping_add(number));
            let plain = plain_key_gets(peers.clone(), key.as_bytes());
            prop_assert_eq!(key_gets(peers.clone(), key.as_bytes()), plain, "{}", key);
        }
    }

    #[test]
    fn any_key_goes_as_in_nginx(peers in peers(), key in proptest::collection::vec(any::<u8>(), 1..300)) {
        prop_assert_eq!(key_gets(peers.clone(), &key), plain_key_gets(peers, &key));
    }

    #[test]
    fn addresses_go_as_in_nginx(peers in peers(), address: [u8; 16], three in prop::bool::ANY) {
        let peers: Vec<Peer> = peers.into_iter().map(|p| Peer { weight: p.weight % 31 + 1, ..p }).collect();
        for number in 0..40 {
            let mut address = address;
            address[2] = address[2].wrapping_add(number);
            let address = if three { &address[..3] } else { &address[..] };
            let plain = plain_address_gets(peers.clone(), address);
            prop_assert_eq!(address_gets(peers.clone(), address), plain);
        }
    }

    #[test]
    fn anything_ends(
        tables in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 0..20), 1..4),
        key: Vec<u8>, taken: [bool; 40],
    ) {
        // The list may change from step to step.
        let tables: Vec<Table> = tables.into_iter().map(|weights| Table::new((0..).zip(weights))).collect();
        let (mut by_key, mut by_address) = (KeyWalk::default(), AddressWalk::default());
        for (table, taken) in tables.iter().cycle().zip(taken) {
            let known = |server: Option<u32>| server.is_none_or(|s| (s as usize) < table.servers.len() + 20);
            prop_assert!(known(by_key.next(&key, table)) && known(by_address.next(&key, table)));
            if taken {
                by_key.taken();
                by_address.taken();
            }
        }
    }

    #[test]
    fn every_place_is_its_servers(weights in proptest::collection::vec(0..9_u32, 1..40)) {
        let table = Table::new((0..).zip(weights.iter().copied()));
        let mut counts = vec![0; weights.len()];
        for place in 0..table.total() {
            counts[table.at(place).unwrap() as usize] += 1;
        }
        prop_assert_eq!(counts, weights);
    }
}
