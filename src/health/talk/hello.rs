//! `ssl_hello`: TLS up to the server's hello.
#![forbid(unsafe_code)]

use super::{Step, Talk, Verdict};
use crate::model::Reason;
use crate::model::reason::Stage;

/// Kinds of records (RFC 8446, 5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// The kind of a handshake's message that is a ServerHello or a HelloRetryRequest.
const SERVER_HELLO: u8 = 2;

/// The most bytes that a record may have.
const LENGTH_MAX: u16 = 1 << 14;

/// The level of an alert after which a server may go on.
const WARNING: u8 = 1;

/// The warning after which it does not.
const CLOSE_NOTIFY: u8 = 0;

/// Header and body of an alert, which is all that has to be kept at a time.
const KEPT_MAX: usize = 5 + 2;

/// The conversation.
pub struct Hello {
    client_hello: Vec<u8>,
    /// The beginning of the record that is being read, at most [`KEPT_MAX`] bytes.
    record: Vec<u8>,
    /// What a server warned of that may still go on. Old ones do so when they do not know the name.
    warning: Option<u8>,
}

impl Hello {
    /// A conversation that begins with `client_hello`, a record as it goes over the connection.
    pub fn new(client_hello: Vec<u8>) -> Self {
        Self { client_hello, record: Vec::with_capacity(KEPT_MAX), warning: None }
    }

    /// What the record says, asked after each byte of it.
    fn verdict(&mut self) -> Option<Verdict> {
        match *self.record.as_slice() {
            [] | [HANDSHAKE | ALERT] | [_, 3] | [_, 3, _] | [_, 3, _, _] => None,
            [HANDSHAKE, _, _, high, low] if is_length(u16::from_be_bytes([high, low])) => None,
            [HANDSHAKE, _, _, _, _, SERVER_HELLO] => Some(Verdict::WELL),
            [ALERT, _, _, 0, 2] | [ALERT, _, _, _, _, _] => None,
            [ALERT, _, _, _, _, level, alert] => self.alert(level, alert),
            _ => Some(Verdict::Failed(Reason::NotTls)),
        }
    }

    /// A second warning is one too many: nobody may go on warning for ever.
    fn alert(&mut self, level: u8, alert: u8) -> Option<Verdict> {
        if level != WARNING || alert == CLOSE_NOTIFY || self.warning.is_some() {
            return Some(Verdict::Failed(Reason::TlsAlert(alert)));
        }
        self.warning = Some(alert);
        self.record.clear();
        None
    }
}

fn is_length(length: u16) -> bool {
    (1..=LENGTH_MAX).contains(&length)
}

impl Talk for Hello {
    fn open(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.client_hello)
    }

    fn received(&mut self, bytes: &[u8]) -> Step {
        for byte in bytes {
            self.record.push(*byte);
            if let Some(verdict) = self.verdict() {
                return Step::Done(verdict);
            }
        }
        Step::Wait
    }

    fn closed(&mut self) -> Verdict {
        Verdict::Failed(self.warning.map_or(Reason::Closed(Stage::Read), Reason::TlsAlert))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{hear, judge};
    use super::*;
    use proptest::prelude::*;

    /// The beginnings of what nginx answers with TLS 1.3 and 1.2 alone.
    const SERVER_HELLO_13: &[u8] = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03\x9d\xdb\xa8\x8d";
    const SERVER_HELLO_12: &[u8] = b"\x16\x03\x03\x00\x41\x02\x00\x00\x3d\x03\x03\x87\xf1\xa4\xf7";

    /// And what it says to a client that is too old.
    const PROTOCOL_VERSION: &[u8] = b"\x15\x03\x03\x00\x02\x02\x46";

    /// What a server says first that does not know the name.
    const UNRECOGNIZED_NAME: &[u8] = b"\x15\x03\x01\x00\x02\x01\x70";

    fn hello(text: &[u8], closes: bool) -> Option<Verdict> {
        judge(|| Hello::new(b"hello".to_vec()), text, closes)
    }

    fn failed(reason: Reason) -> Option<Verdict> {
        Some(Verdict::Failed(reason))
    }

    #[test]
    fn a_hello_is_the_answer() {
        assert_eq!(Hello::new(b"hello".to_vec()).open(), b"hello");
        for text in [SERVER_HELLO_13, SERVER_HELLO_12] {
            assert_eq!(hello(text, true), Some(Verdict::WELL));
        }
        for cut in [&b""[..], b"\x16", b"\x16\x03\x03\x00\x7a"] {
            assert_eq!(hello(cut, false), None);
            assert_eq!(hello(cut, true), failed(Reason::Closed(Stage::Read)));
        }
    }

    #[test]
    fn an_alert_is_a_failure_but_a_first_warning() {
        assert_eq!(hello(PROTOCOL_VERSION, true), failed(Reason::TlsAlert(70)));
        assert_eq!(hello(b"\x15\x03\x03\x00\x02\x01\x00", false), failed(Reason::TlsAlert(0)));
        assert_eq!(hello(UNRECOGNIZED_NAME, false), None);
        assert_eq!(hello(UNRECOGNIZED_NAME, true), failed(Reason::TlsAlert(112)));
        let warned = |then| [UNRECOGNIZED_NAME, then].concat();
        assert_eq!(hello(&warned(SERVER_HELLO_12), false), Some(Verdict::WELL));
        assert_eq!(hello(&warned(UNRECOGNIZED_NAME), false), failed(Reason::TlsAlert(112)));
        assert_eq!(hello(&warned(PROTOCOL_VERSION), false), failed(Reason::TlsAlert(70)));
    }

    #[test]
    fn anything_else_is_not_tls() {
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"\x16\x02",
            b"\x16\x03\x03\x00\x00",
            b"\x16\x03\x03\x40\x01",
            b"\x16\x03\x03\x00\x7a\x01",
            b"\x15\x03\x03\x00\x03",
            b"\x17\x03\x03\x00\x7a\x02",
        ] {
            assert_eq!(hello(other, true), failed(Reason::NotTls), "{}", other.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(
            kind in 20..24_u8, length in 0..4_u8, rest: Vec<u8>,
            pieces in prop::collection::vec(any::<Vec<u8>>(), 0..5),
        ) {
            let mut talk = Hello::new(Vec::new());
            hear(&mut talk, pieces.iter().map(Vec::as_slice), true);
            assert!(talk.record.len() <= KEPT_MAX);
            hello(&[&[kind, 3, 3, 0, length], rest.as_slice()].concat(), true);
        }
    }
}
