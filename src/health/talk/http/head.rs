//! The head of an answer of HTTP/1: its status, and what it says of the body and the connection.
#![forbid(unsafe_code)]

use httparse::{EMPTY_HEADER, Header, ParserConfig, Response, Status};

use super::status_line::{StatusLine, Version};
use crate::model::Reason;

/// The most headers of an answer.
pub const HEADERS_MAX: usize = 1000;

/// In place of a status line that was read already.
const ANY_LINE: &[u8] = b"HTTP/1.1 200\r\n";

/// What the head of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where the body ends.
    pub framing: Framing,
    /// The server keeps the connection for more requests.
    pub keeps: bool,
}

/// Where the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With a last chunk.
    Chunked,
    /// With the connection.
    Close,
    /// The headers contradict each other, or say what nobody asked for.
    Invalid,
}

impl Head {
    /// Reads the headers behind `line`, with the empty line at their end. `no_body` says that the
    /// request was of a kind that gets none, as `HEAD`.
    ///
    /// As nginx does, it passes over lines that are no headers.
    ///
    /// # Errors
    ///
    /// [`Reason::NotHttp`] and, for too many headers, [`Reason::TooLong`].
    pub fn read(line: StatusLine, bytes: &[u8], no_body: bool) -> Result<Self, Reason> {
        let bytes = [ANY_LINE, bytes].concat();
        let mut headers = vec![EMPTY_HEADER; HEADERS_MAX];
        let mut response = Response::new(&mut headers);
        match parser().parse_response(&mut response, &bytes) {
            Ok(Status::Complete(length)) if length == bytes.len() => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Reason::TooLong),
            _ => return Err(Reason::NotHttp),
        }
        let framing = match line.code {
            100..=199 | 204 | 304 => Framing::Length(0),
            _ if no_body => Framing::Length(0),
            _ => framing(response.headers),
        };
        let keeps = line.code != 101 && keeps(line.version, framing, response.headers);
        Ok(Self { framing, keeps })
    }
}

fn parser() -> ParserConfig {
    let mut parser = ParserConfig::default();
    parser
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_space_before_first_header_name(true)
        .ignore_invalid_headers_in_responses(true);
    parser
}

/// RFC 9112, 6.3, but that like nginx it takes no coding besides `chunked`, and that not with a
/// length.
fn framing(headers: &[Header]) -> Framing {
    let mut codings = values(headers, "transfer-encoding");
    let mut lengths = values(headers, "content-length").map(length);
    match (codings.next(), lengths.next()) {
        (None, None) => Framing::Close,
        (None, Some(Some(length))) if lengths.all(|other| other == Some(length)) => {
            Framing::Length(length)
        }
        (Some(coding), None)
            if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() =>
        {
            Framing::Chunked
        }
        _ => Framing::Invalid,
    }
}

/// Digits alone: a sign, which a parser of numbers takes, would be read otherwise by others.
fn length(value: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(value).ok().filter(|_| value.iter().all(u8::is_ascii_digit))?;
    digits.parse().ok()
}

fn keeps(version: Version, framing: Framing, headers: &[Header]) -> bool {
    let says = |option: &[u8]| {
        values(headers, "connection")
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(option))
    };
    let is_kept = match version {
        Version::V1_1 => true,
        Version::V1_0 => framing != Framing::Chunked && says(b"keep-alive"),
        Version::Other => false,
    };
    is_kept && !says(b"close")
}

fn values<'a>(headers: &'a [Header], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| header.value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a status line and headers.
    fn read(text: &str, no_body: bool) -> Result<Head, Reason> {
        let (line, length) = StatusLine::read(text.as_bytes()).unwrap().unwrap();
        Head::read(line, &text.as_bytes()[length..], no_body)
    }

    fn head(text: &str) -> Head {
        read(text, false).unwrap_or_else(|reason| panic!("{text}: {reason}"))
    }

    fn framing(headers: &str) -> Framing {
        head(&format!("HTTP/1.1 200 OK\r\n{headers}\r\n")).framing
    }

    #[test]
    fn lines_that_are_no_headers_are_passed_over() {
        let lines = "no header\r\n@: x\r\nA : b\r\nC: d\r\n e\r\nContent-Length: 7\n";
        assert_eq!(framing(lines), Framing::Length(7));
        assert_eq!(head("HTTP/1.0 200\n\n").framing, Framing::Close);
    }

    #[test]
    fn what_is_not_http() {
        for headers in
            ["A: \0\r\n\r\n", "A: b\rc\r\n\r\n", "\r\r\n\r\n", "A: b\r\n", "\r\n\r\n", ""]
        {
            let text = format!("HTTP/1.1 200 OK\r\n{headers}");
            assert_eq!(read(&text, false), Err(Reason::NotHttp), "{headers:?}");
        }
    }

    #[test]
    fn headers_are_bounded() {
        let of = |count| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(head(&of(HEADERS_MAX)).framing, Framing::Close);
        assert_eq!(read(&of(HEADERS_MAX + 1), false), Err(Reason::TooLong));
    }

    #[test]
    fn where_the_body_ends() {
        for (headers, expected) in [
            ("", Framing::Close),
            ("Content-Length: 12\r\n", Framing::Length(12)),
            ("content-length:0012 \r\nContent-Length: 12\r\n", Framing::Length(12)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
            ("Transfer-Encoding : chunked\r\n", Framing::Chunked),
        ] {
            assert_eq!(framing(headers), expected, "{headers}");
        }
        for headers in [
            "Content-Length: 12\r\nContent-Length: 13\r\n",
            "Content-Length: 12\r\nContent-Length: x\r\n",
            "Content-Length: +12\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 12, 12\r\n",
            "Content-Length: 0x10\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Content-Length: 1\r\n 2\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 12\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
        ] {
            assert_eq!(framing(headers), Framing::Invalid, "{headers}");
        }
    }

    #[test]
    fn some_answers_have_no_body() {
        for status in ["204 No Content", "304 Not Modified", "101 Switching", "100 Continue"] {
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
            assert_eq!(head(&text).framing, Framing::Length(0), "{text}");
        }
        let head = read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true).unwrap();
        assert_eq!((head.framing, head.keeps), (Framing::Length(0), true));
    }

    #[test]
    fn who_keeps_the_connection() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nConnection: upgrade, Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", true),
            (
                "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            ("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\n\r\n", false),
            ("HTTP/1.2 200 OK\r\n\r\n", false),
            ("HTTP/2.0 200 OK\r\nConnection: keep-alive\r\n\r\n", false),
        ] {
            assert_eq!(head(text).keeps, expected, "{text}");
        }
    }
}
