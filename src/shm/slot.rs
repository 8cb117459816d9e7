//! The state of one server, shared by all workers and kept from list to list.
//!
//! A slot is known by its generation too: it is raised when the server leaves, so whoever still
//! holds the old number changes nothing of the slot's next owner.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use super::health::Health;
use crate::model::method::Moment;
use crate::model::{Out, Outs, Parameters};

/// Units of a millisecond in which averages are kept.
const AVERAGE_UNIT: u64 = 64;

/// An answer counts with a part of so many in the average.
const AVERAGE_OF: u64 = 20;

/// The longest time that is told apart, in milliseconds: nginx's own `least_time` (1.31) has all
/// that is slower for equally slow.
pub const TIME_MAX: u64 = 5000;

/// Times within one step count as the same, so that servers of about the same time take turns.
const TIME_STEP: u64 = 20;

/// A counter and the generation it belongs to, changed as one.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Changes the counter by `change` if the generation is still the one given and `change`
    /// gives a number.
    pub(super) fn update(&self, generation: u32, change: impl Fn(u32) -> Option<u32>) -> bool {
        self.0
            .fetch_update(Relaxed, Relaxed, |word| {
                let counter =
                    if generation_of(word) == generation { change(word as u32) } else { None };
                counter.map(|counter| join(generation, counter))
            })
            .is_ok()
    }

    /// The counter, if the generation is still the one given.
    #[inline]
    pub(super) fn get(&self, generation: u32) -> Option<u32> {
        let word = self.0.load(Relaxed);
        (generation_of(word) == generation).then_some(word as u32)
    }

    pub(super) fn begin(&self, generation: u32) {
        self.0.store(join(generation, 0), Relaxed);
    }

    /// Takes over another's counter, for a generation of its own.
    pub(super) fn copy_from(&self, other: &Self, generation: u32) {
        self.0.store(join(generation, other.0.load(Relaxed) as u32), Relaxed);
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
    /// The average time until the header of an answer, in units; 0 is none yet.
    header_time: Count,
    /// The same until the end of the answer.
    response_time: Count,
    /// When a time was last taken, in seconds.
    timed: AtomicI64,
    /// Since when the server's share grows, in milliseconds of the monotonic clock; 0 is always.
    grows_since: AtomicU64,
    /// Bytes sent to the server and received from it.
    bytes: [AtomicU64; 2],
    /// Answers by the class of their status, 1xx to 5xx.
    responses: [AtomicU64; 5],
    /// What checks of the server came to.
    pub health: Health,
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

    /// A good attempt clears the fails if it began after the last bad one. A server that was out
    /// then grows its share anew.
    pub fn succeeded(&self, generation: u32, parameters: &Parameters, now: u64) {
        let fails = self.fails.get(generation).unwrap_or(0);
        if fails == 0 || self.accessed.load(Relaxed) >= self.checked.load(Relaxed) {
            return;
        }
        let cleared = self.fails.update(generation, |_| Some(0));
        if cleared && parameters.max_fails != 0 && fails >= parameters.max_fails {
            self.grow(now);
        }
    }

    /// The server's share grows from `now` on, in milliseconds of the monotonic clock.
    pub fn grow(&self, now: u64) {
        self.grows_since.store(now.max(1), Relaxed);
    }

    /// The server's share of its weight at `now`, in 2^32ths: 2^32 but for a `slow_start`. It is
    /// never less than a hundredth, so that a server of which it is asked rarely grows too.
    pub fn share(&self, parameters: &Parameters, now: u64) -> u64 {
        let since = self.grows_since.load(Relaxed);
        let grown = now.saturating_sub(since);
        let whole = u64::from(parameters.slow_start);
        if whole == 0 || since == 0 || grown >= whole {
            return 1 << 32;
        }
        ((grown << 32) / whole).max((1 << 32) / 100)
    }

    /// Counts what went over the connection of an attempt, and the answer's status, if there was one.
    #[inline]
    pub fn answered(&self, status: Option<u16>, sent: u64, received: u64) {
        self.bytes[0].fetch_add(sent, Relaxed);
        self.bytes[1].fetch_add(received, Relaxed);
        let class = status.and_then(|status| usize::from(status / 100).checked_sub(1));
        if let Some(counter) = class.and_then(|class| self.responses.get(class)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Answers by the class of their status, 1xx to 5xx.
    pub fn responses(&self) -> [u64; 5] {
        self.responses.each_ref().map(|counter| counter.load(Relaxed))
    }

    /// Bytes sent to the server, and received from it.
    pub fn sent_and_received(&self) -> (u64, u64) {
        let [sent, received] = self.bytes.each_ref().map(|counter| counter.load(Relaxed));
        (sent, received)
    }

    /// The average time of answers up to a moment, in milliseconds, if there were any.
    pub fn known_average(&self, generation: u32, moment: Moment) -> Option<u64> {
        let is_known = self.timed.load(Relaxed) != 0;
        is_known.then(|| self.average(generation, moment))
    }

    /// Who keeps requests away now. A verdict of checks counts unless the caller ignores it.
    pub fn outs(&self, generation: u32, parameters: &Parameters, now: i64) -> Outs {
        let mut outs = Outs::default();
        outs.add_if(parameters.down, Out::Down);
        outs.add_if(parameters.drain, Out::Drain);
        outs.add_if(parameters.weight == 0, Out::NoWeight);
        outs.add_if(parameters.critical, Out::Consul);
        outs.add_if(self.is_out(generation, parameters, now), Out::MaxFails);
        outs.add_if(!self.has_room(generation, parameters), Out::MaxConns);
        outs
    }

    /// Counts the times of a good answer, in milliseconds, at `now` in seconds. What came without
    /// a header, as of a protocol that has none, has no time of one.
    pub fn timed(&self, generation: u32, header: Option<u64>, response: u64, now: i64) {
        let average = |of: &Count, time: u64| {
            let time = time.min(4 * TIME_MAX) * AVERAGE_UNIT;
            of.update(generation, |last| {
                let last = u64::from(last);
                let next =
                    if last == 0 { time } else { (last * (AVERAGE_OF - 1) + time) / AVERAGE_OF };
                Some(next.max(1) as u32)
            })
        };
        if header.is_none_or(|header| average(&self.header_time, header))
            && average(&self.response_time, response)
        {
            self.timed.store(now, Relaxed);
        }
    }

    /// The average time of answers up to a moment, in milliseconds; 0 if there were none.
    pub fn average(&self, generation: u32, moment: Moment) -> u64 {
        let of = match moment {
            Moment::Header => &self.header_time,
            Moment::LastByte => &self.response_time,
        };
        u64::from(of.get(generation).unwrap_or(0)) / AVERAGE_UNIT
    }

    /// How long the server will be busy with one more request, for `least_time`: the rule of
    /// nginx 1.31's own (`ngx_http_upstream_least_time_eta()`). A time grows old: it counts half
    /// after each `fail_timeout` without a new one, so that a slow server is asked again.
    pub fn busy_for(
        &self,
        generation: u32,
        parameters: &Parameters,
        moment: Moment,
        now: i64,
    ) -> u64 {
        let age = now.saturating_sub(self.timed.load(Relaxed)).max(0) as u64;
        let halves = age / (u64::from(parameters.fail_timeout) + 1);
        let time = self.average(generation, moment).checked_shr(halves as u32).unwrap_or(0);
        let time = if time > TIME_MAX { TIME_MAX } else { time + TIME_STEP - time % TIME_STEP };
        time * (1 + u64::from(self.connections(generation).unwrap_or(0)))
    }

    /// Whether the server is in the list and has fewer than `max_conns` connections.
    pub fn has_room(&self, generation: u32, parameters: &Parameters) -> bool {
        let max = parameters.max_conns;
        self.connections(generation).is_some_and(|connections| max == 0 || connections < max)
    }

    /// Whether a request could have the server now. Nothing is taken.
    pub fn is_usable(&self, generation: u32, parameters: &Parameters, now: i64) -> bool {
        self.has_room(generation, parameters) && !self.is_out(generation, parameters, now)
    }

    /// The server has left: from now on its generation is not current. The word that says which
    /// is comes last, so whoever is killed before it leaves a slot that can be retired again.
    pub fn retire(&self) {
        let next = self.generation().wrapping_add(1);
        for count in [&self.fails, &self.header_time, &self.response_time] {
            count.begin(next);
        }
        for time in [&self.accessed, &self.checked, &self.timed] {
            time.store(0, Relaxed);
        }
        for counter in [&self.requests, &self.failures, &self.grows_since] {
            counter.store(0, Relaxed);
        }
        for counter in self.bytes.iter().chain(&self.responses) {
            counter.store(0, Relaxed);
        }
        self.health.begin(next);
        self.connections.begin(next);
    }

    /// Takes over what another zone knew of the server, but for connections: those who hold them
    /// give them back to the other zone.
    pub fn copy_from(&self, other: &Self) {
        for (to, from) in [
            (&self.fails, &other.fails),
            (&self.header_time, &other.header_time),
            (&self.response_time, &other.response_time),
        ] {
            to.copy_from(from, self.generation());
        }
        for (to, from) in [
            (&self.accessed, &other.accessed),
            (&self.checked, &other.checked),
            (&self.timed, &other.timed),
        ] {
            to.store(from.load(Relaxed), Relaxed);
        }
        for (to, from) in [
            (&self.requests, &other.requests),
            (&self.failures, &other.failures),
            (&self.grows_since, &other.grows_since),
        ] {
            to.store(from.load(Relaxed), Relaxed);
        }
        let counters = self.bytes.iter().chain(&self.responses);
        for (to, from) in counters.zip(other.bytes.iter().chain(&other.responses)) {
            to.store(from.load(Relaxed), Relaxed);
        }
        self.health.copy_from(&other.health, self.generation());
    }
}

#[cfg(test)]
mod tests;
