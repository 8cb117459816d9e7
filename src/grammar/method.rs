//! Balancing methods as directives of `upstream {}` say them.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use super::key::{Key, KeyError};
use crate::model::Printable;
use crate::model::method::{Better, Lb, Method, Moment};

/// Why words are no method.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MethodError {
    /// No such directive.
    #[error(
        "unknown method \"{}\", expected least_conn, ip_hash, hash, random or least_time",
        Printable(.0)
    )]
    Unknown(String),
    /// A directive that says too little.
    #[error("no parameter after \"{0}\", expected {1}")]
    Missing(&'static str, &'static str),
    /// A parameter that the directive has not, or not at this place.
    #[error("unexpected \"{}\" in \"{name}\", expected {expected}", Printable(.value))]
    Unexpected {
        /// Which word of the directive it is; its name is word 0.
        at: usize,
        /// The directive.
        name: &'static str,
        /// The parameter.
        value: String,
        /// What the directive has.
        expected: &'static str,
    },
    /// Of the first parameter of `hash`.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl MethodError {
    /// Which word of the directive is wrong; its name is word 0.
    pub fn at(&self) -> usize {
        match self {
            Self::Unknown(_) | Self::Missing(..) => 0,
            Self::Unexpected { at, .. } => *at,
            Self::Key(_) => 1,
        }
    }
}

