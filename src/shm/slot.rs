//! The state of one server, shared by all workers and kept from list to list.
//!
//! A slot is known by its generation too: it is raised when the server leaves, so whoever still
//! holds the old number changes nothing of the slot's next owner.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::model::Parameters;

/// A counter and the generation it belongs to, changed as one.
#[derive(Debug, Default)]
#[repr(transparent)]
struct Count(AtomicU64);

impl Count {
    /// Changes the counter by `change` if the generation is still the one given and `change`
    /// gives a number.
    fn update(&self, generation: u32, change: impl Fn(u32) -> Option<u32>) -> bool {
        self.0
            .fetch_update(Relaxed, Relaxed, |word| {
                let counter =
                    if generation_of(word) == generation { change(word as u32) } else { None };
                counter.map(|counter| join(generation, counter))
            })
            .is_ok()
    }

    /// The counter, if the generation is still the one given.
    fn get(&self, generation: u32) -> Option<u32> {
        let word = self.0.load(Relaxed);
        (generation_of(word) == generation).then_some(word as u32)
    }

    fn begin(&self, generation: u32) {
        self.0.store(join(generation, 0), Relaxed);
    }
}

fn generation_of(word: u64) -> u32 {
    (word >> 32) as u32
}

fn join(generation: u32, counter: u32) -> u64 {
    (u64::from(generation) << 32) | u64::from(counter)
}

/// One server's state. Times are seconds as `ngx_time()` gives them.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    /// Connections that requests hold, over all workers.
    connections: Count,
    /// Failed attempts since the last good one.
    fails: Count,
    /// When an attempt last failed.
    accessed: AtomicI64,
    /// When the server last failed, or was last given a chance after that.
    checked: AtomicI64,
    /// Requests given to the server.
    requests: AtomicU64,
    /// Attempts that failed.
    failures: AtomicU64,
    /// The next free slot, if this one is free. Used under the zone's lock only.
    pub(super) next: AtomicU64,
    /// Not 0 if a list in force refers to the slot. Used by recovery, under the zone's lock only.
    pub(super) mark: AtomicU64,
}

/// What became of an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server may still be asked.
    Counted,
    /// `max_fails` is reached: no requests for `fail_timeout`.
    Disabled,
}

impl Slot {
    /// The generation that a list which refers to this slot now has to name.
    pub fn generation(&self) -> u32 {
        generation_of(self.connections.0.load(Relaxed))
    }

    /// Whether the server that had this generation is still in the list.
    pub fn is_current(&self, generation: u32) -> bool {
        self.generation() == generation
    }

    /// Connections now, if the server is still in the list.
    pub fn connections(&self, generation: u32) -> Option<u32> {
        self.connections.get(generation)
    }

    /// Failed attempts since the last good one.
    pub fn fails(&self, generation: u32) -> u32 {
        self.fails.get(generation).unwrap_or(0)
    }

    /// Requests given to the server, and attempts of them that failed.
    pub fn requests_and_failures(&self) -> (u64, u64) {
        (self.requests.load(Relaxed), self.failures.load(Relaxed))
    }

    /// Whether `max_fails` keeps requests away now.
    pub fn is_out(&self, generation: u32, parameters: &Parameters, now: i64) -> bool {
        let waits = now - self.checked.load(Relaxed) <= i64::from(parameters.fail_timeout);
        parameters.max_fails != 0 && self.fails(generation) >= parameters.max_fails && waits
    }

    /// Counts a new connection, unless `max_conns` are there or the server has left.
    pub fn connect(&self, generation: u32, max_conns: u32) -> bool {
        let below = |count: u32| {
            if max_conns == 0 || count < max_conns { count.checked_add(1) } else { None }
        };
        let taken = self.connections.update(generation, below);
        if taken {
            self.requests.fetch_add(1, Relaxed);
        }
        taken
    }

    /// Gives a connection back. Of a server that has left there is none to give.
    pub fn disconnect(&self, generation: u32) {
        self.connections.update(generation, |count| count.checked_sub(1));
    }

    /// Whether `max_fails` and `fail_timeout` let a request try the server now. After
    /// `fail_timeout` one request of all workers may, until it is known how it went: the rule of
    /// `ngx_http_upstream_get_peer()`.
    pub fn admits(&self, generation: u32, parameters: &Parameters, now: i64) -> bool {
        match self.fails.get(generation) {
            None => false,
            Some(0) => true,
            Some(fails) => {
                let checked = self.checked.load(Relaxed);
                let chance = now - checked > i64::from(parameters.fail_timeout)
                    && self.checked.compare_exchange(checked, now, Relaxed, Relaxed).is_ok();
                chance || parameters.max_fails == 0 || fails < parameters.max_fails
            }
        }
    }

    /// Counts a failed attempt, as `ngx_http_upstream_free_round_robin_peer()` does.
    pub fn failed(&self, generation: u32, parameters: &Parameters, now: i64) -> Failure {
        if !self.fails.update(generation, |fails| Some(fails.saturating_add(1))) {
            return Failure::Counted;
        }
        self.accessed.store(now, Relaxed);
        self.checked.store(now, Relaxed);
        self.failures.fetch_add(1, Relaxed);
        let fails = self.fails.get(generation).unwrap_or(0);
        if parameters.max_fails != 0 && fails >= parameters.max_fails {
            Failure::Disabled
        } else {
            Failure::Counted
        }
    }

