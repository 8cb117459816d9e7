//! nginx's own directives of an upstream that we have to know of.
//!
//! The module stands before nginx's upstream modules, so commands of ours with the names of
//! theirs are called first. They note what the block asks for and hand on. This way our
//! `init_upstream` is below `keepalive` and `sticky` and above the balancing method whatever the
//! order in the file, and we balance as the block says where the list is ours.

use std::ffi::{CStr, c_char, c_void};

use nginx_sys::{
    NGX_CONF_TAKE12, NGX_HTTP_MODULE, NGX_HTTP_UPS_CONF, nginx_version, ngx_command_t, ngx_conf_t,
    ngx_http_conf_ctx_t, ngx_http_upstream_module, ngx_http_upstream_srv_conf_t, ngx_int_t,
    ngx_module_t, ngx_str_t, ngx_uint_t,
};

use super::server_line;
use super::settings::{KEPT_BY_DEFAULT, Server};
use crate::conf::dyups::compile;
use crate::grammar::method::{self, MethodError};
use crate::model::Method;
use crate::module::hooks::init_upstream;
use crate::module::ngx_http_upsync_module;
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{Directive, ERROR, OK};

/// Directives that keep the balancer below them.
const WRAPPERS: [&CStr; 2] = [c"keepalive", STICKY];

/// A directive of nginx 1.29.6 and later. There are modules of others with one of this name, which
/// bring their own balancer.
const STICKY: &CStr = c"sticky";
const STICKY_MODULE: &CStr = c"ngx_http_upstream_sticky_module";

/// Directives that bring their own.
const METHODS: [&CStr; 5] = [c"least_conn", c"ip_hash", c"hash", c"random", LEAST_TIME];

/// nginx has it from 1.31 on; it is ours where nginx lacks it.
const LEAST_TIME: &CStr = c"least_time";

const SERVER: &CStr = c"server";

/// How many commands [`commands`] makes.
pub const COUNT: usize = WRAPPERS.len() + METHODS.len() + 1;

/// A directive's handler.
pub type Handler =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_command_t, *mut c_void) -> *mut c_char;

/// The commands for the module's table.
pub const fn commands() -> [ngx_command_t; COUNT] {
    let mut commands = [ngx_command_t::empty(); COUNT];
    let mut i = 0;
    while i < COUNT {
        let name = if i < WRAPPERS.len() {
            WRAPPERS[i]
        } else if i < WRAPPERS.len() + METHODS.len() {
            METHODS[i - WRAPPERS.len()]
        } else {
            SERVER
        };
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
/// version to version. A name that this nginx lacks stays unknown, but for `least_time`.
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
                    None if (*command).name.as_bytes() == LEAST_TIME.to_bytes() => {
                        (*command).type_ = (NGX_HTTP_UPS_CONF | NGX_CONF_TAKE12) as ngx_uint_t;
                    }
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
        let own = own(cf, &(*command).name);
        let words = directive.words();
        let hand_on = || own.map_or(OK, |(module, own)| hand_on(cf, module, own));
        let is = |name: &CStr| words[0].as_bytes() == name.to_bytes();
        let brings_its_own =
            is(STICKY) && own.is_some_and(|(module, _)| !has_name(module, STICKY_MODULE));
        if is(SERVER) {
            return server_line::read(&mut directive, upstream, server, hand_on);
        }
        if brings_its_own {
            return hand_on();
        }
        if WRAPPERS.into_iter().any(is) {
            wrapper(upstream, server, &words, hand_on)
        } else {
            method(&mut directive, upstream, server, &words, own.is_some(), hand_on)
        }
    })
}

/// Puts our `init_upstream` below nginx's own.
///
/// # Safety
///
/// `upstream` is from [`current_upstream`], `server` are its settings.
unsafe fn wrapper(
    upstream: *mut ngx_http_upstream_srv_conf_t,
    server: &Server,
    words: &[String],
    hand_on: impl FnOnce() -> *mut c_char,
) -> *mut c_char {
    // SAFETY: the caller's word.
    unsafe {
        note_foreign(upstream, server);
        hook(upstream, server);
        if words[0].as_bytes() == STICKY.to_bytes() {
            server.sticky.set(true);
        } else {
            server.keepalive.set(words.get(1).and_then(|number| number.parse().ok()));
        }
        let result = hand_on();
        // Where nothing was put over ours, as by `keepalive` of nginx 1.29.7 and later, it waits
        // until the whole block is known.
        unhook(upstream, server);
        server.known.set((*upstream).peer.init_upstream);
        result
    }
}

