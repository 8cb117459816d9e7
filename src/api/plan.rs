//! What a change makes of a list.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::body::{Changes, Place};
use crate::model::{Address, Check, List, Method, Name, Parameters, Peer};

/// A part of a list: what one `server` of a body stands for, its name resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// One address.
    Peer(Peer),
    /// The servers of another upstream, with other parameters where some are given.
    Upstream(Place, Name, Changes),
}

/// What is wanted of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// These servers and no others, with this method and these checks or none of their own.
    Replace(Vec<Part>, Option<Method>, Option<Arc<Check>>),
    /// These servers too; what they were before does not matter.
    Add(Vec<Part>),
    /// Other parameters of one server.
    Patch(Address, Changes),
    /// Without one server.
    Remove(Address),
    /// No servers.
    Delete,
    /// The servers of nginx.conf.
    Reset,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Put this list in force. An empty one takes an upstream of nginx.conf out.
    Put(List),
    /// Take the list away, and the name unless nginx.conf has it.
    Remove,
}

/// Why nothing is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no such upstream.
    NoUpstream,
    /// There is no such server.
    NoServer,
    /// The only server would go.
    LastServer,
    /// nginx.conf has no such upstream to go back to.
    NotConfigured,
    /// nginx.conf has no upstream of this name to take servers from.
    NoGroup(Place, Name),
    /// The upstream to take servers from has none.
    EmptyGroup(Place, Name),
}

/// An upstream as a change finds it.
#[derive(Clone, Debug)]
pub struct Current {
    /// Its servers, if it exists and was not deleted.
    pub list: Option<List>,
    /// Whether nginx.conf has it.
    pub is_configured: bool,
}

/// Works out what is to be done. `group` gives the servers of an upstream of nginx.conf; the method
/// and the checks it may have are not taken over. A list that changes in part keeps its own.
pub fn plan(
    wanted: &Wanted,
    current: Current,
    group: impl Fn(&Name) -> Option<List>,
) -> Result<Plan, Refused> {
    let existing = current.list.ok_or(Refused::NoUpstream);
    match wanted {
        Wanted::Replace(parts, method, check) => {
            let list = List::new(expand(parts, group)?);
            Ok(Plan::Put(list.with_method(method.clone()).with_check(check.clone())))
        }
        Wanted::Add(parts) => {
            let existing = existing?;
            Ok(Plan::Put(with(existing, expand(parts, group)?)))
        }
        Wanted::Patch(address, changes) => {
            let parameters = |was| changes.apply(was);
            patched(existing?, address, parameters).map(Plan::Put)
        }
        Wanted::Remove(address) => without(&existing?, address).map(Plan::Put),
        // Also of an upstream that is gone: a file that a crash left of it goes, too.
        Wanted::Delete if current.is_configured => Ok(Plan::Put(List::default())),
        Wanted::Delete => Ok(Plan::Remove),
        Wanted::Reset if current.is_configured => Ok(Plan::Remove),
        Wanted::Reset => Err(Refused::NotConfigured),
    }
}

fn expand(parts: &[Part], group: impl Fn(&Name) -> Option<List>) -> Result<Vec<Peer>, Refused> {
    let mut peers = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Part::Peer(peer) => peers.push(peer.clone()),
            Part::Upstream(place, name, changes) => {
                let list = group(name).ok_or_else(|| Refused::NoGroup(*place, name.clone()))?;
                if list.is_empty() {
                    return Err(Refused::EmptyGroup(*place, name.clone()));
                }
                peers.extend(list.peers().iter().map(|peer| Peer {
                    address: peer.address.clone(),
                    parameters: changes.apply(peer.parameters.unfollowed()),
                }));
            }
        }
    }
    Ok(peers)
}

/// Servers that are there keep their places, new ones go to the end.
fn with(list: List, added: Vec<Peer>) -> List {
    let added = List::new(added);
    let new: HashMap<&Address, Parameters> =
        added.peers().iter().map(|peer| (&peer.address, peer.parameters)).collect();
    let kept: Vec<Peer> = list
        .peers()
        .iter()
        .map(|peer| Peer {
            address: peer.address.clone(),
            parameters: new.get(&peer.address).copied().unwrap_or(peer.parameters),
        })
        .collect();
    let all = kept.into_iter().chain(added.peers().iter().cloned());
    List::new(all).with_ways_of(&list)
}

