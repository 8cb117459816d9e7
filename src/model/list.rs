//! A list of servers, and how one list follows from another.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::{Address, Check, Method};

/// The largest `weight`, as Consul's own weights have it.
pub const WEIGHT_MAX: u32 = 65_535;

/// The largest `max_fails`, `max_conns`, and `fail_timeout` in seconds: what C's `int` holds.
pub const COUNT_MAX: u32 = i32::MAX as u32;

/// The parameters of nginx's `server` directive, with its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parameters {
    /// 0 to [`WEIGHT_MAX`]; a server of weight 0 takes no new requests.
    pub weight: u32,
    /// Failed attempts within `fail_timeout` that take the server out; 0 never does.
    pub max_fails: u32,
    /// Seconds.
    pub fail_timeout: u32,
    /// Connections at a time over all workers; 0 is no limit.
    pub max_conns: u32,
    /// Marked unavailable by the operator.
    pub down: bool,
    /// Consul's own checks say that the server is not well.
    pub critical: bool,
    /// Used when no other server is available.
    pub backup: bool,
    /// Takes none but requests that are bound to it, as by nginx's `sticky`.
    pub drain: bool,
    /// Milliseconds over which the share of a server that joined or came back grows from nothing
    /// to its weight; 0 is at once.
    pub slow_start: u32,
}

impl Parameters {
    /// What nginx-upsync-module gives a server that Consul says nothing more about. Its
    /// `max_fails` is 2 where nginx's own default is 1.
    pub const CONSUL: Self = Self {
        weight: 1,
        max_fails: 2,
        fail_timeout: 10,
        max_conns: 0,
        down: false,
        critical: false,
        backup: false,
        drain: false,
        slow_start: 0,
    };

    /// The defaults of nginx's `server` directive (`ngx_http_upstream_module`).
    pub const NGINX: Self = Self { max_fails: 1, ..Self::CONSUL };

    /// Whether the operator or Consul keeps requests away from the server. Texts that do not tell
    /// them apart, as those of the modules whose place this one takes, have `down` for either.
    pub fn is_down(&self) -> bool {
        self.down || self.critical
    }

    /// The same in a list that does not follow Consul: what its checks said last is for the operator
    /// to change.
    pub fn unfollowed(self) -> Self {
        Self { down: self.is_down(), critical: false, ..self }
    }
}

/// One server at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What makes it this server and no other.
    pub address: Address,
    /// May change while it stays the same server.
    pub parameters: Parameters,
}

/// The servers of one upstream, the newest first, no address twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    peers: Vec<Peer>,
    /// How the upstream chooses a server, if the list came with a method of its own.
    method: Option<Method>,
    /// How its servers are checked, if the list came with checks of its own.
    check: Option<Arc<Check>>,
}

/// How many servers two lists tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// In the later list only.
    pub added: usize,
    /// In the earlier list only.
    pub removed: usize,
    /// In both, with other parameters.
    pub changed: usize,
}

impl List {
    /// Takes peers in this order; of the same address the first stays.
    pub fn new(peers: impl IntoIterator<Item = Peer>) -> Self {
        let mut seen = HashSet::new();
        let peers = peers.into_iter().filter(|peer| seen.insert(peer.address.clone())).collect();
        Self { peers, method: None, check: None }
    }

    /// The list after `answer`, which holds all servers there are in the order of the source.
    /// Servers that stay keep their places; each new one goes to the front, as in
    /// nginx-upsync-module, whose users compare the text of the list.
    pub fn after(&self, answer: Self) -> Self {
        let known: HashMap<&Address, usize> =
            self.peers.iter().enumerate().map(|(place, peer)| (&peer.address, place)).collect();
        let mut kept = vec![None; self.peers.len()];
        let mut peers = Vec::with_capacity(answer.peers.len());
        for peer in answer.peers {
            match known.get(&peer.address) {
                Some(&place) => kept[place] = Some(peer),
                None => peers.push(peer),
            }
        }
        peers.reverse();
        peers.extend(kept.into_iter().flatten());
        Self { peers, method: answer.method, check: answer.check }
    }

    /// What changed from `self` to `later`, whatever the order.
    pub fn difference(&self, later: &Self) -> Difference {
        let before: HashMap<&Address, &Parameters> =
            self.peers.iter().map(|peer| (&peer.address, &peer.parameters)).collect();
        let mut difference = Difference { removed: self.peers.len(), ..Difference::default() };
        for peer in &later.peers {
            match before.get(&peer.address) {
                None => difference.added += 1,
                Some(&&parameters) => {
                    difference.removed -= 1;
                    difference.changed += usize::from(parameters != peer.parameters);
                }
            }
        }
        difference
    }

    /// The list with this method instead of the one it had.
    pub fn with_method(self, method: Option<Method>) -> Self {
        Self { method, ..self }
    }

    /// The method that the list came with.
    pub fn method(&self) -> Option<&Method> {
        self.method.as_ref()
    }

    /// The list with these checks instead of those it had.
    pub fn with_check(self, check: Option<Arc<Check>>) -> Self {
        Self { check, ..self }
    }

    /// The checks that the list came with.
    pub fn check(&self) -> Option<&Arc<Check>> {
        self.check.as_ref()
    }

    /// The list with the method and the checks of another.
    pub fn with_ways_of(self, other: &Self) -> Self {
        Self { method: other.method.clone(), check: other.check.clone(), ..self }
    }

