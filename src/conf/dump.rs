//! Dump files, made ready by the master so that workers can write them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use nginx_sys::{NGX_LOG_WARN, ngx_cycle_t, ngx_log_t};

use super::settings::Main;
use crate::disk;
use crate::ngx::cycle;

/// Makes each dump file that is not there, and gives it to the user that workers run as. Says
/// where a file can only be written in place.
pub fn prepare(main: &Main, nginx_cycle: &ngx_cycle_t) {
    let owner = cycle::worker_owner(nginx_cycle);
    for managed in main.managed() {
        if let Some(path) = managed.server.dump_path.get() {
            prepare_one(&managed.name(), Path::new(path), owner, nginx_cycle.log);
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
    let folder = disk::folder_of(path);
    disk::remove_left_over(folder, |file| path.file_name() == Some(file.as_ref()), cycle::is_alive);
    if !disk::can_replace(path, owner) {
        let folder = folder.display();
        ngx::ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "upsync: upstream \"{upstream}\": workers cannot make files in \"{folder}\", so \"upsync_dump_path\" is written in place and may be cut short by a crash"
        );
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
