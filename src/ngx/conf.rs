//! Reading directives.

use std::ffi::c_char;
use std::fmt::Display;
use std::ptr;

use nginx_sys::{NGX_LOG_EMERG, NGX_LOG_WARN, ngx_conf_t, ngx_str_t};

/// What a directive's handler returns when the message has been logged.
pub const ERROR: *mut c_char = usize::MAX as *mut c_char;

/// What a directive's handler returns when all is well.
pub const OK: *mut c_char = ptr::null_mut();

/// The directive being read, and where it stands.
pub struct Directive<'a>(&'a mut ngx_conf_t);

impl<'a> Directive<'a> {
    /// Wraps what nginx hands to a directive's handler.
    ///
    /// # Safety
    ///
    /// `cf` is that pointer, used by nobody else until the handler returns.
    pub unsafe fn new(cf: *mut ngx_conf_t) -> Option<Self> {
        // SAFETY: the caller's word.
        unsafe { cf.as_mut() }.map(Self)
    }

    /// nginx's own view.
    pub fn as_ptr(&mut self) -> *mut ngx_conf_t {
        self.0
    }

    /// The directive's name and its arguments. Bytes that are no UTF-8 are replaced, which no
    /// value that is accepted anywhere has.
    pub fn words(&self) -> Vec<String> {
        // SAFETY: nginx keeps the words of a directive in an array of strings.
        let words: &[ngx_str_t] =
            unsafe { self.0.args.as_ref().map_or(&[], |args| args.as_slice()) };
        words.iter().map(|word| String::from_utf8_lossy(word.as_bytes()).into_owned()).collect()
    }

    /// Logs an error at `emerg` with file and line; nginx refuses the configuration.
    pub fn error(&mut self, message: impl Display) -> *mut c_char {
        ngx::ngx_conf_log_error!(NGX_LOG_EMERG, self.as_ptr(), "{message}");
        ERROR
    }

    /// Logs a warning with file and line.
    pub fn warn(&mut self, message: impl Display) {
        ngx::ngx_conf_log_error!(NGX_LOG_WARN, self.as_ptr(), "{message}");
    }

    /// A path as `include` understands it: relative to the folder of nginx.conf.
    pub fn full_path(&mut self, path: &str) -> Option<String> {
        let mut name = ngx_str_t { len: path.len(), data: path.as_ptr().cast_mut() };
        // SAFETY: nginx copies the name if it changes it; the cycle is the one being read.
        let full = unsafe { nginx_sys::ngx_conf_full_name(self.0.cycle, &mut name, 1) };
        (full == nginx_sys::NGX_OK as isize)
            .then(|| String::from_utf8_lossy(name.as_bytes()).into_owned())
    }
}
