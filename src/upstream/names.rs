//! Names whose lists were posted, as one worker knows them.
//!
//! nginx looks an upstream up by walking an array of all. So that it finds names made at run
//! time, the worker puts copies of a template upstream there, each with a name of its own. A copy
//! has the template's settings and `peer.init`, and so its `keepalive`.

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{HashMap, HashSet};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering::Acquire;

use nginx_sys::{
    ngx_array_t, ngx_http_upstream_main_conf_t, ngx_http_upstream_srv_conf_t, ngx_str_t,
};

use super::balancing::Balancing;
use super::live::{Checks, Live};
use crate::model::name::NAME_MAX;
use crate::model::{Method, Name};
use crate::shm::directory::Upstream;
use crate::shm::ledger::Book;
use crate::shm::zone::Zone;

/// A list that was posted.
#[repr(C)]
pub struct Posted {
    /// What nginx finds, if the name is not one of nginx.conf. The first field: nginx's pointer to
    /// it is one to all of this.
    nginx: UnsafeCell<ngx_http_upstream_srv_conf_t>,
    /// What `nginx.host` points to.
    name: Name,
    /// The list.
    pub live: Rc<Live>,
    /// The same for blocks that have a method of their own and take the list by a variable.
    others: RefCell<Vec<(*const ngx_http_upstream_srv_conf_t, Rc<Live>)>>,
    /// Whether nginx.conf has an upstream of this name, which nginx then finds instead.
    is_configured: bool,
}

impl Posted {
    fn new(
        template: &ngx_http_upstream_srv_conf_t,
        name: Name,
        live: Live,
        is_configured: bool,
    ) -> Rc<Self> {
        let (host, port) = name.host_and_port().unwrap_or((name.as_str(), None));
        let mut nginx = *template;
        nginx.host = ngx_str_t { len: host.len(), data: host.as_ptr().cast_mut() };
        nginx.port = port.unwrap_or(0);
        nginx.no_port = port.is_none().into();
        Rc::new(Self {
            nginx: UnsafeCell::new(nginx),
            name,
            live: Rc::new(live),
            others: RefCell::default(),
            is_configured,
        })
    }

    /// The list for requests by way of a block of nginx.conf that chooses servers in its own way.
    pub fn live_by(
        &self,
        block: *const ngx_http_upstream_srv_conf_t,
        balancing: impl FnOnce() -> Balancing,
    ) -> Rc<Live> {
        let mut others = self.others.borrow_mut();
        if let Some((_, live)) = others.iter().find(|&&(other, _)| std::ptr::eq(other, block)) {
            return Rc::clone(live);
        }
        let book = self.live.book().map(Rc::clone);
        let live = Rc::new(Live::posted(
            *self.live.upstream(),
            balancing(),
            self.live.checks().clone(),
            book,
        ));
        others.push((block, Rc::clone(&live)));
        live
    }

    /// The list whose copy of the template nginx has found.
    ///
    /// # Safety
    ///
    /// `nginx` is such a copy, as nginx found it in its array since the names were last read anew;
    /// not a pointer that a reference was in between, which may reach no further than the copy.
    pub unsafe fn of(nginx: *mut ngx_http_upstream_srv_conf_t) -> Rc<Self> {
        let this = nginx.cast::<Self>().cast_const();
        // SAFETY: the copy is the first field of a `Posted` that the names hold as an `Rc`, and
        // the pointer that nginx has was made from that.
        unsafe {
            Rc::increment_strong_count(this);
            Rc::from_raw(this)
        }
    }

    /// Whether a request may come to it by a name of the client's choice: not to an upstream of
    /// nginx.conf, which may be for others.
    pub fn is_public(&self) -> bool {
        !self.is_configured && self.has_servers()
    }

    /// Whether it has a server.
    pub fn has_servers(&self) -> bool {
        !self.live.snapshot().block().records().is_empty()
    }
}

