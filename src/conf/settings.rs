//! What the directives of one configuration add up to.

use std::cell::{Cell, OnceCell, RefCell};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use nginx_sys::{
    nginx_version, ngx_conf_t, ngx_cycle_t, ngx_http_complex_value_t, ngx_http_conf_ctx_t,
    ngx_http_core_loc_conf_t, ngx_http_core_module, ngx_http_handler_pt, ngx_http_module,
    ngx_http_request_t, ngx_http_upstream_init_peer_pt, ngx_http_upstream_init_pt,
    ngx_http_upstream_main_conf_t, ngx_http_upstream_module, ngx_http_upstream_srv_conf_t,
};

use super::server_line::More;
use super::upsync::Upsync;
use crate::api::check_status::Format;
use crate::api::desk::Desk;
use crate::api::route::Access;
use crate::grammar::check::Draft;
use crate::health::asked::Files;
use crate::model::method::Lb;
use crate::model::{Method, Name};
use crate::module::ngx_http_upsync_module;
use crate::shm::ledger::Book;
use crate::shm::zone::Zone;
use crate::upstream::{Balancing, Checks, Live, Names};

/// The largest answer of a source, in bytes, where no `upsync_max_body` says otherwise.
pub const MAX_BODY: u64 = 32 * 1024 * 1024;

/// From this version on nginx keeps connections without a directive, and this many:
/// `ngx_http_upstream_keepalive_module` of nginx 1.29.7.
pub const KEPT_BY_DEFAULT: u32 = 1_029_007;
const KEPT: u32 = 32;

/// Settings of `http {}`.
#[derive(Default)]
pub struct Main {
    /// `upsync_zone`, in bytes.
    pub zone_size: Cell<Option<usize>>,
    /// `upsync_max_body`, in bytes.
    pub max_body: Cell<Option<u64>>,
    /// `check_concurrency`: checks at a time of one worker.
    pub check_concurrency: Cell<Option<u32>>,
    /// How servers of names that nginx.conf does not have are checked.
    pub posted_checks: OnceCell<Checks>,
    /// The context of this `http {}`.
    pub context: Cell<Option<NonNull<ngx_http_conf_ctx_t>>>,
    /// The zone, when nginx has mapped it.
    pub zone: Cell<Option<Zone>>,
    /// The zone that was copied to this one, until the configuration is in force.
    pub last_zone: Cell<Option<Zone>>,
    /// The number of this configuration among those that the zone has seen.
    pub cycle: Cell<u64>,
    /// The ledger of this worker.
    pub book: RefCell<Option<Rc<Book>>>,
    /// Lists can be posted: a directive of `dyups` is there.
    pub posting: Cell<bool>,
    /// `dyups_upstream`: the name of the upstream whose settings run-time names have.
    pub template_name: OnceCell<String>,
    /// That upstream, or a hidden one.
    pub template: Cell<Option<NonNull<ngx_http_upstream_srv_conf_t>>>,
    /// `dyups_state_path`, with its folder.
    pub state_path: OnceCell<String>,
    /// When the configuration came in force, in milliseconds since 1970.
    pub since: Cell<u64>,
    /// What this worker knows of posted lists.
    pub names: OnceCell<Names>,
    /// The changes under way in this worker.
    pub desk: OnceCell<Rc<Desk>>,
}

