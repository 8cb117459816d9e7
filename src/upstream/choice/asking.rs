//! How a request asks servers: what `balance` wants to know of them.

use std::cell::Cell;

use nginx_sys::ngx_time;

use super::{Attempt, Choice, ngx_current_msec};
use crate::balance::hash::crc32;
use crate::balance::{Ask, Taken, Walk};
use crate::model::{Out, Parameters};
use crate::ngx::cycle;
use crate::shm::slot::Slot;
use crate::upstream::live::Turn;
use crate::upstream::snapshot::Snapshot;

/// A request that asks servers.
pub(super) struct Asking<'a> {
    choice: &'a Choice,
    list: &'a Snapshot,
    now: i64,
    /// Which tier is asked.
    tier: Cell<usize>,
    /// Servers with a share that grows may refuse.
    lets_grow: Cell<bool>,
    /// One has, in this attempt.
    refused: Cell<bool>,
    /// The request belongs to the server, which may be one that drains.
    is_bound: bool,
    found: Cell<Option<Attempt>>,
}

impl<'a> Asking<'a> {
    pub(super) fn of(choice: &'a Choice) -> Self {
        Self {
            choice,
            list: &choice.list,
            now: ngx_time(),
            tier: Cell::new(0),
            lets_grow: Cell::new(true),
            refused: Cell::new(false),
            is_bound: false,
            found: Cell::new(None),
        }
    }

    /// Takes the server that the request belongs to, if it may have it: also one that drains, or
    /// whose share has yet to grow.
    #[cfg(nginx_peer_sid)]
    pub(super) fn take_bound(self, server: u32) -> Option<Attempt> {
        let bound = Self { is_bound: true, lets_grow: Cell::new(false), ..self };
        bound.take(server);
        bound.found.take()
    }

    /// Asks the tiers in their order.
    #[inline]
    pub(super) fn pick(&self) -> Option<Attempt> {
        for (number, tier) in self.list.tiers().iter().enumerate() {
            self.tier.set(number);
            if tier.pick(&self.choice.walk, self).is_some() {
                return self.found.take();
            }
        }
        if self.refused.get() { self.pick_again() } else { None }
    }

    /// Where shares grow, servers may have refused because their own have not grown yet. Now none
    /// does.
    #[cold]
    fn pick_again(&self) -> Option<Attempt> {
        self.lets_grow.set(false);
        self.refused.set(false);
        self.choice.walk.set(Walk::default());
        self.pick()
    }

    /// Whether the operator and Consul let the request have the server.
    fn is_open(&self, parameters: &Parameters) -> bool {
        !parameters.is_down() && parameters.weight != 0 && (!parameters.drain || self.is_bound)
    }

    /// Whether checks let it.
    #[inline]
    fn is_well(&self, slot: &Slot, generation: u32) -> bool {
        self.list.asked.as_ref().is_none_or(|asked| match slot.health.is_up(generation) {
            Some(is_up) => is_up || self.choice.live.upstream().is_open(),
            None => !asked.check.default_down,
        })
    }

    /// Notes why a server was passed over.
    fn pass(&self, out: Out) -> Taken {
        let mut passed = self.choice.passed.get();
        passed.add_if(true, out);
        self.choice.passed.set(passed);
        Taken::Out
    }

    fn share(&self, slot: &Slot, parameters: &Parameters) -> u64 {
        slot.share(parameters, ngx_current_msec())
    }

    /// Whether the server's share has not grown so far that this request is in it.
    fn is_too_small(&self, slot: &Slot, parameters: &Parameters) -> bool {
        if parameters.slow_start == 0 || !self.lets_grow.get() {
            return false;
        }
        let most = self.list.largest_share(self.now, |server| {
            let record = self.list.record(server);
            let is_usable = self.may(server);
            if is_usable { self.share(self.choice.slot(record), &record.parameters()) } else { 0 }
        });
        if most == 0 {
            return false;
        }
        // In 2^32ths of the largest share that any usable server has.
        let share = (u128::from(self.share(slot, parameters)) << 32) / u128::from(most);
        // Keys that a growing server has not got yet are always the same ones.
        let roll = match self.key() {
            [] => fastrand::u32(..),
            key => scattered(crc32(&[key])),
        };
        let is_refused = share <= u128::from(roll);
        self.refused.set(self.refused.get() || is_refused);
        is_refused
    }
}

impl Ask for Asking<'_> {
    fn ticket(&self) -> u64 {
        self.choice.live.ticket(match (self.choice.attempts, self.tier.get()) {
            // With the tickets of an attempt in vain the same server would always be next.
            _ if !self.lets_grow.get() => Turn::Retry,
            (0, 0) => Turn::Primary,
            (0, _) => Turn::Backup,
            _ => Turn::Retry,
        })
    }

    fn random(&self) -> u64 {
        fastrand::u64(..)
    }

    fn second(&self) -> i64 {
        self.now
    }

    fn key(&self) -> &[u8] {
        self.choice.key
    }

    fn was_tried(&self, server: u32) -> bool {
        // nginx lets a request try the only server again where a kept connection was closed.
        self.choice.tried.has(server) && !self.list.is_single()
    }

    fn may(&self, server: u32) -> bool {
        let record = self.list.record(server);
        let (slot, parameters) = (self.choice.slot(record), record.parameters());
        self.is_open(&parameters)
            && self.is_well(slot, record.generation)
            && if self.list.is_single() {
                slot.has_room(record.generation, &parameters)
            } else {
                slot.is_usable(record.generation, &parameters, self.now)
            }
    }

    /// Counts a connection to the server if it may be asked now.
    fn take(&self, server: u32) -> Taken {
        if self.was_tried(server) {
            return Taken::NotNow;
        }
        let (choice, record) = (self.choice, self.list.record(server));
        let (slot, parameters) = (choice.slot(record), record.parameters());
        if !self.is_open(&parameters) {
            return Taken::Out;
        }
        if !self.is_well(slot, record.generation) {
            return self.pass(Out::Check);
        }
        let Some(book) = choice.live.book() else {
            return Taken::Out;
        };
        if parameters.max_conns != 0 && !slot.has_room(record.generation, &parameters) {
            book.reclaim(self.now, cycle::is_alive);
            return self.pass(Out::MaxConns);
        }
        if !self.list.is_single() {
            if self.is_too_small(slot, &parameters) {
                return Taken::NotNow;
            }
            if !slot.admits(record.generation, &parameters, self.now) {
                return self.pass(Out::MaxFails);
            }
        }
        match book.connect(record.slot, record.generation, parameters.max_conns) {
            Some(held) => {
                self.found.set(Some(Attempt { server, _connection: held }));
                Taken::Yes
            }
            None => Taken::Out,
        }
    }

    fn load(&self, server: u32) -> u64 {
        self.choice.load(server)
    }

    fn weight(&self, server: u32) -> u32 {
        self.list.record(server).parameters().weight
    }
}

/// Another number for each, of which no bit hangs on few of `hash`: servers are chosen by this one.
fn scattered(hash: u32) -> u32 {
    // The finalizer of MurmurHash3.
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}
