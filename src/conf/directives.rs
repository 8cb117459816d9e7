//! The handlers of the directives.

use std::ffi::{CStr, c_char, c_void};
use std::path::{Component, Path, PathBuf};
use std::ptr;

use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET,
    NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF, NGX_HTTP_SRV_CONF_OFFSET,
    NGX_HTTP_UPS_CONF, ngx_addr_t, ngx_array_push, ngx_command_t, ngx_conf_t, ngx_http_conf_ctx_t,
    ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_str_t, ngx_uint_t,
};

use super::balancer::{self, Handler};
use super::settings::{Main, Server, upstreams};
use super::upsync::Upsync;
use crate::grammar::{method, size};
use crate::ngx::boundary::guarded;
use crate::ngx::conf::{Directive, ERROR, OK};
use crate::ngx::pool;
use crate::shm::zone::{SIZE_MAX, SIZE_MIN};

/// How many commands [`commands`] makes.
pub const COUNT: usize = 9;

/// The commands for the module's table.
pub const fn commands() -> [ngx_command_t; COUNT] {
    const UPSTREAM: u32 = NGX_HTTP_UPS_CONF;
    const HTTP: u32 = NGX_HTTP_MAIN_CONF;
    [
        command(c"upsync", UPSTREAM | NGX_CONF_1MORE, upsync, NGX_HTTP_SRV_CONF_OFFSET),
        command(
            c"upsync_dump_path",
            UPSTREAM | NGX_CONF_TAKE1,
            upsync_dump_path,
            NGX_HTTP_SRV_CONF_OFFSET,
        ),
        command(c"upsync_lb", UPSTREAM | NGX_CONF_1MORE, upsync_lb, NGX_HTTP_SRV_CONF_OFFSET),
        command(
            c"upsync_max_body",
            UPSTREAM | NGX_CONF_TAKE1,
            upstream_max_body,
            NGX_HTTP_SRV_CONF_OFFSET,
        ),
        command(
            c"upsync_max_body",
            HTTP | NGX_CONF_TAKE1,
            http_max_body,
            NGX_HTTP_MAIN_CONF_OFFSET,
        ),
        command(c"upsync_zone", HTTP | NGX_CONF_TAKE1, upsync_zone, NGX_HTTP_MAIN_CONF_OFFSET),
        command(
            c"upstream_show",
            NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS,
            crate::api::upstream_show::upstream_show,
            NGX_HTTP_LOC_CONF_OFFSET,
        ),
        command(
            c"check_status",
            NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS | NGX_CONF_TAKE1,
            crate::api::status_pages::check_status,
            NGX_HTTP_LOC_CONF_OFFSET,
        ),
        command(
            c"upsync_status",
            NGX_HTTP_SRV_CONF | NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS | NGX_CONF_TAKE1,
            crate::api::status_pages::upsync_status,
            NGX_HTTP_LOC_CONF_OFFSET,
        ),
    ]
}

pub(super) const fn command(
    name: &'static CStr,
    type_: u32,
    set: Handler,
    conf: usize,
) -> ngx_command_t {
    ngx_command_t {
        name: ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() },
        type_: type_ as ngx_uint_t,
        set: Some(set),
        conf,
        offset: 0,
        post: ptr::null_mut(),
    }
}

