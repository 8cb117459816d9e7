//! TLS of checks, by nginx's own functions.

use std::cell::{RefCell, UnsafeCell};
use std::ffi::{CString, c_long};
use std::ptr;
use std::rc::Rc;

use nginx_sys::{
    BIO_ctrl_pending, BIO_free, BIO_new, BIO_read, BIO_s_mem, ERR_clear_error, NGX_AGAIN, NGX_OK,
    NGX_SSL_CLIENT, NGX_SSL_TLSv1_2, NGX_SSL_TLSv1_3, SSL, SSL_CTRL_SET_TLSEXT_HOSTNAME,
    SSL_CTX_set_default_verify_paths, SSL_ctrl, SSL_do_handshake, SSL_free, SSL_get_verify_result,
    SSL_new, SSL_set_alpn_protos, SSL_set_bio, SSL_set_connect_state, TLSEXT_NAMETYPE_host_name,
    X509_V_OK, ngx_conf_t, ngx_connection_t, ngx_del_timer, ngx_pcalloc, ngx_pool_t,
    ngx_ssl_certificate, ngx_ssl_check_host, ngx_ssl_cleanup_ctx, ngx_ssl_create,
    ngx_ssl_create_connection, ngx_ssl_shutdown, ngx_ssl_t, ngx_ssl_trusted_certificate, ngx_str_t,
    ngx_uint_t,
};

use super::asked::Files;
use crate::model::Reason;
use crate::model::reason::Stage;
use crate::ngx::quiet;

/// How many certificates there may be between a server's and a trusted one.
const DEPTH: isize = 9;

thread_local! {
    /// See [`Context::shared`].
    static SHARED: RefCell<[Option<Rc<Context>>; 2]> = const { RefCell::new([None, None]) };
}

/// A configuration is about to be read: what the system trusts may be something else now. Who has a
/// context keeps it.
pub fn begin_configuration() {
    SHARED.take();
}

/// What connections of the checks of an upstream have in common.
#[derive(Debug)]
pub struct Context(Box<UnsafeCell<ngx_ssl_t>>);

impl Context {
    /// Of a configuration, with its files. nginx has said what is wrong if there is none.
    ///
    /// # Safety
    ///
    /// `cf` is the configuration being read, whose pool outlives the result.
    pub unsafe fn configured(cf: *mut ngx_conf_t, files: &Files) -> Option<Self> {
        // SAFETY: the caller's word; nginx copies the names it is given, which it may change.
        unsafe {
            let context = Self::new((*cf).log)?;
            let ssl = context.as_ptr();
            let text = |path: &str| text((*cf).pool, path);
            if let Some(path) = &files.trusted {
                let mut path = text(path)?;
                if ngx_ssl_trusted_certificate(cf, ssl, &mut path, DEPTH) != NGX_OK as isize {
                    return None;
                }
            } else {
                SSL_CTX_set_default_verify_paths((*ssl).ctx);
            }
            if let Some((certificate, key)) = files.certificate.as_ref().zip(files.key.as_ref()) {
                let (mut certificate, mut key) = (text(certificate)?, text(key)?);
                let passwords = ptr::null_mut();
                if ngx_ssl_certificate(cf, ssl, &mut certificate, &mut key, passwords)
                    != NGX_OK as isize
                {
                    return None;
                }
            }
            Some(context)
        }
    }

    /// For all checks without files of their own; where certificates are verified what the system
    /// trusts is trusted. Each is made once in a process, as the system's certificates are many.
    pub fn shared(verifies: bool) -> Option<Rc<Self>> {
        SHARED.with_borrow_mut(|shared| {
            let shared = &mut shared[usize::from(verifies)];
            if shared.is_none() {
                // SAFETY: the log lives as long as the process; the context is new.
                let context = unsafe { Self::new(quiet::log()) }?;
                if verifies {
                    // SAFETY: the context is whole.
                    unsafe { SSL_CTX_set_default_verify_paths((*context.as_ptr()).ctx) };
                }
                *shared = Some(Rc::new(context));
            }
            shared.clone()
        })
    }

    /// # Safety
    ///
    /// `log` outlives the making of the context.
    unsafe fn new(log: *mut nginx_sys::ngx_log_t) -> Option<Self> {
        // SAFETY: all zeros is what nginx begins with; OpenSSL keeps the place, which stays in its box.
        unsafe {
            let mut ssl: ngx_ssl_t = std::mem::zeroed();
            ssl.log = log;
            let context = Self(Box::new(UnsafeCell::new(ssl)));
            let protocols = (NGX_SSL_TLSv1_2 | NGX_SSL_TLSv1_3) as ngx_uint_t;
            let made = ngx_ssl_create(context.as_ptr(), protocols, ptr::null_mut());
            (made == NGX_OK as isize).then_some(context)
        }
    }

    fn as_ptr(&self) -> *mut ngx_ssl_t {
        self.0.get()
    }

