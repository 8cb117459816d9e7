//! What the tests of all conversations need.
#![forbid(unsafe_code)]

use super::{Step, Talk, Verdict};

/// What comes of a server that says these pieces and, if it `closes`, closes the connection then;
/// none as long as more has to come.
pub fn hear<'a>(
    talk: &mut dyn Talk,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    closes: bool,
) -> Option<Verdict> {
    talk.open();
    for piece in pieces {
        match talk.received(piece) {
            Step::Wait => {}
            Step::Done(verdict) => return Some(verdict),
            Step::Send(bytes) => panic!("{bytes:?} to be sent"),
        }
    }
    closes.then(|| talk.closed())
}

/// As [`hear`], for a text in any pieces: byte by byte, in two parts, and in one it has to come to the
/// same, but for whether the connection may be used again: what comes too much is not always seen.
pub fn judge<T: Talk>(make: impl Fn() -> T, text: &[u8], closes: bool) -> Option<Verdict> {
    let whole = hear(&mut make(), [text], closes);
    let bytes = hear(&mut make(), text.chunks(1), closes);
    assert_eq!(bytes.map(result), whole.map(result), "byte by byte: {}", text.escape_ascii());
    // A long text in as many pairs of parts as a short one.
    for split in (0..text.len()).step_by(text.len() / 512 + 1) {
        let (first, second) = text.split_at(split);
        let parts = hear(&mut make(), [first, second], closes);
        let shown = text.escape_ascii();
        assert_eq!(parts.map(result), whole.map(result), "split at {split}: {shown}");
    }
    whole
}

fn result(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Well { .. } => Verdict::WELL,
        failed => failed,
    }
}
