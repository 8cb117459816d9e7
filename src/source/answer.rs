//! The servers that an answer of Consul asks for.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::consul::{Entry, Kind};
use crate::model::{Address, Endpoint, List, Parameters, Peer, Printable};

/// A server as Consul has it, whose name may stand for several addresses.
pub type Server = (Endpoint, Parameters);

/// What is usable of an answer, and what is to be said about the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// No endpoint twice; of the same the first counts.
    pub servers: Vec<Server>,
    /// Printable, one for each entry with a fault.
    pub complaints: Vec<String>,
    /// Whether there was no entry at all.
    pub is_empty: bool,
}

/// Takes what entries are good. One with an unknown endpoint is left out; one with bad parameters
/// keeps those that `known` has for it, or else gets the defaults.
pub fn read(kind: Kind, entries: Vec<Entry>, known: &HashMap<Endpoint, Parameters>) -> Answer {
    let mut answer = Answer { is_empty: entries.is_empty(), ..Answer::default() };
    let mut seen = HashSet::with_capacity(entries.len());
    for entry in entries {
        let mut complain = |reason: &str, then: &str| {
            let noun = kind.entry_noun();
            let name = Printable(&entry.name);
            answer.complaints.push(format!("{noun} \"{name}\": {reason}, {then}"));
        };
        let endpoint = match entry.endpoint {
            Ok(endpoint) => endpoint,
            Err(reason) => {
                complain(&reason, "skipped");
                continue;
            }
        };
        let parameters = entry.parameters.unwrap_or_else(|reason| {
            // The same text with each answer, so that the log has it once.
            complain(&reason, "its last good parameters stay, or else the defaults");
            known.get(&endpoint).copied().unwrap_or(Parameters::CONSUL)
        });
        if seen.insert(endpoint.clone()) {
            answer.servers.push((endpoint, parameters));
        }
    }
    answer
}

/// The list of the servers' addresses, where `resolve` knows those of names. Addresses keep the
/// order of the servers, and within one server that of `resolve`.
pub fn list(servers: &[Server], resolve: impl Fn(&str) -> Vec<IpAddr>) -> List {
    List::new(servers.iter().flat_map(|(endpoint, parameters)| {
        let addresses = match endpoint {
            Endpoint::Address(address) => vec![address.clone()],
            Endpoint::Name { host, port } => {
                let ips = resolve(host).into_iter();
                ips.map(|ip| Address::Ip(SocketAddr::new(ip, *port))).collect()
            }
        };
        addresses.into_iter().map(|address| Peer { address, parameters: *parameters })
    }))
}

/// The names among the servers.
pub fn names(servers: &[Server]) -> HashSet<&str> {
    servers
        .iter()
        .filter_map(|(endpoint, _)| match endpoint {
            Endpoint::Name { host, .. } => Some(host.as_str()),
            Endpoint::Address(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(weight: u32) -> Parameters {
        Parameters { weight, ..Parameters::CONSUL }
    }

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::parse(text, None).unwrap()
    }

    fn entry(text: &str, parameters: Result<Parameters, String>) -> Entry {
        let endpoint = Endpoint::parse(text, None).map_err(|error| error.to_string());
        Entry { name: format!("app/{text}"), endpoint, parameters }
    }

    fn read_kv(entries: Vec<Entry>, known: &[(&str, u32)]) -> Answer {
        let known = known.iter().map(|(text, w)| (endpoint(text), weight(*w))).collect();
        read(Kind::Kv, entries, &known)
    }

    #[test]
    fn an_empty_answer_is_told_from_one_without_a_good_entry() {
        assert!(read_kv(vec![], &[]).is_empty);
        let answer = read_kv(vec![entry("x", Ok(weight(1)))], &[]);
        assert_eq!((answer.is_empty, answer.servers.len(), answer.complaints.len()), (false, 0, 1));
    }

    #[test]
    fn a_bad_entry_hides_no_other() {
        let answer =
            read_kv(vec![entry("x\n", Ok(weight(1))), entry("1.1.1.1:1", Ok(weight(2)))], &[]);
        assert_eq!(answer.servers, [(endpoint("1.1.1.1:1"), weight(2))]);
        assert_eq!(
            answer.complaints,
            [r#"key "app/x\n": no port in "x\n", expected HOST:PORT, skipped"#]
        );
    }

    #[test]
    fn bad_parameters_leave_the_last_good_or_the_defaults() {
        let bad = || Err("bad".to_owned());
        let answer =
            read_kv(vec![entry("1.1.1.1:1", bad()), entry("b:2", bad())], &[("1.1.1.1:1", 7)]);
        assert_eq!(
            answer.servers,
            [(endpoint("1.1.1.1:1"), weight(7)), (endpoint("b:2"), weight(1))]
        );
        assert_eq!(
            answer.complaints,
            [
                r#"key "app/1.1.1.1:1": bad, its last good parameters stay, or else the defaults"#,
                r#"key "app/b:2": bad, its last good parameters stay, or else the defaults"#,
            ]
        );
    }

    #[test]
    fn the_same_endpoint_twice_is_one_server() {
        let entries = ["1.1.1.1:1", "a.b:2", "1.1.1.1:1", "A.B:2"];
        let entries = entries.iter().zip(1..).map(|(text, w)| entry(text, Ok(weight(w))));
        let answer = read_kv(entries.collect(), &[]);
        assert_eq!(
            answer.servers,
            [(endpoint("1.1.1.1:1"), weight(1)), (endpoint("a.b:2"), weight(2))]
        );
        assert_eq!(answer.complaints, Vec::<String>::new());
    }

    #[test]
    fn names_stand_for_all_their_addresses() {
        let servers =
            [("1.1.1.1:1", 1), ("a:1", 2), ("b:3", 3)].map(|(t, w)| (endpoint(t), weight(w)));
        assert_eq!(names(&servers), HashSet::from(["a", "b"]));
        let list = list(&servers, |host| match host {
            "a" => vec!["1.1.1.1".parse().unwrap(), "::1".parse().unwrap()],
            _ => vec![],
        });
        let lines: Vec<_> =
            list.peers().iter().map(|p| (p.address.to_string(), p.parameters.weight)).collect();
        assert_eq!(lines, [("1.1.1.1:1".to_owned(), 1), ("[::1]:1".to_owned(), 2)]);
    }
}
