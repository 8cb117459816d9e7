//! TLS sessions with servers, so that the next handshake is short.

use std::collections::HashMap;
use std::ptr::NonNull;

use nginx_sys::{
    SSL_SESSION, SSL_SESSION_free, ngx_connection_t, ngx_ssl_get_session, ngx_ssl_set_session,
};

use crate::shm::block::Record;

/// Room for a `struct sockaddr` of any family that a server has: nginx's `ngx_sockaddr_t`.
pub const SOCKADDR_MAX: usize = 112;

/// A `struct sockaddr` to the same server, but another for each `upstream`.
///
/// nginx keeps the connections of all names made at run time together, as their template has one
/// `keepalive`, and finds one by nothing but the bytes of its address. A TLS connection was made,
/// and its certificate verified, for one name, so no other may have it. The bytes that are set here
/// mean nothing to `connect()`: the padding of IPv4's, what is behind IPv6's and behind the path of
/// a socket. Where a path leaves no room the address stays as it is.
pub fn marked(sockaddr: &[u8], upstream: u64) -> (Marked, usize) {
    let mut marked = [0; SOCKADDR_MAX];
    let len = sockaddr.len().min(SOCKADDR_MAX);
    marked[..len].copy_from_slice(&sockaddr[..len]);
    let (place, len) = match len {
        IPV4 => (IPV4 - MARK, IPV4),
        IPV6 => (IPV6, IPV6 + MARK),
        UNIX if marked[UNIX - MARK - 1..].iter().all(|&byte| byte == 0) => (UNIX - MARK, UNIX),
        other => return (Marked(marked), other),
    };
    marked[place..place + MARK].copy_from_slice(&upstream.to_ne_bytes());
    (Marked(marked), len)
}

/// Aligned as a `struct sockaddr` may want to be.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Marked(pub [u8; SOCKADDR_MAX]);

const MARK: usize = size_of::<u64>();
const IPV4: usize = size_of::<libc::sockaddr_in>();
const IPV6: usize = size_of::<libc::sockaddr_in6>();
const UNIX: usize = size_of::<libc::sockaddr_un>();

/// A reference of ours to a session.
#[derive(Debug)]
struct Session(NonNull<SSL_SESSION>);

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: `ngx_ssl_get_session` counted a reference for us, and this gives it back.
        unsafe { SSL_SESSION_free(self.0.as_ptr()) };
    }
}

/// The last session with each server, by its slot and the slot's generation.
#[derive(Debug, Default)]
pub struct Sessions(HashMap<(u64, u32), Session>);

impl Sessions {
    /// Offers the last session with the server to a connection about to shake hands. False if
    /// OpenSSL has no memory.
    ///
    /// # Safety
    ///
    /// `connection` has its TLS state set up.
    pub unsafe fn offer(&self, server: (u64, u32), connection: *mut ngx_connection_t) -> bool {
        // SAFETY: the caller's word; the session is alive as long as it is in the map.
        self.0.get(&server).is_none_or(|session| unsafe {
            ngx_ssl_set_session(connection, session.0.as_ptr()) == nginx_sys::NGX_OK as isize
        })
    }

    /// Keeps the session of a connection for the next one.
    ///
    /// # Safety
    ///
    /// `connection` has shaken hands.
    pub unsafe fn keep(&mut self, server: (u64, u32), connection: *mut ngx_connection_t) {
        // SAFETY: the caller's word.
        let session = unsafe { ngx_ssl_get_session(connection) };
        if let Some(session) = NonNull::new(session) {
            self.0.insert(server, Session(session));
        }
    }

    /// Forgets the sessions with servers that are not among these.
    pub fn keep_only(&mut self, records: &[Record]) {
        if self.0.is_empty() {
            return;
        }
        let servers: std::collections::HashSet<_> =
            records.iter().map(|r| (r.slot, r.generation)).collect();
        self.0.retain(|server, _| servers.contains(server));
    }
}
