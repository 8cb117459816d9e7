//! The tables that nginx reads, and what it calls when.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{self, NonNull};

use nginx_sys::{
    NGX_ERROR, NGX_HTTP_MODULE, NGX_LOG_EMERG, NGX_OK, ngx_command_t, ngx_conf_t, ngx_cycle_t,
    ngx_http_module_t, ngx_http_request_t, ngx_http_upstream_init_round_robin,
    ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_module_t, ngx_uint_t,
};

use crate::conf::settings::{Main, Server};
use crate::conf::{balancer, directives, dump, shared};
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{ERROR, OK};
use crate::ngx::{cycle, pool};
use crate::{upstream, worker};

const COMMANDS: usize = directives::COUNT + balancer::COUNT + 1;

static mut COMMAND_TABLE: [ngx_command_t; COMMANDS] = {
    let mut table = [ngx_command_t::empty(); COMMANDS];
    let (directives, noticed) = (directives::commands(), balancer::commands());
    let mut i = 0;
    while i < directives.len() {
        table[i] = directives[i];
        i += 1;
    }
    while i < directives.len() + noticed.len() {
        table[i] = noticed[i - directives.len()];
        i += 1;
    }
    table
};

static CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(preconfiguration),
    postconfiguration: Some(postconfiguration),
    create_main_conf: Some(create_conf::<Main>),
    init_main_conf: Some(init_main_conf),
    create_srv_conf: Some(create_conf::<Server>),
    merge_srv_conf: None,
    create_loc_conf: None,
    merge_loc_conf: None,
};

/// The module.
#[allow(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static mut ngx_http_upsync_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT).cast_mut().cast(),
    commands: (&raw mut COMMAND_TABLE).cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_module: Some(init_module),
    init_process: Some(init_process),
    exit_process: Some(exit_process),
    ..ngx_module_t::default()
};

/// A pointer that nginx reads from the module's tables.
#[repr(transparent)]
pub struct Exported<T>(*const T);

// SAFETY: what is pointed to is static, and only nginx's main thread reads the tables.
unsafe impl<T> Sync for Exported<T> {}

/// The modules of this file.
#[allow(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static ngx_modules: [Exported<ngx_module_t>; 2] =
    [Exported(&raw const ngx_http_upsync_module), Exported(ptr::null())];

/// Their names.
#[allow(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static ngx_module_names: [Exported<c_char>; 2] =
    [name(c"ngx_http_upsync_module"), Exported(ptr::null())];

/// Ours stands before nginx's upstream modules: see [`balancer`].
#[allow(non_upper_case_globals)]
#[unsafe(no_mangle)]
pub static ngx_module_order: [Exported<c_char>; 3] =
    [name(c"ngx_http_upsync_module"), name(c"ngx_http_upstream_module"), Exported(ptr::null())];

const fn name(name: &'static CStr) -> Exported<c_char> {
    Exported(name.as_ptr())
}

unsafe extern "C" fn preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: nginx calls it before it reads `http {}`.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        balancer::adopt_types(cf);
        NGX_OK as ngx_int_t
    })
}

unsafe extern "C" fn create_conf<T: Default>(cf: *mut ngx_conf_t) -> *mut c_void {
    // SAFETY: nginx gives the pool of the configuration being read.
    guarded(ptr::null_mut(), || unsafe {
        pool::place((*cf).pool, T::default()).map_or(ptr::null_mut(), |conf| conf.as_ptr().cast())
    })
}

unsafe extern "C" fn init_main_conf(cf: *mut ngx_conf_t, conf: *mut c_void) -> *mut c_char {
    // SAFETY: nginx gives what `create_conf` made, and the context of the `http {}` just read.
    guarded(ERROR, || unsafe {
        let main = &*conf.cast::<Main>();
        main.context.set(NonNull::new((*cf).ctx.cast()));
        if main.synced().is_empty() || shared::add(cf, main) { OK } else { ERROR }
    })
}

/// By now nginx has initialised all upstreams. One of ours that was left out has a balancer that
/// we know nothing of.
unsafe extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: nginx calls it with the `http {}` just read.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        let Some(main) = Main::of_conf(cf) else {
            return NGX_ERROR as ngx_int_t;
        };
        match main.synced().iter().find(|synced| !synced.server.initialized.get()) {
            None => NGX_OK as ngx_int_t,
            Some(synced) => {
                let name = synced.name();
                ngx::ngx_log_error!(
                    NGX_LOG_EMERG,
                    (*cf).log,
                    "upsync: upstream \"{name}\" has a balancing directive of another module, which cannot be used with \"upsync\""
                );
                NGX_ERROR as ngx_int_t
            }
        }
    })
}

/// `init_upstream`: nginx's own balancer first, so that whoever looks at its list finds one, then
/// our `peer.init` if the upstream has a source.
///
/// # Safety
///
/// nginx calls it for an upstream whose block has been read.
pub unsafe extern "C" fn init_upstream(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    // SAFETY: as above; the placeholder is only for nginx to have a list.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        let result = ngx_http_upstream_init_round_robin(cf, upstream);
        if let Some(server) = Server::of(&*upstream).filter(|server| server.upsync.get().is_some())
        {
            (*upstream).peer.init = Some(init_peer);
            server.initialized.set(true);
        }
        result
    })
}

unsafe extern "C" fn init_peer(
    request: *mut ngx_http_request_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
) -> ngx_int_t {
    // SAFETY: nginx calls it with a request and the upstream it goes to.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        match Server::of(&*upstream).and_then(|server| server.live.get()) {
            Some(live) => upstream::peer::init(request, upstream, live),
            None => NGX_ERROR as ngx_int_t,
        }
    })
}

unsafe extern "C" fn init_module(nginx_cycle: *mut ngx_cycle_t) -> ngx_int_t {
    // SAFETY: nginx gives the cycle that is about to be in force. Failing here would end nginx,
    // so nothing does.
    guarded(NGX_OK as ngx_int_t, || unsafe {
        if let Some(main) = Main::of_cycle(nginx_cycle).filter(|_| !cycle::is_test()) {
            dump::prepare(main, &*nginx_cycle);
            shared::commit(main, (*nginx_cycle).log);
        }
        NGX_OK as ngx_int_t
    })
}

unsafe extern "C" fn init_process(nginx_cycle: *mut ngx_cycle_t) -> ngx_int_t {
    // SAFETY: nginx gives the cycle of the new process. A worker that failed here would not be
    // started again, so nothing does.
    guarded(NGX_OK as ngx_int_t, || unsafe {
        if let Some(main) = Main::of_cycle(nginx_cycle).filter(|_| cycle::is_worker()) {
            worker::start(main, nginx_cycle);
        }
        NGX_OK as ngx_int_t
    })
}

unsafe extern "C" fn exit_process(nginx_cycle: *mut ngx_cycle_t) {
    // SAFETY: nginx gives the cycle of the process that ends.
    guarded((), || unsafe {
        if let Some(main) = Main::of_cycle(nginx_cycle).filter(|_| cycle::is_worker()) {
            worker::end(main);
        }
    });
}
