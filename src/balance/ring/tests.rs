use super::super::hash::tests::{Peer, peers, plain_crc32};
use super::*;
use proptest::prelude::*;

/// nginx's points, step by step: sorted, of equal hashes the first.
fn plain_points(servers: &[(String, u32)]) -> Vec<(u32, String)> {
    let mut points: Vec<(u32, String)> = Vec::new();
    for (text, weight) in servers {
        let (host, port) = if text.len() >= 5 && text[..5].to_lowercase() == "unix:" {
            (&text[5..], "")
        } else {
            match text.rsplit_once(':') {
                Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => (host, port),
                _ => (text.as_str(), ""),
            }
        };
        let mut previous = 0_u32;
        for _ in 0..weight * 160 {
            let part = [host.as_bytes(), b"\0", port.as_bytes(), &previous.to_le_bytes()].concat();
            previous = plain_crc32(&part);
            points.push((previous, text.clone()));
        }
    }
    points.sort_by_key(|&(hash, _)| hash);
    points.dedup_by_key(|&mut (hash, _)| hash);
    points
}

/// The servers a request is sent to one after the other until nginx turns to round robin. Of
/// several untried ones with the text of a point, the first.
fn plain_gets(
    points: &[(u32, String)],
    texts: &[(String, u32)],
    mut peers: Vec<Peer>,
    key: &[u8],
) -> Vec<usize> {
    let key = plain_crc32(key);
    let mut hash = points.iter().take_while(|&&(hash, _)| hash < key).count();
    let (mut tries, mut gets) = (0, Vec::new());
    while tries <= 20 {
        let (_, text) = &points[hash % points.len()];
        let found = (0..peers.len()).find(|&number| {
            !peers[number].tried && !peers[number].down && texts[number].0 == *text
        });
        if let Some(number) = found {
            peers[number].tried = true;
            gets.push(number);
        } else {
            hash += 1;
            tries += 1;
        }
    }
    gets
}

/// The same by a walk.
fn gets(ring: &Ring, texts: &[(String, u32)], mut peers: Vec<Peer>, key: &[u8]) -> Vec<usize> {
    let (mut walk, mut gets) = (RingWalk::default(), Vec::new());
    while let Some(server) = walk.next(key, ring) {
        let text = &texts[server as usize].0;
        let found = (0..peers.len()).find(|&number| {
            !peers[number].tried && !peers[number].down && texts[number].0 == *text
        });
        if let Some(number) = found {
            peers[number].tried = true;
            gets.push(number);
            walk.taken();
        }
    }
    gets
}

fn ring(servers: &[(String, u32)]) -> Ring {
    Ring::new((0..).zip(servers).map(|(number, (text, weight))| (number, text.as_str(), *weight)))
}

