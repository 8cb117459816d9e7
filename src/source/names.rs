//! The host names of one list, resolved again and again.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::dns::{self, DnsError, Found, LOOKUPS_MAX, Lookup};
use super::journal::Journal;
use super::mailbox::Level;
use crate::model::Printable;

/// From one answer for a name to the next question.
const AGAIN: Duration = Duration::from_secs(5);

/// The names that a list wants, and their addresses. A name that stops resolving keeps those it
/// had.
pub struct Names {
    table: Mutex<Table>,
    changed: Condvar,
    lookup: Lookup,
    journal: Journal,
}

#[derive(Default)]
struct Table {
    names: HashMap<String, Name>,
    lookups: usize,
    /// An answer came since the list was last made.
    answered: bool,
    /// Addresses changed since the list was last made and applied.
    dirty: bool,
    stopped: bool,
}

struct Name {
    addresses: Vec<IpAddr>,
    state: State,
    due: Instant,
    asked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Without an answer yet; a list may wait for it.
    New,
    /// Without an answer for so long that no list waits.
    Late,
    Resolved,
    Failing,
}

impl Names {
    /// No names yet.
    pub fn new(lookup: Lookup, journal: Journal) -> Arc<Self> {
        let (table, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Self { table, changed, lookup, journal })
    }

    /// Sets which names are wanted; what is known of those that stay is kept.
    pub fn want(&self, wanted: &HashSet<&str>) {
        let mut table = self.table.lock();
        table.names.retain(|host, _| wanted.contains(host.as_str()));
        for host in wanted {
            if !table.names.contains_key(*host) {
                let name = Name {
                    addresses: vec![],
                    state: State::New,
                    due: Instant::now(),
                    asked: false,
                };
                table.names.insert((*host).to_owned(), name);
            }
        }
        self.changed.notify_all();
    }

    /// Waits until each new name has an answer, but not for longer than `at_most`, and only once
    /// for each.
    pub fn wait_for_new(&self, at_most: Duration) {
        let mut table = self.table.lock();
        let until = Instant::now() + at_most;
        let is_new = |name: &Name| name.state == State::New;
        while !table.stopped && table.names.values().any(is_new) {
            if self.changed.wait_until(&mut table, until).timed_out() {
                break;
            }
        }
        for name in table.names.values_mut().filter(|name| is_new(name)) {
            name.state = State::Late;
        }
    }

    /// All addresses of a name, in an order that does not change with the answers'.
    pub fn addresses(&self, host: &str) -> Vec<IpAddr> {
        let table = self.table.lock();
        table.names.get(host).map(|name| name.addresses.clone()).unwrap_or_default()
    }

    /// Asks for each name when it is due, and calls `refresh` after addresses have changed, until
    /// it returns true. Returns after [`Names::stop`].
    pub fn run(self: &Arc<Self>, refresh: impl Fn() -> bool) {
        let mut table = self.table.lock();
        while !table.stopped {
            let due = self.ask_due(&mut table);
            if mem::take(&mut table.answered) && mem::take(&mut table.dirty) {
                drop(table);
                let refreshed = refresh();
                table = self.table.lock();
                table.dirty |= !refreshed;
            } else if table.stopped || table.answered {
                continue;
            } else if let Some(due) = due {
                self.changed.wait_until(&mut table, due);
            } else {
                self.changed.wait(&mut table);
            }
        }
    }

    /// Makes [`Names::run`] return and no more be logged.
    pub fn stop(&self) {
        self.table.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Starts the lookups that are due; when the next one will be.
    fn ask_due(self: &Arc<Self>, table: &mut Table) -> Option<Instant> {
        let now = Instant::now();
        let Table { names, lookups, answered, dirty, .. } = table;
        for (host, name) in names.iter_mut().filter(|(_, name)| !name.asked && name.due <= now) {
            if *lookups == LOOKUPS_MAX {
                // The end of one of them wakes us.
                return None;
            }
            let (this, asked) = (Arc::clone(self), host.clone());
            match dns::start(&self.lookup, host, move |found| this.done(&asked, found)) {
                Ok(()) => {
                    name.asked = true;
                    *lookups += 1;
                }
                Err(error) => {
                    *dirty |= self.take(host, name, Err(error.into()));
                    *answered = true;
                }
            }
        }
        names.values().filter(|name| !name.asked).map(|name| name.due).min()
    }

    fn done(&self, host: &str, found: Found) {
        let mut table = self.table.lock();
        table.lookups -= 1;
        table.answered = true;
        if table.stopped {
            return;
        }
        if let Some(name) = table.names.get_mut(host) {
            name.asked = false;
            let changed = self.take(host, name, found);
            table.dirty |= changed;
        }
        self.changed.notify_all();
    }

    /// Whether the name's addresses changed.
    fn take(&self, host: &str, name: &mut Name, found: Found) -> bool {
        name.due = Instant::now() + AGAIN;
        match found {
            Ok(mut addresses) => {
                if name.state == State::Failing {
                    let text = format!("host name \"{}\" resolves again", Printable(host));
                    self.journal.log(Level::Notice, text);
                }
                name.state = State::Resolved;
                addresses.sort_unstable();
                let changed = addresses != name.addresses;
                name.addresses = addresses;
                changed
            }
            Err(error) => {
                if name.state != State::Failing {
                    self.complain(host, name, &error);
                }
                name.state = State::Failing;
                false
            }
        }
    }

    fn complain(&self, host: &str, name: &Name, error: &DnsError) {
        let then = match name.addresses.len() {
            0 => "left out".to_owned(),
            1 => "keeping its last address".to_owned(),
            n => format!("keeping its last {n} addresses"),
        };
        let (host, error) = (Printable(host), error.to_string());
        let text = format!("host name \"{host}\" does not resolve: {}, {then}", Printable(&error));
        self.journal.log(Level::Warn, text);
    }
}

#[cfg(test)]
mod tests;