/// How servers of an upstream of nginx.conf are checked.
type ChecksOf = dyn Fn(Option<&ngx_http_upstream_srv_conf_t>) -> Checks;

/// All of them.
pub struct Names {
    zone: Zone,
    book: Rc<Book>,
    template: NonNull<ngx_http_upstream_srv_conf_t>,
    /// How an upstream of nginx.conf chooses a server, the template too.
    balancing: fn(&ngx_http_upstream_srv_conf_t) -> Balancing,
    /// How its servers are checked; none stands for names that nginx.conf does not have.
    checks: Box<ChecksOf>,
    /// What nginx.conf has.
    configured: &'static [*mut ngx_http_upstream_srv_conf_t],
    /// Where nginx looks.
    nginx: NonNull<ngx_array_t>,
    /// The number of the names that are known; none before the first look.
    version: Cell<Option<u64>>,
    posted: RefCell<HashMap<Name, Rc<Posted>, foldhash::fast::RandomState>>,
    /// The array that nginx walks.
    table: RefCell<Vec<*mut ngx_http_upstream_srv_conf_t>>,
}

impl Names {
    /// Nothing is known yet.
    ///
    /// # Safety
    ///
    /// `main` is of the configuration in force, `template` of an upstream of it; the result is
    /// used no longer than they live.
    pub unsafe fn new(
        zone: Zone,
        book: Rc<Book>,
        main: NonNull<ngx_http_upstream_main_conf_t>,
        template: NonNull<ngx_http_upstream_srv_conf_t>,
        balancing: fn(&ngx_http_upstream_srv_conf_t) -> Balancing,
        checks: impl Fn(Option<&ngx_http_upstream_srv_conf_t>) -> Checks + 'static,
    ) -> Self {
        // SAFETY: the caller's word; the array's memory stays when the array gets another.
        let (nginx, configured) = unsafe {
            let nginx = &raw mut (*main.as_ptr()).upstreams;
            (NonNull::new_unchecked(nginx), (*nginx).as_slice())
        };
        Self {
            zone,
            book,
            template,
            balancing,
            checks: Box::new(checks),
            configured,
            nginx,
            version: Cell::default(),
            posted: RefCell::default(),
            table: RefCell::default(),
        }
    }

    /// Learns of names that were made and removed: one atomic load if there are none.
    pub fn refresh(&self) {
        let version = self.zone.header().names.load(Acquire);
        if self.version.replace(Some(version)) != Some(version) {
            // nginx's array leads to those that are gone until it has the new one.
            let _gone = self.read();
            self.hand_to_nginx();
        }
    }

    /// Makes what takes long, when the worker starts.
    pub fn prepare(&self) {
        self.refresh();
        self.posted.borrow().values().for_each(|posted| posted.live.prepare());
    }

    /// The methods that lists came with, by name.
    pub fn methods(&self) -> Vec<(String, Method)> {
        let posted = self.posted.borrow();
        let method = |(name, posted): (&Name, &Rc<Posted>)| {
            let (_, block) = posted.live.upstream().block()?;
            Some((name.to_string(), block.method()?))
        };
        posted.iter().filter_map(method).collect()
    }

    /// The list of a name, in whatever case.
    pub fn find(&self, name: &[u8]) -> Option<Rc<Posted>> {
        let posted = self.posted.borrow();
        if posted.is_empty() || name.len() > NAME_MAX {
            return None;
        }
        let mut lower = [0; NAME_MAX];
        let lower = &mut lower[..name.len()];
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        posted.get(std::str::from_utf8(lower).ok()?).cloned()
    }

    /// All of them, with their names.
    pub fn all(&self) -> Vec<(String, Rc<Live>)> {
        let posted = self.posted.borrow();
        posted.iter().map(|(name, posted)| (name.to_string(), Rc::clone(&posted.live))).collect()
    }

    /// The number of the names that are known: another after each change.
    pub fn version(&self) -> Option<u64> {
        self.version.get()
    }

