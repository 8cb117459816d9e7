//! Whether the event loop is held up: by a disk, by work of others, by a stopped process.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use nginx_sys::ngx_current_msec;

/// While a check is under way somebody begins a turn at least so often, in milliseconds.
pub const BEAT: u64 = 50;

/// What may come between two turns beside that, in milliseconds.
const SLACK: u64 = 25;

/// How many stalls are remembered at most.
const STALLS_MAX: usize = 32;

thread_local! {
    static LAST: Cell<u64> = const { Cell::new(0) };
    static HELD_UP: Cell<u64> = const { Cell::new(0) };
    static RESOLUTION: Cell<u64> = const { Cell::new(0) };
    /// When each ended and how long it was. Of those that are shorter than a later one none is kept, so
    /// they get shorter and shorter.
    static STALLS: RefCell<VecDeque<(u64, u64)>> = const { RefCell::new(VecDeque::new()) };
}

/// The first turn begins. nginx's clock moves by so many milliseconds, as `timer_resolution` says; 0 is
/// any number.
pub fn start(resolution: u64) {
    RESOLUTION.set(resolution);
    LAST.set(now());
}

/// A turn of the event loop begins.
pub fn begin() {
    let now = now();
    let gap = now.saturating_sub(LAST.replace(now));
    // Timers go off when the clock moves.
    let step = RESOLUTION.get().max(1);
    let usual = BEAT.div_ceil(step) * step;
    if gap > usual + SLACK {
        HELD_UP.set(HELD_UP.get() + gap - usual);
        STALLS.with_borrow_mut(|stalls| note(stalls, now, gap));
    }
}

fn note(stalls: &mut VecDeque<(u64, u64)>, now: u64, gap: u64) {
    while stalls.back().is_some_and(|&(_, shorter)| shorter <= gap) {
        stalls.pop_back();
    }
    stalls.push_back((now, gap));
    if stalls.len() > STALLS_MAX {
        stalls.pop_front();
    }
}

/// How long the event loop was held up in all, in milliseconds. It says something of the time between
/// two questions only if turns were begun all the while.
pub fn held_up() -> u64 {
    HELD_UP.get()
}

/// The longest that it was held up at once, in milliseconds, after that time of nginx's clock.
pub fn longest_after(time: u64) -> u64 {
    STALLS.with_borrow(|stalls| {
        stalls.iter().find(|&&(ended, _)| ended > time).map_or(0, |&(_, gap)| gap)
    })
}

fn now() -> u64 {
    // SAFETY: a plain integer of this thread.
    unsafe { ngx_current_msec as u64 }
}
