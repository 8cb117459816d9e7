//! The first line of an answer of HTTP/1: its version and its status.
#![forbid(unsafe_code)]

use crate::model::Reason;

/// What the line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusLine {
    /// The version.
    pub version: Version,
    /// The status, 0 to 999.
    pub code: u16,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    V1_0,
    /// HTTP/1.1.
    V1_1,
    /// One that says nothing about the connection.
    Other,
}

/// Why there is no line.
enum Stop {
    More,
    NotHttp,
}

impl StatusLine {
    /// Reads the line, and says how long it is with its end; none is one that has not come to its end.
    ///
    /// As in nginx_upstream_check_module, any version with a dot is taken, and any text behind the status.
    ///
    /// # Errors
    ///
    /// [`Reason::NotHttp`], as soon as that is to be seen.
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, Reason> {
        match parse(bytes) {
            Ok((line, rest)) => Ok(Some((line, bytes.len() - rest.len()))),
            Err(Stop::More) => Ok(None),
            Err(Stop::NotHttp) => Err(Reason::NotHttp),
        }
    }

    /// Whether another answer follows. A change of protocol is the last that is said in this one.
    pub fn is_interim(self) -> bool {
        (100..200).contains(&self.code) && self.code != 101
    }
}

/// The line, and what follows.
fn parse(bytes: &[u8]) -> Result<(StatusLine, &[u8]), Stop> {
    let rest = literal(bytes, b"HTTP/")?;
    let (major, rest) = digits(rest)?;
    let (minor, rest) = digits(literal(rest, b".")?)?;
    let version = match (major, minor) {
        (b"1", b"0") => Version::V1_0,
        (b"1", b"1") => Version::V1_1,
        ([b'0', ..], _) => return Err(Stop::NotHttp),
        _ => Version::Other,
    };
    let (code, rest) = code(spaces(rest)?)?;
    // IIS says 403.1 and the like.
    match rest.first() {
        Some(b' ' | b'.' | b'\r' | b'\n') => {}
        Some(_) => return Err(Stop::NotHttp),
        None => return Err(Stop::More),
    }
    Ok((StatusLine { version, code }, end_of_line(rest)?))
}

/// What follows the text.
fn literal<'a>(bytes: &'a [u8], text: &[u8]) -> Result<&'a [u8], Stop> {
    match bytes.strip_prefix(text) {
        Some(rest) => Ok(rest),
        None if text.starts_with(bytes) => Err(Stop::More),
        None => Err(Stop::NotHttp),
    }
}

/// One digit or more, and what follows.
fn digits(bytes: &[u8]) -> Result<(&[u8], &[u8]), Stop> {
    match bytes.iter().position(|byte| !byte.is_ascii_digit()) {
        Some(0) => Err(Stop::NotHttp),
        Some(end) => Ok(bytes.split_at(end)),
        None => Err(Stop::More),
    }
}

/// What follows one space or more.
fn spaces(bytes: &[u8]) -> Result<&[u8], Stop> {
    match bytes.iter().position(|byte| *byte != b' ') {
        Some(0) => Err(Stop::NotHttp),
        Some(end) => Ok(bytes.split_at(end).1),
        None => Err(Stop::More),
    }
}

/// Three digits, and what follows.
fn code(bytes: &[u8]) -> Result<(u16, &[u8]), Stop> {
    let (digits, rest) = bytes.split_at(bytes.len().min(3));
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(Stop::NotHttp);
    }
    let code = digits.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
    if digits.len() == 3 { Ok((code, rest)) } else { Err(Stop::More) }
}

/// What follows the line.
fn end_of_line(bytes: &[u8]) -> Result<&[u8], Stop> {
    let end = bytes.iter().position(|byte| b"\r\n".contains(byte)).ok_or(Stop::More)?;
    match bytes.split_at(end).1 {
        [b'\n', rest @ ..] | [b'\r', b'\n', rest @ ..] => Ok(rest),
        [b'\r'] => Err(Stop::More),
        _ => Err(Stop::NotHttp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> (Version, u16) {
        match StatusLine::read(format!("{text}HTTP").as_bytes()) {
            Ok(Some((line, length))) if length == text.len() => (line.version, line.code),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn lines() {
        for (text, version, code) in [
            ("HTTP/1.1 200 OK\r\n", Version::V1_1, 200),
            ("HTTP/1.0 503\r\n", Version::V1_0, 503),
            ("HTTP/1.1  404  Not Found\n", Version::V1_1, 404),
            ("HTTP/1.1 000 \r\n", Version::V1_1, 0),
            ("HTTP/1.1 403.1 Forbidden\n", Version::V1_1, 403),
            ("HTTP/1.0 200\n", Version::V1_0, 200),
            ("HTTP/1.1 200 \0\x7f\u{e9}\t\r\n", Version::V1_1, 200),
            ("HTTP/2.0 200 OK\r\n", Version::Other, 200),
            ("HTTP/1.2 200 OK\r\n", Version::Other, 200),
            ("HTTP/1.10 200 OK\r\n", Version::Other, 200),
            ("HTTP/11.1 999 OK\r\n", Version::Other, 999),
        ] {
            assert_eq!(line(text), (version, code), "{text}");
        }
    }

    #[test]
    fn what_is_no_line() {
        for text in [
            "<",
            "h",
            " HTTP/1.1 200 OK\r\n",
            "HTTP 200",
            "HTTP/2 ",
            "HTTP/.",
            "HTTP/0.9 ",
            "HTTP/1. ",
            "HTTP/1.1\t",
            "HTTP/1.1\r",
            "HTTP/1.1 x",
            "HTTP/1.1 2x",
            "HTTP/1.1 20 ",
            "HTTP/1.1 20\r",
            "HTTP/1.1 2000",
            "HTTP/1.1 -20",
            "HTTP/1.1 200OK",
            "HTTP/1.1 200\rO",
            "HTTP/1.1 200 O\rK",
        ] {
            assert_eq!(StatusLine::read(text.as_bytes()), Err(Reason::NotHttp), "{text}");
        }
    }

    #[test]
    fn it_ends_with_its_line() {
        let text = b"HTTP/1.1  200.1 OK\r\n";
        for end in 0..text.len() {
            assert_eq!(StatusLine::read(&text[..end]), Ok(None), "{end}");
        }
    }

    #[test]
    fn what_is_followed_by_another() {
        let interim = |code| StatusLine { version: Version::V1_1, code }.is_interim();
        assert!([100, 102, 103, 199].into_iter().all(interim));
        assert!(![99, 101, 200, 404].into_iter().any(interim));
    }
}
