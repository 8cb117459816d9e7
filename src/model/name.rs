//! Names of upstreams that are made and changed at run time.
#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::fmt;

use thiserror::Error;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;

/// Letters, digits, `.`, `-`, `_` and `:`, 1 to [`NAME_MAX`] bytes, in lower case: nginx compares
/// names of upstreams without regard to ASCII case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "invalid upstream name, expected 1 to {NAME_MAX} letters, digits, \".\", \"-\", \"_\" or \":\""
)]
pub struct NameError;

impl Name {
    /// Reads a name in whatever case.
    pub fn parse(text: &[u8]) -> Result<Self, NameError> {
        let fits = (1..=NAME_MAX).contains(&text.len()) && text.iter().copied().all(is_name_byte);
        let text = fits.then(|| text.to_ascii_lowercase()).ok_or(NameError)?;
        String::from_utf8(text).map(Self).map_err(|_| NameError)
    }

    /// The name in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host and the port that a request names this upstream by: nginx splits what
    /// `proxy_pass` gets from a variable at its first colon, and takes only a number from 1 to
    /// 65,535 for a port. None where nginx cannot come to this name.
    pub fn host_and_port(&self) -> Option<(&str, Option<u16>)> {
        match self.0.split_once(':') {
            None => Some((&self.0, None)),
            Some((host, port)) => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let port = port.parse().ok().filter(|&port: &u16| digits && port != 0)?;
                Some((host, Some(port))).filter(|_| !host.is_empty())
            }
        }
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-_:".contains(&byte)
}

/// A name is found by its text in lower case.
impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_lower_case_and_bounded() {
        assert_eq!(Name::parse(b"Node-Dev.upyun_1:80").unwrap().as_str(), "node-dev.upyun_1:80");
        assert!(Name::parse(&[b'a'; NAME_MAX]).is_ok());
        for wrong in [&b""[..], b"a b", b"a/b", b"a\0", b"a;", "é".as_bytes(), &[b'a'; 256]] {
            assert_eq!(Name::parse(wrong), Err(NameError));
        }
    }

    #[test]
    fn a_port_is_what_nginx_takes_for_one() {
        let split = |text: &str| {
            let name = Name::parse(text.as_bytes()).unwrap();
            name.host_and_port().map(|(host, port)| (host.to_owned(), port))
        };
        assert_eq!(split("a.b"), Some(("a.b".into(), None)));
        assert_eq!(split("a:80"), Some(("a".into(), Some(80))));
        for nowhere in ["a:0", "a:65536", "a:b", "a:", ":80", "a:1:2"] {
            assert_eq!(split(nowhere), None, "{nowhere}");
        }
    }
}
