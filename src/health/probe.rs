//! One check at a time of one server, on nginx's event loop.
//!
//! Timers are cancelable and connections idle, so that a worker which has nothing else to do exits
//! at once. nginx's own messages about the connection go to nobody: what came of a check is told once,
//! by whoever asked for it.

mod ending;
mod socket;
pub mod turns;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::ptr;
use std::rc::{Rc, Weak};

use nginx_sys::{
    NGX_AGAIN, NGX_OK, ngx_close_connection, ngx_connection_t, ngx_create_pool, ngx_current_msec,
    ngx_cycle, ngx_destroy_pool, ngx_event_t, ngx_get_connection, ngx_handle_read_event,
    ngx_handle_write_event, ngx_msec_t, ngx_os_io, ngx_reusable_connection,
};

pub use ending::{Ending, Local, Owner, Server};

use super::asked::Asked;
use super::talk::{Step, Talk, Verdict, make};
#[cfg(nginx_http_ssl)]
use super::tls;
use crate::model::Reason;
#[cfg(nginx_http_ssl)]
use crate::model::check::Kind;
use crate::model::reason::Stage;
use crate::ngx::boundary::guarded;
use crate::ngx::{cycle, quiet, timer};

/// What is read at a time, in bytes.
const READ_SIZE: usize = 16 * 1024;

/// Memory of a connection's pool: nginx's own part of TLS.
const POOL_SIZE: usize = 512;

/// Checks of one server, one after another. Dropping it ends the one under way, which is told to
/// nobody, and closes the connection that was kept.
pub struct Probe {
    server: Server,
    owner: Weak<dyn Owner>,
    /// Null if there is none.
    connection: Cell<*mut ngx_connection_t>,
    /// Checks over the connection, with the one under way.
    used: Cell<u32>,
    /// How they were asked for: the connection is of no use for others.
    asked: RefCell<Option<Rc<Asked>>>,
    running: RefCell<Option<Running>>,
}

/// A check under way.
struct Running {
    asked: Rc<Asked>,
    talk: Box<dyn Talk>,
    stage: Stage,
    out: Vec<u8>,
    began: ngx_msec_t,
    /// What [`turns::held_up`] said then.
    held_up_before: u64,
    /// A byte has come from the server.
    is_answered: bool,
    /// It was noticed that none came at once.
    is_idle: bool,
}

/// What is to be done next.
enum Next {
    Wait,
    End(Ending),
    Kept(Ending),
}

impl Probe {
    /// Nothing is asked yet.
    pub fn new(server: Server, owner: Weak<dyn Owner>) -> Rc<Self> {
        Rc::new(Self {
            server,
            owner,
            connection: Cell::new(ptr::null_mut()),
            used: Cell::new(0),
            asked: RefCell::new(None),
            running: RefCell::new(None),
        })
    }

    /// Whether a check is under way.
    fn is_running(&self) -> bool {
        self.running.borrow().is_some()
    }

    /// Whether a connection waits for the next check.
    pub fn keeps_connection(&self) -> bool {
        !self.connection.get().is_null()
    }

    /// Begins a check of the server at an address, which is a `struct sockaddr`, or at the port of the
    /// check there. Gives what came of it, if it has ended already; else the owner is told. None is
    /// under way.
    pub fn begin(self: &Rc<Self>, asked: &Rc<Asked>, sockaddr: &[u8]) -> Option<Ending> {
        let Some(talk) = talk(asked) else {
            return Some(Ending::Local(Local::Memory));
        };
        let last = self.asked.replace(Some(Rc::clone(asked)));
        if last.is_some_and(|last| !Rc::ptr_eq(&last, asked)) {
            self.close();
        }
        let is_kept = self.keeps_connection();
        if is_kept {
            // SAFETY: the connection is the one that was kept.
            unsafe { ngx_reusable_connection(self.connection.get(), 0) };
        }
        if !is_kept && let Err(ending) = self.connect(sockaddr, asked.check.port) {
            return Some(ending);
        }
        // SAFETY: plain integers of this thread.
        let began = unsafe { ngx_current_msec };
        let running = Running {
            asked: Rc::clone(asked),
            talk,
            stage: Stage::Connect,
            out: Vec::new(),
            began,
            held_up_before: turns::held_up(),
            is_answered: false,
            is_idle: false,
        };
        self.running.replace(Some(running));
        self.used.set(self.used.get() + 1);
        // SAFETY: the connection was just made, or is the one that was kept.
        unsafe {
            let write = (*self.connection.get()).write;
            timer::set(write, asked.check.timeout as ngx_msec_t);
        }
        match is_kept {
            true => self.settle(|probe, running| probe.open(running)),
            false => None,
        }
    }