    /// Sets up TLS on a connection to a server of this name.
    ///
    /// # Safety
    ///
    /// `connection` is connected, and has a pool.
    pub unsafe fn begin(&self, connection: *mut ngx_connection_t, name: &str, alpn: &[u8]) -> bool {
        // SAFETY: the caller's word; OpenSSL copies the list of protocols.
        unsafe {
            let made =
                ngx_ssl_create_connection(self.as_ptr(), connection, NGX_SSL_CLIENT as ngx_uint_t);
            if made != NGX_OK as isize {
                return false;
            }
            let ssl = (*(*connection).ssl).connection;
            set_name(ssl, name);
            alpn.is_empty() || SSL_set_alpn_protos(ssl, alpn.as_ptr(), alpn.len() as u32) == 0
        }
    }

    /// The first message of a handshake with a server of this name; none if OpenSSL has no memory.
    pub fn client_hello(&self, name: &str) -> Option<Vec<u8>> {
        // SAFETY: the context is whole. `ssl` owns both ends once it has them, and is freed once.
        unsafe {
            let ssl = SSL_new((*self.as_ptr()).ctx);
            let (read, write) = (BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
            if ssl.is_null() || read.is_null() || write.is_null() {
                BIO_free(read);
                BIO_free(write);
                SSL_free(ssl);
                return None;
            }
            SSL_set_bio(ssl, read, write);
            SSL_set_connect_state(ssl);
            set_name(ssl, name);
            SSL_do_handshake(ssl);
            let mut hello = vec![0; BIO_ctrl_pending(write)];
            let len = BIO_read(write, hello.as_mut_ptr().cast(), hello.len() as i32);
            SSL_free(ssl);
            // Nobody else is to find that the handshake did not end.
            ERR_clear_error();
            hello.truncate(usize::try_from(len).ok()?);
            Some(hello)
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this is how nginx frees one, if there is one; connections count their own references.
        unsafe {
            if !(*self.as_ptr()).ctx.is_null() {
                ngx_ssl_cleanup_ctx(self.as_ptr().cast());
            }
        }
    }
}

/// # Safety
///
/// `pool` is a pool of nginx.
unsafe fn text(pool: *mut ngx_pool_t, text: &str) -> Option<ngx_str_t> {
    // SAFETY: the caller's word. nginx wants file names to end with a NUL.
    unsafe {
        let data = ngx_pcalloc(pool, text.len() + 1).cast::<u8>();
        if data.is_null() {
            return None;
        }
        ptr::copy_nonoverlapping(text.as_ptr(), data, text.len());
        Some(ngx_str_t { len: text.len(), data })
    }
}

/// Names the server, which an address does not.
///
/// # Safety
///
/// `ssl` is one that has not begun its handshake.
unsafe fn set_name(ssl: *mut SSL, name: &str) {
    let is_address = name.parse::<std::net::IpAddr>().is_ok() || name.starts_with('[');
    let Ok(name) = CString::new(name) else {
        return;
    };
    if is_address || name.is_empty() {
        return;
    }
    // SAFETY: the caller's word; OpenSSL copies the name. This is what its macro
    // `SSL_set_tlsext_host_name` says.
    unsafe {
        let name = name.as_ptr().cast_mut().cast();
        let kind = c_long::from(TLSEXT_NAMETYPE_host_name);
        SSL_ctrl(ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME as i32, kind, name);
    }
}

/// Whether the certificate of a server is good, and for this name.
///
/// # Safety
///
/// `connection` has shaken hands.
pub unsafe fn verify(connection: *mut ngx_connection_t, name: &str) -> Result<(), Reason> {
    // SAFETY: the caller's word; the name is only read.
    unsafe {
        let result = SSL_get_verify_result((*(*connection).ssl).connection);
        if result != c_long::from(X509_V_OK) {
            return Err(Reason::Certificate(u16::try_from(result).unwrap_or(u16::MAX)));
        }
        let mut name = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
        match ngx_ssl_check_host(connection, &mut name) {
            0 => Ok(()),
            _ => Err(Reason::CertificateName),
        }
    }
}

/// Why a handshake failed, by what nginx has said of it.
pub fn failure() -> Reason {
    let said = quiet::take();
    let said = String::from_utf8_lossy(&said);
    if let Some((_, number)) = said.split_once("alert number ") {
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        return number[..end].parse().map_or(Reason::Handshake, Reason::TlsAlert);
    }
    let has = |text| said.contains(text);
    if has("wrong version number") || has("packet length too long") {
        Reason::NotTls
    } else if has("(104:") {
        Reason::Reset(Stage::Handshake)
    } else if has("peer closed connection") {
        Reason::Closed(Stage::Handshake)
    } else {
        Reason::Handshake
    }
}

/// Ends TLS. What is to be sent for that is sent or not: nobody waits for it.
///
/// # Safety
///
/// `connection` has TLS set up.
pub unsafe fn end(connection: *mut ngx_connection_t) {
    // SAFETY: the caller's word. Where OpenSSL would wait, nginx has set a timer and its own
    // handlers, which go; told that the time is over it does not wait.
    unsafe {
        (*(*connection).ssl).set_no_wait_shutdown(1);
        if ngx_ssl_shutdown(connection) == NGX_AGAIN as isize {
            if (*(*connection).read).timer_set() != 0 {
                ngx_del_timer((*connection).read);
            }
            (*connection).set_timedout(1);
            ngx_ssl_shutdown(connection);
        }
    }
}

/// The protocols of HTTP/2, as the handshake names them (RFC 7301).
pub const H2: &[u8] = b"\x02h2";