    /// The names that nginx.conf does not have.
    pub fn run_time(&self) -> Vec<String> {
        let posted = self.posted.borrow();
        let names = posted.iter().filter(|(_, posted)| !posted.is_configured);
        names.map(|(name, _)| name.to_string()).collect()
    }

    /// Gives those that are not there any more.
    fn read(&self) -> Vec<Rc<Posted>> {
        let mut gone = Vec::new();
        let mut posted = self.posted.borrow_mut();
        let known: HashSet<_, foldhash::fast::RandomState> =
            posted.values().map(|posted| *posted.live.upstream()).collect();
        let found = Upstream::posted(self.zone, |upstream| known.contains(&upstream));
        if found.len() < known.len() || found.iter().any(|(_, new)| new.is_some()) {
            let still: HashSet<_, foldhash::fast::RandomState> =
                found.iter().map(|&(upstream, _)| upstream).collect();
            posted.retain(|_, posted| {
                let stays = still.contains(posted.live.upstream());
                if !stays {
                    gone.push(Rc::clone(posted));
                }
                stays
            });
        }
        for (upstream, name) in found {
            if let Some(name) = name.and_then(|name| Name::parse(&name).ok()) {
                let new = self.posted(name.clone(), upstream);
                posted.insert(name, new);
            }
        }
        gone
    }

    fn posted(&self, name: Name, upstream: Upstream) -> Rc<Posted> {
        // SAFETY: the template lives as long as the configuration.
        let template = unsafe { self.template.as_ref() };
        let block = self.block(&name);
        let balancing = (self.balancing)(block.unwrap_or(template));
        let mut checks = (self.checks)(block);
        checks.host = name.to_string();
        let live = Live::posted(upstream, balancing, checks, Some(Rc::clone(&self.book)));
        Posted::new(template, name, live, block.is_some())
    }

    fn hand_to_nginx(&self) {
        let posted = self.posted.borrow();
        // nginx takes the first that fits: to a request without a port `a` does, and so does
        // `a:80`.
        let with = |has_port: bool| {
            let fits = move |posted: &&Rc<Posted>| {
                let found = posted.name.host_and_port();
                !posted.is_configured && found.is_some_and(|(_, port)| port.is_some() == has_port)
            };
            posted.values().filter(fits).map(|posted| Rc::as_ptr(posted).cast_mut().cast())
        };
        // Those that come from `proxy_pass` alone cannot be posted, but another may have the name.
        let blocks = |are_wanted: bool| {
            // SAFETY: nginx's array holds pointers to upstreams that live as it does.
            let is_block = |upstream: *mut ngx_http_upstream_srv_conf_t| unsafe {
                !(*upstream).srv_conf.is_null()
            };
            let all = self.configured.iter().copied();
            all.filter(move |&upstream| is_block(upstream) == are_wanted)
        };
        let copies = with(false).chain(with(true));
        let mut table: Vec<_> = blocks(true).chain(copies).chain(blocks(false)).collect();
        // SAFETY: nginx only reads the array, and not now; the vector lives until the next one
        // takes its place.
        unsafe {
            let nginx = &mut *self.nginx.as_ptr();
            (nginx.elts, nginx.nelts) = (table.as_mut_ptr().cast(), table.len());
            nginx.nalloc = table.len();
        }
        self.table.replace(table);
    }

    /// The `upstream {}` of this name in nginx.conf.
    fn block(&self, name: &Name) -> Option<&ngx_http_upstream_srv_conf_t> {
        // SAFETY: nginx's array holds pointers to upstreams that live as it does.
        let all = self.configured.iter().map(|&upstream| unsafe { &*upstream });
        all.into_iter().find(|upstream| {
            !upstream.srv_conf.is_null()
                && upstream.host.as_bytes().eq_ignore_ascii_case(name.as_str().as_bytes())
        })
    }
}
