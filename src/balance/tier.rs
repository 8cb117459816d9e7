//! The servers that are asked together, and how one of them is chosen.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::hash::{AddressWalk, KeyWalk, Table};
use super::least::Least;
use super::ring::{Ring, RingWalk};
use super::{Rotation, Taken, random};

/// What a request knows, and what the servers' states are now.
pub trait Ask {
    /// Draws the next ticket of the order that all workers share.
    fn ticket(&self) -> u64;
    /// Any number.
    fn random(&self) -> u64;
    /// The clock's second.
    fn second(&self) -> i64;
    /// What the choice hangs on: the key of `hash`, the bytes of the client's address of `ip_hash`.
    fn key(&self) -> &[u8];
    /// Whether the request has tried the server.
    fn was_tried(&self, server: u32) -> bool;
    /// Whether some request could have the server now. Has no effect.
    fn may(&self, server: u32) -> bool;
    /// Takes the server for the request, if it may have it.
    fn take(&self, server: u32) -> Taken;
    /// How busy the server is, as the method counts it.
    fn load(&self, server: u32) -> u64;
    /// Its weight.
    fn weight(&self, server: u32) -> u32;
}

/// How a server of a tier is chosen.
#[derive(Debug, Default)]
pub enum Chooser {
    /// In turn.
    #[default]
    Turns,
    /// Any.
    Random,
    /// The better one of two.
    Two,
    /// By a key.
    Key(Table),
    /// By a key, so that most keys stay where they are when servers come and go.
    Ring(Arc<Ring>),
    /// By the client's address.
    Address(Table),
    /// The one with the least load.
    Least(RefCell<Least>),
}

/// Servers, none of which is preferred but by its weight and the method.
#[derive(Debug, Default)]
pub struct Tier {
    /// In turn, where the method leads nowhere.
    rotation: Rotation,
    chooser: Chooser,
}

/// How far a request has gone by its key or address, so that its next try goes on from there. Only
/// one tier of a list is chosen from in that way.
#[derive(Clone, Copy, Debug, Default)]
pub enum Walk {
    /// Not begun.
    #[default]
    None,
    /// By [`Chooser::Key`].
    Key(KeyWalk),
    /// By [`Chooser::Ring`].
    Ring(RingWalk),
    /// By [`Chooser::Address`].
    Address(AddressWalk),
}

impl Walk {
    /// Itself, begun by the chooser if it was not.
    fn begun(self, chooser: &Chooser) -> Self {
        match (self, chooser) {
            (Self::None, Chooser::Key(_)) => Self::Key(KeyWalk::default()),
            (Self::None, Chooser::Ring(_)) => Self::Ring(RingWalk::default()),
            (Self::None, Chooser::Address(_)) => Self::Address(AddressWalk::default()),
            _ => self,
        }
    }
}

impl Tier {
    /// `rotation` has the servers that may be chosen at all.
    pub fn new(rotation: Rotation, chooser: Chooser) -> Self {
        Self { rotation, chooser }
    }

    /// How many servers may be chosen.
    pub fn len(&self) -> usize {
        self.rotation.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rotation.is_empty()
    }

    /// The servers that may be chosen.
    pub fn servers(&self) -> impl Iterator<Item = u32> {
        self.rotation.servers()
    }

    /// The servers by their load, where that is the method.
    pub fn least(&self) -> Option<&RefCell<Least>> {
        match &self.chooser {
            Chooser::Least(least) => Some(least),
            _ => None,
        }
    }

    /// Takes a server for a request; none if there is none that it may have.
    pub fn pick(&self, walk: &Cell<Walk>, ask: &impl Ask) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        let take = |server| ask.take(server) == Taken::Yes;
        let chosen = match &self.chooser {
            Chooser::Turns => return self.in_turn(ask),
            Chooser::Least(least) => {
                let mut least = least.borrow_mut();
                return least.pick(ask.second(), |s| ask.load(s), |s| ask.take(s));
            }
            Chooser::Random => random::one(&self.rotation, &mut || ask.random(), take),
            Chooser::Two => {
                let load = |server| (ask.load(server), ask.weight(server));
                let may = |server| ask.may(server) && !ask.was_tried(server);
                random::two(&self.rotation, &mut || ask.random(), may, load, take)
            }
            Chooser::Key(_) | Chooser::Ring(_) | Chooser::Address(_) => self.by_key(walk, ask),
        };
        chosen.or_else(|| self.in_turn(ask))
    }

    /// Goes on with the walk. It leads nowhere where another chooser began it.
    fn by_key(&self, walk: &Cell<Walk>, ask: &impl Ask) -> Option<u32> {
        let (mut on, key) = (walk.get().begun(&self.chooser), ask.key());
        let take = |server| ask.take(server) == Taken::Yes;
        let taken = match (&mut on, &self.chooser) {
            (Walk::Key(on), Chooser::Key(table)) => {
                first(|| on.next(key, table), take).inspect(|_| on.taken())
            }
            (Walk::Ring(on), Chooser::Ring(ring)) => {
                first(|| on.next(key, ring), take).inspect(|_| on.taken())
            }
            (Walk::Address(on), Chooser::Address(table)) => {
                first(|| on.next(key, table), take).inspect(|_| on.taken())
            }
            _ => None,
        };
        walk.set(on);
        taken
    }

    fn in_turn(&self, ask: &impl Ask) -> Option<u32> {
        let take = |server| ask.take(server) == Taken::Yes;
        self.rotation.pick(ask.second(), || ask.ticket(), |server| ask.may(server), take)
    }
}

/// The first server of a walk that is taken.
fn first(next: impl FnMut() -> Option<u32>, take: impl Fn(u32) -> bool) -> Option<u32> {
    std::iter::from_fn(next).find(|&server| take(server))
}

#[cfg(test)]
mod tests;