    /// A good attempt clears the fails if it began after the last bad one.
    pub fn succeeded(&self, generation: u32) {
        if self.fails.get(generation).is_some_and(|fails| fails > 0)
            && self.accessed.load(Relaxed) < self.checked.load(Relaxed)
        {
            self.fails.update(generation, |_| Some(0));
        }
    }

    /// The server has left: from now on its generation is not current. The word that says which
    /// is comes last, so whoever is killed before it leaves a slot that can be retired again.
    pub fn retire(&self) {
        let next = self.generation().wrapping_add(1);
        self.fails.begin(next);
        for time in [&self.accessed, &self.checked] {
            time.store(0, Relaxed);
        }
        for counter in [&self.requests, &self.failures] {
            counter.store(0, Relaxed);
        }
        self.connections.begin(next);
    }

    /// Takes over what another zone knew of the server, but for connections: those who hold them
    /// give them back to the other zone.
    pub fn copy_from(&self, other: &Self) {
        let fails = other.fails.0.load(Relaxed) as u32;
        self.fails.0.store(join(self.generation(), fails), Relaxed);
        self.accessed.store(other.accessed.load(Relaxed), Relaxed);
        self.checked.store(other.checked.load(Relaxed), Relaxed);
        self.requests.store(other.requests.load(Relaxed), Relaxed);
        self.failures.store(other.failures.load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_FAILS: Parameters =
        Parameters { max_fails: 2, fail_timeout: 10, ..Parameters::NGINX };

    #[test]
    fn one_slot_is_one_cache_line() {
        assert_eq!(std::mem::size_of::<Slot>(), 64);
    }

    #[test]
    fn max_conns_is_never_exceeded() {
        let slot = Slot::default();
        assert!(slot.connect(0, 2) && slot.connect(0, 2) && !slot.connect(0, 2));
        slot.disconnect(0);
        assert!(slot.connect(0, 2));
        assert_eq!(slot.connections(0), Some(2));
    }

    #[test]
    fn a_late_decrement_does_not_hit_the_next_owner() {
        let slot = Slot::default();
        assert!(slot.connect(0, 0));
        slot.retire();
        assert!(slot.connect(1, 0));
        slot.disconnect(0);
        assert_eq!((slot.connections(0), slot.connections(1)), (None, Some(1)));
        assert!(!slot.connect(0, 0) && !slot.admits(0, &TWO_FAILS, 0));
        assert_eq!(slot.failed(0, &TWO_FAILS, 5), Failure::Counted);
        assert!(slot.admits(1, &TWO_FAILS, 5));
    }

    #[test]
    fn a_retirement_that_was_cut_short_is_made_good_by_the_next() {
        let slot = Slot::default();
        slot.fails.begin(1);
        slot.retire();
        let generation = slot.generation();
        assert!(slot.admits(generation, &TWO_FAILS, 0) && slot.connect(generation, 0));
    }

    #[test]
    fn more_given_back_than_taken_stops_at_none() {
        let slot = Slot::default();
        slot.disconnect(0);
        assert_eq!(slot.connections(0), Some(0));
    }

    #[test]
    fn fails_take_it_out_and_one_request_tries_it_after_the_time() {
        let slot = Slot::default();
        assert_eq!(slot.failed(0, &TWO_FAILS, 100), Failure::Counted);
        assert!(slot.admits(0, &TWO_FAILS, 100));
        assert_eq!(slot.failed(0, &TWO_FAILS, 100), Failure::Disabled);
        assert!(!slot.admits(0, &TWO_FAILS, 110));
        assert!(slot.admits(0, &TWO_FAILS, 111), "a chance after fail_timeout");
        assert!(!slot.admits(0, &TWO_FAILS, 111), "but for one request");
        slot.succeeded(0);
        assert!(slot.admits(0, &TWO_FAILS, 111) && slot.admits(0, &TWO_FAILS, 111));
    }

    #[test]
    fn an_attempt_older_than_the_failure_does_not_clear_it() {
        let slot = Slot::default();
        slot.failed(0, &TWO_FAILS, 100);
        slot.failed(0, &TWO_FAILS, 100);
        slot.succeeded(0);
        assert!(!slot.admits(0, &TWO_FAILS, 105));
    }

    #[test]
    fn a_fail_below_the_limit_is_forgotten_by_a_good_attempt_after_the_time() {
        let slot = Slot::default();
        slot.failed(0, &TWO_FAILS, 100);
        assert!(slot.admits(0, &TWO_FAILS, 111));
        slot.succeeded(0);
        assert_eq!(slot.failed(0, &TWO_FAILS, 112), Failure::Counted);
    }

    #[test]
    fn max_fails_of_0_never_takes_it_out() {
        let slot = Slot::default();
        let never = Parameters { max_fails: 0, ..Parameters::NGINX };
        for _ in 0..10 {
            assert_eq!(slot.failed(0, &never, 1), Failure::Counted);
        }
        assert!(slot.admits(0, &never, 1));
    }
}