    /// Begins to connect. The event loop says how it went.
    fn connect(self: &Rc<Self>, sockaddr: &[u8], port: Option<u16>) -> Result<(), Ending> {
        let socket = socket::connecting(sockaddr, port)?;
        // SAFETY: a worker has a cycle; nginx gives a connection or nothing, whose events are its own.
        unsafe {
            let connection = ngx_get_connection(socket.as_raw_fd(), quiet::log());
            if connection.is_null() {
                return Err(Ending::Local(Local::NoConnection));
            }
            // From here on nginx closes the descriptor with the connection.
            let _ = socket.into_raw_fd();
            let of = &mut *connection;
            of.set_idle(1);
            (of.recv, of.send) = (ngx_os_io.recv, ngx_os_io.send);
            (of.recv_chain, of.send_chain) = (ngx_os_io.recv_chain, ngx_os_io.send_chain);
            of.data = Rc::as_ptr(self).cast_mut().cast();
            for event in [of.read, of.write] {
                (*event).log = of.log;
                (*event).handler = Some(on_event);
            }
            self.connection.set(connection);
            self.used.set(0);
            let is_watched = ngx_handle_read_event((*connection).read, 0) == NGX_OK as isize
                && ngx_handle_write_event((*connection).write, 0) == NGX_OK as isize;
            if !is_watched {
                self.close();
                return Err(Ending::Local(Local::System(libc::ENOMEM)));
            }
        }
        Ok(())
    }

    /// Goes on with what is under way: gives how it ended, if it did.
    fn settle(&self, go_on: impl FnOnce(&Self, &mut Running) -> Next) -> Option<Ending> {
        let mut slot = self.running.borrow_mut();
        let running = slot.as_mut()?;
        let next = go_on(self, running);
        let (ending, keep) = match next {
            Next::Wait => return None,
            Next::End(ending) => (ending, false),
            Next::Kept(ending) => (ending, true),
        };
        let ending = match ending {
            Ending::Checked(Some(reason)) if self.used.get() > 1 && running.is_stale(reason) => {
                Ending::Stale
            }
            Ending::Checked(Some(_)) if running.is_late() => Ending::Local(Local::Late),
            ending => ending,
        };
        let most = running.asked.check.keepalive_requests;
        *slot = None;
        drop(slot);
        if keep && self.used.get() < most && may_keep() {
            // SAFETY: the connection is there as long as nobody closed it. nginx may close it from now
            // on, for want of connections for clients.
            unsafe {
                timer::unset((*self.connection.get()).write);
                ngx_reusable_connection(self.connection.get(), 1);
            }
        } else {
            self.close();
        }
        Some(ending)
    }

    /// The timer went off.
    fn time_over(&self, running: &mut Running) -> Next {
        let left = running.time_left();
        if left == 0 || running.is_late() {
            return running.cut(Reason::Timeout(running.stage));
        }
        // SAFETY: the connection is there while a check is under way.
        unsafe { timer::set((*self.connection.get()).write, left as ngx_msec_t) };
        Next::Wait
    }

    /// Something came, or can be sent.
    fn advance(&self, running: &mut Running) -> Next {
        match running.stage {
            Stage::Connect => self.connected(running),
            #[cfg(nginx_http_ssl)]
            Stage::Handshake => self.shake_hands(running),
            #[cfg(not(nginx_http_ssl))]
            Stage::Handshake => Next::Wait,
            Stage::Send => self.send(running),
            Stage::Read => self.read(running),
        }
    }

    fn connected(&self, running: &mut Running) -> Next {
        // SAFETY: the connection is there while a check is under way.
        let fd = unsafe { (*self.connection.get()).fd };
        match socket::error(fd) {
            0 => {}
            error => return Next::End(socket::connect_failure(error, true)),
        }
        // SAFETY: as above.
        if unsafe { (*(*self.connection.get()).write).ready() } == 0 {
            return Next::Wait;
        }
        #[cfg(nginx_http_ssl)]
        if running.asked.check.kind.is_over_tls()
            && let Some(context) = running.asked.tls()
        {
            let alpn = if running.asked.check.kind == Kind::Grpcs { tls::H2 } else { &[] };
            // SAFETY: the connection is connected; its pool is closed with it.
            let begun = unsafe {
                let connection = self.connection.get();
                (*connection).pool = ngx_create_pool(POOL_SIZE, (*connection).log);
                !(*connection).pool.is_null()
                    && context.begin(connection, running.asked.host(), alpn)
            };
            if !begun {
                return Next::End(Ending::Local(Local::Memory));
            }
            running.stage = Stage::Handshake;
            return self.shake_hands(running);
        }
        self.open(running)
    }

