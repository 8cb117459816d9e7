//! Upstreams by name.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::block::Block;
use super::layout::{BUCKETS, Entry, Header, NAME_ROOM};
use super::recover::lock_to_write;
use super::slot::Slot;
use super::source::Facts;
use super::zone::{Full, Locked, Zone};

/// Milliseconds by which [`Upstream::watch`] may be off, so that workers do not write all the time.
const WATCH_STEP: u64 = 1000;

/// Where a list in force came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Origin {
    /// `server` lines or a dump file, read at start.
    Config = 0,
    /// A source has spoken. Such a list outlives a reload.
    Source = 1,
    /// It was posted. Such a list outlives a reload too, unless the upstream has a source then.
    Api = 2,
}

/// One upstream of the zone, until its name loses its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    zone: Zone,
    offset: u64,
    generation: u32,
}

impl Upstream {
    /// The upstream of that name, made if there is none. Names are compared as nginx compares
    /// host names: without regard to ASCII case.
    pub fn open(zone: Zone, name: &[u8]) -> Result<Self, Full> {
        let locked = lock_to_write(&zone);
        if let Some(upstream) = find(&locked, name) {
            return Ok(upstream);
        }
        add_entry_if_none(&locked, name.len())?;
        let upstream = take_entry(&locked, name).ok_or(Full)?;
        link(&locked, upstream, name);
        Ok(upstream)
    }

    /// All upstreams of a zone with their names, as of now.
    pub fn all(zone: Zone) -> Vec<(Self, Box<[u8]>)> {
        let locked = zone.lock();
        linked(&locked).map(|upstream| (upstream, upstream.name(&locked).into())).collect()
    }

    /// The upstreams whose list was posted, as of now, with the names of those that are not known.
    pub fn posted(zone: Zone, is_known: impl Fn(Self) -> bool) -> Vec<(Self, Option<Box<[u8]>>)> {
        let locked = zone.lock();
        // Without a block it is one whose removal was cut short.
        let posted = linked(&locked).filter(|upstream| {
            upstream.origin() == Origin::Api && block_offset(upstream.published()) != 0
        });
        let named = |upstream: Self| {
            (upstream, (!is_known(upstream)).then(|| upstream.name(&locked).into()))
        };
        posted.map(named).collect()
    }

    /// The zone it is in.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// What the zone holds of it; of another upstream, if [`Upstream::is_gone`].
    pub fn entry(&self) -> &Entry {
        entry(&self.zone, self.offset)
    }

    /// Tells it from all others in the zone, also those that had the entry before.
    pub fn id(&self) -> u64 {
        ((self.offset / 8) << 32) | u64::from(self.generation)
    }

    /// Whether its name has lost the entry. Certain only under the lock.
    pub fn is_gone(&self) -> bool {
        self.entry().generation.load(Acquire) != self.generation
    }

    /// Says that a worker goes by the list in force.
    pub fn note_version(&self, worker: u64) {
        if let Some(version) = self.entry().versions.get(worker as usize)
            && !self.is_gone()
        {
            version.store(self.version().wrapping_add(1), Relaxed);
        }
    }

    /// The version of the list by which a worker last sent a request; none if it sent none, or if
    /// it is not one of the first [`super::layout::WORKERS_KNOWN`].
    pub fn version_of(&self, worker: usize) -> Option<u32> {
        self.entry().versions.get(worker)?.load(Relaxed).checked_sub(1)
    }

    /// Whether the list in force came with checks of its own. Takes no lock: workers ask for each list
    /// that changes.
    pub fn has_own_check(&self) -> bool {
        self.entry().has_check.load(Acquire) != 0
    }

