//! TLS sessions with servers, so that the next handshake is short.

use std::collections::HashMap;
use std::ptr::NonNull;

use nginx_sys::{
    SSL_SESSION, SSL_SESSION_free, ngx_connection_t, ngx_ssl_get_session, ngx_ssl_set_session,
};

use crate::shm::block::Record;

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
