//! When to ask Consul again, and for what: index, waiting time, pauses. No clock of its own.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Consul's own default of `wait`.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// The first `wait` after a long pause.
const PROBE: Duration = Duration::from_secs(1);

/// The first and the last step of the back-off.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How long Consul may take to answer, beyond the time it was asked to wait.
const SILENCE: Duration = Duration::from_secs(10);

/// Paces the requests of one source.
#[derive(Clone, Debug)]
pub struct Schedule {
    interval: Duration,
    timeout: Duration,
    index: u64,
    failures: u32,
    /// Answers in a row that came early and brought nothing.
    idle: u32,
    probe: bool,
}

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The index of the state in force; 0 asks for the state without waiting for a change.
    pub index: u64,
    /// How long Consul is to wait for a change, from 1 ms to 5 minutes.
    pub wait: Duration,
    /// The longest time without a byte.
    pub silence: Duration,
}

impl Schedule {
    /// At most one change an `interval`; a request takes at most `timeout`.
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        Self { interval, timeout, index: 0, failures: 0, idle: 0, probe: false }
    }

    /// The next request.
    pub fn ask(&self) -> Ask {
        let wait = if self.probe { PROBE } else { WAIT_MAX }.min(fitting(self.timeout));
        let waiting = if self.index == 0 { Duration::ZERO } else { wait + wait / 16 };
        Ask { index: self.index, wait, silence: waiting + SILENCE }
    }

    /// After an answer that is in force: the pause before the next request. `changed` is whether
    /// it brought another list, `elapsed` the time since it was asked for.
    ///
    /// The index goes back to 0 as Consul's "Blocking Queries" has it: if it goes backwards or is
    /// below 1.
    pub fn answered(
        &mut self,
        ask: &Ask,
        index: Option<u64>,
        changed: bool,
        elapsed: Duration,
    ) -> Duration {
        let index = index.unwrap_or(0);
        self.index = if index < ask.index { 0 } else { index };
        self.failures = 0;
        let waited = ask.index > 0 && elapsed >= ask.wait;
        if changed || waited || elapsed >= self.interval.max(BACK_OFF.0) {
            self.idle = 0;
        }
        let pause = if changed {
            self.interval
        } else if waited {
            Duration::ZERO
        } else if index == ask.index {
            // Whoever answers so does not block. Then it is polled.
            self.interval.max(BACK_OFF.0)
        } else {
            self.idle_pause()
        };
        self.probe = pause >= PROBE;
        pause
    }

    /// After a failure of any kind: the pause before the next request. `jitter` is from 0 to 1.
    ///
    /// Consul may come back with an empty state, whose index is lower than the one we know: asked
    /// for that, it would wait for a change to happen.
    pub fn failed(&mut self, jitter: f64) -> Duration {
        self.index = 0;
        self.probe = false;
        self.failures = self.failures.saturating_add(1);
        doubled(self.failures - 1).min(BACK_OFF.1).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }

    /// Other keys than ours moved the index, or it went backwards. A change of ours is to be seen
    /// soon even so, unless it goes on like this.
    fn idle_pause(&mut self) -> Duration {
        self.idle = self.idle.saturating_add(1);
        doubled(self.idle - 1).min(self.interval.max(BACK_OFF.0))
    }
}

fn doubled(times: u32) -> Duration {
    BACK_OFF.0 * (1 << times.min(10))
}

