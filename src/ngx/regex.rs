//! nginx's regular expressions.

use nginx_sys::{
    NGX_OK, ngx_create_pool, ngx_cycle, ngx_destroy_pool, ngx_pool_t, ngx_regex_compile,
    ngx_regex_compile_t, ngx_regex_exec, ngx_regex_t, ngx_str_t,
};

/// Room for what PCRE says is wrong: nginx's `NGX_MAX_CONF_ERRSTR`.
const ERROR_MAX: usize = 1024;

/// What nginx's `NGX_REGEX_NO_MATCHED` is, with PCRE and PCRE2.
const NO_MATCH: isize = -1;

/// So that no text holds the event loop up: about a millisecond. PCRE's own limit is 10,000,000.
const LIMIT: &str = "(*LIMIT_MATCH=100000)";

/// One that has been compiled.
#[derive(Debug)]
pub struct Regex {
    regex: *mut ngx_regex_t,
    /// What it stands in, if that is its own.
    pool: Option<*mut ngx_pool_t>,
}

impl Regex {
    /// Compiles one of a configuration. It stands in `pool`, as nginx prepares all of those for speed
    /// and frees them with the configuration. The error is PCRE's text.
    ///
    /// # Safety
    ///
    /// `pool` is that of the configuration being read, and outlives the result.
    pub unsafe fn configured(pattern: &str, pool: *mut ngx_pool_t) -> Result<Self, String> {
        // SAFETY: the caller's word.
        let regex = unsafe { compile(pattern, pool) }?;
        Ok(Self { regex, pool: None })
    }

    /// Compiles one while nginx runs.
    pub fn new(pattern: &str) -> Result<Self, String> {
        // SAFETY: there is a cycle with a log whenever nginx runs; the pool is checked, and destroyed
        // once: here, or with the result.
        unsafe {
            let pool = ngx_create_pool(1024, (*ngx_cycle).log);
            if pool.is_null() {
                return Err("no memory".to_owned());
            }
            match compile(pattern, pool) {
                Ok(regex) => Ok(Self { regex, pool: Some(pool) }),
                Err(error) => {
                    ngx_destroy_pool(pool);
                    Err(error)
                }
            }
        }
    }

    /// Whether it matches anywhere in a text; none if PCRE gives up.
    pub fn matches(&self, text: &[u8]) -> Option<bool> {
        let mut text = ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
        // SAFETY: the expression is compiled and its memory there; PCRE only reads the text.
        match unsafe { ngx_regex_exec(self.regex, &mut text, std::ptr::null_mut(), 0) } {
            0.. => Some(true),
            NO_MATCH => Some(false),
            _ => None,
        }
    }
}

impl Drop for Regex {
    fn drop(&mut self) {
        if let Some(pool) = self.pool {
            // SAFETY: it is the expression's own.
            unsafe { ngx_destroy_pool(pool) };
        }
    }
}

/// # Safety
///
/// `pool` is a pool of nginx.
unsafe fn compile(pattern: &str, pool: *mut ngx_pool_t) -> Result<*mut ngx_regex_t, String> {
    let mut error = [0_u8; ERROR_MAX];
    // PCRE wants the text to end with a NUL.
    let text = format!("{LIMIT}{pattern}\0");
    // SAFETY: all zeros is a valid request; the texts outlive the call, which keeps neither.
    unsafe {
        let mut request: ngx_regex_compile_t = std::mem::zeroed();
        request.pattern = ngx_str_t { len: text.len() - 1, data: text.as_ptr().cast_mut() };
        request.pool = pool;
        request.err = ngx_str_t { len: ERROR_MAX, data: error.as_mut_ptr() };
        if ngx_regex_compile(&mut request) == NGX_OK as isize {
            return Ok(request.regex);
        }
        let said = &error[..request.err.len.min(ERROR_MAX)];
        Err(String::from_utf8_lossy(said).replacen(LIMIT, "", 1))
    }
}