/// Settings of one `upstream {}`.
#[derive(Default)]
pub struct Server {
    /// `upsync`.
    pub upsync: OnceCell<Upsync>,
    /// `upsync_dump_path`, with its folder.
    pub dump_path: OnceCell<String>,
    /// `upsync_lb`.
    pub lb: OnceCell<Lb>,
    /// `upsync_max_body`, in bytes.
    pub max_body: Cell<Option<u64>>,
    /// The balancing directive that the block has, or why it is one that we do not know.
    pub method: RefCell<Option<Result<Method, String>>>,
    /// That directive, or what it says, is not in this nginx.
    pub lacking: Cell<bool>,
    /// The key of `hash`.
    pub key: Cell<Option<NonNull<ngx_http_complex_value_t>>>,
    /// What `upsync_lb` and the directive come to, when the block has been read.
    pub chosen: OnceCell<Method>,
    /// The block has nginx's `sticky`.
    pub sticky: Cell<bool>,
    /// A `server` line has nginx's `route`, which names a server for `sticky`.
    pub has_route: Cell<bool>,
    /// Parameters of `server` lines that nginx lacks.
    pub more: RefCell<Vec<More>>,
    /// What `check` and its companions have said so far.
    pub check: RefCell<Draft>,
    /// The files that they name.
    pub check_files: RefCell<Files>,
    /// What they come to, when the block has been read.
    pub checks: OnceCell<Checks>,
    /// The number in `keepalive`.
    pub keepalive: Cell<Option<u32>>,
    /// `dyups`: the variable whose value names a posted list.
    pub name: Cell<Option<NonNull<ngx_http_complex_value_t>>>,
    /// The upstream these settings were made for. Copies of it have them too.
    pub own: Cell<*const ngx_http_upstream_srv_conf_t>,
    /// The `init_upstream` after the last directive of nginx's own.
    pub known: Cell<ngx_http_upstream_init_pt>,
    /// One that is neither nginx's nor ours.
    pub foreign: Cell<ngx_http_upstream_init_pt>,
    /// Our `init_upstream` is in nginx's chain.
    pub hooked: Cell<bool>,
    /// What was there before it.
    pub below: Cell<ngx_http_upstream_init_pt>,
    /// nginx has called it.
    pub initialized: Cell<bool>,
    /// The `peer.init` that was there before ours.
    pub inner: Cell<ngx_http_upstream_init_peer_pt>,
    /// Its list is to be put in force with the configuration: no source has spoken yet.
    pub awaits_commit: Cell<bool>,
    /// The place in the zone of an upstream that is managed.
    pub live: OnceCell<Rc<Live>>,
}

/// Settings of one `location {}`.
#[derive(Default)]
pub struct Location {
    /// `dyups_interface`.
    pub interface: Cell<Option<Access>>,
    /// `check_status` or `upsync_status`: how it is written.
    pub format: Cell<Option<Format>>,
    /// What makes the content: the handler of a directive of ours.
    pub handler: Cell<ngx_http_handler_pt>,
}

/// An upstream of nginx.conf whose requests we balance in any case: it has `upsync`, `upsync_lb`
/// or `check`, or a method that this nginx lacks.
#[derive(Clone, Copy)]
pub struct Managed<'a> {
    /// Its settings here.
    pub server: &'a Server,
    /// nginx's own part.
    pub nginx: &'a ngx_http_upstream_srv_conf_t,
}

impl Managed<'_> {
    /// What `upsync` says.
    pub fn upsync(&self) -> Option<&Upsync> {
        self.server.upsync.get()
    }

    /// Its name, as one that a list may once have been posted for which its source now replaces.
    pub fn posted_name(&self) -> Option<Name> {
        Name::parse(self.nginx.host.as_bytes()).ok().filter(|_| self.upsync().is_some())
    }

    /// The name of its entry in the zone. Without a source a list may be posted for it, which is
    /// one of its own: no name that can be posted has a slash.
    pub fn entry_name(&self) -> Vec<u8> {
        let own: &[u8] = if self.upsync().is_some() { b"" } else { b"/" };
        [own, self.nginx.host.as_bytes()].concat()
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        self.nginx.host.to_string()
    }
}

impl Main {
    /// The settings of the configuration that is being read.
    ///
    /// # Safety
    ///
    /// `cf` is what nginx hands to a callback of an http module.
    pub unsafe fn of_conf<'a>(cf: *mut ngx_conf_t) -> Option<&'a Self> {
        // SAFETY: inside `http {}` the context is http's, and our settings are at our index.
        unsafe { of_context((*cf).ctx.cast()) }
    }

    /// The settings of a cycle, if it has an `http {}`.
    ///
    /// # Safety
    ///
    /// `cycle` is a cycle whose configuration has been read.
    pub unsafe fn of_cycle<'a>(cycle: *mut ngx_cycle_t) -> Option<&'a Self> {
        // SAFETY: http's context is at the index of its module.
        unsafe { of_context((*(*cycle).conf_ctx.add(ngx_http_module.index)).cast()) }
    }

