//! The worker's side of changes: their threads ask here, in nginx's event loop.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::{io, thread};

use nginx_sys::{
    NGX_LOG_ERR, ngx_cycle, ngx_http_finalize_request, ngx_http_request_t,
    ngx_http_run_posted_requests,
};

use super::answer::Answer;
use super::clerk::{Clerk, log};
use super::job::Job;
use super::mail::{Ask, Letter, Line, Mail, Reply, Request};
use super::plan::Plan;
use super::route::Dialect;
use super::send::send;
use crate::conf::settings::Main;
use crate::model::Name;
use crate::ngx::boundary::guarded;
use crate::ngx::pool;
use crate::ngx::thread::with_signals_blocked;
use crate::ngx::wake::{self, Wake, Watch};
use crate::shm::post::{Base, PostError};
use crate::shm::zone::Zone;

/// The most changes that are worked on at a time. More wait for their turn.
const THREADS_MAX: usize = 32;

/// The most changes that wait for a thread, each with its body.
const WAITING_MAX: usize = 1000;

/// Of a thread, in bytes. A body of 100,000 servers lies on the heap.
const STACK: usize = 512 * 1024;

/// All changes under way in this worker.
pub struct Desk {
    clerk: Clerk,
    pending: RefCell<HashMap<u64, Pending>>,
    waiting: RefCell<VecDeque<(u64, Job)>>,
    running: Cell<usize>,
    last: Cell<u64>,
    open: RefCell<Option<Open>>,
}

/// How threads reach the event loop. It ends when a worker that is exiting has no change left.
struct Open {
    mail: Arc<Mail>,
    watch: Watch,
}

/// One change under way.
struct Pending {
    /// None if nginx has given the request up.
    request: Option<NonNull<ngx_http_request_t>>,
    name: Name,
    /// Who asks, for the log.
    client: String,
    dialect: Dialect,
    /// What the change was worked out from, and what is answered when it is made.
    planned: Option<(Base, Answer)>,
}

/// Dropped with its request's pool, so that nobody answers a request that is gone.
struct Guard(Weak<Desk>, u64);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(desk) = self.0.upgrade()
            && let Some(pending) = desk.pending.borrow_mut().get_mut(&self.1)
        {
            pending.request = None;
        }
    }
}

/// What the event loop calls.
struct Bell(Rc<Desk>);

impl Wake for Bell {
    fn woken(&mut self) {
        self.0.read_mail();
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.open.replace(None);
    }
}

impl Desk {
    /// Nothing is under way.
    ///
    /// # Safety
    ///
    /// The desk is used no longer than `main` lives.
    pub unsafe fn new(main: &Main, zone: Zone) -> Rc<Self> {
        Rc::new(Self {
            // SAFETY: the caller's word.
            clerk: unsafe { Clerk::new(main, zone) },
            pending: RefCell::default(),
            waiting: RefCell::default(),
            running: Cell::new(0),
            last: Cell::new(0),
            open: RefCell::default(),
        })
    }

