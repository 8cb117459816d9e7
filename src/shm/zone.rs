//! The zone: memory that nginx's master maps once and all its workers share.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::Duration;

use nginx_sys::{
    ngx_shmtx_force_unlock, ngx_shmtx_lock, ngx_shmtx_trylock, ngx_shmtx_unlock,
    ngx_slab_alloc_locked, ngx_slab_free_locked, ngx_slab_pool_t,
};
use thiserror::Error;

use crate::ngx::cycle;

use super::layout::{Header, LAYOUT, MAGIC};

/// The smallest zone that holds a few servers, in bytes.
pub const SIZE_MIN: usize = 128 * 1024;

/// The largest zone that offsets reach, in bytes: 2^32 units of 8.
pub const SIZE_MAX: u64 = 32 << 30;

/// Room for a little over 10,000 servers, also while a list is exchanged for its next.
pub const SIZE_DEFAULT: usize = 8 * 1024 * 1024;

/// How long the master sleeps before it asks for a mutex again.
const LOCK_STEP: Duration = Duration::from_millis(1);

/// The zone is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{}", Self::REASON)]
pub struct Full;

impl Full {
    const REASON: &str = "no memory in the shared zone, raise \"upsync_zone\"";

    /// The text of the error.
    pub fn reason(self) -> &'static str {
        Self::REASON
    }
}

/// A mapped zone. Copies are references to the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Zone {
    pool: NonNull<ngx_slab_pool_t>,
    header: NonNull<Header>,
}

/// The zone's mutex, held. nginx's master releases it when its holder dies, so nothing is done
/// meanwhile that may block, and every step leaves what a next holder can go on from.
pub struct Locked {
    zone: Zone,
}

impl Zone {
    /// Makes a zone out of memory that nginx has just set up as a slab pool.
    ///
    /// # Safety
    ///
    /// `pool` is a slab pool in a mapping that lives as long as any copy of the result.
    pub unsafe fn create(pool: NonNull<ngx_slab_pool_t>) -> Result<Self, Full> {
        // SAFETY: the caller gives a slab pool; no other process has it yet, so no lock is needed.
        let header = unsafe { ngx_slab_alloc_locked(pool.as_ptr(), size_of::<Header>()) };
        let header = NonNull::new(header.cast::<Header>()).ok_or(Full)?;
        // SAFETY: the allocation is as large as a header, and all zeros is a valid header.
        unsafe {
            header.write_bytes(0, 1);
            (*header.as_ptr()).layout = LAYOUT;
            (*header.as_ptr()).magic = MAGIC;
            (*pool.as_ptr()).data = header.as_ptr().cast();
            // Full memory is reported by whoever asked, with the directive to raise.
            (*pool.as_ptr()).set_log_nomem(0);
        }
        Ok(Self { pool, header })
    }

    /// The zone that an earlier configuration made, if this module can read it.
    ///
    /// # Safety
    ///
    /// As for [`Zone::create`]; `data` of the pool is null or was set by a module of ours.
    pub unsafe fn attach(pool: NonNull<ngx_slab_pool_t>) -> Option<Self> {
        // SAFETY: `data` is null or points to a header, of whatever layout; the first two words
        // are the same in all of them.
        unsafe {
            let header = NonNull::new((*pool.as_ptr()).data.cast::<Header>())?;
            let ours = header.as_ref().magic == MAGIC && header.as_ref().layout == LAYOUT;
            ours.then_some(Self { pool, header })
        }
    }

    /// The start of everything.
    pub fn header(&self) -> &Header {
        // SAFETY: `create` and `attach` made sure that it is one, in memory that outlives `self`;
        // what changes in it are atomics.
        unsafe { self.header.as_ref() }
    }

    /// What stands at an offset.
    ///
    /// # Safety
    ///
    /// A `T` was allocated at `offset` in this zone, and it is not freed while the reference
    /// lives. It changes through atomics only.
    pub unsafe fn at<T>(&self, offset: u64) -> &T {
        // SAFETY: the caller's word.
        unsafe { &*self.pointer(offset).cast() }
    }

    /// Where an offset is in this process.
    pub(super) fn pointer(&self, offset: u64) -> *mut u8 {
        self.pool.as_ptr().cast::<u8>().wrapping_add(offset as usize)
    }

    /// Waits for the mutex. It is held for microseconds: by a writer for one copy of a list, by
    /// a reader the same.
    pub fn lock(&self) -> Locked {
        if cycle::is_worker() && cycle::has_master() {
            // SAFETY: nginx initialised the mutex with the pool.
            unsafe { ngx_shmtx_lock(&raw mut (*self.pool.as_ptr()).mutex) };
        } else {
            self.lock_from_the_dead();
        }
        Locked { zone: *self }
    }

