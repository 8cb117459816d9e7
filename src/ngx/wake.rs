//! Other threads wake this worker's event loop through an eventfd.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;

use nginx_sys::{
    NGX_OK, ngx_add_timer, ngx_close_connection, ngx_connection_t, ngx_cycle_t, ngx_del_timer,
    ngx_event_t, ngx_get_connection, ngx_handle_read_event, ngx_msec_t,
};

use super::boundary::guarded;
use super::cycle;

/// What happens in the event loop. When the worker begins to exit, it is dropped.
pub trait Wake {
    /// Somebody called [`Waker::wake`] since the last time.
    fn woken(&mut self);
}

/// Wakes the event loop from any thread. It touches nothing of nginx's: the descriptor is its
/// own, so that it stays good when the worker has closed its side.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Makes the event loop call [`Wake::woken`] soon. Calls before that are one.
    pub fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: writes 8 bytes that are there. It can only fail when the counter is full,
        // and then the loop is being woken already.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

/// What the event loop watches for a [`Waker`].
#[derive(Debug)]
pub struct Alarm(OwnedFd);

/// Makes the two ends of an eventfd.
pub fn channel() -> io::Result<(Waker, Alarm)> {
    // SAFETY: a plain call; the result is checked.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((Waker(fd.try_clone()?), Alarm(fd)))
}

impl Alarm {
    /// Calls `wake` in the event loop of this worker.
    ///
    /// The connection it takes is idle, so that a worker which has nothing else to do exits at
    /// once, and is told of it.
    ///
    /// # Safety
    ///
    /// Called in a worker with its cycle, from `init_process` or later.
    pub unsafe fn watch<W: Wake>(self, cycle: *mut ngx_cycle_t, wake: W) -> io::Result<Watch> {
        let out = || io::Error::other("no free connection, raise \"worker_connections\"");
        // SAFETY: the caller gives a worker's cycle; the event fields are those of the connection.
        unsafe {
            let connection =
                ngx_get_connection(self.0.as_raw_fd(), (*cycle).log).as_mut().ok_or_else(out)?;
            // From here on nginx closes the descriptor with the connection.
            let _ = self.0.into_raw_fd();
            connection.set_idle(1);
            connection.data = Box::into_raw(Box::new(wake)).cast();
            let read = &mut *connection.read;
            read.log = (*cycle).log;
            (*connection.write).log = (*cycle).log;
            read.handler = Some(on_event::<W>);
            if ngx_handle_read_event(read, 0) != NGX_OK as isize {
                close::<W>(connection);
                return Err(io::Error::other("the event loop refused an eventfd"));
            }
            Ok(Watch(NonNull::from(connection)))
        }
    }
}

/// The connection of an [`Alarm`] that is watched. It ends when its [`Wake`] is dropped, so that
/// is the one to keep it.
#[derive(Clone, Copy, Debug)]
pub struct Watch(NonNull<ngx_connection_t>);

/// How often a worker that is held up looks whether it still is. The length does not matter: a
/// timer that is set is what keeps nginx from exiting.
const HOLD: ngx_msec_t = 60_000;

impl Watch {
    /// Keeps the worker from exiting, or no longer.
    ///
    /// # Safety
    ///
    /// The `Wake` was not dropped yet.
    pub unsafe fn hold(self, holds: bool) {
        // SAFETY: the caller's word; the event is that of the connection.
        unsafe {
            let connection = &mut *self.0.as_ptr();
            connection.set_idle(u32::from(!holds));
            let read = connection.read;
            match (holds, (*read).timer_set() != 0) {
                (true, false) => ngx_add_timer(read, HOLD),
                (false, true) => ngx_del_timer(read),
                _ => {}
            }
        }
    }
}

unsafe extern "C" fn on_event<W: Wake>(event: *mut ngx_event_t) {
    // SAFETY: nginx hands over the event that `watch` set up, whose data is its connection,
    // whose data is the boxed `W`. Nobody else uses that box, and only `close` frees it.
    guarded((), || unsafe {
        let connection = (*event).data.cast::<ngx_connection_t>();
        let wake = (*connection).data.cast::<W>();
        if (*connection).close() != 0 {
            close::<W>(connection);
            return;
        }
        if (*event).timedout() != 0 {
            (*event).set_timedout(0);
            ngx_add_timer(event, HOLD);
            return;
        }
        drain((*connection).fd);
        (*event).set_ready(0);
        (*wake).woken();
        // nginx closes idle connections once, when it begins to exit; this one was not idle then.
        if cycle::is_exiting() && (*connection).idle() != 0 {
            close::<W>(connection);
        }
    });
}

fn drain(fd: i32) {
    let mut count = [0_u8; 8];
    // SAFETY: reads into 8 bytes that are there; an eventfd gives all it has in one read.
    unsafe { libc::read(fd, count.as_mut_ptr().cast::<c_void>(), count.len()) };
}

unsafe fn close<W>(connection: *mut ngx_connection_t) {
    // SAFETY: the callers have a connection that `watch` set up and do not use it again.
    unsafe {
        drop(Box::from_raw((*connection).data.cast::<W>()));
        ngx_close_connection(connection);
    }
}