/// The longest `wait` in whole milliseconds that is over within `timeout`, with the sixteenth
/// that Consul adds and a little for the answer itself.
fn fitting(timeout: Duration) -> Duration {
    let slack = (timeout / 20).min(Duration::from_secs(5));
    let wait = (timeout - slack) / 17 * 16;
    // To Consul no time at all means its default.
    Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_secs(5);
    const SOON: Duration = Duration::from_millis(1);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn schedule() -> Schedule {
        Schedule::new(INTERVAL, seconds(360))
    }

    /// A schedule that got its first list, with this index.
    fn at(index: u64) -> Schedule {
        let mut schedule = schedule();
        let ask = schedule.ask();
        schedule.answered(&ask, Some(index), true, SOON);
        schedule
    }

    #[test]
    fn the_first_request_does_not_wait() {
        let ask = schedule().ask();
        assert_eq!((ask.index, ask.silence), (0, SILENCE));
    }

    #[test]
    fn a_change_is_followed_by_the_interval() {
        let mut schedule = schedule();
        let ask = schedule.ask();
        assert_eq!(schedule.answered(&ask, Some(7), true, seconds(200)), INTERVAL);
        assert_eq!(schedule.ask().index, 7);
    }

    #[test]
    fn after_a_long_pause_the_first_wait_is_short() {
        // A Consul that was replaced meanwhile is behind our index and shows it only at the end.
        let mut schedule = at(7);
        let ask = schedule.ask();
        assert_eq!((ask.index, ask.wait), (7, PROBE));
        assert_eq!(schedule.answered(&ask, Some(7), false, PROBE), Duration::ZERO);
        let ask = schedule.ask();
        assert_eq!((ask.index, ask.wait, ask.silence), (7, WAIT_MAX, WAIT_MAX * 17 / 16 + SILENCE));
    }

    #[test]
    fn a_wait_that_is_over_is_followed_by_the_next_at_once() {
        let mut schedule = at(7);
        schedule.probe = false;
        let ask = schedule.ask();
        assert_eq!(schedule.answered(&ask, Some(7), false, seconds(310)), Duration::ZERO);
        assert_eq!(schedule.ask().index, 7);
        assert_eq!(schedule.answered(&ask, Some(9), false, seconds(310)), Duration::ZERO);
        assert_eq!(schedule.ask().index, 9);
    }

    #[test]
    fn an_index_that_goes_backwards_or_below_1_is_reset() {
        for index in [Some(6), Some(0), None] {
            let mut schedule = at(7);
            let ask = schedule.ask();
            schedule.answered(&ask, index, true, SOON);
            assert_eq!(schedule.ask().index, 0, "{index:?}");
        }
    }

    #[test]
    fn who_answers_early_with_the_same_index_is_polled() {
        for (interval, pause) in [(INTERVAL, INTERVAL), (Duration::ZERO, BACK_OFF.0)] {
            let mut schedule = Schedule::new(interval, seconds(360));
            for index in [Some(7), Some(7), Some(7)] {
                let ask = schedule.ask();
                let changed = ask.index == 0;
                let got = schedule.answered(&ask, index, changed, SOON);
                assert!(changed || got == pause, "{got:?}");
            }
            let ask = Ask { index: 0, ..schedule.ask() };
            assert_eq!(schedule.answered(&ask, None, false, SOON), pause);
        }
    }

    #[test]
    fn an_index_that_others_move_slows_down_to_the_interval() {
        let mut schedule = at(7);
        let pauses: Vec<_> = (8..16)
            .map(|index| {
                let ask = schedule.ask();
                schedule.answered(&ask, Some(index), false, SOON).as_millis()
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        let ask = schedule.ask();
        let quiet = schedule.answered(&ask, Some(20), false, INTERVAL);
        assert_eq!(quiet, Duration::ZERO, "a probe that was over");
        let ask = schedule.ask();
        assert_eq!(schedule.answered(&ask, Some(21), false, INTERVAL).as_millis(), 100);
    }

    #[test]
    fn an_index_that_goes_backwards_for_ever_does_not_spin() {
        let mut schedule = at(7);
        let mut total = Duration::ZERO;
        for index in [6, 9].repeat(10) {
            let ask = schedule.ask();
            total += schedule.answered(&ask, Some(index), false, SOON);
        }
        assert!(total > seconds(60), "{total:?}");
    }

    #[test]
    fn failures_back_off_from_100_ms_to_10_s() {
        let mut schedule = at(7);
        let pauses: Vec<_> = (0..10).map(|_| schedule.failed(1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        assert_eq!(schedule.ask().index, 0, "all of the state is asked for");
        let ask = schedule.ask();
        schedule.answered(&ask, Some(8), false, SOON);
        assert_eq!(schedule.failed(0.0).as_millis(), 50, "with jitter, and from the start");
    }

    #[test]
    fn the_wait_fits_into_the_timeout() {
        let wait = |timeout| Schedule::new(INTERVAL, timeout).ask().wait;
        assert_eq!(wait(seconds(360)), WAIT_MAX);
        assert_eq!(wait(seconds(3600)), WAIT_MAX);
        assert_eq!(wait(Duration::MAX), WAIT_MAX);
        assert_eq!(wait(Duration::ZERO).as_millis(), 1);
        assert_eq!(wait(seconds(10)).as_millis(), 8941);
    }

    proptest! {
        #[test]
        fn consuls_longest_answer_is_in_time(milliseconds in 100u64..10_000_000) {
            let timeout = Duration::from_millis(milliseconds);
            let wait = Schedule::new(INTERVAL, timeout).ask().wait;
            prop_assert!(wait + wait / 16 < timeout);
            prop_assert!(wait >= (timeout / 2).min(WAIT_MAX));
        }

        #[test]
        fn a_source_that_brings_nothing_early_is_never_asked_at_once(
            answers in proptest::collection::vec((any::<Option<u64>>(), any::<bool>()), 1..50),
        ) {
            let mut schedule = schedule();
            for (index, fails) in answers {
                let ask = schedule.ask();
                let pause = match fails {
                    true => schedule.failed(0.0),
                    false => schedule.answered(&ask, index, false, SOON),
                };
                prop_assert!(pause >= Duration::from_millis(50) && pause <= seconds(10));
            }
        }
    }
}