/// A directive that chooses a method.
struct Form {
    name: &'static str,
    /// What may stand at each place behind the name; none is whatever there is.
    places: &'static [&'static [&'static str]],
    /// For messages.
    expected: &'static str,
}

const FORMS: [Form; 5] = [
    Form { name: "least_conn", places: &[], expected: "no parameter" },
    Form { name: "ip_hash", places: &[], expected: "no parameter" },
    Form { name: "hash", places: &[&[], &["consistent"]], expected: "\"hash KEY [consistent]\"" },
    Form {
        name: "random",
        places: &[&["two"], &["least_conn", "least_time=header", "least_time=last_byte"]],
        expected: "\"random [two [least_conn|least_time=header|least_time=last_byte]]\"",
    },
    Form {
        name: "least_time",
        places: &[&["header", "last_byte"]],
        expected: "\"least_time header\" or \"least_time last_byte\"",
    },
];

/// The most words that a directive has, its name counted.
pub(super) const WORDS_MAX: usize = 3;

const LB: &str = "roundrobin, ip_hash, least_conn, hash_modula, hash_ketama, random, least_time or \
                  local [NETWORK...]";
/// The most networks of `upsync_lb local`, as each server is compared with all.
pub const NETWORKS_MAX: usize = 64;

const NETWORK: &str = "addresses and networks such as 10.0.0.0/8";

/// Whether a directive of this name chooses a method.
pub fn is_method(name: &str) -> bool {
    FORMS.iter().any(|form| form.name == name)
}

/// Reads the text that [`Method`]'s `Display` writes.
pub fn parse(text: &str) -> Option<Method> {
    let words: Vec<&str> = text.split(' ').collect();
    read_any(&words).ok()
}

/// As [`read`], and also the two methods that have no directive but `upsync_lb`: `upsync_lb
/// roundrobin` and `upsync_lb local [NETWORK...]`.
pub fn read_any(words: &[&str]) -> Result<Method, MethodError> {
    let Some((&"upsync_lb", values)) = words.split_first() else { return read(words) };
    match lb(values)? {
        Lb::RoundRobin => Ok(Method::RoundRobin),
        Lb::Local(networks) => Ok(Method::Local(networks)),
        _ => {
            let value = values.first().copied().unwrap_or_default();
            Err(unexpected(1, "upsync_lb", value, "roundrobin or local [NETWORK...]"))
        }
    }
}

/// Reads the words of a directive, its name first, without the semicolon: `least_conn`, `ip_hash`,
/// `hash KEY [consistent]`, `random [two [least_conn|least_time=header|least_time=last_byte]]` or
/// `least_time header|last_byte`. KEY is what [`Key::parse`] reads.
pub fn read(words: &[&str]) -> Result<Method, MethodError> {
    let least_time = |moment| Method::RandomTwo(Better::LeastTime(moment));
    match words {
        ["least_conn"] => Ok(Method::LeastConn),
        ["ip_hash"] => Ok(Method::IpHash),
        ["hash", key] => hash(key, false),
        ["hash", key, "consistent"] => hash(key, true),
        ["random"] => Ok(Method::Random),
        ["random", "two"] | ["random", "two", "least_conn"] => {
            Ok(Method::RandomTwo(Better::LeastConn))
        }
        ["random", "two", "least_time=header"] => Ok(least_time(Moment::Header)),
        ["random", "two", "least_time=last_byte"] => Ok(least_time(Moment::LastByte)),
        ["least_time", "header"] => Ok(Method::LeastTime(Moment::Header)),
        ["least_time", "last_byte"] => Ok(Method::LeastTime(Moment::LastByte)),
        _ => Err(fault(words)),
    }
}

fn hash(key: &str, consistent: bool) -> Result<Method, MethodError> {
    Key::parse(key)?;
    Ok(Method::Hash { key: key.to_owned(), consistent })
}

/// What is wrong with words that are no directive.
fn fault(words: &[&str]) -> MethodError {
    let (name, parameters) = words.split_first().unwrap_or((&"", &[]));
    let Some(form) = FORMS.iter().find(|form| form.name == *name) else {
        return MethodError::Unknown((*name).to_owned());
    };
    let fits = |place: usize, parameter: &str| {
        let there = form.places.get(place);
        there.is_some_and(|there| there.is_empty() || there.contains(&parameter))
    };
    let wrong = parameters.iter().enumerate().find(|(place, word)| !fits(*place, word));
    match wrong {
        Some((place, word)) => unexpected(place + 1, form.name, word, form.expected),
        None => MethodError::Missing(form.name, form.expected),
    }
}

/// Reads the values of `upsync_lb`, without its name: `roundrobin`, `ip_hash`, `least_conn`,
/// `hash_modula`, `hash_ketama`, `random`, `least_time`, or `local` with addresses and networks
/// behind it, such as `10.0.0.0/8` and `fe80::1`.
pub fn lb(words: &[&str]) -> Result<Lb, MethodError> {
    let (&name, networks) = words.split_first().ok_or(MethodError::Missing("upsync_lb", LB))?;
    let lb = match name {
        "local" => return local(networks).map(Lb::Local),
        "roundrobin" => Lb::RoundRobin,
        "ip_hash" => Lb::IpHash,
        "least_conn" => Lb::LeastConn,
        "hash_modula" => Lb::HashModula,
        "hash_ketama" => Lb::HashKetama,
        "random" => Lb::Random,
        "least_time" => Lb::LeastTime,
        _ => return Err(unexpected(1, "upsync_lb", name, LB)),
    };
    match networks.first() {
        Some(word) => Err(unexpected(2, "upsync_lb", word, "one value")),
        None => Ok(lb),
    }
}

fn local(words: &[&str]) -> Result<Vec<IpNet>, MethodError> {
    if let Some(word) = words.get(NETWORKS_MAX) {
        return Err(unexpected(NETWORKS_MAX + 2, "upsync_lb local", word, "64 networks at most"));
    }
    let networks = words.iter().enumerate().map(|(place, word)| {
        let network = word.parse().or_else(|_| word.parse::<IpAddr>().map(IpNet::from));
        network.map_err(|_| unexpected(place + 2, "upsync_lb local", word, NETWORK))
    });
    networks.collect()
}

fn unexpected(at: usize, name: &'static str, value: &str, expected: &'static str) -> MethodError {
    MethodError::Unexpected { at, name, value: value.to_owned(), expected }
}

#[cfg(test)]
pub(crate) mod tests;
