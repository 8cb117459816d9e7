//! Dump files, made ready by the master so that workers can write them.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use nginx_sys::{NGX_LOG_WARN, ngx_cycle_t, ngx_log_t};

use super::settings::Main;
use crate::ngx::cycle;
use crate::source::dump::TEMPORARY;

/// Makes each dump file that is not there, and gives it to the user that workers run as. Says
/// where a file can only be written in place.
pub fn prepare(main: &Main, nginx_cycle: &ngx_cycle_t) {
    let owner = cycle::worker_owner(nginx_cycle);
    for synced in main.synced() {
        if let Some(path) = synced.server.dump_path.get() {
            prepare_one(&synced.name(), Path::new(path), owner, nginx_cycle.log);
        }
    }
}

fn prepare_one(upstream: &str, path: &Path, owner: Option<(u32, u32)>, log: *mut ngx_log_t) {
    if let Err(error) = make(path, owner) {
        let path = path.display();
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "upsync: upstream \"{upstream}\": cannot write \"{path}\" of \"upsync_dump_path\": {error}"
        );
        return;
    }
    remove_left_over(path);
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !is_writable(folder, owner) {
        let folder = folder.display();
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "upsync: upstream \"{upstream}\": workers cannot make files in \"{folder}\", so \"upsync_dump_path\" is written in place and may be cut short by a crash"
        );
    }
}

/// Removes what killed workers left: files named as the dump file, with the id of a process that
/// is no more and the end of a temporary file.
fn remove_left_over(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return;
    };
    let is_left = |other: &str| {
        let rest = other.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
        let id = rest.and_then(|rest| rest.strip_suffix(TEMPORARY));
        id.and_then(|id| id.parse().ok()).is_some_and(|id: i32| id > 0 && !cycle::is_alive(id))
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_left) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn make(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)?;
    // A file that has another name too may be anybody's, and is about to be given away.
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(io::Error::other("not a regular file of one name"));
    }
    owner.map_or(Ok(()), |(user, group)| fchown(&file, Some(user), Some(group)))
}

/// Whether a worker can make files in a folder.
fn is_writable(folder: &Path, owner: Option<(u32, u32)>) -> bool {
    let Ok(metadata) = fs::metadata(folder) else {
        return false;
    };
    let mode = metadata.mode();
    match owner {
        Some((0, _)) => true,
        Some((user, _)) if metadata.uid() == user => mode & 0o300 == 0o300,
        Some((_, group)) if metadata.gid() == group => mode & 0o030 == 0o030,
        Some(_) => mode & 0o003 == 0o003,
        None => can_write(folder),
    }
}

fn can_write(folder: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(folder.as_os_str().as_bytes())
        // SAFETY: asks about a path that ends with a NUL.
        .is_ok_and(|folder| unsafe { libc::access(folder.as_ptr(), libc::W_OK | libc::X_OK) == 0 })
}
