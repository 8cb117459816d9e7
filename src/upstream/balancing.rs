//! How an upstream chooses a server, and what it hangs on.

use std::ptr::NonNull;
use std::rc::Rc;

use nginx_sys::{
    NGX_OK, ngx_http_complex_value, ngx_http_complex_value_t, ngx_http_conf_ctx_t,
    ngx_http_get_variable, ngx_http_request_t, ngx_str_t, ngx_uint_t, sockaddr, sockaddr_in,
    sockaddr_in6,
};

use crate::grammar::key;
use crate::model::Method;
use crate::ngx::{pool, variable};

/// The method, with the key of `hash`.
#[derive(Clone, Debug, Default)]
pub struct Balancing {
    /// The method.
    pub method: Method,
    /// nginx's `sticky` is over it, and wants to know each server by a text.
    pub is_sticky: bool,
    key: Key,
}

/// The key of `hash`.
#[derive(Clone, Debug, Default)]
enum Key {
    #[default]
    None,
    /// As nginx has compiled it.
    Configured(NonNull<ngx_http_complex_value_t>),
    /// Of a list that was posted.
    Posted(Rc<[Part]>),
}

#[derive(Debug)]
enum Part {
    Text(Box<[u8]>),
    /// In lower case, with nginx's hash of it.
    Variable(Box<[u8]>, ngx_uint_t),
}

impl Balancing {
    /// As a block of nginx.conf says, whose settings outlive all requests for it.
    pub fn configured(
        method: Method,
        key: Option<NonNull<ngx_http_complex_value_t>>,
        is_sticky: bool,
    ) -> Self {
        Self { method, is_sticky, key: key.map_or(Key::None, Key::Configured) }
    }

    /// As came with a list.
    pub fn posted(method: Method, is_sticky: bool) -> Self {
        let key = match &method {
            Method::Hash { key, .. } => key::Key::parse(key).ok(),
            _ => None,
        };
        let parts = key.map(|key| key.parts().iter().map(Part::of).collect());
        Self { method, is_sticky, key: parts.map_or(Key::None, Key::Posted) }
    }

    /// A variable of a key that came with a list, if requests have none of its name.
    ///
    /// # Safety
    ///
    /// `context` is the context of an `http {}` that has been read.
    pub unsafe fn unknown_variable(&self, context: NonNull<ngx_http_conf_ctx_t>) -> Option<String> {
        let Key::Posted(parts) = &self.key else {
            return None;
        };
        parts.iter().find_map(|part| match part {
            // SAFETY: the caller's word.
            Part::Variable(name, _) if unsafe { !variable::is_known(context, name) } => {
                Some(String::from_utf8_lossy(name).into_owned())
            }
            _ => None,
        })
    }

    /// Whether a choice hangs on anything of the request.
    #[inline]
    pub fn has_key(&self) -> bool {
        !matches!(self.key, Key::None) || matches!(self.method, Method::IpHash)
    }

    /// What the choice for a request hangs on: the value of the key, or the bytes of the client's
    /// address that count; nothing for other methods.
    ///
    /// # Safety
    ///
    /// `request` is a request of nginx; the result is used no longer than it lives.
    pub unsafe fn key<'a>(&self, request: *mut ngx_http_request_t) -> &'a [u8] {
        // SAFETY: the caller's word; a request has the address of its client.
        unsafe {
            match (&self.method, &self.key) {
                (Method::IpHash, _) => address((*(*request).connection).sockaddr),
                (_, Key::Configured(value)) => configured(request, *value),
                (_, Key::Posted(parts)) => posted(request, parts),
                (_, Key::None) => &[],
            }
        }
    }
}

impl Part {
    fn of(part: &key::Part) -> Self {
        match part {
            key::Part::Text(text) => Self::Text(text.as_bytes().into()),
            key::Part::Variable(name) => {
                Self::Variable(name.as_bytes().into(), variable::hash(name.as_bytes()))
            }
        }
    }
}

/// The bytes of a client's address that `ip_hash` looks at.
///
/// # Safety
///
/// `client` is the address of a connection, as long as its family says.
unsafe fn address<'a>(client: *const sockaddr) -> &'a [u8] {
    // SAFETY: the caller's word.
    unsafe {
        match i32::from((*client).sa_family) {
            libc::AF_INET => {
                let address = &raw const (*client.cast::<sockaddr_in>()).sin_addr;
                std::slice::from_raw_parts(address.cast(), 3)
            }
            libc::AF_INET6 => {
                let address = &raw const (*client.cast::<sockaddr_in6>()).sin6_addr;
                std::slice::from_raw_parts(address.cast(), 16)
            }
            _ => &[0; 3],
        }
    }
}

/// # Safety
///
/// As of [`Balancing::key`]; `value` was compiled with the configuration.
unsafe fn configured<'a>(
    request: *mut ngx_http_request_t,
    value: NonNull<ngx_http_complex_value_t>,
) -> &'a [u8] {
    let mut key = ngx_str_t::default();
    // SAFETY: the caller's word; nginx fills the key with memory of the request.
    unsafe {
        let result = ngx_http_complex_value(request, value.as_ptr(), &mut key);
        if result == NGX_OK as isize && key.len > 0 {
            std::slice::from_raw_parts(key.data, key.len)
        } else {
            &[]
        }
    }
}

/// # Safety
///
/// As of [`Balancing::key`].
unsafe fn posted<'a>(request: *mut ngx_http_request_t, parts: &[Part]) -> &'a [u8] {
    let values = |part| {
        // SAFETY: the caller's word.
        unsafe { value(request, part) }
    };
    let key: Vec<u8> = parts.iter().flat_map(values).copied().collect();
    // SAFETY: the caller's request has a pool.
    match unsafe { pool::copy_bytes((*request).pool, &key) } {
        // SAFETY: so many bytes were copied there, and stay as long as the request.
        Some(copy) if !key.is_empty() => unsafe {
            std::slice::from_raw_parts(copy.as_ptr(), key.len())
        },
        _ => &[],
    }
}

/// # Safety
///
/// As of [`Balancing::key`].
unsafe fn value(request: *mut ngx_http_request_t, part: &Part) -> &[u8] {
    match part {
        Part::Text(text) => text,
        Part::Variable(name, hash) => {
            let mut name = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
            // SAFETY: nginx only reads the name; what it finds lives as the request does.
            unsafe {
                let value = ngx_http_get_variable(request, &mut name, *hash).as_ref();
                match value.filter(|value| value.not_found() == 0 && value.len() > 0) {
                    Some(value) => std::slice::from_raw_parts(value.data, value.len() as usize),
                    None => &[],
                }
            }
        }
    }
}
