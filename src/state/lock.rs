//! One writer at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Nobody else changes the folder until this is dropped, or its process ends in whatever way.
#[derive(Debug)]
#[must_use = "dropped, it locks nothing"]
pub struct Lock {
    _folder: File,
}

impl Lock {
    pub(super) fn wait(folder: &Path) -> io::Result<Self> {
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
        loop {
            match flock(&folder) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result.map(|()| Self { _folder: folder }),
            }
        }
    }
}

/// What `File::lock` does, which Rust has from 1.89 on.
#[allow(unsafe_code)]
fn flock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the file is borrowed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
