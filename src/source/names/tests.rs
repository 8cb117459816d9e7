//! Tests of host names with a resolver that answers as it is told.
#![forbid(unsafe_code)]

use super::*;
use crate::source::mailbox::{Event, Mailbox};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(10);

/// What names resolve to; `None` is a resolver that never answers.
type Zone = Arc<Mutex<HashMap<&'static str, Option<&'static [&'static str]>>>>;

struct Room {
    names: Arc<Names>,
    mailbox: Arc<Mailbox>,
    zone: Zone,
    refreshes: Arc<AtomicUsize>,
}

fn room() -> Room {
    room_that(true)
}

/// Whether its refreshes succeed.
fn room_that(refreshes_well: bool) -> Room {
    let mailbox = Arc::new(Mailbox::new(|| {}));
    let zone = Zone::default();
    let known = Arc::clone(&zone);
    let lookup: Lookup = Arc::new(move |host: &str| {
        let found = known.lock().get(host).copied();
        match found {
            None => Err(DnsError::NoAddress),
            Some(None) => {
                thread::sleep(LONG);
                Err(DnsError::Timeout)
            }
            Some(Some(texts)) => Ok(texts.iter().map(|text| text.parse().unwrap()).collect()),
        }
    });
    let names = Names::new(lookup, Journal::new(Arc::clone(&mailbox), "app"));
    let refreshes = Arc::new(AtomicUsize::new(0));
    let room = Room { names, mailbox, zone, refreshes };
    room.run(refreshes_well);
    room
}

impl Room {
    fn run(&self, refreshed: bool) {
        let (names, refreshes) = (Arc::clone(&self.names), Arc::clone(&self.refreshes));
        thread::spawn(move || {
            names.run(|| {
                refreshes.fetch_add(1, Ordering::SeqCst);
                refreshed
            });
        });
    }

    fn set(&self, host: &'static str, addresses: Option<&'static [&'static str]>) {
        self.zone.lock().insert(host, addresses);
    }

    fn addresses(&self, host: &str) -> String {
        let addresses = self.names.addresses(host);
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn log(&self) -> Vec<String> {
        let text = |event| match event {
            Event::Log(_, text) => text.replace("upsync: upstream \"app\": host name ", ""),
            Event::List(_) | Event::Confirmed | Event::Progress(_) => "no line".to_owned(),
        };
        self.mailbox.take().into_iter().map(text).collect()
    }

    /// Makes all names due and waits until each has an answer.
    fn again(&self) {
        let start = Instant::now();
        for name in self.names.table.lock().names.values_mut() {
            name.due = start;
        }
        self.names.changed.notify_all();
        self.until(|table| table.names.values().all(|name| !name.asked && name.due > start));
    }

    fn until(&self, is_so: impl Fn(&Table) -> bool) {
        let deadline = Instant::now() + LONG;
        while !is_so(&self.names.table.lock()) {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.names.stop();
    }
}

fn set_of<'a>(names: &[&'a str]) -> HashSet<&'a str> {
    names.iter().copied().collect()
}

#[test]
fn a_list_waits_for_new_names_until_they_are_answered() {
    let room = room();
    room.set("a", Some(&["10.0.0.2", "10.0.0.1", "::1"]));
    room.names.want(&set_of(&["a", "bad"]));
    let start = Instant::now();
    room.names.wait_for_new(LONG);
    assert!(start.elapsed() < LONG / 2);
    assert_eq!(room.addresses("a"), "10.0.0.1 10.0.0.2 ::1");
    assert_eq!(room.addresses("bad"), "");
    assert_eq!(room.log(), ["\"bad\" does not resolve: no address, left out"]);
}

#[test]
fn a_name_without_an_answer_delays_a_list_only_once_and_no_other_name_at_all() {
    let room = room();
    room.set("slow", None);
    room.names.want(&set_of(&["slow"]));
    room.names.wait_for_new(SOON);
    room.set("a", Some(&["10.0.0.1"]));
    room.names.want(&set_of(&["slow", "a"]));
    let start = Instant::now();
    room.names.wait_for_new(LONG);
    assert!(start.elapsed() < LONG / 2);
    assert_eq!(room.addresses("a"), "10.0.0.1");
}

#[test]
fn names_are_asked_for_again_and_changes_are_told() {
    let room = room();
    room.set("a", Some(&["10.0.0.1"]));
    room.names.want(&set_of(&["a"]));
    room.names.wait_for_new(LONG);
    room.until(|_| room.refreshes.load(Ordering::SeqCst) == 1);
    room.set("a", Some(&["10.0.0.2"]));
    room.again();
    assert_eq!(room.addresses("a"), "10.0.0.2");
    room.until(|_| room.refreshes.load(Ordering::SeqCst) == 2);
    room.again();
    thread::sleep(SOON);
    assert_eq!(room.refreshes.load(Ordering::SeqCst), 2);
}

#[test]
fn a_name_that_stops_resolving_keeps_its_addresses_and_is_told_once() {
    let room = room();
    room.set("a", Some(&["10.0.0.1", "10.0.0.2"]));
    room.names.want(&set_of(&["a"]));
    room.names.wait_for_new(LONG);
    room.zone.lock().remove("a");
    for _ in 0..3 {
        room.again();
    }
    assert_eq!(room.addresses("a"), "10.0.0.1 10.0.0.2");
    assert_eq!(room.log(), ["\"a\" does not resolve: no address, keeping its last 2 addresses"]);
    room.set("a", Some(&["10.0.0.3"]));
    for _ in 0..3 {
        room.again();
    }
    assert_eq!(
        (room.addresses("a").as_str(), room.log()),
        ("10.0.0.3", vec!["\"a\" resolves again".into()])
    );
}

#[test]
fn a_name_that_is_no_longer_wanted_is_forgotten() {
    let room = room();
    room.set("a", Some(&["10.0.0.1"]));
    room.names.want(&set_of(&["a"]));
    room.names.wait_for_new(LONG);
    room.names.want(&set_of(&[]));
    assert_eq!(room.addresses("a"), "");
}

#[test]
fn a_refresh_that_failed_is_tried_with_the_next_answer() {
    let room = room_that(false);
    room.set("a", Some(&["10.0.0.1"]));
    room.names.want(&set_of(&["a"]));
    room.until(|_| room.refreshes.load(Ordering::SeqCst) == 1);
    room.again();
    room.until(|_| room.refreshes.load(Ordering::SeqCst) == 2);
}

#[test]
fn more_names_than_lookups_at_a_time_are_all_answered() {
    let room = room();
    let hosts: Vec<_> = (0..LOOKUPS_MAX * 2).map(|n| format!("host{n}")).collect();
    room.names.want(&hosts.iter().map(String::as_str).collect());
    room.names.wait_for_new(LONG);
    room.until(|table| table.names.values().all(|name| name.state == State::Failing));
    assert_eq!(room.names.table.lock().lookups, 0);
}

#[test]
fn a_stop_ends_the_thread() {
    let room = room();
    let names = Arc::clone(&room.names);
    let thread = thread::spawn(move || names.run(|| true));
    room.names.stop();
    thread.join().unwrap();
}
