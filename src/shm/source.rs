//! How following an upstream's source goes, as worker 0 tells it to all.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(feature = "nginx")]
use super::directory::Upstream;
use super::layout::{ERROR_WORDS, SourceFacts};
use crate::source::Progress;
use crate::source::progress::TEXT_MAX;

const _: () = assert!(TEXT_MAX <= 8 * ERROR_WORDS, "the longest text fits");

/// How following a source went so far. Moments are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Consul's index of the last answer that was used; 0 is none.
    pub index: u64,
    /// When it last answered, if it has.
    pub answered: Option<u64>,
    /// When a question last failed or brought nothing usable, and why.
    pub failed: Option<(u64, String)>,
    /// Whether the last question failed.
    pub is_failing: bool,
    /// Changes that were put in force.
    pub applied: u64,
    /// Answers of which nothing was.
    pub refused: u64,
}

/// The last error as it stands in the zone.
#[derive(Clone, Copy, Debug)]
pub struct LastError {
    at: u64,
    len: usize,
    words: [u64; ERROR_WORDS],
}

#[cfg(feature = "nginx")]
impl Upstream {
    /// Takes in what came of following the source in the configuration `cycle`. Nothing is taken in
    /// when a newer one is in force, or when the upstream has lost its name.
    pub fn note_source(&self, cycle: u64, progress: &Progress) {
        if self.is_gone() || cycle < self.zone().cycle() {
            return;
        }
        let source = &self.entry().source;
        source.count(progress);
        if let Some((at, why)) = &progress.failed {
            let _locked = self.zone().lock();
            if !self.is_gone() {
                source.set_error(&LastError::new(*at, why));
            }
        }
    }

    /// How following the source went so far.
    pub fn source_facts(&self) -> Facts {
        let source = &self.entry().source;
        // Without an error nobody has to wait for the lock.
        let error = source.has_error().then(|| {
            let _locked = self.zone().lock();
            source.error()
        });
        source.facts(error)
    }

    /// Takes over what another zone knew of the source.
    pub(super) fn copy_source(&self, other: &Self) {
        let facts = other.source_facts();
        let _locked = self.zone().lock();
        self.entry().source.put(&facts);
    }
}

impl SourceFacts {
    /// Counts all but the text of the error.
    pub fn count(&self, progress: &Progress) {
        let of = [(&self.index, progress.index), (&self.answered, progress.answered)];
        for (number, last) in of {
            if let Some(last) = last {
                number.store(last, Relaxed);
            }
        }
        if let Some(is_failing) = progress.is_failing {
            self.failing.store(is_failing.into(), Relaxed);
        }
        self.applied.fetch_add(progress.applied, Relaxed);
        self.refused.fetch_add(progress.refused, Relaxed);
    }

    /// Puts the last error, under the zone's lock. A writer killed on the way leaves an empty text.
    pub fn set_error(&self, error: &LastError) {
        self.error_len.store(0, Relaxed);
        for (word, new) in self.error.iter().zip(error.words) {
            word.store(new, Relaxed);
        }
        self.failed.store(error.at, Relaxed);
        self.error_len.store(error.len as u32, Relaxed);
    }

    /// Whether there was an error.
    pub fn has_error(&self) -> bool {
        self.failed.load(Relaxed) != 0
    }

    /// The last error, under the zone's lock.
    pub fn error(&self) -> LastError {
        LastError {
            at: self.failed.load(Relaxed),
            len: self.error_len.load(Relaxed) as usize,
            words: std::array::from_fn(|i| self.error.get(i).map_or(0, |word| word.load(Relaxed))),
        }
    }

