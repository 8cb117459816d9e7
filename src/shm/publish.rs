//! A new list in the place of the old one.
//!
//! Under the lock, in this order: the new block is allocated and noted as pending, its servers
//! get their slots, it is filled, one store publishes it, the slots of servers that left are
//! freed, the old block is freed, nothing is pending. A writer killed before the store leaves the
//! old list in force, one killed after it the new; what else it left is put right by
//! [`super::recover`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;

use super::block::{Block, Record};
use super::directory::{Origin, Upstream, block_offset, successor};
use super::layout::{CHUNK_SLOTS_MIN, Chunk};
use super::recover::{lock_to_write, recover};
use super::slot::Slot;
use super::zone::{Full, Locked, Zone};
use crate::model::{Difference, List};

/// Why a list was not published. The one before stays in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// Nothing of it was kept.
    #[error(transparent)]
    Full(#[from] Full),
    /// A newer configuration is in force.
    #[error("the configuration has been replaced")]
    OldCycle,
    /// The upstream has lost its name.
    #[error("the upstream is gone")]
    Gone,
}

impl Upstream {
    /// Puts `list` in force for all workers, unless it is there already.
    pub fn publish(
        &self,
        cycle: u64,
        list: &List,
        origin: Origin,
    ) -> Result<Difference, PublishError> {
        loop {
            let old = self.block();
            let last = old.as_ref().map_or_else(|| self.published(), |(published, _)| *published);
            let exchange = Exchange::new(Block::new(list), old.as_ref().map(|(_, block)| block));
            let difference = exchange.difference;
            if old.is_some() && exchange.is_none() {
                return self.confirm(cycle, origin).map(|()| difference);
            }
            let locked = lock_to_write(self.zone());
            refuse_old(self.zone(), cycle)?;
            if self.is_gone() {
                return Err(PublishError::Gone);
            }
            // Another writer came first: what to keep of the old list has to be found anew.
            if self.published() != last {
                continue;
            }
            exchange.publish(self, &locked, origin)?;
            locked.settle();
            return Ok(difference);
        }
    }

    /// Says where the list in force comes from.
    pub fn confirm(&self, cycle: u64, origin: Origin) -> Result<(), PublishError> {
        let locked = self.zone().lock();
        refuse_old(self.zone(), cycle)?;
        if self.is_gone() {
            return Err(PublishError::Gone);
        }
        self.set_origin(origin);
        drop(locked);
        Ok(())
    }

    /// Takes over an upstream of a zone of another size: its list, which is `theirs`, and what is
    /// known of its servers.
    pub fn copy_from(&self, cycle: u64, other: &Self, theirs: &Block) -> Result<(), PublishError> {
        self.publish(cycle, &theirs.list(), other.origin())?;
        let Some((_, ours)) = self.block() else {
            return Ok(());
        };
        for (our, their) in ours.records().iter().zip(theirs.records()) {
            self.slot(our.slot).copy_from(other.slot(their.slot));
        }
        self.copy_source(other);
        let (ours, theirs) = (self.entry(), other.entry());
        for (to, from) in [
            (&ours.since, &theirs.since),
            (&ours.followed, &theirs.followed),
            (&ours.watched, &theirs.watched),
        ] {
            to.store(from.load(Relaxed), Relaxed);
        }
        for (to, from) in [
            (&ours.turn, &theirs.turn),
            (&ours.backup_turn, &theirs.backup_turn),
            (&ours.retry_turn, &theirs.retry_turn),
        ] {
            to.0.store(from.0.load(Relaxed), Relaxed);
        }
        Ok(())
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The clock of nginx's `ngx_current_msec`, the same for all processes.
fn monotonic_milliseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the system fills what the pointer leads to; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}

fn refuse_old(zone: &Zone, cycle: u64) -> Result<(), PublishError> {
    if cycle < zone.cycle() { Err(PublishError::OldCycle) } else { Ok(()) }
}

/// One list about to replace another, worked out before the lock is taken.
pub(super) struct Exchange {
    /// The new list. Servers that stay have their slots already.
    block: Block,
    /// Slots of servers that leave.
    leaving: Vec<u64>,
    pub(super) difference: Difference,
    /// The same servers in another order, or with another method or other checks.
    reordered: bool,
    /// There were servers before: those that join take their shares slowly.
    joins: bool,
    /// Slots of servers that were down and are not any more.
    returning: Vec<u64>,
}

impl Exchange {
    pub(super) fn new(block: Block, old: Option<&Block>) -> Self {
        let mut exchange = Self {
            block,
            leaving: Vec::new(),
            difference: Difference::default(),
            reordered: false,
            joins: false,
            returning: Vec::new(),
        };
        match old {
            Some(old) => exchange.compare(old),
            None => exchange.difference.added = exchange.block.records().len(),
        }
        exchange
    }

