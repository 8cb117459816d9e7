//! The list in force as the watcher knows it, and how a new one gets there.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::{self, Server};
use super::dump::Dump;
use super::mailbox::{Mailbox, Outcome};
use super::names::Names;
use crate::model::{Endpoint, List, Parameters};

/// Used by the watcher's thread with each answer, and by the resolver's when addresses change.
pub struct Applier {
    mailbox: Arc<Mailbox>,
    names: Arc<Names>,
    /// Held while a list waits for its outcome, so that there is one at a time.
    state: Mutex<State>,
}

struct State {
    list: List,
    /// Those of the last answer that was used.
    servers: Option<Vec<Server>>,
    /// The worker knows that the list is the source's own.
    confirmed: bool,
    dump: Option<Dump>,
}

impl State {
    fn keep(&mut self) {
        if let Some(dump) = &mut self.dump {
            dump.keep(&self.list);
        }
    }
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Another list is in force.
    Changed,
    /// The list in force is already so.
    Unchanged,
    /// Servers there are, but none with an address. The last list stays.
    NoAddress,
    /// The worker refused the list. The last one stays.
    Refused(&'static str),
    /// Nobody asks for lists any more.
    Stopped,
}

impl Applier {
    /// `list` is in force.
    pub fn new(list: List, mailbox: Arc<Mailbox>, names: Arc<Names>, dump: Option<Dump>) -> Self {
        let state = State { list, servers: None, confirmed: false, dump };
        Self { mailbox, names, state: Mutex::new(state) }
    }

    /// The number of servers in force.
    pub fn len(&self) -> usize {
        self.state.lock().list.len()
    }

    /// The parameters of the servers as of now: those of the list in force, and of its names.
    pub fn known(&self) -> HashMap<Endpoint, Parameters> {
        let state = self.state.lock();
        let listed = state.list.peers().iter();
        let listed = listed.map(|peer| (Endpoint::Address(peer.address.clone()), peer.parameters));
        listed.chain(state.servers.iter().flatten().cloned()).collect()
    }

    /// Puts all servers that there are in force.
    pub fn apply(&self, servers: Vec<Server>) -> Applied {
        let mut state = self.state.lock();
        let applied = self.put(&mut state, &servers);
        if !matches!(applied, Applied::Refused(_) | Applied::Stopped) {
            state.servers = Some(servers);
        }
        applied
    }

    /// Puts the same servers in force at the addresses their names have now.
    pub fn refresh(&self) -> Applied {
        let mut state = self.state.lock();
        let Some(servers) = state.servers.take() else {
            return Applied::Unchanged;
        };
        let applied = self.put(&mut state, &servers);
        state.servers = Some(servers);
        applied
    }

