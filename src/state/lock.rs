//! One writer at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// From one attempt to the next.
const STEP: Duration = Duration::from_millis(1);

/// Held by the one thread of this process that is at the folder or asks for it.
static TURN: Mutex<()> = Mutex::new(());

/// Nobody else changes the folder until this is dropped, or its process ends in whatever way.
#[derive(Debug)]
#[must_use = "dropped, it locks nothing"]
pub struct Lock {
    _folder: File,
    _turn: MutexGuard<'static, ()>,
}

impl Lock {
    pub(super) fn wait(folder: &Path, at_most: Duration) -> io::Result<Self> {
        let until = Instant::now() + at_most;
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder)?;
        let turn = TURN.try_lock_until(until).ok_or_else(locked)?;
        loop {
            match flock(&folder) {
                Ok(()) => return Ok(Self { _folder: folder, _turn: turn }),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                Err(_) if Instant::now() >= until => return Err(locked()),
                Err(_) => thread::sleep(STEP),
            }
        }
    }
}

fn locked() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "another process holds the lock of the folder")
}

/// What `File::try_lock` does, which Rust has from 1.89 on.
#[allow(unsafe_code)]
fn flock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as the file is borrowed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