    /// Most changes touch few servers of many: what is the same at the start and at the end of
    /// both lists needs no look-up.
    fn compare(&mut self, old: &Block) {
        self.reordered = !self.block.has_method_of(old) || !self.block.has_check_of(old);
        self.joins = !old.records().is_empty();
        let (new_len, old_len) = (self.block.records().len(), old.records().len());
        let is_same = |block: &Block, new: usize, was: usize| {
            block.name(&block.records()[new]) == old.name(&old.records()[was])
        };
        let most = new_len.min(old_len);
        let start = (0..most).take_while(|&i| is_same(&self.block, i, i)).count();
        let end = (1..=most - start)
            .take_while(|&i| is_same(&self.block, new_len - i, old_len - i))
            .count();
        (0..start).for_each(|i| self.keep(i, &old.records()[i]));
        (1..=end).for_each(|i| self.keep(new_len - i, &old.records()[old_len - i]));
        self.compare_between(start..new_len - end, old, start..old_len - end);
    }

    fn compare_between(&mut self, new: Range<usize>, old: &Block, was: Range<usize>) {
        let hasher = foldhash::fast::RandomState::default();
        let mut known = HashMap::with_capacity_and_hasher(was.len(), hasher);
        known.extend(was.map(|place| (old.name(&old.records()[place]), place)));
        for place in new {
            match known.remove(self.block.name(&self.block.records()[place])) {
                Some(was) => {
                    self.reordered |= was != place;
                    self.keep(place, &old.records()[was]);
                }
                None => self.difference.added += 1,
            }
        }
        self.difference.removed = known.len();
        self.leaving = known.values().map(|&place| old.records()[place].slot).collect();
    }

    /// A server stays: it keeps its slot.
    fn keep(&mut self, place: usize, stays: &Record) {
        let record = &mut self.block.records_mut()[place];
        let (was, is) = (stays.parameters(), record.parameters());
        self.difference.changed += usize::from(was != is);
        record.adopt(stays);
        if was.is_down() && !is.is_down() {
            self.returning.push(record.slot);
        }
    }

    /// Whether the new list is the old one.
    pub(super) fn is_none(&self) -> bool {
        self.difference.is_none() && !self.reordered
    }

    /// Puts the new list in force. If it is the first one it stays pending, for the caller to settle.
    pub(super) fn publish(
        mut self,
        upstream: &Upstream,
        locked: &Locked,
        origin: Origin,
    ) -> Result<(), Full> {
        let header = locked.zone().header();
        let last = upstream.published();
        let offset = locked.allocate::<u64>(size_of_val(self.block.words()))?;
        header.retired.store(block_offset(last), Relaxed);
        // As after a writer that was killed here: the block goes, slots that were taken come back.
        self.take_slots(locked).inspect_err(|_| recover(locked))?;
        // SAFETY: the block was allocated with this size, and is not yet published.
        unsafe { locked.write(offset, self.block.words()) };
        upstream.entry().since.store(now(), Relaxed);
        upstream.entry().has_check.store(self.block.has_check().into(), Relaxed);
        upstream.entry().published.store(successor(last, offset), Release);
        upstream.set_origin(origin);
        for leaving in self.leaving {
            push_slot(locked.zone(), leaving);
        }
        if block_offset(last) != 0 {
            // SAFETY: it was the published block, which the store above replaced; readers copy
            // under the lock, so none is at it.
            unsafe { locked.free(block_offset(last)) };
            // At once: a writer killed in between has nginx report that the block is free already.
            locked.settle();
        }
        Ok(())
    }

