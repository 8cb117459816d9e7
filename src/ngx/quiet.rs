//! A log that nobody reads: what it is told is kept, to be asked for.

use std::cell::RefCell;

use nginx_sys::{NGX_LOG_INFO, ngx_log_t, ngx_uint_t, u_char};

/// The most of a message that is kept, in bytes.
const KEPT: usize = 512;

thread_local! {
    static LAST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A log for connections whose failures are told otherwise. It lives as long as the process.
pub fn log() -> *mut ngx_log_t {
    thread_local! {
        static LOG: *mut ngx_log_t = Box::into_raw(Box::new(quiet()));
    }
    LOG.with(|log| *log)
}

fn quiet() -> ngx_log_t {
    // SAFETY: all zeros is a log without a file.
    let mut log: ngx_log_t = unsafe { std::mem::zeroed() };
    log.log_level = NGX_LOG_INFO as ngx_uint_t;
    log.writer = Some(keep);
    log
}

/// The last message since this was last asked; empty if there was none.
pub fn take() -> Vec<u8> {
    LAST.take()
}

unsafe extern "C" fn keep(_log: *mut ngx_log_t, _level: ngx_uint_t, text: *mut u_char, len: usize) {
    if text.is_null() {
        return;
    }
    // SAFETY: nginx gives the message that it has just written.
    let text = unsafe { std::slice::from_raw_parts(text, len.min(KEPT)) };
    LAST.with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            last.clear();
            last.extend_from_slice(text);
        }
    });
}
