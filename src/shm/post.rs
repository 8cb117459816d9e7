//! Lists of names that are made, changed and removed at run time.
//!
//! A change is worked out from what a name has at one moment, without the lock, and put in force
//! only if nobody else came first; else it is worked out anew. So nothing is lost between two who
//! change the same list.

use std::sync::atomic::Ordering::{Relaxed, Release};

use thiserror::Error;

use super::block::Block;
use super::directory::{
    Origin, Upstream, add_entry_if_none, block_offset, find, link, successor, take_entry, unlink,
};
use super::publish::{Exchange, push_slot};
use super::recover::{lock_to_write, recover};
use super::zone::{Full, Locked, Zone};
use crate::model::{Difference, List, Name};

/// Why a change was not made. Nothing of it was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PostError {
    /// No memory.
    #[error(transparent)]
    Full(#[from] Full),
    /// Somebody else changed the list since it was looked at.
    #[error("the list has changed meanwhile")]
    Changed,
    /// The upstream follows a source.
    #[error("the upstream follows a source")]
    Followed,
    /// Another zone has taken the place of this one.
    #[error("nginx has been reloaded")]
    Superseded,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posted {
    /// What is new about it.
    pub difference: Difference,
    /// The list's version now.
    pub version: u32,
    /// Whether it is another than before, if only in its order.
    pub is_new: bool,
}

/// What a name has at one moment.
#[derive(Debug)]
pub struct Base {
    zone: Zone,
    name: Name,
    upstream: Option<Upstream>,
    published: u64,
    followed: bool,
    block: Option<Block>,
}

impl Base {
    /// As of now.
    pub fn of(zone: Zone, name: Name) -> Self {
        let locked = zone.lock();
        let upstream = find(&locked, name.as_str().as_bytes());
        let block = upstream.and_then(|upstream| upstream.block_under(&locked));
        let published = upstream.map_or(0, |upstream| upstream.published());
        let followed = upstream.is_some_and(|upstream| upstream.is_followed());
        drop(locked);
        Self { zone, name, upstream, published, followed, block: block.map(|(_, block)| block) }
    }

    /// Whether it follows a source, and so cannot be changed.
    pub fn is_followed(&self) -> bool {
        self.followed
    }

    /// The list of its source.
    pub fn followed_list(&self) -> Option<&Block> {
        self.block.as_ref().filter(|_| self.followed)
    }

    /// The list that was posted, if one was. It is empty where the servers of nginx.conf were
    /// deleted.
    pub fn posted(&self) -> Option<&Block> {
        let is_posted = |upstream: Upstream| upstream.origin() == Origin::Api;
        self.block.as_ref().filter(|_| self.upstream.is_some_and(is_posted))
    }

    /// Puts a list in force for all workers, under this name.
    pub fn publish(&self, list: &List) -> Result<Posted, PostError> {
        let exchange = Exchange::new(Block::new(list), self.block.as_ref());
        let difference = exchange.difference;
        let is_new = self.posted().is_none() || !exchange.is_none();
        let locked = self.lock_unchanged()?;
        let upstream = match self.upstream {
            Some(upstream) if !is_new => upstream,
            Some(upstream) => {
                exchange.publish(&upstream, &locked, Origin::Api)?;
                upstream.follow(0);
                locked.settle();
                upstream
            }
            None => self.make(&locked, exchange)?,
        };
        Ok(Posted { difference, version: upstream.version(), is_new })
    }

    fn make(&self, locked: &Locked, exchange: Exchange) -> Result<Upstream, Full> {
        let name = self.name.as_str().as_bytes();
        add_entry_if_none(locked, name.len())?;
        let upstream = take_entry(locked, name).ok_or(Full)?;
        // As after a writer that was killed here: the entry is free again.
        exchange.publish(&upstream, locked, Origin::Api).inspect_err(|_| recover(locked))?;
        link(locked, upstream, name);
        locked.settle();
        Ok(upstream)
    }

    /// Takes the list and the name away. An upstream of nginx.conf then has its own servers again.
    pub fn remove(&self) -> Result<(), PostError> {
        let locked = self.lock_unchanged()?;
        if let Some(upstream) = self.upstream {
            remove(&locked, upstream, self.block.as_ref());
        }
        Ok(())
    }

    fn lock_unchanged(&self) -> Result<Locked, PostError> {
        let locked = lock_to_write(&self.zone);
        if self.zone.is_superseded() {
            return Err(PostError::Superseded);
        }
        let now = find(&locked, self.name.as_str().as_bytes());
        if now.is_some_and(|upstream| upstream.is_followed()) {
            return Err(PostError::Followed);
        }
        let published = now.map_or(0, |upstream| upstream.published());
        if now == self.upstream && published == self.published {
            Ok(locked)
        } else {
            Err(PostError::Changed)
        }
    }
}

/// Takes away the name of an upstream that no configuration follows any more, and its list.
pub fn remove_unfollowed(upstream: Upstream) {
    let locked = lock_to_write(upstream.zone());
    if !upstream.is_gone() && upstream.origin() != Origin::Api {
        let block = upstream.block_under(&locked);
        remove(&locked, upstream, block.map(|(_, block)| block).as_ref());
    }
}

/// A removal that is killed on the way is one that was not begun or one that recovery ends.
fn remove(locked: &Locked, upstream: Upstream, block: Option<&Block>) {
    let header = locked.zone().header();
    let last = upstream.published();
    header.retired.store(0, Relaxed);
    header.pending.store(block_offset(last), Release);
    header.names.fetch_add(1, Release);
    upstream.entry().published.store(successor(last, 0), Release);
    unlink(locked, upstream);
    for record in block.map_or(&[][..], Block::records) {
        push_slot(locked.zone(), record.slot);
    }
    if block_offset(last) != 0 {
        // SAFETY: it was the published block of an upstream that has none now; readers copy
        // under the lock, so none is at it.
        unsafe { locked.free(block_offset(last)) };
    }
    locked.settle();
}