    /// The settings that a request finds.
    ///
    /// # Safety
    ///
    /// `request` is a request of nginx.
    pub unsafe fn of_request<'a>(request: *const ngx_http_request_t) -> Option<&'a Self> {
        // SAFETY: a request has the settings of all http modules; `create_main_conf` made ours.
        unsafe { (*(*request).main_conf.add(module().ctx_index)).cast::<Self>().as_ref() }
    }

    /// nginx's own settings of all upstreams.
    pub fn nginx(&self) -> Option<NonNull<ngx_http_upstream_main_conf_t>> {
        let context = self.context.get()?;
        // SAFETY: `init_main_conf` set the context of the `http {}` that these settings are of;
        // the upstream module is in every nginx with http.
        let main =
            unsafe { *(*context.as_ptr()).main_conf.add(ngx_http_upstream_module.ctx_index) };
        NonNull::new(main.cast())
    }

    /// All upstreams as nginx has them, copies of the template too.
    pub fn pointers(&self) -> &[*mut ngx_http_upstream_srv_conf_t] {
        let context = self.context.get();
        // SAFETY: `init_main_conf` set the context of the `http {}` that these settings are of.
        context.map_or(&[], |context| unsafe { upstreams(context.as_ptr()) })
    }

    /// All upstreams of nginx.conf, also those that come from `proxy_pass` alone.
    pub fn all_upstreams(&self) -> impl Iterator<Item = &ngx_http_upstream_srv_conf_t> {
        // SAFETY: nginx's array holds pointers to upstreams that live as the settings do; copies
        // of a template, which do not, are left out at once.
        let all = self.pointers().iter().filter_map(|&upstream| unsafe { upstream.as_ref() });
        all.filter(|nginx| Server::of(nginx).is_none_or(|server| !server.is_copied_to(nginx)))
    }

    /// The `upstream {}` blocks of nginx.conf, with their settings here.
    pub fn upstreams(&self) -> impl Iterator<Item = (&ngx_http_upstream_srv_conf_t, &Server)> {
        self.all_upstreams().filter_map(|nginx| Some((nginx, Server::of(nginx)?)))
    }

    /// The `upstream {}` of a name, in whatever case.
    pub fn upstream(&self, name: &str) -> Option<(&ngx_http_upstream_srv_conf_t, &Server)> {
        let name = name.as_bytes();
        self.upstreams().find(|(nginx, _)| nginx.host.as_bytes().eq_ignore_ascii_case(name))
    }

    /// The upstreams whose requests we balance in any case.
    pub fn managed(&self) -> Vec<Managed<'_>> {
        let all = self.upstreams().filter(|(_, server)| server.is_managed());
        all.map(|(nginx, server)| Managed { server, nginx }).collect()
    }

    /// The idle connections that each worker keeps for all names made at run time.
    pub fn template_keepalive(&self) -> Option<u32> {
        // SAFETY: the template lives as these settings do.
        let template = unsafe { self.template.get()?.as_ref() };
        Server::of(template)?.keepalive_in_force()
    }

    /// The size of the zone.
    pub fn zone_size(&self) -> usize {
        self.zone_size.get().unwrap_or(crate::shm::zone::SIZE_DEFAULT)
    }
}

unsafe fn of_context<'a>(context: *const ngx_http_conf_ctx_t) -> Option<&'a Main> {
    // SAFETY: the callers' word; `create_main_conf` made a `Main` that lives as the cycle does.
    unsafe { (*context.as_ref()?.main_conf.add(module().ctx_index)).cast::<Main>().as_ref() }
}

impl Location {
    /// Has a handler make the content of the location being read.
    ///
    /// # Safety
    ///
    /// `cf` is what nginx hands to the handler of a directive in a `location {}`, whose settings
    /// these are.
    pub unsafe fn answer_by(&self, cf: *mut ngx_conf_t, handler: ngx_http_handler_pt) {
        self.handler.set(handler);
        // SAFETY: the caller's word.
        unsafe { (*core_location(cf)).handler = handler };
    }

