//! What stands where in the zone. Change [`LAYOUT`] with every change here.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

/// "upsync" and a NUL: says that a zone is ours.
pub const MAGIC: u64 = u64::from_le_bytes(*b"upsync\0\0");

/// The layout this module reads and writes.
pub const LAYOUT: u64 = 4;

/// Lists of entries, chosen by a hash of the name.
pub const BUCKETS: usize = 1024;

/// Bytes for the name behind an entry. A longer name of nginx.conf gets as many as it needs.
pub const NAME_ROOM: usize = 256;

/// The fewest slots in a chunk, which is then within one page of 4 KiB with its head.
pub const CHUNK_SLOTS_MIN: u64 = 15;

/// Workers whose versions an entry knows; of more, the first.
pub const WORKERS_KNOWN: usize = 64;

/// Words for the text of a source's last error.
pub const ERROR_WORDS: usize = 16;

/// Connections that a page of a ledger notes: one page of 4 KiB with its head.
pub const LEDGER_CELLS: usize = 511;

/// Servers that a [`News`] names: one page of 4 KiB with its head.
pub const NEWS_CELLS: usize = 511;

/// The start of everything. All offsets count from the zone's start; 0 is none.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`LAYOUT`].
    pub layout: u64,
    /// The configuration cycle in force: writes of an older one are refused.
    pub cycle: AtomicU64,
    /// Memory that is allocated and not yet in its place. Not 0 outside the lock only if a
    /// writer was killed: then the next one makes good.
    pub pending: AtomicU64,
    /// The block that `pending` takes the place of.
    pub retired: AtomicU64,
    /// The same as `pending`, for a chunk that a pending block needs.
    pub pending_chunk: AtomicU64,
    /// The first [`Chunk`].
    pub chunks: AtomicU64,
    /// The first free slot.
    pub free_slot: AtomicU64,
    /// How many slots are free.
    pub free_slots: AtomicU64,
    /// The first [`Ledger`].
    pub ledgers: AtomicU64,
    /// The first of all entries, whether they are in a bucket or free.
    pub entries: AtomicU64,
    /// The first free entry.
    pub free_entry: AtomicU64,
    /// Not 0 while an entry is on its way between the free ones and a bucket.
    pub moving: AtomicU64,
    /// Raised when a name gets or loses a list that was posted.
    pub names: AtomicU64,
    /// Not 0 if posted lists are kept on disk too, and have been read from there.
    pub loaded: AtomicU64,
    /// Raised when connections were given back of which no [`News`] tells.
    pub recounts: AtomicU64,
    /// Not 0 if a zone of another size has taken the place of this one.
    pub superseded: AtomicU64,
    /// The first [`Entry`] of each bucket.
    pub buckets: [AtomicU64; BUCKETS],
}

/// One upstream. Entries are never given back, as workers keep references to them: one that is
/// free is used again, for another name.
#[repr(C, align(64))]
pub struct Entry {
    /// The next entry of the bucket, or the next free one. Used under the zone's lock only.
    pub next: AtomicU64,
    /// The list in force: its version in the upper 32 bits, and below its block's offset in
    /// units of 8 bytes, 0 if there is none. The version goes on when the entry is used again.
    pub published: AtomicU64,
    /// When the list was last changed, in milliseconds since 1970.
    pub since: AtomicU64,
    /// The last configuration in which the upstream follows a source; 0 is none.
    pub followed: AtomicU64,
    /// When a worker that checks its servers last looked at it, in milliseconds of the monotonic
    /// clock; 0 is never.
    pub watched: AtomicU64,
    /// Its [`News`], if anybody has asked for them. They stay with the entry.
    pub news: AtomicU64,
    /// The next of all entries.
    pub every: AtomicU64,
    /// Where the list came from: an `Origin`.
    pub origin: AtomicU32,
    /// How many names have had this entry before.
    pub generation: AtomicU32,
    /// The version before the first list of the name.
    pub first: AtomicU32,
    /// Bytes of the name, which follows the entry. Read under the zone's lock only.
    pub name_len: AtomicU32,
    /// Bytes that there are for the name.
    pub name_room: u32,
    /// Not 0 if a bucket has the entry. Used by recovery, under the zone's lock only.
    pub mark: AtomicU32,
    /// How following its source goes.
    pub source: SourceFacts,
    /// Not 0 if the list in force came with checks of its own.
    pub has_check: AtomicU32,
    /// Not 0 while so many servers would be out that the verdicts of checks are ignored.
    pub open: AtomicU32,
    /// The version by which each worker last sent a request, plus 1; 0 is none.
    pub versions: [AtomicU32; WORKERS_KNOWN],
    /// Tickets of the rotation of primary servers, apart from what is only read.
    pub turn: Turn,
    /// Tickets of the rotation of backup servers.
    pub backup_turn: Turn,
    /// Tickets for requests that try another server, of either. With those of first attempts they
    /// would fall into step: each retry would take the turn of a good server from a request.
    pub retry_turn: Turn,
}

/// How following the source of an upstream goes. Moments are milliseconds since 1970; 0 is never.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SourceFacts {
    /// Consul's index of the last answer that was used; 0 is none.
    pub index: AtomicU64,
    /// When it last answered.
    pub answered: AtomicU64,
    /// When a question last failed or brought nothing usable.
    pub failed: AtomicU64,
    /// Changes that were put in force.
    pub applied: AtomicU64,
    /// Answers of which nothing was.
    pub refused: AtomicU64,
    /// Not 0 if the last question failed.
    pub failing: AtomicU32,
    /// Bytes of `error`. Used under the zone's lock only.
    pub error_len: AtomicU32,
    /// What was wrong when `failed` was set, in UTF-8. Used under the zone's lock only.
    pub error: [AtomicU64; ERROR_WORDS],
}

/// A counter on a cache line of its own.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Turn(pub AtomicU64);

/// The servers of one upstream that were given a connection back, the last ones of all workers.
#[repr(C)]
pub struct News {
    /// How many there were.
    pub count: AtomicU64,
    /// Number `i` of them is at `i % NEWS_CELLS`: the lower half of `i + 1` in the upper 32 bits,
    /// and below its slot's offset in units of its alignment.
    pub cells: [AtomicU64; NEWS_CELLS],
}

/// The head of a run of slots, all free or owned by a server of some list in force. Chunks are
/// never given back: their slots are used again.
#[repr(C, align(64))]
pub struct Chunk {
    /// The next chunk.
    pub next: AtomicU64,
    /// How many slots follow.
    pub count: AtomicU64,
}

/// The connections that one worker holds.
#[repr(C)]
pub struct Ledger {
    /// The next ledger.
    pub next: AtomicU64,
    /// The process that writes it; 0 is none.
    pub pid: AtomicI32,
    /// Its number among the workers of its configuration.
    pub worker: AtomicU32,
    /// Its configuration.
    pub cycle: AtomicU64,
    /// The first [`LedgerPage`].
    pub pages: AtomicU64,
}

/// Cells of a ledger, each 0 or a slot's offset in units of its alignment in the upper 32 bits and
/// the slot's generation below.
#[repr(C)]
pub struct LedgerPage {
    /// The next page of the same ledger.
    pub next: AtomicU64,
    /// One connection each.
    pub cells: [AtomicU64; LEDGER_CELLS],
}
