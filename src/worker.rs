//! What a worker does beside serving requests: its ledger, its checks, and in worker 0 the watchers.

pub mod checker;

use std::cell::RefCell;
use std::io;
use std::process;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use nginx_sys::{
    NGX_LOG_ALERT, NGX_LOG_ERR, NGX_LOG_INFO, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_cycle, ngx_cycle_t,
    ngx_http_upstream_srv_conf_t,
};

use crate::conf::check;
use crate::conf::initial::watcher_settings;
use crate::conf::settings::{Main, Server};
use crate::model::{Difference, List};
use crate::ngx::cycle;
use crate::ngx::thread;
use crate::ngx::wake::{self, Wake, Waker};
use crate::shm::directory::{Origin, Upstream};
use crate::shm::ledger::Book;
use crate::shm::publish::{PublishError, now};
use crate::shm::zone::Zone;
use crate::source::{Event, Level, Mailbox, Outcome, Progress, Settings, Watcher};
use crate::upstream::{Balancing, Names};
use checker::Checker;

thread_local! {
    /// What checks servers in this worker.
    static CHECKER: RefCell<Option<Rc<Checker>>> = const { RefCell::new(None) };
}

/// Logs to the error log of the cycle in force.
fn log(level: u32, message: std::fmt::Arguments<'_>) {
    // SAFETY: a worker has a cycle as long as it lives.
    let log = unsafe { (*ngx_cycle).log };
    ngx::ngx_log_error!(level, log, "{message}");
}

/// Starts what a worker needs.
///
/// # Safety
///
/// Called from `init_process` of a worker, with the settings of its cycle.
pub unsafe fn start(main: &Main, nginx_cycle: *mut ngx_cycle_t) {
    cycle::remember_master();
    let Some(zone) = main.zone.get() else {
        return;
    };
    // The generator may have been in use before nginx forked.
    fastrand::seed(u64::from(process::id()) << 32 ^ now());
    let book = open_book(main, zone);
    for live in main.managed().iter().filter_map(|managed| managed.server.live.get()) {
        live.prepare();
    }
    // SAFETY: the caller's word.
    unsafe { know_names(main, zone, book) };
    if let Some(names) = main.names.get() {
        names.prepare();
        if cycle::worker() == 0 {
            check_variables(main, names);
        }
    }
    if cycle::worker() == 0 {
        // SAFETY: the caller's word.
        unsafe { follow(main, nginx_cycle) };
    }
    let may_check = main.names.get().is_some() || main.upstreams().any(|(_, s)| s.has_check());
    if may_check {
        // SAFETY: the caller's word; `end` takes it away before the settings go.
        CHECKER.replace(Some(unsafe { Checker::start(main) }));
    }
}

/// A key was posted when nginx.conf had another `map`, say, than now.
fn check_variables(main: &Main, names: &Names) {
    let Some(context) = main.context.get() else {
        return;
    };
    for (name, method) in names.methods() {
        // SAFETY: the context is of the `http {}` that this worker runs by.
        let unknown = unsafe { Balancing::posted(method, false).unknown_variable(context) };
        if let Some(variable) = unknown {
            log(
                NGX_LOG_ERR,
                format_args!(
                    "upsync: upstream \"{name}\": unknown variable \"${variable}\" in \"hash\" of the posted list, it is empty"
                ),
            );
        }
    }
}

/// Ends what [`start`] has started, but for what ended with the event loop.
pub fn end(main: &Main) {
    drop(CHECKER.take());
    if let Some(book) = main.book.take() {
        book.close();
    }
}

/// # Safety
///
/// `main` is of this worker's cycle.
unsafe fn know_names(main: &Main, zone: Zone, book: Rc<Book>) {
    if let (Some(upstreams), Some(template)) = (main.nginx(), main.template.get()) {
        let settings = NonNull::from(main);
        let checks = move |block: Option<&ngx_http_upstream_srv_conf_t>| {
            // SAFETY: the names go with the settings.
            check::of_posted(unsafe { settings.as_ref() }, block.and_then(Server::of))
        };
        // SAFETY: the caller's word; the names go with the settings.
        let names = unsafe { Names::new(zone, book, upstreams, template, balancing, checks) };
        let _ = main.names.set(names);
    }
}

fn balancing(upstream: &ngx_http_upstream_srv_conf_t) -> Balancing {
    Server::of(upstream).map(Server::balancing).unwrap_or_default()
}