    #[cfg(nginx_http_ssl)]
    fn shake_hands(&self, running: &mut Running) -> Next {
        let connection = self.connection.get();
        quiet::take();
        // SAFETY: TLS is set up. nginx's own handlers, which it sets to go on, know nothing of a
        // worker's exit: ours call this again.
        let result = unsafe {
            let result = nginx_sys::ngx_ssl_handshake(connection);
            (*(*connection).read).handler = Some(on_event);
            (*(*connection).write).handler = Some(on_event);
            result
        };
        if result == NGX_AGAIN as isize {
            return Next::Wait;
        }
        if result != NGX_OK as isize {
            // SAFETY: as above: nothing is said to a server with which there is no TLS.
            unsafe { (*connection).set_timedout(1) };
            return Next::End(Ending::Checked(Some(tls::failure())));
        }
        if running.asked.check.ssl_verify {
            // SAFETY: as above.
            let verified = unsafe { tls::verify(connection, running.asked.host()) };
            if let Err(reason) = verified {
                return Next::End(Ending::Checked(Some(reason)));
            }
        }
        self.open(running)
    }

    /// The connection can be used: the conversation begins.
    fn open(&self, running: &mut Running) -> Next {
        running.out = running.talk.open();
        self.send(running)
    }

    /// Sends what there is to send, then reads.
    fn send(&self, running: &mut Running) -> Next {
        running.stage = Stage::Send;
        let connection = self.connection.get();
        while !running.out.is_empty() {
            // SAFETY: nginx's function for the connection, with memory that is there.
            let sent = unsafe {
                (*connection).send.map_or(-1, |send| {
                    send(connection, running.out.as_mut_ptr(), running.out.len())
                })
            };
            match usize::try_from(sent) {
                Ok(0) => return Next::Wait,
                Ok(sent) => drop(running.out.drain(..sent)),
                Err(_) if sent == NGX_AGAIN as isize => {
                    // SAFETY: the event is that of the connection.
                    unsafe { ngx_handle_write_event((*connection).write, 0) };
                    return Next::Wait;
                }
                Err(_) => return running.cut(socket::broken(Stage::Send)),
            }
        }
        // Where events are level-triggered nginx stops to say that more could be sent.
        // SAFETY: the event is that of the connection.
        unsafe { ngx_handle_write_event((*connection).write, 0) };
        running.stage = Stage::Read;
        self.read(running)
    }

    /// Reads what has come.
    fn read(&self, running: &mut Running) -> Next {
        let connection = self.connection.get();
        let mut bytes = [0; READ_SIZE];
        loop {
            // SAFETY: nginx's function for the connection, with memory that is there.
            let read = unsafe {
                (*connection)
                    .recv
                    .map_or(-1, |recv| recv(connection, bytes.as_mut_ptr(), READ_SIZE))
            };
            let step = match usize::try_from(read) {
                Ok(0) => Step::Done(running.talk.closed()),
                Ok(read) => {
                    running.is_answered = true;
                    running.talk.received(&bytes[..read])
                }
                Err(_) if read == NGX_AGAIN as isize => match running.idle() {
                    Step::Wait => {
                        // SAFETY: the event is that of the connection.
                        unsafe { ngx_handle_read_event((*connection).read, 0) };
                        return Next::Wait;
                    }
                    step => step,
                },
                Err(_) => return running.cut(socket::broken(Stage::Read)),
            };
            match step {
                Step::Wait => {}
                Step::Send(out) => {
                    running.out = out;
                    return self.send(running);
                }
                Step::Done(verdict) => return over(verdict),
            }
        }
    }

    /// Ends what is under way, and closes the connection.
    pub fn close(&self) {
        self.running.replace(None);
        let connection = self.connection.replace(ptr::null_mut());
        if connection.is_null() {
            return;
        }
        // SAFETY: the connection is ours, and nobody uses it after this; nginx takes its events and
        // timers away with it.
        unsafe {
            #[cfg(nginx_http_ssl)]
            if !(*connection).ssl.is_null() {
                tls::end(connection);
            }
            let pool = (*connection).pool;
            ngx_close_connection(connection);
            if !pool.is_null() {
                ngx_destroy_pool(pool);
            }
        }
    }

