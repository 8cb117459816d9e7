//! The dump file: the last list, on disk, for a start without the source.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::mailbox::Level;
use super::report::Report;
use crate::grammar::server;
use crate::model::List;

/// The file of one upstream.
pub struct Dump {
    path: PathBuf,
    journal: Journal,
    report: Report,
}

impl Dump {
    /// Writes nothing yet.
    pub fn new(path: PathBuf, journal: Journal) -> Self {
        Self { path, journal, report: Report::default() }
    }

    /// Puts the list in force into the file. A file that cannot be written is logged when that
    /// begins; the list serves all the same.
    pub fn keep(&mut self, list: &List) {
        match write(&self.path, list) {
            Ok(()) => drop(self.report.recovered()),
            Err(error) => {
                let path = self.path.display();
                let text = format!("cannot write \"{path}\" of \"upsync_dump_path\": {error}");
                if let Some(text) = self.report.fault(text) {
                    self.journal.log(Level::Error, text);
                }
            }
        }
    }
}

/// Puts `list` into the file, unless it has that content already or the list is empty. A reader
/// sees the old file or the new one, also after a crash; where the folder does not let this
/// process make files, the file is written in place.
fn write(path: &Path, list: &List) -> io::Result<()> {
    // A pipe would block, a device take anything, and a link may lead anywhere: the master makes
    // none of them its own either.
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("not a regular file"));
    }
    let text = server::render_dump(list);
    if list.is_empty() || fs::read(path).is_ok_and(|content| content == text.as_bytes()) {
        return Ok(());
    }
    let next = temporary(path);
    match replace(path, &next, text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            in_place(path, text.as_bytes())
        }
        Err(error) => {
            // What is left of a failed attempt is of no use; the error is what matters.
            let _ = fs::remove_file(&next);
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// Each process has its own, so that an old worker and its successor never write one file.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}{TEMPORARY}", std::process::id()));
    PathBuf::from(name)
}

/// How the names of files end that a killed worker may leave beside its dump file.
pub const TEMPORARY: &str = ".tmp";

fn replace(path: &Path, next: &Path, content: &[u8]) -> io::Result<()> {
    // One that a killed worker left may belong to another user.
    match fs::remove_file(next) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fill(options().create_new(true).open(next)?, content)?;
    fs::rename(next, path)?;
    sync_folder(path)
}

fn in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    fill(options().truncate(true).open(path)?, content)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    options
}

fn fill(mut file: File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    file.sync_all()
}

/// The rename itself is on disk when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Parameters, Peer};
    use std::os::unix::fs::PermissionsExt;

    fn list(port: u16) -> List {
        let address = Address::Ip(([127, 0, 0, 1], port).into());
        List::new([Peer { address, parameters: Parameters::CONSUL }])
    }

    #[test]
    fn a_list_replaces_the_last_and_an_empty_one_does_not() {
        let folder = std::env::temp_dir().join(format!("upsync-dump-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("app.conf");
        fs::write(temporary(&path), "left by a killed worker").unwrap();
        write(&path, &list(1)).unwrap();
        write(&path, &list(2)).unwrap();
        write(&path, &List::default()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "server 127.0.0.1:2 weight=1 max_fails=2 fail_timeout=10s;\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        assert!(write(Path::new("/nonexistent-folder/app.conf"), &list(1)).is_err());
    }
}