fn open_book(main: &Main, zone: Zone) -> Rc<Book> {
    let pid = process::id() as i32;
    let opened = Book::open(zone, (pid, cycle::worker(), main.cycle.get()), cycle::is_alive);
    let book = Rc::new(opened.unwrap_or_else(|error| {
        log(NGX_LOG_ERR, format_args!("upsync: worker has no ledger: {error}"));
        Book::without(zone)
    }));
    for live in main.managed().iter().filter_map(|managed| managed.server.live.get()) {
        live.set_book(Rc::clone(&book));
    }
    main.book.replace(Some(Rc::clone(&book)));
    book
}

/// One upstream that follows its source.
struct Follower {
    upstream: Upstream,
    name: String,
    cycle: u64,
    mailbox: Arc<Mailbox>,
    watcher: Watcher,
}

/// All of them, woken together. They stop when this is dropped.
struct Followers(Vec<Follower>);

impl Wake for Followers {
    fn woken(&mut self) {
        for follower in self.0.iter().filter(|_| !cycle::is_exiting()) {
            follower.read_mail();
        }
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        for follower in &self.0 {
            follower.watcher.stop();
        }
    }
}

/// Starts a watcher for each source. What cannot be started is logged: the last list serves.
unsafe fn follow(main: &Main, nginx_cycle: *mut ngx_cycle_t) {
    let failed = |name: &str, error: io::Error| {
        log(NGX_LOG_ALERT, format_args!("upsync: cannot follow the source of {name}: {error}"));
    };
    let (waker, alarm) = match wake::channel() {
        Ok((waker, alarm)) => (Arc::new(waker), alarm),
        Err(error) => return failed("any upstream", error),
    };
    let mut followers = Followers(Vec::new());
    for synced in main.managed() {
        let upstream = synced.server.live.get().map(|live| live.upstream());
        let settings = watcher_settings(main, &synced);
        let Some((upstream, settings)) = upstream.zip(settings) else {
            continue;
        };
        match Follower::start(main, settings, *upstream, &waker) {
            Ok(follower) => followers.0.push(follower),
            Err(error) => failed(&format!("upstream \"{}\"", synced.name()), error),
        }
    }
    // SAFETY: the caller is in `init_process` of a worker.
    if let Err(error) = unsafe { alarm.watch(nginx_cycle, followers) } {
        failed("any upstream", error);
    }
}

impl Follower {
    fn start(
        main: &Main,
        settings: Settings,
        upstream: Upstream,
        waker: &Arc<Waker>,
    ) -> io::Result<Self> {
        let waker = Arc::clone(waker);
        let mailbox = Arc::new(Mailbox::new(move || waker.wake()));
        let (name, mail) = (settings.upstream.clone(), Arc::clone(&mailbox));
        let list = upstream.block().map(|(_, block)| block.list()).unwrap_or_default();
        let watcher = thread::with_signals_blocked(|| Watcher::spawn(settings, list, mail))?;
        let cycle = main.cycle.get();
        Ok(Self { upstream, name, cycle, mailbox, watcher })
    }

    fn read_mail(&self) {
        for event in self.mailbox.take() {
            match event {
                Event::Log(level, message) => log(nginx_level(level), format_args!("{message}")),
                // Refused only if this configuration is no longer in force.
                Event::Confirmed => drop(self.upstream.confirm(self.cycle, Origin::Source)),
                Event::List(list) => self.apply(&list),
                Event::Progress(progress) => self.note(&progress),
            }
        }
    }

    fn apply(&self, list: &List) {
        match self.upstream.publish(self.cycle, list, Origin::Source) {
            Ok(difference) => {
                self.log_change(list, difference);
                if !difference.is_none() {
                    self.note(&Progress::applied());
                }
                self.mailbox.applied(Outcome::Applied);
            }
            Err(PublishError::Full(full)) => {
                self.note(&Progress::no_memory());
                self.mailbox.applied(Outcome::Refused(full.reason()));
            }
            // A newer configuration follows the source now.
            Err(PublishError::OldCycle | PublishError::Gone) => self.watcher.stop(),
        }
    }

    /// Keeps what came of following the source.
    fn note(&self, progress: &Progress) {
        self.upstream.note_source(self.cycle, progress);
    }

    fn log_change(&self, list: &List, difference: Difference) {
        if difference.is_none() {
            return;
        }
        let (name, count, version) = (&self.name, list.len(), self.upstream.version());
        let servers = if count == 1 { "server" } else { "servers" };
        let (free, all) = self.upstream.zone().pages();
        log(
            NGX_LOG_NOTICE,
            format_args!(
                "upsync: upstream \"{name}\": {count} {servers} {difference}, version {version}, {free} of {all} pages free"
            ),
        );
    }
}

fn nginx_level(level: Level) -> u32 {
    match level {
        Level::Error => NGX_LOG_ERR,
        Level::Warn => NGX_LOG_WARN,
        Level::Notice => NGX_LOG_NOTICE,
        Level::Info => NGX_LOG_INFO,
    }
}