    /// All of it, with the last error if there was one.
    pub fn facts(&self, error: Option<LastError>) -> Facts {
        let answered = self.answered.load(Relaxed);
        Facts {
            index: self.index.load(Relaxed),
            answered: (answered != 0).then_some(answered),
            failed: error.map(|error| (error.at, error.text())),
            is_failing: self.failing.load(Relaxed) != 0,
            applied: self.applied.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }

    /// Puts all of it, under the zone's lock.
    pub fn put(&self, facts: &Facts) {
        let (at, why) = facts.failed.as_ref().map_or((0, ""), |(at, why)| (*at, why));
        self.set_error(&LastError::new(at, why));
        let answered = facts.answered.unwrap_or(0);
        let numbers: [(&AtomicU64, u64); 4] = [
            (&self.index, facts.index),
            (&self.answered, answered),
            (&self.applied, facts.applied),
            (&self.refused, facts.refused),
        ];
        for (to, number) in numbers {
            to.store(number, Relaxed);
        }
        self.failing.store(facts.is_failing.into(), Relaxed);
    }
}

impl LastError {
    /// Of a text that is longer than there is room for, the start stays.
    pub fn new(at: u64, why: &str) -> Self {
        let bytes = (0..=8 * ERROR_WORDS).rev().find_map(|end| why.get(..end)).unwrap_or_default();
        let mut words = [0; ERROR_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_bytes().chunks(8)) {
            let mut padded = [0; 8];
            padded.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            *word = u64::from_ne_bytes(padded);
        }
        Self { at, len: bytes.len(), words }
    }

    fn text(&self) -> String {
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        String::from_utf8_lossy(bytes.get(..self.len).unwrap_or_default()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As [`Upstream`] does it, without a lock.
    fn note(source: &SourceFacts, progress: &Progress) {
        source.count(progress);
        if let Some((at, why)) = &progress.failed {
            source.set_error(&LastError::new(*at, why));
        }
    }

    fn facts(source: &SourceFacts) -> Facts {
        source.facts(source.has_error().then(|| source.error()))
    }

    fn sample() -> Facts {
        Facts {
            index: u64::MAX,
            answered: Some(5),
            failed: Some((6, "timed out".to_owned())),
            is_failing: true,
            applied: 7,
            refused: 8,
        }
    }

    #[test]
    fn nothing_is_known_at_first() {
        assert_eq!(facts(&SourceFacts::default()), Facts::default());
    }

    #[test]
    fn what_is_not_told_stays() {
        let source = SourceFacts::default();
        let failed = Some((3, "answered 500".to_owned()));
        let refused = Progress {
            failed: failed.clone(),
            is_failing: Some(true),
            refused: 1,
            ..Progress::default()
        };
        note(&source, &refused);
        note(&source, &Progress { refused: 1, ..Progress::default() });
        let expected =
            Facts { failed: failed.clone(), is_failing: true, refused: 2, ..Facts::default() };
        assert_eq!(facts(&source), expected);
        let used = Progress {
            index: Some(9),
            answered: Some(4),
            is_failing: Some(false),
            applied: 2,
            ..Progress::default()
        };
        note(&source, &used);
        note(&source, &Progress::applied());
        let expected = Facts {
            index: 9,
            answered: Some(4),
            failed,
            is_failing: false,
            applied: 3,
            refused: 2,
        };
        assert_eq!(facts(&source), expected);
    }

    #[test]
    fn a_shorter_text_leaves_nothing_of_a_longer_one() {
        let source = SourceFacts::default();
        source.set_error(&LastError::new(1, "connection refused"));
        source.set_error(&LastError::new(2, "timed out"));
        assert_eq!(facts(&source).failed, Some((2, "timed out".to_owned())));
    }

    #[test]
    fn another_zone_and_another_name_know_what_they_are_told() {
        let source = SourceFacts::default();
        source.put(&sample());
        assert_eq!(facts(&source), sample());
        source.put(&Facts::default());
        assert_eq!(facts(&source), Facts::default());
    }

    #[test]
    fn what_a_killed_writer_left_is_no_text() {
        let source = SourceFacts::default();
        source.put(&sample());
        source.error_len.store(u32::MAX, Relaxed);
        assert_eq!(facts(&source).failed, Some((6, String::new())));
    }

    proptest! {
        #[test]
        fn a_text_comes_back_as_far_as_there_is_room(text: String, at in 1..u64::MAX) {
            let source = SourceFacts::default();
            source.set_error(&LastError::new(at, &text));
            let (when, why) = facts(&source).failed.unwrap();
            prop_assert_eq!(when, at);
            prop_assert!(text.starts_with(&why));
            prop_assert!(why == text || why.len() > 8 * ERROR_WORDS - 4);
        }
    }
}
