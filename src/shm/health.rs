//! What checks of one server came to, shared by all workers and kept from list to list.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::slot::Count;
use crate::model::{Check, Reason};

/// A verdict. No check has ended yet if it is neither of the two.
const UP: u32 = 1;
const DOWN: u32 = 2;

/// The health of one server. One worker at a time checks it, whoever has taken its due time.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Health {
    /// [`UP`], [`DOWN`], or 0.
    verdict: Count,
    /// Good checks in a row.
    rise: Count,
    /// Failed checks in a row.
    fall: Count,
    /// What the checks in a row asked: [`Check::identity`].
    asked: AtomicU64,
    /// When the next check is due, in milliseconds of the monotonic clock; 0 is not yet known.
    due: AtomicU64,
    /// From one due time to the next, in milliseconds.
    interval: AtomicU64,
    /// When the last check ended, in milliseconds since 1970; 0 is never.
    checked: AtomicU64,
    /// How it ended: why it failed in the upper 32 bits, 0 if it did not, and below how many
    /// milliseconds it took.
    result: AtomicU64,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it failed; none if it did not.
    pub failed: Option<Reason>,
    /// When it ended, in milliseconds since 1970.
    pub at: u64,
    /// How long it took, in milliseconds.
    pub took: u32,
}

/// What is known of a server's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The verdict; none before the first check.
    pub is_up: Option<bool>,
    /// Good checks in a row.
    pub rise: u32,
    /// Failed checks in a row.
    pub fall: u32,
    /// The last check, if there was one.
    pub last: Option<Outcome>,
}

impl Health {
    /// The verdict; none before the first check, or if the server has left.
    #[inline]
    pub fn is_up(&self, generation: u32) -> Option<bool> {
        match self.verdict.get(generation) {
            Some(UP) => Some(true),
            Some(DOWN) => Some(false),
            _ => None,
        }
    }

    /// All of it.
    pub fn known(&self, generation: u32) -> Known {
        let (at, result) = (self.checked.load(Relaxed), self.result.load(Relaxed));
        let failed = Reason::from_word((result >> 32) as u32);
        Known {
            is_up: self.is_up(generation),
            rise: self.rise.get(generation).unwrap_or(0),
            fall: self.fall.get(generation).unwrap_or(0),
            last: (at != 0).then_some(Outcome { failed, at, took: result as u32 }),
        }
    }

    /// When the next check is due, in milliseconds of the monotonic clock; 0 is not yet known.
    pub fn due(&self) -> u64 {
        self.due.load(Relaxed)
    }

    /// The interval by which it was last moved, in milliseconds.
    pub fn interval(&self) -> u64 {
        self.interval.load(Relaxed)
    }

    /// Moves the due time by an interval in milliseconds, if it is still `from`. Whoever does this
    /// before a check is the one to make it.
    pub fn move_due(&self, from: u64, to: u64, interval: u32) -> bool {
        let moved = self.due.compare_exchange(from, to, Relaxed, Relaxed).is_ok();
        if moved {
            self.interval.store(interval.into(), Relaxed);
        }
        moved
    }

    /// Counts a check: the new verdict, if it is news. Where something else was asked before, its
    /// checks do not count, but its verdict holds until `rise` or `fall` are reached. A server that is
    /// down from the start is news when `fall` is reached, one that is up is not.
    pub fn count(&self, generation: u32, check: &Check, outcome: &Outcome) -> Option<bool> {
        // Of a server that has left nothing is noted.
        self.verdict.get(generation)?;
        let (good, bad) = match outcome.failed {
            None => (&self.rise, &self.fall),
            Some(_) => (&self.fall, &self.rise),
        };
        let anew = self.asked.swap(check.identity(), Relaxed) != check.identity();
        bad.update(generation, |_| Some(0));
        let next = |count: u32| if anew { 1 } else { count.saturating_add(1) };
        if !good.update(generation, |count| Some(next(count))) {
            return None;
        }
        self.checked.store(outcome.at, Relaxed);
        let failed = outcome.failed.map_or(0, Reason::to_word);
        self.result.store(u64::from(failed) << 32 | u64::from(outcome.took), Relaxed);
        let is_up = outcome.failed.is_none();
        let needed = if is_up { check.rise } else { check.fall };
        let before = self.is_up(generation);
        if good.get(generation)? < needed || before == Some(is_up) {
            return None;
        }
        let verdict = if is_up { UP } else { DOWN };
        let is_set = self.verdict.update(generation, |_| Some(verdict));
        let is_news = before.is_some() || !is_up || check.default_down;
        (is_set && is_news).then_some(is_up)
    }