    /// The servers, the newest first.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The number of servers.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there is no server.
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

impl Difference {
    /// Whether the two lists have the same servers with the same parameters.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, removed, changed } = self;
        write!(f, "({added} added, {removed} removed, {changed} changed)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(name: &str) -> Peer {
        weighted(name, 1)
    }

    fn weighted(name: &str, weight: u32) -> Peer {
        let parameters = Parameters { weight, ..Parameters::CONSUL };
        Peer { address: Address::Unix(format!("/{name}")), parameters }
    }

    fn list(names: &str) -> List {
        List::new(names.split_whitespace().map(peer))
    }

    fn names(list: &List) -> String {
        let names: Vec<_> =
            list.peers().iter().map(|p| p.address.to_string().replace("unix:/", "")).collect();
        names.join(" ")
    }

    #[test]
    fn of_the_same_address_the_first_stays() {
        let list = List::new([weighted("a", 5), peer("b"), weighted("a", 7)]);
        assert_eq!(list.peers(), [weighted("a", 5), peer("b")]);
        assert_eq!((list.len(), list.is_empty()), (2, false));
    }

    #[test]
    fn new_servers_go_to_the_front_the_last_of_them_first() {
        assert_eq!(names(&List::default().after(list("a b c"))), "c b a");
        assert_eq!(names(&list("b a").after(list("a b c d"))), "d c b a");
    }

    #[test]
    fn servers_that_stay_keep_their_places() {
        assert_eq!(names(&list("c b a").after(list("a c"))), "c a");
        assert_eq!(names(&list("c b a").after(list("a b c"))), "c b a");
    }

    #[test]
    fn a_server_that_stays_takes_its_new_parameters() {
        let later = list("b a").after(List::new([weighted("a", 9), peer("b")]));
        assert_eq!(later.peers(), [peer("b"), weighted("a", 9)]);
    }

    #[test]
    fn consuls_verdict_is_a_change_of_its_own() {
        let of = |down, critical| {
            let parameters = Parameters { down, critical, ..Parameters::CONSUL };
            List::new([Peer { parameters, ..peer("a") }])
        };
        let changed = |before: List, after| before.difference(&after).changed;
        assert_eq!(changed(of(false, false), of(false, true)), 1);
        assert_eq!(changed(of(true, false), of(false, true)), 1);
        assert_eq!(changed(of(true, true), of(true, true)), 0);
    }

    #[test]
    fn without_consul_its_last_verdict_is_the_operators() {
        for (down, critical) in [(false, false), (true, false), (false, true), (true, true)] {
            let parameters = Parameters { down, critical, ..Parameters::CONSUL };
            let unfollowed = parameters.unfollowed();
            assert_eq!((unfollowed.down, unfollowed.critical), (down || critical, false));
            assert_eq!(parameters.is_down(), unfollowed.is_down());
        }
    }

    #[test]
    fn difference_counts_servers_not_places() {
        let before = list("a b c");
        assert!(before.difference(&list("c b a")).is_none());
        let later = List::new([weighted("b", 2), peer("c"), peer("d"), peer("e")]);
        assert_eq!(before.difference(&later), Difference { added: 2, removed: 1, changed: 1 });
    }

    #[test]
    fn a_method_goes_with_its_list() {
        let hashed = list("a").with_method(Some(Method::IpHash));
        assert_eq!(hashed.method(), Some(&Method::IpHash));
        assert_eq!(hashed.after(list("a b")).method(), None);
        assert_eq!(list("a b").after(hashed.clone()).method(), Some(&Method::IpHash));
        assert_eq!(hashed.with_method(None), list("a"));
    }

    #[test]
    fn checks_go_with_their_list() {
        let check = Some(Arc::new(Check::default()));
        let checked = list("a").with_check(check.clone());
        assert_eq!(checked.check(), check.as_ref());
        assert_eq!(checked.after(list("a b")).check(), None);
        assert_eq!(list("a b").after(checked.clone()).check(), check.as_ref());
        let both = checked.clone().with_method(Some(Method::IpHash));
        assert_eq!(list("a").with_ways_of(&both), both);
        assert_eq!(both.with_ways_of(&list("b")), list("a"));
        assert_eq!(checked.with_check(None), list("a"));
    }

    fn any_list() -> impl Strategy<Value = List> {
        proptest::collection::vec((0u8..12, 0u32..3), 0..16).prop_map(|peers| {
            List::new(peers.into_iter().map(|(name, weight)| weighted(&name.to_string(), weight)))
        })
    }

    proptest! {
        #[test]
        fn after_holds_the_servers_of_the_answer(before in any_list(), answer in any_list()) {
            let after = before.after(answer.clone());
            prop_assert!(answer.difference(&after).is_none());
            prop_assert_eq!(after.len(), answer.len());
            prop_assert_eq!(before.difference(&after), before.difference(&answer));
        }

        #[test]
        fn a_list_after_itself_is_itself(list in any_list()) {
            prop_assert_eq!(list.after(list.clone()), list);
        }

        #[test]
        fn difference_mirrors(a in any_list(), b in any_list()) {
            let (there, back) = (a.difference(&b), b.difference(&a));
            prop_assert_eq!((there.added, there.removed, there.changed),
                            (back.removed, back.added, back.changed));
            prop_assert_eq!(a.len() + there.added, b.len() + there.removed);
        }
    }
}
