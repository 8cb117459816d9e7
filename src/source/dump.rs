//! The dump file: the last list, on disk, for a start without the source.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::journal::Journal;
use super::mailbox::Level;
use super::report::Report;
use crate::disk::{self, Prepared};
use crate::grammar::server;
use crate::model::List;

/// Read by whoever reads nginx.conf too.
const MODE: u32 = 0o644;

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
    match disk::prepare(path, text.as_bytes(), MODE).and_then(Prepared::commit) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            disk::overwrite(path, text.as_bytes())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::scratch::Scratch;
    use crate::model::{Address, Parameters, Peer};
    use std::os::unix::fs::PermissionsExt;

    fn list(port: u16) -> List {
        let address = Address::Ip(([127, 0, 0, 1], port).into());
        List::new([Peer { address, parameters: Parameters::CONSUL }])
    }

    #[test]
    fn a_list_replaces_the_last_and_an_empty_one_does_not() {
        let folder = Scratch::new("dump");
        let path = folder.join("app.conf");
        let left = folder.join(format!("app.conf.{}.tmp", std::process::id()));
        fs::write(left, "left by a killed worker").unwrap();
        write(&path, &list(1)).unwrap();
        write(&path, &list(2)).unwrap();
        write(&path, &List::default()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "server 127.0.0.1:2 weight=1 max_fails=2 fail_timeout=10s;\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(folder.names(), ["app.conf"], "nothing else is left");
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        assert!(write(Path::new("/nonexistent-folder/app.conf"), &list(1)).is_err());
    }
}
