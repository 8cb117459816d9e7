//! Whether the event loop is held up: by a disk, by work of others, by a stopped process.

use std::cell::Cell;

use nginx_sys::ngx_current_msec;

/// While a check is under way somebody begins a turn at least so often, in milliseconds.
pub const BEAT: u64 = 50;

/// What may come between two turns beside that.
const SLACK: u64 = 25;

thread_local! {
    static LAST: Cell<u64> = const { Cell::new(0) };
    static HELD_UP: Cell<u64> = const { Cell::new(0) };
}

/// A turn of the event loop begins.
pub fn begin() {
    let now = now();
    let gap = now.saturating_sub(LAST.replace(now));
    if gap > BEAT + SLACK {
        HELD_UP.set(HELD_UP.get() + gap - BEAT);
    }
}

/// How long the event loop was held up in all, in milliseconds. It says something of the time between
/// two questions only if turns were begun all the while.
pub fn held_up() -> u64 {
    HELD_UP.get()
}

fn now() -> u64 {
    // SAFETY: a plain integer of this thread.
    unsafe { ngx_current_msec as u64 }
}