    /// Whether so many servers would be out that the verdicts of checks are ignored.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.entry().open.load(Relaxed) != 0
    }

    /// Says so; whether it was otherwise.
    pub fn set_open(&self, is_open: bool) -> bool {
        !self.is_gone() && self.entry().open.swap(u32::from(is_open), Relaxed) != u32::from(is_open)
    }

    /// A worker that checks the servers looks at it, now in milliseconds of the monotonic clock. Gives
    /// how long ago one last did; none if nobody has.
    pub fn watch(&self, now: u64) -> Option<u64> {
        let watched = &self.entry().watched;
        let last = watched.load(Relaxed);
        if now >= last + WATCH_STEP && !self.is_gone() {
            watched.store(now, Relaxed);
        }
        (last != 0).then(|| now.saturating_sub(last))
    }

    /// Names the list in force. It is another number after every change.
    pub fn published(&self) -> u64 {
        self.entry().published.load(Acquire)
    }

    /// How often the list has changed since its name has the entry.
    pub fn version(&self) -> u32 {
        let version = (self.published() >> 32) as u32;
        version.wrapping_sub(self.entry().first.load(Relaxed))
    }

    /// When the list was last changed, in milliseconds since 1970.
    pub fn since(&self) -> u64 {
        self.entry().since.load(Relaxed)
    }

    /// Where the list in force came from.
    pub fn origin(&self) -> Origin {
        match self.entry().origin.load(Acquire) {
            1 => Origin::Source,
            2 => Origin::Api,
            _ => Origin::Config,
        }
    }

    /// Says where the list in force came from. Whoever keeps the names of posted lists is told.
    pub(super) fn set_origin(&self, origin: Origin) {
        let last = self.origin();
        // Before the store: who is told too early looks under the lock, who is not told never does.
        if last != origin && (last == Origin::Api || origin == Origin::Api) {
            self.zone.header().names.fetch_add(1, Release);
        }
        self.entry().origin.store(origin as u32, Release);
    }

    /// Says that the upstream follows a source in this configuration.
    pub fn follow(&self, cycle: u64) {
        self.entry().followed.store(cycle, Release);
    }

    /// Whether it follows a source in the configuration in force.
    pub fn is_followed(&self) -> bool {
        let followed = self.entry().followed.load(Acquire);
        followed != 0 && followed >= self.zone.cycle()
    }

    /// The last configuration in which it follows a source; 0 is none.
    pub fn followed(&self) -> u64 {
        self.entry().followed.load(Acquire)
    }

    /// A copy of the list in force and the number that names it, if there is a list.
    pub fn block(&self) -> Option<(u64, Block)> {
        self.block_under(&self.zone.lock())
    }

    pub(super) fn block_under(&self, _locked: &Locked) -> Option<(u64, Block)> {
        let published = self.published();
        let offset = block_offset(published);
        if offset == 0 || self.is_gone() {
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

    fn name<'a>(&self, locked: &'a Locked) -> &'a [u8] {
        let len = self.entry().name_len.load(Relaxed) as usize;
        // SAFETY: the name stands behind its entry, and does not change while the lock is held.
        unsafe { std::slice::from_raw_parts(self.room(locked), len) }
    }

    /// Where the name stands.
    fn room(&self, locked: &Locked) -> *mut u8 {
        locked.zone().pointer(self.offset + size_of::<Entry>() as u64)
    }

    fn at(locked: &Locked, offset: u64) -> Self {
        let zone = *locked.zone();
        Self { zone, offset, generation: entry(&zone, offset).generation.load(Relaxed) }
    }
}

fn entry(zone: &Zone, offset: u64) -> &Entry {
    // SAFETY: offsets of entries are from the list of all entries, which are never freed.
    unsafe { zone.at(offset) }
}

/// Where the block of a published word is.
pub(super) fn block_offset(published: u64) -> u64 {
    (published & u64::from(u32::MAX)) * 8
}

/// The word that publishes the block at `offset` after `last`; no block if that is 0.
pub(super) fn successor(last: u64, offset: u64) -> u64 {
    let version = ((last >> 32) as u32).wrapping_add(1);
    (u64::from(version) << 32) | (offset / 8)
}

/// The upstream of a name.
pub(super) fn find(locked: &Locked, name: &[u8]) -> Option<Upstream> {
    in_bucket(locked, bucket(name))
        .find(|upstream| upstream.name(locked).eq_ignore_ascii_case(name))
}

/// The upstreams that have a name.
pub(super) fn linked(locked: &Locked) -> impl Iterator<Item = Upstream> {
    (0..BUCKETS).flat_map(|bucket| in_bucket(locked, bucket))
}

fn in_bucket(locked: &Locked, bucket: usize) -> impl Iterator<Item = Upstream> {
    let some = |offset| (offset != 0).then(|| Upstream::at(locked, offset));
    let first = some(locked.zone().header().buckets[bucket].load(Relaxed));
    std::iter::successors(first, move |last| some(last.entry().next.load(Relaxed)))
}

/// Makes sure that there is a free entry with room for a name.
pub(super) fn add_entry_if_none(locked: &Locked, name_len: usize) -> Result<(), Full> {
    if free(locked).any(|upstream| upstream.entry().name_room as usize >= name_len) {
        return Ok(());
    }
    let header = locked.zone().header();
    let room = name_len.max(NAME_ROOM);
    let offset = locked.allocate::<Entry>(size_of::<Entry>() + room)?;
    let new = locked.zone().pointer(offset).cast::<Entry>();
    // SAFETY: so many bytes were just allocated here and nobody knows them yet; all zeros is a
    // valid entry.
    unsafe {
        (*new).name_room = room as u32;
        (*new).every.store(header.entries.load(Relaxed), Relaxed);
        (*new).next.store(header.free_entry.load(Relaxed), Relaxed);
    }
    header.moving.store(offset, Release);
    header.entries.store(offset, Release);
    header.free_entry.store(offset, Release);
    header.moving.store(0, Release);
    locked.settle();
    Ok(())
}