    /// Gives slots to the servers that join.
    fn take_slots(&mut self, locked: &Locked) -> Result<(), Full> {
        self.add_slots(locked)?;
        let zone = locked.zone();
        let now = monotonic_milliseconds();
        for record in self.block.records_mut().iter_mut().filter(|record| record.slot == 0) {
            record.slot = pop_slot(zone).ok_or(Full)?;
            record.generation = slot(zone, record.slot).generation();
            if self.joins {
                slot(zone, record.slot).grow(now);
            }
        }
        self.returning.iter().for_each(|&offset| slot(zone, offset).grow(now));
        Ok(())
    }

    /// Makes sure that there are slots for the servers that join.
    fn add_slots(&self, locked: &Locked) -> Result<(), Full> {
        let free = locked.zone().header().free_slots.load(Relaxed);
        match (self.difference.added as u64).saturating_sub(free) {
            0 => Ok(()),
            missing => add_chunk(locked, missing.max(CHUNK_SLOTS_MIN)),
        }
    }
}

pub(super) fn slot(zone: &Zone, offset: u64) -> &Slot {
    // SAFETY: offsets of slots come from chunks and from records, and chunks are never freed.
    unsafe { zone.at(offset) }
}

/// The count goes down first and up last: a writer killed between leaves it too low, never too
/// high.
fn pop_slot(zone: &Zone) -> Option<u64> {
    let header = zone.header();
    let offset = header.free_slot.load(Relaxed);
    if offset == 0 {
        return None;
    }
    header.free_slots.fetch_sub(1, Release);
    header.free_slot.store(slot(zone, offset).next.load(Relaxed), Release);
    Some(offset)
}

pub(super) fn push_slot(zone: &Zone, offset: u64) {
    let header = zone.header();
    slot(zone, offset).retire();
    slot(zone, offset).next.store(header.free_slot.load(Relaxed), Relaxed);
    header.free_slot.store(offset, Release);
    header.free_slots.fetch_add(1, Release);
}

fn add_chunk(locked: &Locked, count: u64) -> Result<(), Full> {
    let header = locked.zone().header();
    let size = size_of::<Chunk>() + count as usize * size_of::<Slot>();
    let offset = locked.allocate_beside::<Chunk>(size, &header.pending_chunk)?;
    let new = chunk(locked.zone(), offset);
    new.count.store(count, Relaxed);
    new.next.store(header.chunks.load(Relaxed), Relaxed);
    header.chunks.store(offset, Release);
    for slot in slots_of(locked.zone(), offset) {
        push_slot(locked.zone(), slot);
    }
    header.pending_chunk.store(0, Release);
    Ok(())
}

fn chunk(zone: &Zone, offset: u64) -> &Chunk {
    // SAFETY: offsets of chunks come from the list of chunks, and chunks are never freed.
    unsafe { zone.at(offset) }
}

pub(super) fn slots_of(zone: &Zone, offset: u64) -> impl Iterator<Item = u64> {
    let first = offset + size_of::<Chunk>() as u64;
    (0..chunk(zone, offset).count.load(Relaxed)).map(move |i| first + i * size_of::<Slot>() as u64)
}

pub(super) fn chunks(zone: &Zone) -> impl Iterator<Item = u64> {
    let some = |offset| (offset != 0).then_some(offset);
    let first = some(zone.header().chunks.load(Relaxed));
    std::iter::successors(first, move |&last| some(chunk(zone, last).next.load(Relaxed)))
}
