//! Sockets of checks, and what their failures say.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::{Ending, Local};
use crate::model::Reason;
use crate::model::reason::Stage;

/// Room for a `struct sockaddr` of any family that a server has.
const SOCKADDR_MAX: usize = 128;

/// A `struct sockaddr`, perhaps with another port.
#[repr(C, align(8))]
struct Sockaddr([u8; SOCKADDR_MAX]);

impl Sockaddr {
    fn new(from: &[u8], port: Option<u16>) -> Self {
        let mut bytes = [0; SOCKADDR_MAX];
        let len = from.len().min(SOCKADDR_MAX);
        bytes[..len].copy_from_slice(&from[..len]);
        let family = libc::sa_family_t::from_ne_bytes([bytes[0], bytes[1]]);
        let has_port = matches!(i32::from(family), libc::AF_INET | libc::AF_INET6);
        if let Some(port) = port.filter(|_| has_port) {
            bytes[2..4].copy_from_slice(&port.to_be_bytes());
        }
        Self(bytes)
    }
}

/// A socket that connects to an address, or to another port there.
pub(super) fn connecting(sockaddr: &[u8], port: Option<u16>) -> Result<OwnedFd, Ending> {
    let local = || {
        let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        Ending::Local(Local::System(error))
    };
    // SAFETY: addresses of blocks are whole `struct sockaddr`s, of which the copy has room for all;
    // results are checked.
    unsafe {
        let address = Sockaddr::new(sockaddr, port);
        let address = (&raw const address).cast::<libc::sockaddr>();
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let fd = libc::socket((*address).sa_family.into(), kind, 0);
        if fd == -1 {
            return Err(local());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        if libc::connect(fd, address, sockaddr.len() as libc::socklen_t) == 0 {
            return Ok(socket);
        }
        match io::Error::last_os_error().raw_os_error().unwrap_or(0) {
            libc::EINPROGRESS => Ok(socket),
            error => {
                let is_here = i32::from((*address).sa_family) == libc::AF_UNIX;
                Err(connect_failure(error, is_here && error != libc::ENOMEM))
            }
        }
    }
}

/// What a failure to connect says. One that comes later, from the network, is the server's, and so is
/// one with a socket of this machine.
pub(super) fn connect_failure(error: i32, is_servers: bool) -> Ending {
    let reason = match error {
        libc::ECONNREFUSED => Reason::Refused,
        // A socket of this machine: its file is gone, or nobody takes connections from it.
        libc::ENOENT | libc::EAGAIN => Reason::Refused,
        libc::ETIMEDOUT => Reason::Timeout(Stage::Connect),
        libc::ECONNRESET => Reason::Reset(Stage::Connect),
        libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN if is_servers => {
            Reason::Unreachable
        }
        error if is_servers => Reason::Connect(u16::try_from(error).unwrap_or(0)),
        error => return Ending::Local(Local::System(error)),
    };
    Ending::Checked(Some(reason))
}

/// What the network says of a connection; 0 is nothing.
pub(super) fn error(fd: i32) -> i32 {
    let mut error: i32 = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the system fills an integer of that size.
    let asked = unsafe {
        let to = (&raw mut error).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, to, &mut len)
    };
    if asked == 0 { error } else { libc::EBADF }
}

/// What the last failure to send or to read says.
pub(super) fn broken(stage: Stage) -> Reason {
    match io::Error::last_os_error().raw_os_error().unwrap_or(0) {
        libc::ECONNRESET | libc::EPIPE => Reason::Reset(stage),
        error => Reason::Broken(stage, u16::try_from(error).unwrap_or(0)),
    }
}
