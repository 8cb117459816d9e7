//! The method that a block's directives come to.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use thiserror::Error;

use crate::model::Method;
use crate::model::method::{Lb, Moment};

/// `upsync_lb` and the balancing directive of a block do not go together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChosenError {
    /// `hash_modula` or `hash_ketama` without the key.
    #[error("\"upsync_lb {0}\" without \"{1}\", expected both")]
    NoKey(&'static str, &'static str),
    /// They name two methods.
    #[error("\"upsync_lb {0}\" beside \"{1}\", expected the same method of both, or one of them")]
    Two(&'static str, String),
    /// The directive has parameters that are not known here.
    #[error("{0}")]
    Unknown(String),
}

/// What they come to. nginx-upsync-module wants the method named twice for some (`hash $uri
/// consistent; upsync_lb hash_ketama;`); here once is enough. `own` are this machine's networks.
pub fn chosen(
    lb: Option<&Lb>,
    directive: Option<&Result<Method, String>>,
    own: impl FnOnce() -> Vec<IpNet>,
) -> Result<Method, ChosenError> {
    let directive = directive.cloned().transpose().map_err(ChosenError::Unknown)?;
    let Some(lb) = lb else {
        return Ok(directive.unwrap_or_default());
    };
    match (lb, directive) {
        (Lb::HashModula, None) => Err(ChosenError::NoKey(lb.name(), "hash KEY")),
        (Lb::HashKetama, None) => Err(ChosenError::NoKey(lb.name(), "hash KEY consistent")),
        (Lb::RoundRobin, None) => Ok(Method::RoundRobin),
        (Lb::IpHash, None) => Ok(Method::IpHash),
        (Lb::LeastConn, None) => Ok(Method::LeastConn),
        (Lb::Random, None) => Ok(Method::Random),
        (Lb::LeastTime, None) => Ok(Method::LeastTime(Moment::Header)),
        (Lb::Local(networks), None) if networks.is_empty() => Ok(Method::Local(own())),
        (Lb::Local(networks), None) => Ok(Method::Local(networks.clone())),
        (lb, Some(method)) if is_same(lb, &method) => Ok(method),
        (lb, Some(method)) => Err(ChosenError::Two(lb.name(), method.to_string())),
    }
}

fn is_same(lb: &Lb, method: &Method) -> bool {
    matches!(
        (lb, method),
        (Lb::HashModula, Method::Hash { consistent: false, .. })
            | (Lb::HashKetama, Method::Hash { consistent: true, .. })
            | (Lb::IpHash, Method::IpHash)
            | (Lb::LeastConn, Method::LeastConn)
            | (Lb::Random, Method::Random | Method::RandomTwo(_))
            | (Lb::LeastTime, Method::LeastTime(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::method;

    fn come_to(lb: &str, directive: &str) -> Result<String, String> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (lb, directive) = (words(lb), words(directive));
        let lb = (!lb.is_empty())
            .then(|| method::lb(&lb.iter().map(String::as_str).collect::<Vec<_>>()).unwrap());
        let directive = (!directive.is_empty()).then(|| {
            let words: Vec<_> = directive.iter().map(String::as_str).collect();
            method::read(&words).map_err(|error| error.to_string())
        });
        let own = || vec!["192.0.2.0/24".parse().unwrap()];
        chosen(lb.as_ref(), directive.as_ref(), own)
            .map(|method| method.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn one_of_both_is_enough() {
        for (lb, directive, method) in [
            ("", "", "upsync_lb roundrobin"),
            ("roundrobin", "", "upsync_lb roundrobin"),
            ("least_conn", "", "least_conn"),
            ("ip_hash", "", "ip_hash"),
            ("random", "", "random"),
            ("least_time", "", "least_time header"),
            ("local", "", "upsync_lb local 192.0.2.0/24"),
            ("local 10.0.0.0/8 ::1", "", "upsync_lb local 10.0.0.0/8 ::1/128"),
            ("", "hash $uri", "hash $uri"),
            ("", "random two", "random two least_conn"),
        ] {
            assert_eq!(come_to(lb, directive), Ok(method.to_owned()), "{lb} {directive}");
        }
    }

    #[test]
    fn both_may_say_the_same() {
        for (lb, directive) in [
            ("least_conn", "least_conn"),
            ("ip_hash", "ip_hash"),
            ("hash_modula", "hash $uri"),
            ("hash_ketama", "hash $uri consistent"),
            ("random", "random"),
            ("random", "random two least_time=last_byte"),
            ("least_time", "least_time last_byte"),
        ] {
            assert_eq!(come_to(lb, directive), Ok(directive.to_owned()));
        }
    }

    #[test]
    fn a_contradiction_names_both() {
        for (lb, directive) in [
            ("roundrobin", "least_conn"),
            ("least_conn", "ip_hash"),
            ("hash_ketama", "hash $uri"),
            ("hash_modula", "hash $uri consistent"),
            ("local", "random"),
        ] {
            let text = format!(
                "\"upsync_lb {lb}\" beside \"{directive}\", expected the same method of both, or one of them"
            );
            assert_eq!(come_to(lb, directive), Err(text));
        }
    }

    #[test]
    fn a_hash_needs_its_key() {
        assert_eq!(
            come_to("hash_ketama", ""),
            Err(r#""upsync_lb hash_ketama" without "hash KEY consistent", expected both"#
                .to_owned())
        );
        assert_eq!(
            come_to("hash_modula", ""),
            Err(r#""upsync_lb hash_modula" without "hash KEY", expected both"#.to_owned())
        );
    }
}
