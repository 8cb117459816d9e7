//! What a writer that was killed left behind, put right by whoever next takes the lock to write.

use std::sync::atomic::Ordering::Relaxed;

use super::block::Block;
use super::directory::{self, Origin, Upstream, block_offset};
use super::layout::Ledger;
use super::publish::{chunks, push_slot, slot, slots_of};
use super::zone::{Locked, Zone};

/// The lock for whoever allocates: what a killed writer left is put right first, before a new
/// note takes the place of the one that says so.
pub(super) fn lock_to_write(zone: &Zone) -> Locked {
    let locked = zone.lock();
    recover(&locked);
    locked
}

/// Puts right what a killed writer left: at most one allocation, one block and some slots.
pub(super) fn recover(locked: &Locked) {
    let zone = locked.zone();
    let pending = zone.header().pending.load(Relaxed);
    let chunk = zone.header().pending_chunk.load(Relaxed);
    if pending == 0 && chunk == 0 && zone.header().moving.load(Relaxed) == 0 {
        return;
    }
    if chunk != 0 && zone.header().chunks.load(Relaxed) != chunk {
        // SAFETY: allocated, and not linked: nothing refers to it.
        unsafe { locked.free(chunk) };
    }
    zone.header().pending_chunk.store(0, Relaxed);
    let published = pending != 0 && is_published(locked, pending);
    let retired = zone.header().retired.load(Relaxed);
    if published && retired != 0 && !is_published(locked, retired) {
        // SAFETY: the killed writer had replaced this block and did not come to free it, or was
        // killed while nginx freed it, which nginx notices and reports.
        unsafe { locked.free(retired) };
    } else if pending != 0 && !published && !is_linked(locked, pending) {
        // SAFETY: allocated, and neither published nor linked: nothing refers to it.
        unsafe { locked.free(pending) };
    }
    // Whoever looked meanwhile may have seen half a change.
    zone.header().names.fetch_add(1, Relaxed);
    remove_halves(locked);
    sweep(locked);
    directory::sweep(locked);
    locked.settle();
}

fn is_published(locked: &Locked, block: u64) -> bool {
    directory::linked(locked).any(|upstream| block_offset(upstream.published()) == block)
}

/// A list that was posted always has a block. An upstream without was about to be removed.
fn remove_halves(locked: &Locked) {
    let is_half = |upstream: &Upstream| {
        upstream.origin() == Origin::Api && block_offset(upstream.published()) == 0
    };
    while let Some(half) = directory::linked(locked).find(is_half) {
        directory::unlink(locked, half);
    }
}

/// Whether something was put into one of the lists that grow at their head, or to an upstream.
fn is_linked(locked: &Locked, offset: u64) -> bool {
    let zone = locked.zone();
    let header = zone.header();
    let at_head = header.ledgers.load(Relaxed) == offset || header.entries.load(Relaxed) == offset;
    at_head
        || super::ledger::all(zone).any(|ledger: &Ledger| ledger.pages.load(Relaxed) == offset)
        || directory::every(locked).any(|upstream| upstream.entry().news.load(Relaxed) == offset)
}

/// Finds the free slots anew: all that no published block refers to.
fn sweep(locked: &Locked) {
    let zone = locked.zone();
    let all = || chunks(zone).flat_map(|chunk| slots_of(zone, chunk));
    for offset in all() {
        slot(zone, offset).mark.store(0, Relaxed);
    }
    for upstream in directory::linked(locked) {
        mark(zone, block_offset(upstream.published()));
    }
    zone.header().free_slot.store(0, Relaxed);
    zone.header().free_slots.store(0, Relaxed);
    for offset in all().filter(|&offset| slot(zone, offset).mark.load(Relaxed) == 0) {
        push_slot(zone, offset);
    }
}

fn mark(zone: &Zone, block: u64) {
    if block == 0 {
        return;
    }
    // SAFETY: a published block is whole, and the lock that recovery holds keeps it.
    let block = unsafe { Block::copy_of(zone.pointer(block).cast()) };
    for record in block.records() {
        slot(zone, record.slot).mark.store(1, Relaxed);
    }
}