    /// What stands in `limit_except` or `if` is a location of its own for nginx, but has the
    /// content of the one around it.
    ///
    /// # Safety
    ///
    /// `cf` is what nginx hands to `merge_loc_conf` of these settings.
    pub unsafe fn inherit(&self, cf: *mut ngx_conf_t, outer: &Self) {
        // SAFETY: the caller's word.
        let core = unsafe { &mut *core_location(cf) };
        if core.noname() != 0 && self.handler.get().is_none() {
            self.interface.set(outer.interface.get());
            self.format.set(outer.format.get());
            self.handler.set(outer.handler.get());
        }
        if core.lmt_excpt() != 0 && core.handler.is_none() {
            core.handler = self.handler.get();
        }
    }

    /// The settings of the location that a request has come to.
    ///
    /// # Safety
    ///
    /// `request` is a request of nginx whose location has been found.
    pub unsafe fn of_request<'a>(request: *const ngx_http_request_t) -> Option<&'a Self> {
        // SAFETY: a request has the settings of all http modules; `create_loc_conf` made ours.
        unsafe { (*(*request).loc_conf.add(module().ctx_index)).cast::<Self>().as_ref() }
    }
}

/// The core module's settings of the location that is read or merged.
unsafe fn core_location(cf: *mut ngx_conf_t) -> *mut ngx_http_core_loc_conf_t {
    // SAFETY: inside `location {}` the core module's settings are those of the location.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        (*(*context).loc_conf.add(ngx_http_core_module.ctx_index)).cast()
    }
}

impl Server {
    /// The settings of an upstream; none if it comes from `proxy_pass` alone.
    pub fn of(upstream: &ngx_http_upstream_srv_conf_t) -> Option<&Self> {
        let settings = NonNull::new(upstream.srv_conf)?;
        // SAFETY: nginx calls `create_srv_conf` of all http modules for an `upstream {}`, so a
        // `Server` is at our index, and lives as long as the upstream.
        unsafe { (*settings.add(module().ctx_index).as_ref()).cast::<Self>().as_ref() }
    }

    /// The idle connections that each worker keeps; none if it keeps none.
    pub fn keepalive_in_force(&self) -> Option<u32> {
        let by_default = (nginx_version >= KEPT_BY_DEFAULT).then_some(KEPT);
        self.keepalive.get().or(by_default).filter(|&number| number > 0)
    }

    /// Whether an upstream with these settings is a copy for a name made at run time.
    pub fn is_copied_to(&self, upstream: &ngx_http_upstream_srv_conf_t) -> bool {
        !self.own.get().is_null() && !ptr::eq(self.own.get(), upstream)
    }

    /// Whether requests go by our own balancer in any case.
    pub fn is_managed(&self) -> bool {
        self.upsync.get().is_some()
            || self.lb.get().is_some()
            || self.lacking.get()
            || self.has_check()
    }

    /// Whether its servers are checked.
    pub fn has_check(&self) -> bool {
        self.checks.get().is_some_and(|checks| checks.asked.is_some())
    }

    /// Whether the block says anything about how a server is chosen.
    pub fn says_how(&self) -> bool {
        self.method.borrow().is_some() || self.lb.get().is_some() || self.sticky.get()
    }

    /// How the block says that a server is chosen.
    pub fn balancing(&self) -> Balancing {
        let method = self.chosen.get().cloned().unwrap_or_default();
        Balancing::configured(method, self.key.get(), self.sticky.get())
    }

    /// The largest answer of its source, in bytes.
    pub fn max_body(&self, main: &Main) -> u64 {
        self.max_body.get().or(main.max_body.get()).unwrap_or(MAX_BODY)
    }
}

/// All upstreams of a configuration.
///
/// # Safety
///
/// `context` is the context of an `http {}` that has been read.
pub unsafe fn upstreams<'a>(
    context: *const ngx_http_conf_ctx_t,
) -> &'a [*mut ngx_http_upstream_srv_conf_t] {
    // SAFETY: the upstream module is in every nginx with http; its settings live as the cycle does.
    unsafe {
        let main = (*context).main_conf.add(ngx_http_upstream_module.ctx_index);
        (*main)
            .cast::<ngx_http_upstream_main_conf_t>()
            .as_ref()
            .map_or(&[], |main| main.upstreams.as_slice())
    }
}

fn module() -> &'static nginx_sys::ngx_module_t {
    // SAFETY: nginx writes the module's indexes while it loads it, before any of this runs.
    unsafe { &*ptr::addr_of!(ngx_http_upsync_module) }
}