    /// The master releases the mutex of a worker that died, but not while it reads a
    /// configuration: then it must not wait for a dead one, or nginx would stand still for ever.
    /// Nor must a worker whose master is dead itself.
    fn lock_from_the_dead(&self) {
        // SAFETY: nginx initialised the mutex with the pool; its lock word is the holder's pid.
        unsafe {
            let mutex = &raw mut (*self.pool.as_ptr()).mutex;
            while ngx_shmtx_trylock(mutex) == 0 {
                let holder = (*mutex).lock.read_volatile() as i32;
                if holder != 0 && !cycle::is_alive(holder) {
                    ngx_shmtx_force_unlock(mutex, holder);
                } else {
                    std::thread::sleep(LOCK_STEP);
                }
            }
        }
    }

    /// Pages that are free and pages there are, of nginx's page size.
    pub fn pages(&self) -> (usize, usize) {
        // SAFETY: the pool is mapped; a count read while it changes is as good as one before.
        unsafe {
            let pool = self.pool.as_ptr();
            let all = (*pool).last.offset_from((*pool).pages) as usize;
            ((&raw const (*pool).pfree).read_volatile(), all)
        }
    }

    /// Says whether posted lists are kept on disk too, and have been read from there. Whether
    /// they were before.
    pub fn set_loaded(&self, loaded: bool) -> bool {
        self.header().loaded.swap(u64::from(loaded), AcqRel) != 0
    }

    /// Whether posted lists are kept on disk too, and have been read from there.
    pub fn is_loaded(&self) -> bool {
        self.header().loaded.load(Acquire) != 0
    }

    /// Another zone has taken the place of this one. Once this returns, no list is posted here.
    pub fn supersede(&self) {
        let _locked = self.lock();
        self.header().superseded.store(1, Release);
    }

    /// Whether another zone has taken the place of this one.
    pub fn is_superseded(&self) -> bool {
        self.header().superseded.load(Acquire) != 0
    }

    /// Makes `cycle` the configuration in force. Older ones write no more, once this returns.
    pub fn enter_cycle(&self, cycle: u64) {
        let _locked = self.lock();
        self.header().cycle.store(cycle, Release);
    }

    /// The configuration in force.
    pub fn cycle(&self) -> u64 {
        self.header().cycle.load(Acquire)
    }
}

impl Locked {
    /// The zone that is locked.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Allocates zeroed memory for a `T`, or for `size` bytes if that is more, and notes it as
    /// pending until [`Locked::settle`].
    pub fn allocate<T>(&self, size: usize) -> Result<u64, Full> {
        self.allocate_beside::<T>(size, &self.zone.header().pending)
    }

    /// The same, noted at another place of the header.
    pub fn allocate_beside<T>(&self, size: usize, note: &AtomicU64) -> Result<u64, Full> {
        let size = size.max(size_of::<T>());
        let pool = self.zone.pool.as_ptr();
        // SAFETY: the lock is held, which is what this function of nginx wants.
        let memory = unsafe { ngx_slab_alloc_locked(pool, size) };
        if memory.is_null() {
            return Err(Full);
        }
        let offset = memory as u64 - pool as u64;
        note.store(offset, Release);
        // SAFETY: nginx gave `size` bytes here.
        unsafe { memory.cast::<u8>().write_bytes(0, size) };
        Ok(offset)
    }

    /// What was pending has its place.
    pub fn settle(&self) {
        self.zone.header().pending.store(0, Release);
    }

    /// Gives memory back.
    ///
    /// # Safety
    ///
    /// `offset` is from [`Locked::allocate`], was not freed, and nothing in the zone refers to it.
    pub unsafe fn free(&self, offset: u64) {
        // SAFETY: the lock is held; the rest is the caller's word.
        unsafe { ngx_slab_free_locked(self.zone.pool.as_ptr(), self.zone.pointer(offset).cast()) };
    }

    /// Copies words to an offset.
    ///
    /// # Safety
    ///
    /// So many bytes were allocated at `offset`, and nobody reads them yet.
    pub unsafe fn write(&self, offset: u64, words: &[u64]) {
        let to = self.zone.pointer(offset).cast();
        // SAFETY: the caller's word; slab memory is aligned to 8 bytes at least.
        unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), to, words.len()) };
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: `Zone::lock` locked it, and only there a `Locked` is made.
        unsafe { ngx_shmtx_unlock(&raw mut (*self.zone.pool.as_ptr()).mutex) };
    }
}
