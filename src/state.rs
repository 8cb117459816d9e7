//! The folder of `dyups_state_path`: the lists that were posted, on disk for the next start.
//!
//! Each upstream has a file, an `upstream` block in nginx's own syntax. Who changes a list holds
//! the folder's [`Lock`], makes the [`Change`] ready, puts the list in force, and commits: so the
//! disk says no while the list can still be refused, and what a crash cuts off is old or new as a
//! whole.
#![deny(unsafe_code)]

mod load;
mod lock;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{self, Hidden, Prepared};
use crate::model::Name;

pub use load::Loaded;
pub use lock::Lock;

/// Of the folder; lists tell who serves what to whom, which is nobody else's business.
const FOLDER_MODE: u32 = 0o700;

/// Of each file.
const FILE_MODE: u32 = 0o600;

/// The file that says whose the folder is. No upstream has one of this name.
const OWNER: &str = ".owner";

/// How the names of state files end.
const SUFFIX: &str = ".conf";

/// Longer names of upstreams are cut in names of files, which may have 255 bytes with all that is
/// added to them.
const UNCUT_MAX: usize = 200;

/// The folder. Its files change under a [`Lock`] only.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// A change of one file that is ready, but not made yet. Dropped, nothing changes.
#[derive(Debug)]
#[must_use = "the file changes by `commit` only"]
pub struct Change(Step);

#[derive(Debug)]
enum Step {
    Replace(Prepared),
    Remove(Hidden),
}

impl Folder {
    /// The folder as the master made it ready.
    pub fn open(path: &Path) -> Self {
        // Without slashes at the end: they would follow a link.
        Self(path.components().collect())
    }

    /// Makes the folder ready for workers of the user and group `owner`, or of this process's own
    /// if there is none: makes it where it is missing, but not the folders above it, and removes
    /// temporary files of processes that `is_alive` denies. Of a folder that was there mode and
    /// owner stay; what is wrong with them is told in warnings for the log.
    ///
    /// A link, and whatever else is no folder, is an error.
    pub fn prepare(
        path: &Path,
        owner: Option<(u32, u32)>,
        is_alive: impl Fn(i32) -> bool,
    ) -> io::Result<(Self, Vec<String>)> {
        let folder = Self::open(path);
        match DirBuilder::new().mode(FOLDER_MODE).create(&folder.0) {
            Ok(()) => folder.hand_over(owner).inspect_err(|_| {
                // The next attempt is to begin anew; this error is what matters.
                let _ = fs::remove_dir(&folder.0);
            })?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let metadata = fs::symlink_metadata(&folder.0)?;
        if !metadata.is_dir() {
            return Err(io::Error::new(ErrorKind::NotADirectory, "not a folder"));
        }
        disk::remove_left_over(&folder.0, |file| file.ends_with(SUFFIX), is_alive);
        let warnings = folder.warnings(metadata.mode() & 0o7777, owner);
        Ok((folder, warnings))
    }

    fn hand_over(&self, owner: Option<(u32, u32)>) -> io::Result<()> {
        if let Some((user, group)) = owner {
            let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            let folder = OpenOptions::new().read(true).custom_flags(flags).open(&self.0)?;
            fchown(&folder, Some(user), Some(group))?;
        }
        disk::sync_folder_of(&self.0)
    }

    fn warnings(&self, mode: u32, owner: Option<(u32, u32)>) -> Vec<String> {
        let mut warnings = Vec::new();
        let path = self.0.display();
        if mode & 0o077 != 0 {
            warnings.push(format!(
                "\"{path}\" of \"dyups_state_path\" has the mode {mode:04o}, expected {FOLDER_MODE:04o}"
            ));
        }
        // A file of no upstream's name.
        if !disk::can_replace(&self.0.join(SUFFIX), owner) {
            warnings.push(format!(
                "workers cannot make files in \"{path}\" of \"dyups_state_path\", expected a folder of their user with the mode {FOLDER_MODE:04o}"
            ));
        }
        warnings
    }

    /// Says that the folder is that of the nginx whose master is `master`.
    pub fn own(&self, master: i32) -> io::Result<()> {
        if self.owner() == Some(master) {
            return Ok(());
        }
        // Workers read it, and the master may be another user.
        disk::prepare(&self.0.join(OWNER), format!("{master}\n").as_bytes(), 0o644)?.commit()
    }

    /// The master of the nginx that has the folder, if one was ever said to.
    pub fn owner(&self) -> Option<i32> {
        fs::read_to_string(self.0.join(OWNER)).ok()?.trim_end().parse().ok()
    }

    /// Waits until no other process or thread holds the folder, for 10 seconds at most.
    pub fn lock(&self) -> io::Result<Lock> {
        self.lock_within(Duration::from_secs(10))
    }

    /// The same, with another longest wait. Whoever may read the folder may lock it, and for ever.
    pub fn lock_within(&self, at_most: Duration) -> io::Result<Lock> {
        Lock::wait(&self.0, at_most)
    }

    /// Writes what the file of an upstream is to become: `text`, an `upstream` block of this name.
    pub fn prepare_list(&self, _: &Lock, name: &Name, text: &str) -> io::Result<Change> {
        let prepared = disk::prepare(&self.file(name), text.as_bytes(), FILE_MODE)?;
        Ok(Change(Step::Replace(prepared)))
    }

    /// The end of the file of an upstream, whether there is one or not.
    pub fn prepare_removal(&self, _: &Lock, name: &Name) -> io::Result<Change> {
        Ok(Change(Step::Remove(disk::hide(&self.file(name))?)))
    }

    /// Whether there is a file of an upstream.
    pub fn has(&self, name: &Name) -> bool {
        self.file(name).symlink_metadata().is_ok()
    }

    fn file(&self, name: &Name) -> PathBuf {
        self.0.join(file_name(name))
    }
}

impl Change {
    /// Makes the change while the [`Lock`] that it was prepared under is still held. After an
    /// error the next start may see the list before the change or the one after it.
    pub fn commit(self) -> io::Result<()> {
        match self.0 {
            Step::Replace(prepared) => prepared.commit(),
            Step::Remove(hidden) => hidden.commit(),
        }
    }
}

/// `NAME.conf`, or for a long name its start, a hash of all of it, and `~`, which is in no name.
fn file_name(name: &Name) -> String {
    match name.as_str().get(..UNCUT_MAX) {
        Some(start) if name.as_str().len() > UNCUT_MAX => {
            format!("{start}~{:016x}{SUFFIX}", fnv1a(name.as_str()))
        }
        _ => format!("{name}{SUFFIX}"),
    }
}

/// FNV-1a with 64 bits, which stays the same from one version to the next.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