    fn tell(&self, ending: Option<Ending>) {
        if let (Some(ending), Some(owner)) = (ending, self.owner.upgrade()) {
            owner.ended(self.server, ending);
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.close();
    }
}

impl Running {
    /// The conversation cannot go on.
    fn cut(&mut self, reason: Reason) -> Next {
        match self.stage {
            Stage::Read => over(self.talk.cut(reason)),
            _ => Next::End(Ending::Checked(Some(reason))),
        }
    }

    /// Nothing more has come for now.
    fn idle(&mut self) -> Step {
        if self.is_answered || std::mem::replace(&mut self.is_idle, true) {
            return Step::Wait;
        }
        self.talk.idle()
    }

    /// Whether the connection, which was kept, had been closed before this check.
    fn is_stale(&self, reason: Reason) -> bool {
        let is_closed =
            matches!(reason, Reason::Closed(_) | Reason::Reset(_) | Reason::Broken(_, _));
        is_closed && !self.is_answered
    }

    /// How long the event loop was held up since this check began, in milliseconds.
    fn held_up(&self) -> u64 {
        turns::held_up().saturating_sub(self.held_up_before)
    }

    /// Whether the event loop was held up for longer than a check may take: then nothing is known.
    fn is_late(&self) -> bool {
        turns::longest_after(self.began as u64) > u64::from(self.asked.check.timeout)
    }

    /// How much of its time a check has left, in milliseconds. While the event loop is held up no time
    /// passes for it; but where it always is, a check takes twice its time at most.
    fn time_left(&self) -> u64 {
        let timeout = u64::from(self.asked.check.timeout);
        let ends = self.began as u64 + timeout + self.held_up().min(timeout);
        // SAFETY: a plain integer of this thread.
        ends.saturating_sub(unsafe { ngx_current_msec } as u64)
    }
}

fn talk(asked: &Asked) -> Option<Box<dyn Talk>> {
    #[cfg(nginx_http_ssl)]
    let hello = match (asked.check.kind, asked.tls()) {
        (Kind::SslHello, Some(tls)) => tls.client_hello(asked.host())?,
        _ => Vec::new(),
    };
    #[cfg(not(nginx_http_ssl))]
    let hello = Vec::new();
    Some(make::of(&asked.check, asked.body(), hello, &asked.name))
}

unsafe extern "C" fn on_event(event: *mut ngx_event_t) {
    // SAFETY: nginx hands over an event of a connection that `connect` set up, whose data is a
    // probe that lives as long as the connection does. It is held here, as its owner may drop it.
    guarded((), || unsafe {
        let connection = (*event).data.cast::<ngx_connection_t>();
        let probe = (*connection).data.cast::<Probe>().cast_const();
        Rc::increment_strong_count(probe);
        let probe = Rc::from_raw(probe);
        if (*connection).close() != 0 {
            probe.close();
            if let Some(owner) = probe.owner.upgrade().filter(|_| cycle::is_exiting()) {
                owner.exiting();
            }
            return;
        }
        turns::begin();
        if (*event).timedout() != 0 {
            (*event).set_timedout(0);
            let ending = probe.settle(Probe::time_over);
            probe.tell(ending);
        } else if probe.is_running() {
            let ending = probe.settle(Probe::advance);
            probe.tell(ending);
        } else if event == (*connection).read {
            // The server has closed a connection that was kept, or has something to say, which
            // nobody asked for.
            probe.close();
        }
    });
}

/// A conversation is over.
fn over(verdict: Verdict) -> Next {
    match verdict {
        Verdict::Well { reusable: true } => Next::Kept(Ending::Checked(None)),
        Verdict::Well { .. } => Next::End(Ending::Checked(None)),
        Verdict::Failed(reason) => Next::End(Ending::Checked(Some(reason))),
    }
}

/// Whether a connection may wait for the next check: half of them are for others.
fn may_keep() -> bool {
    // SAFETY: a worker has a cycle as long as it lives.
    unsafe { (*ngx_cycle).free_connection_n > (*ngx_cycle).connection_n / 2 }
}

/// Whether a check may take a connection of `worker_connections`: most are for clients. When nearly all
/// are in use nginx closes those that clients keep open (`ngx_drain_connections()`), and complains.
pub fn has_room() -> bool {
    // SAFETY: a worker has a cycle as long as it lives.
    unsafe { (*ngx_cycle).free_connection_n > (*ngx_cycle).connection_n / 16 + 1 }
}