    /// Checks have ended that nobody goes on with: nothing is known any more.
    pub fn forget(&self, generation: u32) {
        for count in [&self.verdict, &self.rise, &self.fall] {
            count.update(generation, |_| Some(0));
        }
        self.checked.store(0, Relaxed);
    }

    /// The server has left; the next one has this generation.
    pub(super) fn begin(&self, generation: u32) {
        for count in [&self.verdict, &self.rise, &self.fall] {
            count.begin(generation);
        }
        for word in [&self.asked, &self.due, &self.interval, &self.checked, &self.result] {
            word.store(0, Relaxed);
        }
    }

    /// Takes over what another zone knew of the server.
    pub(super) fn copy_from(&self, other: &Self, generation: u32) {
        for (to, from) in
            [(&self.verdict, &other.verdict), (&self.rise, &other.rise), (&self.fall, &other.fall)]
        {
            to.copy_from(from, generation);
        }
        for (to, from) in [
            (&self.asked, &other.asked),
            (&self.due, &other.due),
            (&self.interval, &other.interval),
            (&self.checked, &other.checked),
            (&self.result, &other.result),
        ] {
            to.store(from.load(Relaxed), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::check::Kind;
    use crate::shm::slot::Slot;

    fn check(rise: u32, fall: u32, default_down: bool) -> Check {
        Check { rise, fall, default_down, ..Check::default() }
    }

    fn outcome(failed: Option<Reason>) -> Outcome {
        Outcome { failed, at: 1, took: 7 }
    }

    const GOOD: Option<Reason> = None;
    const BAD: Option<Reason> = Some(Reason::Status(503));

    #[test]
    fn rise_and_fall() {
        let health = Health::default();
        let check = check(2, 3, true);
        let mut count = |failed| health.count(0, &check, &outcome(failed));
        assert_eq!(health.is_up(0), None);
        let flips = [GOOD, GOOD, GOOD, BAD, BAD, GOOD, BAD, BAD, BAD, BAD, GOOD, BAD, GOOD, GOOD];
        let seen: Vec<_> = flips.into_iter().map(&mut count).collect();
        let at = |place: usize| seen[place];
        assert_eq!((at(1), at(8), at(13)), (Some(true), Some(false), Some(true)));
        assert_eq!(seen.iter().flatten().count(), 3, "said once each");
        let known = health.known(0);
        assert_eq!((known.is_up, known.rise, known.fall), (Some(true), 2, 0));
        assert_eq!(known.last, Some(outcome(GOOD)));
    }

    #[test]
    fn a_server_begins_by_default_down() {
        let health = Health::default();
        assert_eq!(health.count(0, &check(1, 2, false), &outcome(BAD)), None);
        assert_eq!(health.is_up(0), None, "not yet");
        assert_eq!(health.count(0, &check(1, 2, false), &outcome(BAD)), Some(false));
        let other = Health::default();
        assert_eq!(other.count(0, &check(2, 2, true), &outcome(BAD)), None);
        assert_eq!(other.count(0, &check(2, 2, true), &outcome(BAD)), Some(false), "why it is");
        assert_eq!(other.count(0, &check(2, 2, true), &outcome(BAD)), None, "said once");
        assert_eq!(other.is_up(0), Some(false));
        let third = Health::default();
        assert_eq!(third.count(0, &check(1, 2, false), &outcome(GOOD)), None, "no news");
        assert_eq!(third.is_up(0), Some(true));
        assert_eq!(other.known(0).last, Some(outcome(BAD)));
    }

    #[test]
    fn a_verdict_holds_until_another_question_has_its_own() {
        let health = Health::default();
        let before = check(1, 2, true);
        assert_eq!(health.count(0, &before, &outcome(GOOD)), Some(true));
        assert_eq!(health.count(0, &before, &outcome(BAD)), None);
        let after = Check { kind: Kind::Http, ..before };
        assert_eq!(health.count(0, &after, &outcome(BAD)), None, "one in a row");
        assert_eq!(health.count(0, &after, &outcome(BAD)), Some(false));
    }

    #[test]
    fn what_comes_late_counts_for_nobody() {
        let slot = Slot::default();
        let health = &slot.health;
        health.count(0, &check(1, 1, true), &outcome(GOOD));
        slot.retire();
        assert_eq!(health.count(0, &check(1, 1, true), &outcome(BAD)), None);
        assert_eq!((health.is_up(0), health.is_up(1)), (None, None));
        assert_eq!(health.known(1).last, None);
    }

    #[test]
    fn one_of_two_takes_a_due_time() {
        let health = Health::default();
        assert!(health.move_due(0, 100, 50));
        assert!(!health.move_due(0, 200, 60));
        assert_eq!((health.due(), health.interval()), (100, 50));
        assert!(health.move_due(100, 200, 60));
    }
}