fn equal(servers: u32, weight: u32) -> Vec<(String, u32)> {
    (0..servers)
        .map(|n| (format!("10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255), weight))
        .collect()
}

fn pick(ring: &Ring, key: &str) -> u32 {
    RingWalk::default().next(key.as_bytes(), ring).unwrap()
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => any::<std::net::SocketAddrV4>().prop_map(|address| address.to_string()),
        2 => any::<std::net::SocketAddrV6>().prop_map(|address| address.to_string()),
        1 => any::<std::net::Ipv6Addr>().prop_map(|address| address.to_string()),
        1 => "(unix|UNIX|Unix):[a-z/.:0-9]{0,20}",
        1 => "[a-z0-9.-]{1,20}",
        1 => "(one|two|3):[0-9]{0,2}",
    ]
}

fn servers(max: usize) -> impl Strategy<Value = (Vec<(String, u32)>, Vec<Peer>)> {
    (proptest::collection::vec((text(), 1..=6_u32), 1..=max), peers()).prop_map(|(texts, peers)| {
        let peers = peers.iter().copied().cycle().take(texts.len()).collect();
        (texts, peers)
    })
}

#[test]
fn texts_are_divided_as_in_nginx() {
    for (text, host, port) in [
        ("10.0.0.1:80", "10.0.0.1", "80"),
        ("[2001:db8::1]:8080", "[2001:db8::1]", "8080"),
        ("[2001:db8::1]", "[2001:db8::1]", ""),
        ("2001:db8::1", "2001:db8:", "1"),
        ("backend", "backend", ""),
        ("backend.:", "backend.", ""),
        ("backend:80a", "backend:80a", ""),
        ("8080", "8080", ""),
        (":1", "", "1"),
        ("unix:/run/a:1", "/run/a:1", ""),
        ("uNiX:", "", ""),
        ("unix", "unix", ""),
        ("unit:1", "unit", "1"),
        ("\u{e9}\u{e9}\u{e9}:1", "\u{e9}\u{e9}\u{e9}", "1"),
        ("", "", ""),
    ] {
        assert_eq!(host_and_port(text.as_bytes()), (host.as_bytes(), port.as_bytes()), "{text}");
    }
}

#[test]
fn nothing_to_choose_from() {
    for ring in [Ring::default(), Ring::new([]), Ring::new([(0, "a", 0), (1, "b", 0)])] {
        assert!(ring.is_empty());
        assert_eq!(RingWalk::default().next(b"key", &ring), None);
    }
    assert_eq!(Ring::points([0, 0]), 0);
    assert_eq!(RingWalk::default().next(b"", &Ring::new([(0, "a", 1)])), None);
}

#[test]
fn walks_end_after_21_points() {
    for servers in [1, 50] {
        let (ring, mut walk) = (ring(&equal(servers, 1)), RingWalk::default());
        assert_eq!((0..30).filter_map(|_| walk.next(b"/a", &ring)).count(), 21);
        assert_eq!(walk.next(b"/a", &ring), None);
    }
}

#[test]
fn the_circle_closes() {
    let ring = ring(&equal(3, 1));
    let last = *ring.hashes.last().unwrap();
    let key = (0..).map(|n| format!("{n}")).find(|key| crc32(&[key.as_bytes()]) > last).unwrap();
    assert_eq!(ring.find(crc32(&[key.as_bytes()])), ring.len());
    let mut walk = RingWalk::default();
    let servers: Vec<_> = (0..21).filter_map(|_| walk.next(key.as_bytes(), &ring)).collect();
    assert_eq!(servers, ring.servers[..21]);
}

#[test]
fn of_servers_with_the_same_text_the_first_comes_up() {
    let ring = Ring::new([(5, "a:1", 1), (4, "UNIX:/x", 1), (3, "a:1", 2), (2, "unix:/x", 1)]);
    assert_eq!(ring.len(), 160 + 320);
    // The second 160 points of "a:1" are those of its greater weight.
    assert_eq!(ring.servers.iter().filter(|&&server| server == 5).count(), 160);
    assert_eq!(ring.servers.iter().filter(|&&server| server == 4).count(), 160);
    assert_eq!(ring.servers.iter().filter(|&&server| server == 3).count(), 160);
}

#[test]
fn a_server_that_leaves_moves_only_its_keys_and_to_many() {
    let all = equal(100, 2);
    let before = ring(&all);
    let after = Ring::new(
        (0..).zip(&all).filter(|&(n, _)| n != 42).map(|(n, (text, w))| (n, text.as_str(), *w)),
    );
    let mut heirs = vec![0; 100];
    for number in 0..100_000 {
        let key = format!("/{number}");
        let (old, new) = (pick(&before, &key), pick(&after, &key));
        if old == 42 {
            heirs[new as usize] += 1;
        } else {
            assert_eq!(old, new, "{key}");
        }
    }
    let keys: u32 = heirs.iter().sum();
    assert!((700..1400).contains(&keys), "{keys}");
    assert!(heirs.iter().filter(|&&count| count > 0).count() >= 80, "{heirs:?}");
    assert!(heirs.iter().all(|&count| count <= keys / 99 * 6), "{heirs:?}");
}

#[test]
fn weights_that_fit_are_never_changed() {
    let most = (POINTS_MAX / POINTS) as u32;
    for weights in [vec![most], vec![most - 1, 1], vec![100, 200, 50]] {
        let scale = Scale::new(POINTS_MAX, weights.iter().copied());
        for weight in weights {
            assert_eq!(scale.points(weight), weight as usize * 160);
        }
    }
    assert_eq!(Ring::points([most]), most as usize * 160);
}

#[test]
fn weights_that_do_not_fit_share_the_points() {
    let weights = [vec![65_535; 100], vec![65_534, 1]].concat();
    let scale = Scale::new(POINTS_MAX, weights.iter().copied());
    let all: usize = weights.iter().map(|&weight| scale.points(weight)).sum();
    let most = POINTS_MAX as usize;
    assert!(all <= scale.total() && all > most - 200 && scale.total() == most + 102, "{all}");
    assert_eq!(scale.points(1), 1);
    assert_eq!(Scale::new(POINTS_MAX, [u32::MAX, 1]).points(1), 1);
}

#[test]
fn a_ring_beyond_the_limit_has_every_server_by_its_weight() {
    let mut servers = equal(20, 65_535);
    servers[3].1 = 6_553;
    servers[7].1 = 1;
    let ring = Ring::within(
        100_000,
        (0..).zip(&servers).map(|(number, (text, weight))| (number, text.as_str(), *weight)),
    );
    let mut counts = [0_u32; 20];
    for &server in ring.servers.iter() {
        counts[server as usize] += 1;
    }
    for (count, server) in counts.into_iter().zip(0..) {
        let expected = match server {
            3 => 540..=553,
            7 => 1..=1,
            _ => 5_500..=5_530,
        };
        assert!(expected.contains(&count), "{server}: {count}");
    }
    assert!(ring.hashes.is_sorted_by(|a, b| a < b));
}

#[test]
fn keys_go_as_in_nginx() {
    for (count, weight) in [(1, 1), (2, 3), (20, 1), (200, 1)] {
        let texts: Vec<_> = (0..count)
            .map(|n| match n % 4 {
                0 => (format!("10.0.{n}.1:80"), weight),
                1 => (format!("[2001:db8::{n}]:{n}"), weight + 1),
                2 => (format!("unix:/run/{n}.sock"), weight),
                _ => (format!("host-{n}.example"), weight),
            })
            .collect();
        let (points, ring) = (plain_points(&texts), ring(&texts));
        for number in 0..10_000 {
            let key = format!("/a/{number}.html");
            let hash = plain_crc32(key.as_bytes());
            let place = points.partition_point(|&(point, _)| point < hash) % points.len();
            assert_eq!(texts[pick(&ring, &key) as usize].0, points[place].1, "{key}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn points_are_nginxs((texts, _) in servers(30)) {
        let (plain, ring) = (plain_points(&texts), ring(&texts));
        prop_assert!(ring.len() <= Ring::points(texts.iter().map(|&(_, weight)| weight)));
        prop_assert_eq!(ring.len(), plain.len());
        for ((hash, text), place) in plain.iter().zip(0..) {
            prop_assert_eq!(ring.hashes[place], *hash);
            prop_assert_eq!(&texts[ring.servers[place] as usize].0, text);
        }
    }

    #[test]
    fn requests_go_as_in_nginx((texts, peers) in servers(20), start: u32) {
        let (points, ring) = (plain_points(&texts), ring(&texts));
        for number in 0..50 {
            let key = format!("/{}", start.wrapping_add(number));
            let plain = plain_gets(&points, &texts, peers.clone(), key.as_bytes());
            prop_assert_eq!(gets(&ring, &texts, peers.clone(), key.as_bytes()), plain, "{}", key);
        }
    }

    #[test]
    fn the_index_finds_what_a_search_finds(count in 1..400_u32, hashes: [u32; 32]) {
        let ring = ring(&equal(count, 1));
        let ends = [0, u32::MAX, ring.hashes[0], ring.hashes[ring.len() - 1]];
        for hash in hashes.into_iter().chain(ends) {
            prop_assert_eq!(ring.find(hash), ring.hashes.partition_point(|&point| point < hash));
        }
    }

    #[test]
    fn points_are_sorted_and_equal_ones_stay_in_order(hashes in proptest::collection::vec(0..40_u64, 0..300), shift in 0..27_u32) {
        let points: Vec<u64> = (0..).zip(&hashes).map(|(n, hash)| (hash << (32 + shift)) | n).collect();
        let mut expected = points.clone();
        expected.sort_by_key(|&point| hash_of(point));
        prop_assert_eq!(sorted(points), expected);
    }

    #[test]
    fn anything_ends(
        texts in proptest::collection::vec((any::<String>(), 0..3_u32), 0..10),
        key: Vec<u8>, taken: [bool; 40],
    ) {
        // The ring may change from step to step, though it should not.
        let (first, second) = (ring(&texts), ring(texts.get(1..).unwrap_or_default()));
        let mut walk = RingWalk::default();
        for (ring, taken) in [&first, &second].into_iter().cycle().zip(taken) {
            prop_assert!(walk.next(&key, ring).is_none_or(|s| (s as usize) < texts.len()));
            if taken {
                walk.taken();
            }
        }
    }

    #[test]
    fn any_weights_are_bounded(weights in proptest::collection::vec(any::<u32>(), 0..100)) {
        let scale = Scale::new(POINTS_MAX, weights.iter().copied());
        let all: usize = weights.iter().map(|&weight| scale.points(weight)).sum();
        prop_assert!(all <= scale.total() && all <= POINTS_MAX as usize + weights.len());
        prop_assert!(weights.iter().all(|&weight| (scale.points(weight) > 0) == (weight > 0)));
    }
}

#[test]
fn another_list_goes_by_the_same_points_until_it_has_its_own() {
    let servers = equal(50, 1);
    let old = ring(&servers);
    // Server 0 leaves, the others move up by one; one more joins as 49.
    let new = old.renumbered(|server| server.checked_sub(1));
    // Then 1, which was 2, leaves too.
    let newer = new.renumbered(|server| (server != 1).then_some(server));
    for key in (0..1000_u32).map(u32::to_be_bytes) {
        let next = |ring: &Ring| {
            let mut walk = RingWalk::default();
            std::iter::from_fn(|| walk.next(&key, ring)).collect::<Vec<_>>()
        };
        let expected: Vec<_> = next(&old).iter().filter_map(|&s| s.checked_sub(1)).collect();
        assert_eq!(next(&new), expected);
        let without: Vec<_> = expected.into_iter().filter(|&server| server != 1).collect();
        assert_eq!(next(&newer), without);
    }
    let nobody = old.renumbered(|_| None);
    assert_eq!(RingWalk::default().next(b"key", &nobody), None);
}