fn patched(
    list: List,
    address: &Address,
    parameters: impl Fn(Parameters) -> Parameters,
) -> Result<List, Refused> {
    let mut found = false;
    let peers = list.peers().iter().map(|peer| {
        let is_meant = peer.address == *address;
        found |= is_meant;
        let parameters = if is_meant { parameters(peer.parameters) } else { peer.parameters };
        Peer { address: peer.address.clone(), parameters }
    });
    let patched = List::new(peers.collect::<Vec<_>>()).with_ways_of(&list);
    if found { Ok(patched) } else { Err(Refused::NoServer) }
}

fn without(list: &List, address: &Address) -> Result<List, Refused> {
    let rest: Vec<_> = list.peers().iter().filter(|peer| peer.address != *address).collect();
    match (rest.len(), list.len()) {
        (left, all) if left == all => Err(Refused::NoServer),
        (0, _) => Err(Refused::LastServer),
        _ => Ok(List::new(rest.into_iter().cloned()).with_ways_of(list)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoint;

    fn peer(text: &str, weight: u32) -> Peer {
        let parameters = Parameters { weight, ..Parameters::NGINX };
        match Endpoint::parse(text, None) {
            Ok(Endpoint::Address(address)) => Peer { address, parameters },
            other => panic!("{other:?}"),
        }
    }

    fn list(texts: &[&str]) -> List {
        List::new(texts.iter().map(|text| peer(text, 1)))
    }

    fn parts(texts: &[&str]) -> Vec<Part> {
        texts.iter().map(|text| Part::Peer(peer(text, 2))).collect()
    }

    fn address(text: &str) -> Address {
        peer(text, 1).address
    }

    fn after(wanted: Wanted, list: Option<List>, is_configured: bool) -> Result<Plan, Refused> {
        let group = |name: &Name| match name.as_str() {
            "group" => {
                Some(self::list(&["2.2.2.2:1", "2.2.2.2:2"]).with_method(Some(Method::Random)))
            }
            "empty" => Some(List::default()),
            _ => None,
        };
        plan(&wanted, Current { list, is_configured }, group)
    }

    fn put(texts: &[(&str, u32)]) -> Result<Plan, Refused> {
        Ok(Plan::Put(List::new(texts.iter().map(|(text, weight)| peer(text, *weight)))))
    }

    const A: &str = "1.1.1.1:1";
    const B: &str = "1.1.1.1:2";
    const C: &str = "unix:/c";

    #[test]
    fn a_list_replaces_whatever_there_is() {
        let wanted = || Wanted::Replace(parts(&[B, A]), None, None);
        for list in [None, Some(List::default()), Some(list(&[C]))] {
            assert_eq!(after(wanted(), list, false), put(&[(B, 2), (A, 2)]));
        }
    }

    #[test]
    fn a_list_has_the_method_it_was_replaced_with() {
        let wanted = |method| Wanted::Replace(parts(&[A]), method, None);
        let hashed = || list(&[A, B]).with_method(Some(Method::IpHash));
        let method = |wanted| match after(wanted, Some(hashed()), true) {
            Ok(Plan::Put(list)) => list.method().cloned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(method(wanted(Some(Method::LeastConn))), Some(Method::LeastConn));
        assert_eq!(method(wanted(None)), None);
        assert_eq!(method(Wanted::Delete), None);
        let weight = Changes { weight: Some(2), ..Changes::default() };
        for part in [
            Wanted::Add(parts(&[C])),
            Wanted::Patch(address(A), weight),
            Wanted::Remove(address(A)),
        ] {
            assert_eq!(method(part), Some(Method::IpHash));
        }
    }

    #[test]
    fn a_list_has_the_checks_it_was_replaced_with() {
        let check = |interval| Some(Arc::new(Check { interval, ..Check::default() }));
        let wanted = |check| Wanted::Replace(parts(&[A]), None, check);
        let put = |wanted| match after(wanted, Some(list(&[A, B]).with_check(check(1))), true) {
            Ok(Plan::Put(list)) => list.check().cloned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(put(wanted(check(2))), check(2));
        assert_eq!(put(wanted(None)), None);
        assert_eq!(put(Wanted::Delete), None);
        let weight = Changes { weight: Some(2), ..Changes::default() };
        for part in [
            Wanted::Add(parts(&[C])),
            Wanted::Patch(address(A), weight),
            Wanted::Remove(address(A)),
        ] {
            assert_eq!(put(part), check(1));
        }
    }

    #[test]
    fn a_server_that_is_there_keeps_its_place_when_it_is_added() {
        let add = |texts: &[&str]| after(Wanted::Add(parts(texts)), Some(list(&[A, B])), false);
        assert_eq!(add(&[A]), put(&[(A, 2), (B, 1)]));
        assert_eq!(add(&[C]), put(&[(A, 1), (B, 1), (C, 2)]));
        assert_eq!(after(Wanted::Add(parts(&[A])), None, true), Err(Refused::NoUpstream));
    }

    #[test]
    fn a_patch_changes_what_it_gives() {
        let changes = Changes { down: Some(true), weight: Some(7), ..Changes::default() };
        let patch = |text| Wanted::Patch(address(text), changes);
        let down = Peer {
            parameters: Parameters { down: true, weight: 7, ..Parameters::NGINX },
            ..peer(B, 1)
        };
        let expected = Plan::Put(List::new([peer(A, 1), down]));
        assert_eq!(after(patch(B), Some(list(&[A, B])), false), Ok(expected));
        assert_eq!(after(patch(C), Some(list(&[A, B])), false), Err(Refused::NoServer));
        assert_eq!(after(patch(C), None, false), Err(Refused::NoUpstream));
    }

    #[test]
    fn the_last_server_stays() {
        let remove = |text, list| after(Wanted::Remove(address(text)), Some(list), true);
        assert_eq!(remove(A, list(&[A, B])), put(&[(B, 1)]));
        assert_eq!(remove(C, list(&[A, B])), Err(Refused::NoServer));
        assert_eq!(remove(A, list(&[A])), Err(Refused::LastServer));
    }

    #[test]
    fn what_nginx_conf_has_is_emptied_and_anything_else_removed() {
        assert_eq!(after(Wanted::Delete, Some(list(&[A])), true), Ok(Plan::Put(List::default())));
        assert_eq!(after(Wanted::Delete, Some(list(&[A])), false), Ok(Plan::Remove));
        assert_eq!(after(Wanted::Delete, None, true), Ok(Plan::Put(List::default())));
        assert_eq!(after(Wanted::Delete, None, false), Ok(Plan::Remove));
        assert_eq!(after(Wanted::Reset, None, true), Ok(Plan::Remove));
        assert_eq!(after(Wanted::Reset, Some(list(&[A])), false), Err(Refused::NotConfigured));
    }

    #[test]
    fn another_upstream_gives_its_servers() {
        let place = Place::Server(0);
        let from = |name: &str, changes| {
            let name = Name::parse(name.as_bytes()).unwrap();
            let parts = vec![Part::Peer(peer(A, 3)), Part::Upstream(place, name, changes)];
            after(Wanted::Replace(parts, None, None), None, false)
        };
        let none = Changes::default();
        let all = [(A, 3), ("2.2.2.2:1", 1), ("2.2.2.2:2", 1)];
        assert_eq!(from("group", none), put(&all));
        let heavy = Changes { weight: Some(9), ..none };
        assert_eq!(from("group", heavy), put(&[(A, 3), ("2.2.2.2:1", 9), ("2.2.2.2:2", 9)]));
        let name = |text: &str| Name::parse(text.as_bytes()).unwrap();
        assert_eq!(from("none", none), Err(Refused::NoGroup(place, name("none"))));
        assert_eq!(from("empty", none), Err(Refused::EmptyGroup(place, name("empty"))));
    }

    #[test]
    fn what_consul_said_of_another_upstreams_servers_can_be_changed() {
        let wanted = Wanted::Replace(
            vec![Part::Upstream(
                Place::Server(0),
                Name::parse(b"group").unwrap(),
                Changes::default(),
            )],
            None,
            None,
        );
        let with = |down, critical| {
            let parameters = Parameters { down, critical, ..Parameters::CONSUL };
            List::new([Peer { parameters, ..peer(A, 1) }])
        };
        let current = || Current { list: None, is_configured: false };
        let put = plan(&wanted, current(), |_| Some(with(false, true)));
        assert_eq!(put, Ok(Plan::Put(with(true, false))));
    }
}