fn free(locked: &Locked) -> impl Iterator<Item = Upstream> {
    let some = |offset| (offset != 0).then(|| Upstream::at(locked, offset));
    let first = some(locked.zone().header().free_entry.load(Relaxed));
    std::iter::successors(first, move |last| some(last.entry().next.load(Relaxed)))
}

/// Takes a free entry and gives it a name. Until [`link`] nobody finds it, and recovery takes it
/// for free.
pub(super) fn take_entry(locked: &Locked, name: &[u8]) -> Option<Upstream> {
    let header = locked.zone().header();
    let has_room = |upstream: &Upstream| upstream.entry().name_room as usize >= name.len();
    let before = free(locked).take_while(|upstream| !has_room(upstream)).last();
    let taken = free(locked).find(has_room)?;
    let entry = taken.entry();
    header.moving.store(taken.offset, Release);
    let from = before.as_ref().map_or(&header.free_entry, |before| &before.entry().next);
    from.store(entry.next.load(Relaxed), Release);
    entry.name_len.store(name.len() as u32, Relaxed);
    // SAFETY: the room behind the entry is its own, large enough, and read by nobody while the
    // lock is held.
    unsafe { std::ptr::copy_nonoverlapping(name.as_ptr(), taken.room(locked), name.len()) };
    // A killed writer may have left the place of a block that recovery has freed.
    let published = successor(entry.published.load(Relaxed), 0);
    entry.published.store(published, Relaxed);
    entry.first.store((published >> 32) as u32, Relaxed);
    entry.origin.store(Origin::Config as u32, Relaxed);
    for number in [&entry.since, &entry.followed, &entry.watched] {
        number.store(0, Relaxed);
    }
    entry.source.put(&Facts::default());
    for turn in [&entry.turn, &entry.backup_turn, &entry.retry_turn] {
        turn.0.store(0, Relaxed);
    }
    entry.open.store(0, Relaxed);
    entry.versions.iter().for_each(|version| version.store(0, Relaxed));
    Some(taken)
}

/// Puts a taken entry into the bucket of its name.
pub(super) fn link(locked: &Locked, taken: Upstream, name: &[u8]) {
    let header = locked.zone().header();
    let bucket = &header.buckets[bucket(name)];
    taken.entry().next.store(bucket.load(Relaxed), Relaxed);
    bucket.store(taken.offset, Release);
    header.moving.store(0, Release);
}

/// Takes an upstream's name away. Its entry is free for another.
pub(super) fn unlink(locked: &Locked, upstream: Upstream) {
    let header = locked.zone().header();
    let bucket = bucket(upstream.name(locked));
    header.moving.store(upstream.offset, Release);
    let before = in_bucket(locked, bucket).take_while(|other| *other != upstream).last();
    let from = before.as_ref().map_or(&header.buckets[bucket], |before| &before.entry().next);
    from.store(upstream.entry().next.load(Relaxed), Release);
    push_free(header, upstream);
    header.moving.store(0, Release);
}

/// From now on whoever holds the upstream finds that it is gone.
fn push_free(header: &Header, upstream: Upstream) {
    let entry = upstream.entry();
    entry.generation.store(upstream.generation.wrapping_add(1), Release);
    entry.next.store(header.free_entry.load(Relaxed), Relaxed);
    header.free_entry.store(upstream.offset, Release);
}

/// All entries, free ones too.
pub(super) fn every(locked: &Locked) -> impl Iterator<Item = Upstream> {
    let some = |offset| (offset != 0).then(|| Upstream::at(locked, offset));
    let first = some(locked.zone().header().entries.load(Relaxed));
    std::iter::successors(first, move |last| some(last.entry().every.load(Relaxed)))
}

/// Finds the free entries anew: all that no bucket has.
pub(super) fn sweep(locked: &Locked) {
    let zone = locked.zone();
    let header = zone.header();
    for upstream in every(locked) {
        upstream.entry().mark.store(0, Relaxed);
    }
    for upstream in linked(locked) {
        upstream.entry().mark.store(1, Relaxed);
    }
    header.free_entry.store(0, Relaxed);
    for upstream in every(locked).filter(|upstream| upstream.entry().mark.load(Relaxed) == 0) {
        push_free(header, upstream);
    }
    header.moving.store(0, Release);
}

/// FNV-1a of the name in lower case.
fn bucket(name: &[u8]) -> usize {
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) as usize % BUCKETS
}
