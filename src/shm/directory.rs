//! Upstreams by name.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::block::Block;
use super::layout::{BUCKETS, Entry};
use super::publish::lock_to_write;
use super::slot::Slot;
use super::zone::{Full, Locked, Zone};

/// Where a list in force came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Origin {
    /// `server` lines or a dump file, read at start.
    Config = 0,
    /// A source has spoken. Such a list outlives a reload.
    Source = 1,
}

/// One upstream of the zone, for as long as the zone is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    zone: Zone,
    offset: u64,
}

impl Upstream {
    /// The upstream of that name, made if there is none. Names are compared as nginx compares
    /// host names: without regard to ASCII case.
    pub fn open(zone: Zone, name: &[u8]) -> Result<Self, Full> {
        let locked = lock_to_write(&zone);
        let bucket = &zone.header().buckets[bucket(name)];
        let mut next = bucket.load(Acquire);
        while next != 0 {
            let upstream = Self { zone, offset: next };
            if upstream.name().eq_ignore_ascii_case(name) {
                return Ok(upstream);
            }
            next = upstream.entry().next.load(Acquire);
        }
        let offset = insert(&locked, name, bucket.load(Relaxed))?;
        bucket.store(offset, Release);
        locked.settle();
        Ok(Self { zone, offset })
    }

    /// All upstreams of a zone.
    pub fn all(zone: Zone) -> impl Iterator<Item = Self> {
        let heads = (0..BUCKETS).map(move |bucket| zone.header().buckets[bucket].load(Acquire));
        heads.flat_map(move |head| {
            let upstream = move |offset| (offset != 0).then_some(Self { zone, offset });
            std::iter::successors(upstream(head), move |last| {
                upstream(last.entry().next.load(Acquire))
            })
        })
    }

    /// What the zone holds of it.
    pub fn entry(&self) -> &Entry {
        // SAFETY: the offset is from a bucket's list, which holds entries only, and entries are
        // never freed.
        unsafe { self.zone.at(self.offset) }
    }

    /// The zone it is in.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Its name as it was first written.
    pub fn name(&self) -> &[u8] {
        let from = (self.entry() as *const Entry).cast::<u8>();
        // SAFETY: the name stands behind its entry, was written before the entry was linked, and
        // does not change.
        unsafe {
            std::slice::from_raw_parts(from.add(size_of::<Entry>()), self.entry().name_len as usize)
        }
    }

    /// Names the list in force. It is another number after every change.
    pub fn published(&self) -> u64 {
        self.entry().published.load(Acquire)
    }

    /// How often the list has changed.
    pub fn version(&self) -> u32 {
        (self.published() >> 32) as u32
    }

    /// Where the list in force came from.
    pub fn origin(&self) -> Origin {
        if self.entry().origin.load(Acquire) == Origin::Source as u32 {
            Origin::Source
        } else {
            Origin::Config
        }
    }

    /// A copy of the list in force and the number that names it, if there ever was a list.
    pub fn block(&self) -> Option<(u64, Block)> {
        let _locked = self.zone.lock();
        let published = self.published();
        let offset = block_offset(published);
        if offset == 0 {
            return None;
        }
        // SAFETY: a published block is whole, and as long as the lock is held nobody frees it.
        Some((published, unsafe { Block::copy_of(self.zone.pointer(offset).cast()) }))
    }

    /// The slot that a record names.
    pub fn slot(&self, offset: u64) -> &Slot {
        // SAFETY: records in published blocks name slots of chunks, which are never freed.
        unsafe { self.zone.at(offset) }
    }
}

/// Where the block of a published word is.
pub(super) fn block_offset(published: u64) -> u64 {
    (published & u64::from(u32::MAX)) * 8
}

/// The word that publishes the block at `offset` after `last`.
pub(super) fn successor(last: u64, offset: u64) -> u64 {
    let version = ((last >> 32) as u32).wrapping_add(1);
    (u64::from(version) << 32) | (offset / 8)
}

fn insert(locked: &Locked, name: &[u8], next: u64) -> Result<u64, Full> {
    let offset = locked.allocate::<Entry>(size_of::<Entry>() + name.len())?;
    let entry = locked.zone().pointer(offset).cast::<Entry>();
    // SAFETY: so many bytes were just allocated here and nobody knows them yet; all zeros is a
    // valid entry.
    unsafe {
        (*entry).name_len = name.len() as u32;
        (*entry).next.store(next, Relaxed);
        let to = entry.cast::<u8>().add(size_of::<Entry>());
        std::ptr::copy_nonoverlapping(name.as_ptr(), to, name.len());
    }
    Ok(offset)
}

/// FNV-1a of the name in lower case.
fn bucket(name: &[u8]) -> usize {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) as usize % BUCKETS
}
