//! The tables that nginx reads, and what it calls when.

pub mod hooks;
mod variables;

use std::ffi::{CStr, c_char, c_void};
use std::ptr::{self, NonNull};

use nginx_sys::{
    NGX_DECLINED, NGX_ERROR, NGX_HTTP_MODULE, NGX_OK, ngx_command_t, ngx_conf_t, ngx_cycle_t,
    ngx_http_module_t, ngx_http_request_t, ngx_int_t, ngx_module_t, ngx_uint_t,
};

use crate::conf::settings::{Location, Main, Server};
use crate::conf::{balancer, check, directives, dump, dyups, shared, state, template};
#[cfg(nginx_http_ssl)]
use crate::health::tls;
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{ERROR, OK};
use crate::ngx::{cycle, phase, pool};
use crate::worker;

const COMMANDS: usize = directives::COUNT + dyups::COUNT + check::COUNT + balancer::COUNT + 1;

static mut COMMAND_TABLE: [ngx_command_t; COMMANDS] = {
    let mut table = [ngx_command_t::empty(); COMMANDS];
    let end = fill(&mut table, 0, &directives::commands());
    let end = fill(&mut table, end, &dyups::commands());
    let end = fill(&mut table, end, &check::commands());
    fill(&mut table, end, &balancer::commands());
    table
};

const fn fill(table: &mut [ngx_command_t], start: usize, commands: &[ngx_command_t]) -> usize {
    let mut i = 0;
    while i < commands.len() {
        table[start + i] = commands[i];
        i += 1;
    }
    start + commands.len()
}

static CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(preconfiguration),
    postconfiguration: Some(postconfiguration),
    create_main_conf: Some(create_conf::<Main>),
    init_main_conf: Some(init_main_conf),
    create_srv_conf: Some(create_conf::<Server>),
    merge_srv_conf: None,
    create_loc_conf: Some(create_conf::<Location>),
    merge_loc_conf: Some(merge_loc_conf),
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
        #[cfg(nginx_http_ssl)]
        tls::begin_configuration();
        if variables::add(cf) { NGX_OK as ngx_int_t } else { NGX_ERROR as ngx_int_t }
    })
}

unsafe extern "C" fn create_conf<T: Default>(cf: *mut ngx_conf_t) -> *mut c_void {
    // SAFETY: nginx gives the pool of the configuration being read.
    guarded(ptr::null_mut(), || unsafe {
        pool::place((*cf).pool, T::default()).map_or(ptr::null_mut(), |conf| conf.as_ptr().cast())
    })
}

unsafe extern "C" fn merge_loc_conf(
    cf: *mut ngx_conf_t,
    outer: *mut c_void,
    inner: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx gives what `create_conf` made for a location and for the one around it.
    guarded(ERROR, || unsafe {
        (*inner.cast::<Location>()).inherit(cf, &*outer.cast::<Location>());
        OK
    })
}

/// nginx initialises the upstreams after this, as its own upstream module stands behind ours.
unsafe extern "C" fn init_main_conf(cf: *mut ngx_conf_t, conf: *mut c_void) -> *mut c_char {
    // SAFETY: nginx gives what `create_conf` made, and the context of the `http {}` just read.
    guarded(ERROR, || unsafe {
        let main = &*conf.cast::<Main>();
        main.context.set(NonNull::new((*cf).ctx.cast()));
        if main.posting.get() && !template::find(cf, main) {
            return ERROR;
        }
        if !check::finish(cf, main) || !hooks::hook_all(cf, main) {
            return ERROR;
        }
        let is_needed = main.posting.get() || !main.managed().is_empty();
        if !is_needed || shared::add(cf, main) { OK } else { ERROR }
    })
}

/// By now nginx has initialised all upstreams.
unsafe extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: nginx calls it with the `http {}` just read.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        let Some(main) = Main::of_conf(cf) else {
            return NGX_ERROR as ngx_int_t;
        };
        if !hooks::all_are_ours(cf, main) {
            return NGX_ERROR as ngx_int_t;
        }
        if main.posting.get() {
            template::hide(main);
            return phase::add_preaccess(cf, Some(refresh_names));
        }
        NGX_OK as ngx_int_t
    })
}

/// So that the content handler finds names that were made since the last request.
unsafe extern "C" fn refresh_names(request: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx calls phase handlers with a request.
    guarded(NGX_DECLINED as ngx_int_t, || unsafe {
        if let Some(names) = Main::of_request(request).and_then(|main| main.names.get()) {
            names.refresh();
        }
        NGX_DECLINED as ngx_int_t
    })
}

unsafe extern "C" fn init_module(nginx_cycle: *mut ngx_cycle_t) -> ngx_int_t {
    // SAFETY: nginx gives the cycle that is about to be in force. Failing here would end nginx,
    // so nothing does.
    guarded(NGX_OK as ngx_int_t, || unsafe {
        if let Some(main) = Main::of_cycle(nginx_cycle).filter(|_| !cycle::is_test()) {
            dump::prepare(main, &*nginx_cycle);
            let folder = state::prepare(main, &*nginx_cycle);
            let unused = shared::commit(main, (*nginx_cycle).log);
            state::load(main, folder, &unused, (*nginx_cycle).log);
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
