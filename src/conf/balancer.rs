//! nginx's own directives of an upstream that we have to know of.
//!
//! The module stands before nginx's upstream modules, so commands of ours with the names of
//! theirs are called first. They note what the block asks for and hand on. This way our
//! `init_upstream` is below `keepalive` and above the balancing method whatever the order in the
//! file, and a method together with `upsync` is refused where it stands.

use std::ffi::{CStr, c_char, c_void};

use nginx_sys::{
    NGX_HTTP_MODULE, NGX_HTTP_UPS_CONF, ngx_command_t, ngx_conf_t, ngx_http_conf_ctx_t,
    ngx_http_upstream_module, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_module_t, ngx_str_t,
    ngx_uint_t,
};

use super::settings::Server;
use crate::module::hooks::init_upstream;
use crate::module::ngx_http_upsync_module;
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{Directive, ERROR};

/// Directives that keep the balancer below them.
const WRAPPERS: [&CStr; 1] = [c"keepalive"];

/// Directives that bring their own.
const METHODS: [&CStr; 5] = [c"least_conn", c"ip_hash", c"hash", c"random", c"sticky"];

/// How many commands [`commands`] makes.
pub const COUNT: usize = WRAPPERS.len() + METHODS.len();

/// A directive's handler.
pub type Handler =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

/// The commands for the module's table.
pub const fn commands() -> [ngx_command_t; COUNT] {
    let mut commands = [ngx_command_t::empty(); COUNT];
    let mut i = 0;
    while i < COUNT {
        let name = if i < WRAPPERS.len() { WRAPPERS[i] } else { METHODS[i - WRAPPERS.len()] };
        commands[i].name =
            ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() };
        commands[i].set = Some(noticed);
        i += 1;
    }
    commands
}

/// A name that no directive in a file can have.
const UNKNOWN: ngx_str_t = ngx_str_t { len: 1, data: c" ".as_ptr().cast_mut().cast() };

/// Gives our commands the contexts and numbers of arguments of nginx's own, which differ from
/// version to version. A name that this nginx lacks stays unknown.
///
/// # Safety
///
/// Called from `preconfiguration`, with its argument.
pub unsafe fn adopt_types(cf: *mut ngx_conf_t) {
    // SAFETY: our table ends with an empty command, and is used by this thread only.
    unsafe {
        let mut command = ngx_http_upsync_module.commands;
        while (*command).name.len != 0 {
            if (*command).set.is_some_and(|set| std::ptr::fn_addr_eq(set, noticed as Handler)) {
                match own(cf, &(*command).name) {
                    Some((_, own)) => (*command).type_ = (*own).type_,
                    None => (*command).name = UNKNOWN,
                }
            }
            command = command.add(1);
        }
    }
}

unsafe extern "C" fn noticed(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    _conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx calls it for a directive in an `upstream {}`.
    guarded(ERROR, || unsafe {
        let upstream = current_upstream(cf);
        let (Some(mut directive), Some(server)) = (Directive::new(cf), Server::of(&*upstream))
        else {
            return ERROR;
        };
        let name = (*command).name.to_str().unwrap_or_default();
        let wraps = WRAPPERS.iter().any(|wrapper| wrapper.to_bytes() == name.as_bytes());
        if wraps {
            hook(upstream, server);
            let words = directive.words();
            server.keepalive.set(words.get(1).and_then(|number| number.parse().ok()));
        } else if server.upsync.get().is_some() {
            return directive.error(format_args!("{}", not_yet(name)));
        } else {
            let _ = server.balancer.set(name);
        }
        let Some((module, own)) = own(cf, &(*command).name) else {
            return directive.error(format_args!("unknown directive \"{name}\""));
        };
        let result = hand_on(cf, module, own);
        if server.upsync.get().is_none() {
            // A method takes the place of all before it; a wrapper of nginx 1.29.7 and later does
            // not go by way of `init_upstream`.
            unhook(upstream, server, wraps);
        }
        result
    })
}

/// Why `upsync` and a balancing directive of nginx do not go together.
pub fn not_yet(name: &str) -> String {
    format!(
        "\"{name}\" cannot be used with \"upsync\", expected \"upsync_lb roundrobin\" or no balancing directive"
    )
}

/// The upstream whose block is being read.
///
/// # Safety
///
/// `cf` is what nginx hands to the handler of a directive in an `upstream {}`.
pub unsafe fn current_upstream(cf: *mut ngx_conf_t) -> *mut ngx_http_upstream_srv_conf_t {
    // SAFETY: inside `upstream {}` the upstream module's settings are those of the block.
    unsafe {
        let context = (*cf).ctx.cast::<ngx_http_conf_ctx_t>();
        (*(*context).srv_conf.add(ngx_http_upstream_module.ctx_index)).cast()
    }
}

/// Puts our `init_upstream` over what is there, once.
///
/// # Safety
///
/// `upstream` is from [`current_upstream`] or of the `http {}` just read, and `server` are its
/// settings.
pub unsafe fn hook(upstream: *mut ngx_http_upstream_srv_conf_t, server: &Server) {
    // SAFETY: nginx's main thread alone reads the configuration.
    let upstream = unsafe { &mut *upstream };
    if !server.hooked.replace(true) {
        server.below.set(upstream.peer.init_upstream.replace(init_upstream));
    }
}

/// Takes it out again if nothing was put over it, or if it is lost because something was put in
/// its place.
unsafe fn unhook(upstream: *mut ngx_http_upstream_srv_conf_t, server: &Server, wraps: bool) {
    // SAFETY: as in `hook`.
    let upstream = unsafe { &mut *upstream };
    let ours = |init| std::ptr::fn_addr_eq(init, init_upstream as InitUpstream);
    if upstream.peer.init_upstream.is_some_and(ours) {
        upstream.peer.init_upstream = server.below.take();
        server.hooked.set(false);
    } else if !wraps {
        server.hooked.set(false);
    }
}

type InitUpstream =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// nginx's command of a name, and its module.
unsafe fn own(
    cf: *mut ngx_conf_t,
    name: &ngx_str_t,
) -> Option<(*mut ngx_module_t, *mut ngx_command_t)> {
    // SAFETY: the cycle's modules end with null, a module's commands with an empty one.
    unsafe {
        let mut modules = (*(*cf).cycle).modules;
        while let Some(module) = (*modules).as_mut() {
            let ours = std::ptr::eq(module, &raw const ngx_http_upsync_module);
            let mut command = module.commands;
            while !ours
                && module.type_ == NGX_HTTP_MODULE as ngx_uint_t
                && !command.is_null()
                && (*command).name.len != 0
            {
                let in_upstream = (*command).type_ & NGX_HTTP_UPS_CONF as ngx_uint_t != 0;
                if in_upstream && (*command).name.as_bytes() == name.as_bytes() {
                    return Some((module, command));
                }
                command = command.add(1);
            }
            modules = modules.add(1);
        }
    }
    None
}

/// Calls a command with its module's settings, as `ngx_conf_handler()` would.
unsafe fn hand_on(
    cf: *mut ngx_conf_t,
    module: *mut ngx_module_t,
    command: *mut ngx_command_t,
) -> *mut c_char {
    // SAFETY: directives of `upstream {}` are of http modules, whose context holds arrays of
    // settings at `command.conf`, one of them at the module's index there.
    unsafe {
        let settings = (*cf).ctx.byte_add((*command).conf).cast::<*mut *mut c_void>();
        let conf = if (*settings).is_null() {
            std::ptr::null_mut()
        } else {
            *(*settings).add((*module).ctx_index)
        };
        (*command).set.map_or(ERROR, |set| set(cf, command, conf))
    }
}