/// Runs the handler of a directive with the settings that nginx hands to it.
pub(super) unsafe fn handle<T>(
    cf: *mut ngx_conf_t,
    conf: *mut c_void,
    handler: impl FnOnce(&mut Directive<'_>, &T, &[String]) -> *mut c_char,
) -> *mut c_char {
    // SAFETY: nginx calls the handlers below with the settings of the context that their
    // commands name, which are a `T`.
    guarded(ERROR, || unsafe {
        let (Some(mut directive), Some(settings)) = (Directive::new(cf), conf.cast::<T>().as_ref())
        else {
            return ERROR;
        };
        let words = directive.words();
        handler(&mut directive, settings, &words)
    })
}

unsafe extern "C" fn upsync(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, server: &Server, words: &[String]| {
        if server.upsync.get().is_some() {
            return directive
                .error("\"upsync\" directive is duplicate, expected one source in an upstream");
        }
        if server.name.get().is_some() {
            return directive.error(super::dyups::WITH_UPSYNC);
        }
        match Upsync::parse(&words[1], &words[2..]) {
            Ok(upsync) => drop(server.upsync.set(upsync)),
            Err(error) => return directive.error(error),
        }
        // SAFETY: `upsync` stands in an `upstream {}`, whose settings these are.
        let upstream = unsafe { balancer::current_upstream(cf) };
        // SAFETY: as above.
        unsafe { add_placeholder(cf, &mut *upstream) }.map_or(ERROR, |()| OK)
    };
    // SAFETY: the command names the settings of an upstream.
    unsafe { handle(cf, conf, handler) }
}

/// The name of the server that stands in for those of the source.
static PLACEHOLDER: &CStr = c"0.0.0.0:0";

/// Takes the placeholder out again, if the block has other servers: nginx's own methods count it.
///
/// # Safety
///
/// The block has been read, and nginx has not yet initialised the upstream.
pub unsafe fn remove_placeholder(upstream: &mut ngx_http_upstream_srv_conf_t) {
    // SAFETY: the array, if there is one, is of servers, which can be moved.
    unsafe {
        let Some(array) = upstream.servers.as_mut().filter(|servers| servers.nelts > 1) else {
            return;
        };
        let servers = std::slice::from_raw_parts_mut(
            array.elts.cast::<ngx_http_upstream_server_t>(),
            array.nelts,
        );
        if let Some(place) = servers.iter().position(is_placeholder) {
            servers.copy_within(place + 1.., place);
            array.nelts -= 1;
        }
    }
}

/// Whether a server is the one that [`add_placeholder`] added.
pub fn is_placeholder(server: &ngx_http_upstream_server_t) -> bool {
    ptr::eq(server.name.data, PLACEHOLDER.as_ptr().cast())
}

/// nginx refuses an `upstream {}` without a `server`. So that none has to be made up, `upsync`
/// adds one that is down, which nothing but nginx's own check ever sees.
pub(super) unsafe fn add_placeholder(
    cf: *mut ngx_conf_t,
    upstream: &mut ngx_http_upstream_srv_conf_t,
) -> Option<()> {
    let name =
        ngx_str_t { len: PLACEHOLDER.count_bytes(), data: PLACEHOLDER.as_ptr().cast_mut().cast() };
    // SAFETY: all zeros is a valid address of the family "unspecified", and a valid server; nginx
    // has made the array of servers before it reads the block.
    unsafe {
        let sockaddr = pool::copy((*cf).pool, std::mem::zeroed::<libc::sockaddr_in>())?;
        (*sockaddr.as_ptr()).sin_family = libc::AF_INET as libc::sa_family_t;
        let mut addr: ngx_addr_t = std::mem::zeroed();
        addr.sockaddr = sockaddr.as_ptr().cast();
        addr.socklen = size_of::<libc::sockaddr_in>() as u32;
        addr.name = name;
        let server =
            ngx_array_push(upstream.servers).cast::<ngx_http_upstream_server_t>().as_mut()?;
        *server = std::mem::zeroed();
        server.name = name;
        server.addrs = pool::copy((*cf).pool, addr)?.as_ptr();
        server.naddrs = 1;
        server.weight = 1;
        server.down = 1;
    }
    Some(())
}

unsafe extern "C" fn upsync_dump_path(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, server: &Server, words: &[String]| {
        if words[1].is_empty() {
            return directive.error("empty path in \"upsync_dump_path\", expected a file");
        }
        let Some(path) = directive.full_path(&words[1]) else {
            return ERROR;
        };
        // SAFETY: the context is that of the `http {}` being read.
        let others = unsafe { upstreams((*cf).ctx.cast::<ngx_http_conf_ctx_t>()) };
        // SAFETY: the array holds pointers to upstreams that live as it does.
        let taken = others.iter().filter_map(|&other| unsafe { other.as_ref() }).find(|other| {
            let theirs = Server::of(other).filter(|theirs| !ptr::eq(*theirs, server));
            theirs
                .and_then(|theirs| theirs.dump_path.get())
                .is_some_and(|theirs| is_same(theirs, &path))
        });
        if let Some(other) = taken {
            return directive.error(format_args!(
                "\"upsync_dump_path\" \"{path}\" is that of upstream \"{}\" already, expected a file of its own",
                other.host
            ));
        }
        match server.dump_path.set(path) {
            Ok(()) => OK,
            Err(_) => {
                directive.error("\"upsync_dump_path\" directive is duplicate, expected it once")
            }
        }
    };
    // SAFETY: the command names the settings of an upstream.
    unsafe { handle(cf, conf, handler) }
}

/// Whether two absolute paths name one file, however they are written.
fn is_same(one: &str, other: &str) -> bool {
    let normal = |path: &str| {
        Path::new(path).components().fold(PathBuf::new(), |mut normal, part| {
            match part {
                Component::ParentDir => drop(normal.pop()),
                part => normal.push(part),
            }
            normal
        })
    };
    normal(one) == normal(other)
}

unsafe extern "C" fn upsync_lb(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, server: &Server, words: &[String]| {
        let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        match method::lb(&words).map(|lb| server.lb.set(lb)) {
            Ok(Ok(())) => OK,
            Ok(Err(_)) => directive.error("\"upsync_lb\" directive is duplicate, expected it once"),
            Err(error) => directive.error(error),
        }
    };
    // SAFETY: the command names the settings of an upstream.
    unsafe { handle(cf, conf, handler) }
}

unsafe extern "C" fn upstream_max_body(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: the command names the settings of an upstream.
    unsafe {
        handle(cf, conf, |directive, server: &Server, words| {
            max_body(directive, &server.max_body, words)
        })
    }
}

unsafe extern "C" fn http_max_body(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: the command names the settings of `http {}`.
    unsafe {
        handle(cf, conf, |directive, main: &Main, words| max_body(directive, &main.max_body, words))
    }
}

fn max_body(
    directive: &mut Directive<'_>,
    to: &std::cell::Cell<Option<u64>>,
    words: &[String],
) -> *mut c_char {
    let Some(size) = size::parse_size(&words[1]).filter(|&size| size > 0) else {
        let value = &words[1];
        return directive.error(format_args!(
            "invalid size \"{value}\" in \"upsync_max_body\", expected a size such as 32m"
        ));
    };
    match to.replace(Some(size)) {
        None => OK,
        Some(_) => directive.error("\"upsync_max_body\" directive is duplicate, expected it once"),
    }
}

unsafe extern "C" fn upsync_zone(
    cf: *mut ngx_conf_t,
    _command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    let handler = |directive: &mut Directive<'_>, main: &Main, words: &[String]| {
        let value = &words[1];
        let Some(size) = size::parse_size(value) else {
            return directive.error(format_args!(
                "invalid size \"{value}\" in \"upsync_zone\", expected a size such as 8m"
            ));
        };
        if size < SIZE_MIN as u64 || size > SIZE_MAX {
            return directive.error(format_args!(
                "size \"{value}\" in \"upsync_zone\" is out of range, expected 128k to 32768m"
            ));
        }
        match main.zone_size.replace(Some(size as usize)) {
            None => OK,
            Some(_) => directive.error("\"upsync_zone\" directive is duplicate, expected it once"),
        }
    };
    // SAFETY: the command names the settings of `http {}`.
    unsafe { handle(cf, conf, handler) }
}
