//! How following a source goes, as it is told to the worker.
#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

/// The longest text of a failure, in bytes.
pub const TEXT_MAX: usize = 120;

/// What came of the questions to a source since the worker was last told. Moments are milliseconds
/// since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When the source last answered, if it did.
    pub answered: Option<u64>,
    /// Consul's index of the last answer that was used, if one was; 0 if it came without.
    pub index: Option<u64>,
    /// When a question last failed or brought nothing usable, if one did, and why: printable, at
    /// most [`TEXT_MAX`] bytes.
    pub failed: Option<(u64, String)>,
    /// Whether the last question failed, if there was one.
    pub is_failing: Option<bool>,
    /// Changes that were put in force.
    pub applied: u64,
    /// Answers of which nothing was: they were unusable, or there was no memory.
    pub refused: u64,
}

impl Progress {
    /// An answer was used, or has the list in force.
    pub fn used(index: Option<u64>) -> Self {
        Self {
            answered: Some(now()),
            index: Some(index.unwrap_or(0)),
            is_failing: Some(false),
            ..Self::default()
        }
    }

    /// An answer that is in order has no server to be used.
    pub fn unusable(why: &str) -> Self {
        let now = now();
        Self {
            answered: Some(now),
            failed: Some((now, bounded(why))),
            is_failing: Some(false),
            refused: 1,
            ..Self::default()
        }
    }

    /// A question failed. `is_answer` is whether there was an answer, which was not to be read.
    pub fn failed(why: &str, is_answer: bool) -> Self {
        Self {
            failed: Some((now(), bounded(why))),
            is_failing: Some(true),
            refused: u64::from(is_answer),
            ..Self::default()
        }
    }

    /// A change was put in force.
    pub fn applied() -> Self {
        Self { applied: 1, ..Self::default() }
    }

    /// There was no memory for a change.
    pub fn no_memory() -> Self {
        Self { refused: 1, ..Self::default() }
    }

    /// Takes in what came later.
    pub fn add(&mut self, later: Self) {
        self.answered = later.answered.or(self.answered);
        self.index = later.index.or(self.index);
        self.failed = later.failed.or(self.failed.take());
        self.is_failing = later.is_failing.or(self.is_failing);
        self.applied = self.applied.saturating_add(later.applied);
        self.refused = self.refused.saturating_add(later.refused);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Cut between characters, with `...` behind.
fn bounded(text: &str) -> String {
    const MORE: &str = "...";
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    let start = (0..=TEXT_MAX - MORE.len()).rev().find_map(|end| text.get(..end));
    start.unwrap_or_default().to_owned() + MORE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Without its moments, which are those of the test.
    fn timeless(progress: Progress) -> Progress {
        let about_now = |at: u64| {
            assert!(now() - at < 60_000);
            1
        };
        Progress {
            answered: progress.answered.map(about_now),
            failed: progress.failed.map(|(at, why)| (about_now(at), why)),
            ..progress
        }
    }

    fn after(all: impl IntoIterator<Item = Progress>) -> Progress {
        let mut progress = Progress::default();
        all.into_iter().for_each(|later| progress.add(later));
        timeless(progress)
    }

    #[test]
    fn the_latest_counts_and_numbers_add_up() {
        let failed = Some((1, "refused".to_owned()));
        assert_eq!(
            after([
                Progress::used(Some(5)),
                Progress::applied(),
                Progress::failed("timed out", false),
                Progress::applied(),
                Progress::failed("refused", true),
            ]),
            Progress {
                answered: Some(1),
                index: Some(5),
                failed: failed.clone(),
                is_failing: Some(true),
                applied: 2,
                refused: 1,
            }
        );
        let progress = after([Progress::failed("refused", true), Progress::used(None)]);
        assert_eq!((progress.is_failing, progress.index), (Some(false), Some(0)));
        assert_eq!(progress.failed, failed, "the last error stays");
    }

    #[test]
    fn an_answer_without_a_server_is_refused_but_no_failure() {
        let unusable = after([Progress::used(Some(5)), Progress::unusable("no servers")]);
        let failed = Some((1, "no servers".to_owned()));
        let expected = Progress { failed, refused: 1, ..timeless(Progress::used(Some(5))) };
        assert_eq!(unusable, expected, "with the index of the last that was used");
        assert_eq!(after([Progress::no_memory(), Progress::no_memory()]).refused, 2);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let exact = "é".repeat(TEXT_MAX / 2);
        assert_eq!(bounded(&exact), exact);
        let cut = bounded(&(exact + "a"));
        assert_eq!(cut, "é".repeat(58) + "...");
        assert_eq!(bounded(&"a".repeat(TEXT_MAX + 1)).len(), TEXT_MAX);
    }

    proptest! {
        #[test]
        fn any_text_is_bounded(text in "\\PC{0,200}") {
            let cut = bounded(&text);
            prop_assert!(cut.len() <= TEXT_MAX);
            prop_assert!(text.starts_with(cut.strip_suffix("...").unwrap_or(&cut)));
        }
    }
}
