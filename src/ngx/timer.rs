//! Timers of events that do not keep a worker from exiting.

use nginx_sys::{ngx_add_timer, ngx_del_timer, ngx_event_t, ngx_msec_t};

/// Sets the timer of an event, in milliseconds from now. Whatever it was set to is forgotten.
///
/// # Safety
///
/// `event` is one of nginx's, or one that has a handler and a log and stays where it is while the timer
/// is set.
pub unsafe fn set(event: *mut ngx_event_t, milliseconds: ngx_msec_t) {
    // SAFETY: the caller's word.
    unsafe {
        unset(event);
        (*event).set_cancelable(1);
        ngx_add_timer(event, milliseconds);
    }
}

/// Unsets it, if it is set.
///
/// # Safety
///
/// As of [`set`].
pub unsafe fn unset(event: *mut ngx_event_t) {
    // SAFETY: the caller's word.
    unsafe {
        if (*event).timer_set() != 0 {
            ngx_del_timer(event);
        }
    }
}
