//! `ajp`: AJP/1.3's CPing, which a good server answers by a CPong.
#![forbid(unsafe_code)]

use super::{Step, Talk, Verdict};
use crate::model::Reason;
use crate::model::reason::Stage;

/// Magic, length of what follows, and its kind.
const CPING: [u8; 5] = [0x12, 0x34, 0x00, 0x01, 0x0a];

/// The same in the other direction.
const CPONG: [u8; 5] = [b'A', b'B', 0x00, 0x01, 0x09];

/// The conversation.
#[derive(Default)]
pub struct Ajp {
    /// How much of the CPong has come.
    matched: usize,
}

impl Talk for Ajp {
    fn open(&mut self) -> Vec<u8> {
        CPING.to_vec()
    }

    fn received(&mut self, bytes: &[u8]) -> Step {
        for (byte, expected) in bytes.iter().zip(CPONG.iter().skip(self.matched)) {
            if byte != expected {
                return Step::Done(Verdict::Failed(Reason::NotAjp));
            }
            self.matched += 1;
        }
        if self.matched == CPONG.len() { Step::Done(Verdict::WELL) } else { Step::Wait }
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

    fn ajp(text: &[u8], closes: bool) -> Option<Verdict> {
        judge(Ajp::default, text, closes)
    }

    #[test]
    fn a_cpong_is_the_answer() {
        assert_eq!(Ajp::default().open(), b"\x12\x34\0\x01\x0a");
        assert_eq!(ajp(b"AB\0\x01\x09", false), Some(Verdict::WELL));
        assert_eq!(ajp(b"AB\0\x01", false), None);
        for other in [&b"AB\0\x01\x0a"[..], b"\x12\x34\0\x01\x09", b"HTTP/1.1 400 \r\n\r\n", b"AA"]
        {
            assert_eq!(ajp(other, true), Some(Verdict::Failed(Reason::NotAjp)));
        }
        for cut in [&b""[..], b"AB\0\x01"] {
            assert_eq!(ajp(cut, true), Some(Verdict::Failed(Reason::Closed(Stage::Read))));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..5)) {
            hear(&mut Ajp::default(), pieces.iter().map(Vec::as_slice), true);
            ajp(&pieces.concat(), true);
        }
    }
}