/// Notes the method, and lets nginx have it too as far as it knows it.
///
/// # Safety
///
/// As of [`wrapper`].
unsafe fn method(
    directive: &mut Directive<'_>,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    server: &Server,
    words: &[String],
    is_known: bool,
    hand_on: impl FnOnce() -> *mut c_char,
) -> *mut c_char {
    let Some(found) = read_method(directive, server, words) else {
        return ERROR;
    };
    let uses_time = words.iter().any(|word| word.contains("least_time"));
    // SAFETY: the caller's word.
    let lacks = uses_time && unsafe { own(directive.as_ptr(), &name_of(LEAST_TIME)) }.is_none();
    if lacks || !is_known {
        return match found {
            Ok(method) => {
                if server.method.borrow().is_some() {
                    directive.warn("load balancing method redefined");
                }
                server.lacking.set(true);
                server.method.replace(Some(Ok(method)));
                OK
            }
            Err(error) => directive.error(error),
        };
    }
    server.method.replace(Some(found.map_err(|error| error.to_string())));
    server.lacking.set(false);
    // SAFETY: the caller's word.
    unsafe {
        // A method takes the place of all before it; nginx warns if that is more than ours.
        unhook(upstream, server);
        let result = hand_on();
        server.hooked.set(false);
        server.foreign.set(None);
        if nginx_version < KEPT_BY_DEFAULT {
            server.keepalive.set(None);
        }
        server.known.set((*upstream).peer.init_upstream);
        result
    }
}

/// The method that a directive says, and its key; none if the key is wrong, which was logged.
fn read_method(
    directive: &mut Directive<'_>,
    server: &Server,
    words: &[String],
) -> Option<Result<Method, MethodError>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    server.key.set(None);
    match words[..] {
        // The key is nginx's, whatever it may be.
        ["hash", key, ref rest @ ..] => {
            // SAFETY: the directive has a first argument.
            server.key.set(Some(unsafe { compile(directive.as_ptr()) }?));
            Some(Ok(Method::Hash { key: key.to_owned(), consistent: rest == ["consistent"] }))
        }
        _ => Some(method::read(&words)),
    }
}

fn name_of(name: &CStr) -> ngx_str_t {
    ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() }
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

/// Takes it out again if nothing was put over it.
unsafe fn unhook(upstream: *mut ngx_http_upstream_srv_conf_t, server: &Server) {
    // SAFETY: as in `hook`.
    let upstream = unsafe { &mut *upstream };
    let ours = |init| std::ptr::fn_addr_eq(init, init_upstream as InitUpstream);
    if upstream.peer.init_upstream.is_some_and(ours) {
        upstream.peer.init_upstream = server.below.take();
        server.hooked.set(false);
    }
}

/// Notes a balancer of another module before something of nginx's own is put over it.
unsafe fn note_foreign(upstream: *mut ngx_http_upstream_srv_conf_t, server: &Server) {
    let ours = |init| std::ptr::fn_addr_eq(init, init_upstream as InitUpstream);
    let is_known = |init| server.known.get().is_some_and(|known| std::ptr::fn_addr_eq(known, init));
    // SAFETY: as in `hook`.
    let init = unsafe { (*upstream).peer.init_upstream };
    if let Some(init) = init.filter(|&init| !ours(init) && !is_known(init)) {
        server.foreign.set(Some(init));
    }
}

/// The balancer of another module that has taken the block, if one has: its module's name where
/// that is known.
///
/// # Safety
///
/// As of [`hook`], which has not been called since the block was read; `cf` is that of `http {}`.
pub unsafe fn foreign(
    cf: *mut ngx_conf_t,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    server: &Server,
) -> Option<String> {
    // SAFETY: the caller's word.
    unsafe { note_foreign(upstream, server) };
    let init = server.foreign.get()?;
    // SAFETY: the cycle's modules end with null and have names.
    unsafe {
        let base = library(init as *const c_void);
        let mut modules = (*(*cf).cycle).modules;
        while let Some(module) = (*modules).as_ref() {
            modules = modules.add(1);
            if base.is_some()
                && base != library(init_upstream as *const c_void)
                && base != library((&raw const ngx_http_upstream_module).cast())
                && library(std::ptr::from_ref(module).cast()) == base
            {
                return Some(CStr::from_ptr(module.name).to_string_lossy().into_owned());
            }
        }
    }
    Some("another module".to_owned())
}

/// The shared object that something is in.
fn library(address: *const c_void) -> Option<*mut c_void> {
    // SAFETY: all zeros is a valid `Dl_info`, which the call fills if it succeeds.
    unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        (libc::dladdr(address, &mut found) != 0).then_some(found.dli_fbase)
    }
}

type InitUpstream =
    unsafe extern "C" fn(*mut ngx_conf_t, *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t;

/// Whether a module has this name.
unsafe fn has_name(module: *mut ngx_module_t, name: &CStr) -> bool {
    // SAFETY: nginx gives each module its name before it reads a configuration.
    unsafe { !(*module).name.is_null() && CStr::from_ptr((*module).name) == name }
}

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