    /// Begins a change. The request is answered when it has ended.
    ///
    /// # Safety
    ///
    /// `request` is a request whose body has been read, counted once more for this.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::QuotaExceeded`] where too many changes wait; what else there is not.
    pub unsafe fn begin(
        self: &Rc<Self>,
        request: NonNull<ngx_http_request_t>,
        client: String,
        job: Job,
    ) -> io::Result<()> {
        let id = self.last.get() + 1;
        self.last.set(id);
        if self.waiting.borrow().len() >= WAITING_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        self.open()?;
        // SAFETY: the caller's request has a pool.
        let guard =
            unsafe { pool::place((*request.as_ptr()).pool, Guard(Rc::downgrade(self), id)) };
        if guard.is_none() {
            self.rest_if_idle();
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let name = job.write.name().clone();
        let pending =
            Pending { request: Some(request), name, client, dialect: job.dialect, planned: None };
        self.pending.borrow_mut().insert(id, pending);
        self.waiting.borrow_mut().push_back((id, job));
        self.start_waiting();
        self.rest_if_idle();
        Ok(())
    }

    fn open(self: &Rc<Self>) -> io::Result<()> {
        if self.open.borrow().is_none() {
            let (waker, alarm) = wake::channel()?;
            // SAFETY: a worker has a cycle as long as it lives.
            let watch = unsafe { alarm.watch(ngx_cycle, Bell(Rc::clone(self))) }?;
            let mail = Arc::new(Mail::new(move || waker.wake()));
            self.open.replace(Some(Open { mail, watch }));
        }
        self.hold(true);
        Ok(())
    }

    fn rest_if_idle(&self) {
        if self.pending.borrow().is_empty() {
            self.hold(false);
        }
    }

    fn hold(&self, holds: bool) {
        if let Some(open) = &*self.open.borrow() {
            // SAFETY: `open` is none as soon as the bell was dropped.
            unsafe { open.watch.hold(holds) };
        }
    }

    fn start_waiting(&self) {
        while self.running.get() < THREADS_MAX {
            let Some((id, job)) = self.waiting.borrow_mut().pop_front() else {
                return;
            };
            let dialect = job.dialect;
            match self.start(id, job) {
                Ok(()) => self.running.set(self.running.get() + 1),
                Err(error) => {
                    log(NGX_LOG_ERR, format_args!("cannot start a thread: {error}"));
                    self.end(id, &Answer::failed(dialect));
                }
            }
        }
    }

    fn start(&self, id: u64, job: Job) -> io::Result<()> {
        let mail = self.open.borrow().as_ref().map(|open| Arc::clone(&open.mail));
        let line = Line::new(id, mail.ok_or(io::ErrorKind::NotConnected)?);
        let run = move || {
            let dialect = job.dialect;
            if catch_unwind(AssertUnwindSafe(|| job.run(&line))).is_err() {
                line.done(Answer::failed(dialect), Some("a change failed".to_owned()));
            }
        };
        let thread = thread::Builder::new().name("upsync post".to_owned()).stack_size(STACK);
        with_signals_blocked(|| thread.spawn(run)).map(drop)
    }

    fn read_mail(&self) {
        let letters = self.open.borrow().as_ref().map(|open| open.mail.take());
        for letter in letters.into_iter().flatten() {
            // A panic is that of one change, whose thread is told nothing.
            guarded((), || self.read(letter));
        }
        self.start_waiting();
        self.rest_if_idle();
    }

    fn read(&self, Letter { job, ask, reply }: Letter) {
        let said = match ask {
            Ask::Put(request) => self.put(job, &request),
            Ask::Plan(request) => self.plan(job, &request).map_or_else(|r| r, Reply::Planned),
            Ask::Publish(plan) => self.publish(job, &plan),
            Ask::Done { answer, error } => {
                if let Some(error) = error {
                    log(NGX_LOG_ERR, format_args!("{error}"));
                }
                self.running.set(self.running.get().saturating_sub(1));
                return self.end(job, &answer);
            }
        };
        if let Some(reply) = reply {
            // A thread that waits no more has said how it ended.
            let _ = reply.send(said);
        }
    }

    /// Works out a change and puts it in force, again if somebody else came first.
    fn put(&self, job: u64, request: &Request) -> Reply {
        loop {
            let plan = match self.plan(job, request) {
                Ok(plan) => plan,
                Err(reply) => return reply,
            };
            match self.publish(job, &plan) {
                Reply::Changed => {}
                reply => return reply,
            }
        }
    }

    fn plan(&self, job: u64, request: &Request) -> Result<Plan, Reply> {
        let mut pending = self.pending.borrow_mut();
        let gone = || Reply::Refused(Answer::shutting_down(request.dialect));
        let pending = pending.get_mut(&job).ok_or_else(gone)?;
        let planned = self.clerk.plan(&pending.name, request).map_err(Reply::Refused)?;
        pending.dialect = request.dialect;
        pending.planned = Some((planned.base, planned.answer));
        Ok(planned.plan)
    }

    fn publish(&self, job: u64, plan: &Plan) -> Reply {
        let pending = self.pending.borrow();
        let found = pending.get(&job);
        let Some((pending, (base, answer))) =
            found.and_then(|pending| Some((pending, pending.planned.as_ref()?)))
        else {
            return Reply::Changed;
        };
        let Pending { name, client, dialect, .. } = pending;
        match self.clerk.publish(base, plan, name, client) {
            Ok(()) => Reply::Published(answer.clone()),
            Err(PostError::Changed) => Reply::Changed,
            Err(PostError::Full(_)) => Reply::Refused(Answer::out_of_memory(*dialect)),
            Err(PostError::Superseded) => Reply::Refused(Answer::shutting_down(*dialect)),
            Err(PostError::Followed) => Reply::Refused(Answer::follows_consul(*dialect, name)),
        }
    }

    /// Answers a request, if nginx still has it.
    fn end(&self, job: u64, answer: &Answer) {
        let pending = self.pending.borrow_mut().remove(&job);
        let Some(request) = pending.and_then(|pending| pending.request) else {
            return;
        };
        let request = request.as_ptr();
        // SAFETY: the guard says that nginx still has the request, and `begin` was given one that
        // is counted for this.
        unsafe {
            let connection = (*request).connection;
            let result = send(request, answer);
            ngx_http_finalize_request(request, result);
            ngx_http_run_posted_requests(connection);
        }
    }
}