    fn put(&self, state: &mut State, servers: &[Server]) -> Applied {
        let list = answer::list(servers, |host| self.names.addresses(host));
        if list.is_empty() && !servers.is_empty() {
            return Applied::NoAddress;
        }
        if state.list.difference(&list).is_none() {
            if !std::mem::replace(&mut state.confirmed, true) {
                self.mailbox.confirm();
            }
            state.keep();
            return Applied::Unchanged;
        }
        let list = state.list.after(list);
        match self.mailbox.offer(list.clone()) {
            Some(Outcome::Applied) => {
                state.list = list;
                state.confirmed = true;
                state.keep();
                Applied::Changed
            }
            Some(Outcome::Refused(reason)) => Applied::Refused(reason),
            None => Applied::Stopped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::dns::DnsError;
    use crate::source::journal::Journal;
    use crate::source::mailbox::Event;
    use std::collections::HashSet;
    use std::thread;

    fn server(text: &str, weight: u32) -> Server {
        let parameters = Parameters { weight, ..Parameters::CONSUL };
        (Endpoint::parse(text, None).unwrap(), parameters)
    }

    fn list(servers: &[Server]) -> List {
        answer::list(servers, |_| vec![])
    }

    struct Room {
        mailbox: Arc<Mailbox>,
        names: Arc<Names>,
        applier: Arc<Applier>,
    }

    fn room(initial: &[Server]) -> Room {
        let mailbox = Arc::new(Mailbox::new(|| {}));
        let journal = Journal::new(Arc::clone(&mailbox), "app");
        let names = Names::new(Arc::new(|_: &str| Err(DnsError::NoAddress)), journal);
        let applier = Applier::new(list(initial), Arc::clone(&mailbox), Arc::clone(&names), None);
        Room { mailbox, names, applier: Arc::new(applier) }
    }

    impl Room {
        /// Applies with a worker that answers so; the list it saw.
        fn apply(&self, servers: &[Server], outcome: Outcome) -> (Applied, List) {
            let (applier, servers) = (Arc::clone(&self.applier), servers.to_vec());
            let thread = thread::spawn(move || applier.apply(servers));
            loop {
                if let Some(Event::List(list)) = self.mailbox.take().pop() {
                    self.mailbox.applied(outcome);
                    return (thread.join().unwrap(), list);
                }
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_list_that_is_in_force_is_not_offered() {
        let servers = [server("1.1.1.1:1", 1), server("1.1.1.1:2", 2)];
        let room = room(&servers);
        assert_eq!(room.applier.apply(servers.to_vec()), Applied::Unchanged);
        let [a, b] = servers;
        assert_eq!(room.applier.apply(vec![b, a]), Applied::Unchanged);
        assert_eq!(room.mailbox.take(), [Event::Confirmed], "but confirmed, once");
    }

    #[test]
    fn a_change_is_offered_in_the_order_to_be_stored() {
        let [a, b] = [server("1.1.1.1:1", 1), server("1.1.1.1:2", 2)];
        let room = room(std::slice::from_ref(&a));
        let (applied, seen) = room.apply(&[a.clone(), b.clone()], Outcome::Applied);
        assert_eq!((applied, seen), (Applied::Changed, list(&[b, a])));
        assert_eq!(room.applier.len(), 2);
    }

    #[test]
    fn a_refused_list_is_offered_again() {
        let [a, b] = [server("1.1.1.1:1", 1), server("1.1.1.1:2", 2)];
        let room = room(&[a]);
        for (outcome, applied) in [
            (Outcome::Refused("full"), Applied::Refused("full")),
            (Outcome::Applied, Applied::Changed),
        ] {
            assert_eq!(room.apply(std::slice::from_ref(&b), outcome).0, applied);
        }
    }

    #[test]
    fn addresses_that_are_known_before_any_answer_change_nothing() {
        let room = room(&[server("1.1.1.1:1", 1)]);
        assert_eq!(room.applier.refresh(), Applied::Unchanged);
        assert_eq!(room.mailbox.take(), []);
    }

    #[test]
    fn names_without_an_address_leave_the_last_list() {
        let room = room(&[server("1.1.1.1:1", 1)]);
        room.names.want(&HashSet::from(["a.b"]));
        assert_eq!(room.applier.apply(vec![server("a.b:1", 1)]), Applied::NoAddress);
        assert_eq!((room.applier.len(), room.mailbox.take()), (1, vec![]));
    }

    #[test]
    fn known_are_the_parameters_in_force_and_those_of_names() {
        let room = room(&[server("1.1.1.1:1", 5)]);
        room.applier.apply(vec![server("a.b:1", 7)]);
        let known = room.applier.known();
        let weights = ["1.1.1.1:1", "a.b:1"].map(|text| known[&server(text, 0).0].weight);
        assert_eq!(weights, [5, 7]);
    }

    #[test]
    fn no_server_empties_the_list_if_it_gets_here() {
        let room = room(&[server("1.1.1.1:1", 5)]);
        assert_eq!(room.apply(&[], Outcome::Applied), (Applied::Changed, List::default()));
    }
}
