//! What the directives of one configuration add up to.

use std::cell::{Cell, OnceCell, RefCell};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use nginx_sys::{
    ngx_conf_t, ngx_cycle_t, ngx_http_conf_ctx_t, ngx_http_module, ngx_http_upstream_main_conf_t,
    ngx_http_upstream_module, ngx_http_upstream_srv_conf_t,
};

use super::upsync::Upsync;
use crate::module::ngx_http_upsync_module;
use crate::shm::ledger::Book;
use crate::shm::zone::Zone;
use crate::upstream::Live;

/// The largest answer of a source, in bytes, where no `upsync_max_body` says otherwise.
pub const MAX_BODY: u64 = 32 * 1024 * 1024;

/// Settings of `http {}`.
#[derive(Debug, Default)]
pub struct Main {
    /// `upsync_zone`, in bytes.
    pub zone_size: Cell<Option<usize>>,
    /// `upsync_max_body`, in bytes.
    pub max_body: Cell<Option<u64>>,
    /// The context of this `http {}`.
    pub context: Cell<Option<NonNull<ngx_http_conf_ctx_t>>>,
    /// The zone, when nginx has mapped it.
    pub zone: Cell<Option<Zone>>,
    /// The number of this configuration among those that the zone has seen.
    pub cycle: Cell<u64>,
    /// The ledger of this worker.
    pub book: RefCell<Option<Rc<Book>>>,
}

/// Settings of one `upstream {}`.
#[derive(Debug, Default)]
pub struct Server {
    /// `upsync`.
    pub upsync: OnceCell<Upsync>,
    /// `upsync_dump_path`, with its folder.
    pub dump_path: OnceCell<String>,
    /// `upsync_lb` was given.
    pub balanced: Cell<bool>,
    /// `upsync_max_body`, in bytes.
    pub max_body: Cell<Option<u64>>,
    /// A balancing directive of nginx's own that the block has.
    pub balancer: OnceCell<&'static str>,
    /// Our `init_upstream` is in nginx's chain.
    pub hooked: Cell<bool>,
    /// nginx has called it.
    pub initialized: Cell<bool>,
    /// Its list is to be put in force with the configuration: no source has spoken yet.
    pub awaits_commit: Cell<bool>,
    /// The upstream's place in the zone.
    pub live: OnceCell<Live>,
}

/// An upstream of nginx.conf that has `upsync`.
#[derive(Clone, Copy)]
pub struct Synced<'a> {
    /// Its settings here.
    pub server: &'a Server,
    /// What `upsync` says.
    pub upsync: &'a Upsync,
    /// nginx's own part.
    pub nginx: &'a ngx_http_upstream_srv_conf_t,
}

impl Synced<'_> {
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

    /// The upstreams that have `upsync`.
    pub fn synced(&self) -> Vec<Synced<'_>> {
        let Some(context) = self.context.get() else {
            return Vec::new();
        };
        // SAFETY: `init_main_conf` set the context of the `http {}` that these settings are of.
        let all = unsafe { upstreams(context.as_ptr()) };
        // SAFETY: nginx's array holds pointers to upstreams that live as the settings do.
        let all = all.iter().filter_map(|&upstream| unsafe { upstream.as_ref() });
        all.filter_map(|nginx| {
            let server = Server::of(nginx)?;
            Some(Synced { server, upsync: server.upsync.get()?, nginx })
        })
        .collect()
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

impl Server {
    /// The settings of an upstream; none if it comes from `proxy_pass` alone.
    pub fn of(upstream: &ngx_http_upstream_srv_conf_t) -> Option<&Self> {
        let settings = NonNull::new(upstream.srv_conf)?;
        // SAFETY: nginx calls `create_srv_conf` of all http modules for an `upstream {}`, so a
        // `Server` is at our index, and lives as long as the upstream.
        unsafe { (*settings.add(module().ctx_index).as_ref()).cast::<Self>().as_ref() }
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
