//! Timers of events that do not keep a worker from exiting.

use std::ptr::NonNull;
use std::rc::Weak;

use nginx_sys::{
    ngx_add_timer, ngx_connection_t, ngx_cycle, ngx_del_timer, ngx_event_t, ngx_msec_t,
};

use super::boundary::guarded;

/// What happens when a timer goes off.
pub trait Tick {
    /// It has. It is not set any more.
    fn tick(&self);
}

/// A timer of its own.
#[derive(Debug)]
pub struct Timer<T: Tick>(NonNull<Alarm<T>>);

/// What nginx has of it.
#[repr(C)]
struct Alarm<T> {
    event: ngx_event_t,
    /// nginx's debug log asks the event's data for a descriptor.
    connection: ngx_connection_t,
    owner: Weak<T>,
}

impl<T: Tick> Timer<T> {
    /// One that is not set. It ticks as long as its owner lives.
    pub fn new(owner: Weak<T>) -> Self {
        // SAFETY: all zeros are an event that is not set, and a connection.
        let (event, connection) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let alarm = NonNull::from(Box::leak(Box::new(Alarm { event, connection, owner })));
        // SAFETY: just made, and freed by `drop` only; a worker has a cycle.
        unsafe {
            let alarm = alarm.as_ptr();
            (*alarm).connection.fd = -1;
            (*alarm).event.data = (&raw mut (*alarm).connection).cast();
            (*alarm).event.log = (*ngx_cycle).log;
            (*alarm).event.handler = Some(on_timer::<T>);
        }
        Self(alarm)
    }

    /// Sets it, in milliseconds from now. Whatever it was set to is forgotten.
    pub fn set(&self, milliseconds: ngx_msec_t) {
        // SAFETY: the event stays where it is until it is unset by `drop`.
        unsafe { set(self.event(), milliseconds) };
    }

    /// Unsets it, if it is set.
    pub fn unset(&self) {
        // SAFETY: as above.
        unsafe { unset(self.event()) };
    }

    fn event(&self) -> *mut ngx_event_t {
        // SAFETY: made by `new`, freed by `drop`.
        unsafe { &raw mut (*self.0.as_ptr()).event }
    }
}

impl<T: Tick> Drop for Timer<T> {
    fn drop(&mut self) {
        self.unset();
        // SAFETY: made by `new`; nginx has it no more.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

unsafe extern "C" fn on_timer<T: Tick>(event: *mut ngx_event_t) {
    // SAFETY: the event is the first field of what `new` made, which is unset before it is freed. The
    // owner is held here, and may drop the timer.
    guarded((), || unsafe {
        if let Some(owner) = (*event.cast::<Alarm<T>>()).owner.upgrade() {
            owner.tick();
        }
    });
}

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
