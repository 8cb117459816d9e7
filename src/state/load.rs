//! What the folder holds at a start.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use thiserror::Error;

use super::{Folder, SUFFIX, file_name};
use crate::grammar::body::{Refusal, parse_upstream};
use crate::model::{List, Name, Printable};

/// A larger file is no state file. In MiB.
const FILE_MAX: u64 = 64;

/// All lists of a folder.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In the order of the names of their files, no name twice.
    pub lists: Vec<(Name, List)>,
    /// Files that were skipped, and why: printable lines for the log, one per file.
    pub complaints: Vec<String>,
}

/// Why a file was skipped.
#[derive(Debug, Error)]
enum Fault {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error("not a regular file")]
    NoFile,
    #[error("larger than {FILE_MAX} MiB")]
    TooLarge,
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A copy under another name, say. So each upstream has one file at most.
    #[error("the upstream \"{name}\" belongs into \"{file}\"")]
    Misplaced { name: Name, file: String },
}

impl Folder {
    /// Reads all state files. One that is damaged costs its own list only; an error means that the
    /// folder cannot be read.
    pub fn load(&self) -> io::Result<Loaded> {
        let mut loaded = Loaded::default();
        for file in files(&self.0)? {
            match read(&self.0, &file) {
                Ok(list) => loaded.lists.push(list),
                // Removed since the folder was read.
                Err(Fault::Read(error)) if error.kind() == ErrorKind::NotFound => {}
                Err(fault) => loaded.complaints.push(format!(
                    "\"{}/{}\" of \"dyups_state_path\": {fault}, skipped",
                    self.0.display(),
                    Printable(&file.to_string_lossy())
                )),
            }
        }
        Ok(loaded)
    }
}

/// The names of state files, in order.
fn files(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name();
        if file.as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn read(folder: &Path, file: &OsStr) -> Result<(Name, List), Fault> {
    let (name, list) = parse_upstream(&content(&folder.join(file))?)?;
    let expected = file_name(&name);
    if file != expected.as_str() {
        return Err(Fault::Misplaced { name, file: expected });
    }
    Ok((name, list))
}

/// A pipe does not block here, and a link leads nowhere.
fn content(path: &Path) -> Result<Vec<u8>, Fault> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        // A link, or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(Fault::NoFile);
        }
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(Fault::NoFile);
    }
    let max = FILE_MAX << 20;
    let mut content = Vec::new();
    file.take(max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max { Err(Fault::TooLarge) } else { Ok(content) }
}
