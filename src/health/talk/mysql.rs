//! `mysql`: the greeting that a server of MySQL's protocol begins with.
#![forbid(unsafe_code)]

use super::{Step, Talk, Verdict};
use crate::model::Reason;
use crate::model::reason::Stage;

/// Length in three bytes, and the packet's number.
const HEADER: usize = 4;

/// The longest first packet, in bytes; a greeting has about a hundred.
const LENGTH_MAX: usize = 4096;

/// What follows the version's name in the oldest of greetings: the connection's number, and eight
/// bytes of salt.
const AFTER_VERSION: usize = 4 + 8;

/// The first byte of an error.
const ERROR: u8 = 0xff;

/// The conversation, in which the server alone speaks.
#[derive(Default)]
pub struct Mysql {
    /// What has come, up to the longest first packet.
    received: Vec<u8>,
}

impl Mysql {
    /// What the first packet says, once enough of it is there.
    fn verdict(&self) -> Option<Verdict> {
        let [low, middle, high, number, payload @ ..] = self.received.as_slice() else {
            return None;
        };
        let length = u32::from_le_bytes([*low, *middle, *high, 0]) as usize;
        if length == 0 || length > LENGTH_MAX {
            return Some(Verdict::Failed(Reason::NotMysql));
        }
        match (*payload.first()?, number) {
            // A proxy may have counted packets that it has not sent.
            (ERROR, _) if length >= 3 => {
                let [_, low, high, ..] = payload else { return None };
                let code = u16::from_le_bytes([*low, *high]);
                Some(Verdict::Failed(Reason::Mysql(code)))
            }
            (9 | 10, 0) => Some(match payload.get(1..length)? {
                greeting if has_version(greeting) => Verdict::WELL,
                _ => Verdict::Failed(Reason::NotMysql),
            }),
            _ => Some(Verdict::Failed(Reason::NotMysql)),
        }
    }
}

/// Whether a greeting, after the protocol's number, has a version's name and what every protocol
/// has after it.
fn has_version(greeting: &[u8]) -> bool {
    let end = greeting.iter().position(|byte| *byte == 0);
    end.is_some_and(|end| end > 0 && greeting.len() - end > AFTER_VERSION)
}

impl Talk for Mysql {
    fn open(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn received(&mut self, bytes: &[u8]) -> Step {
        let room = (HEADER + LENGTH_MAX).saturating_sub(self.received.len());
        self.received.extend(bytes.iter().take(room));
        self.verdict().map_or(Step::Wait, Step::Done)
    }

    fn closed(&mut self) -> Verdict {
        Verdict::Failed(Reason::Closed(Stage::Read))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{hear, judge};
    use super::*;
    use proptest::prelude::*;

    const MARIADB: &[u8] = b"d\0\0\0\n5.5.5-10.11.19-MariaDB-0+deb12u1\0\x04\0\0\0m]hs,}Up\0\
        \xfe\xf7\x08\x02\0\xff\x81\x15\0\0\0\0\0\0\x1d\0\0\0S/.:yrQ|@hiW\0mysql_native_password\0";

    /// As the manual of MySQL 3.20 has it: protocol 9.
    const OLD: &[u8] = b"\x17\0\0\0\x093.20.32\0\x01\0\0\0abcdefgh\0\0";

    fn mysql(text: &[u8], closes: bool) -> Option<Verdict> {
        judge(Mysql::default, text, closes)
    }

    fn failed(reason: Reason) -> Option<Verdict> {
        Some(Verdict::Failed(reason))
    }

    #[test]
    fn a_greeting_is_the_answer() {
        assert!(Mysql::default().open().is_empty());
        for greeting in [MARIADB, OLD] {
            assert_eq!(mysql(greeting, false), Some(Verdict::WELL));
            let cut = &greeting[..greeting.len() - 1];
            assert_eq!(mysql(cut, false), None);
            assert_eq!(mysql(cut, true), failed(Reason::Closed(Stage::Read)));
        }
        assert_eq!(mysql(b"", true), failed(Reason::Closed(Stage::Read)));
    }

    #[test]
    fn an_error_is_a_failure_with_its_code() {
        let full = b"\x17\0\0\0\xff\x10\x04Too many connections";
        assert_eq!(mysql(full, true), failed(Reason::Mysql(1040)));
        let blocked = b"\x0e\0\0\x01\xff\x69\x04#HY000Blocked";
        assert_eq!(mysql(blocked, true), failed(Reason::Mysql(1129)));
    }

    #[test]
    fn anything_else_is_not_mysql() {
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\0\0\0\0\x0a",
            b"\x02\0\0\0\xff\x10\x04",
            b"\x05\0\0\0\x0a8.0\0",
            b"\x17\0\0\x01\x0a8.0.36\0\x01\0\0\0abcdefgh\0\0\0\0",
            b"\x10\0\0\0\x0a\0\x01\0\0\0abcdefgh\0\0\0\0",
            b"\x17\0\0\0\x0b8.0.36\0\x01\0\0\0abcdefgh\0\0\0\0",
            b"\x01\x10\0\0",
        ] {
            assert_eq!(mysql(other, true), failed(Reason::NotMysql), "{}", other.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(
            length in 0..40_u8, number in 0..2_u8, rest: Vec<u8>,
            pieces in prop::collection::vec(any::<Vec<u8>>(), 0..5),
        ) {
            hear(&mut Mysql::default(), pieces.iter().map(Vec::as_slice), true);
            mysql(&[&[length, 0, 0, number], rest.as_slice()].concat(), true);
        }

        #[test]
        fn little_is_kept(bytes in prop::collection::vec(any::<u8>(), 0..3 * LENGTH_MAX)) {
            let mut mysql = Mysql::default();
            for piece in bytes.chunks(100) {
                mysql.received(piece);
                assert!(mysql.received.len() <= HEADER + LENGTH_MAX);
            }
        }
    }
}
