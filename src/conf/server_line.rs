//! Parameters of `server` in an `upstream {}` that this nginx lacks.

use std::ffi::c_char;

use nginx_sys::{ngx_addr_t, ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_str_t};

use super::settings::Server;
use crate::grammar::parameter;
use crate::model::body::Changes;
use crate::ngx::conf::{Directive, ERROR, OK};

/// A `server` line that has such parameters.
#[derive(Debug)]
pub struct More {
    /// nginx's addresses of the line, which tell it from others.
    pub addrs: *const ngx_addr_t,
    /// What it says beside what nginx knows.
    pub changes: Changes,
}

/// Whether a word is a parameter that nginx would refuse.
fn is_ours(word: &str) -> bool {
    word.starts_with("slow_start=") || (word == "drain" && !cfg!(nginx_server_drain))
}

/// Takes our parameters out of a line before nginx has it.
///
/// # Safety
///
/// `directive` is a `server` of `upstream`, whose settings `server` are.
pub unsafe fn read(
    directive: &mut Directive<'_>,
    upstream: *mut ngx_http_upstream_srv_conf_t,
    server: &Server,
    hand_on: impl FnOnce() -> *mut c_char,
) -> *mut c_char {
    let words = directive.words();
    let has_route = words.iter().skip(2).any(|word| word.starts_with("route="));
    server.has_route.set(server.has_route.get() || has_route);
    let mut changes = Changes::default();
    for word in words.iter().skip(2).filter(|word| is_ours(word)) {
        if let Err(error) = parameter::add(&mut changes, word) {
            return directive.error(format_args!("{error} in \"server\""));
        }
    }
    if changes.is_empty() {
        return hand_on();
    }
    let keeps = |i: usize| i < 2 || !is_ours(&words[i]);
    // SAFETY: nginx keeps the words of a directive in an array of strings, which it fills anew for
    // the next one; the array of servers is there before the block is read.
    unsafe {
        let cf = directive.as_ptr();
        let args = &mut *(*cf).args;
        let all = std::slice::from_raw_parts_mut(args.elts.cast::<ngx_str_t>(), args.nelts);
        let mut kept = 0;
        for i in (0..all.len()).filter(|&i| keeps(i)) {
            all[kept] = all[i];
            kept += 1;
        }
        args.nelts = kept;
        if hand_on() != OK {
            return ERROR;
        }
        let servers = (*(*upstream).servers).as_slice::<ngx_http_upstream_server_t>();
        if let Some(last) = servers.last() {
            server.more.borrow_mut().push(More { addrs: last.addrs, changes });
        }
    }
    OK
}
