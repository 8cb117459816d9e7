//! Threads beside nginx's own.

use std::mem::MaybeUninit;

/// Runs `spawn` so that the threads it starts, and theirs, take no signals: nginx's handlers are
/// for its own thread.
pub fn with_signals_blocked<T>(spawn: impl FnOnce() -> T) -> T {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the calls fill the sets before they are used, and change this thread's mask only.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = spawn();
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    result
}
