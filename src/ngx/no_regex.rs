//! Regular expressions, which this nginx was built without.
#![forbid(unsafe_code)]

use nginx_sys::ngx_pool_t;

/// There are none.
#[derive(Debug)]
pub enum Regex {}

const WITHOUT: &str = "nginx was built without PCRE";

impl Regex {
    /// Fails always.
    pub fn configured(_pattern: &str, _pool: *mut ngx_pool_t) -> Result<Self, String> {
        Err(WITHOUT.to_owned())
    }

    /// Fails always.
    pub fn new(_pattern: &str) -> Result<Self, String> {
        Err(WITHOUT.to_owned())
    }

    /// Nothing matches.
    pub fn matches(&self, _text: &[u8]) -> Option<bool> {
        match *self {}
    }
}
