//! Files that survive a crash: a reader sees the old content or the new, never a part.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// How the names of temporary files end.
const TEMPORARY: &str = ".tmp";

/// The temporary files that threads of this process are at.
static TAKEN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The new content of a file, on disk in a temporary file beside it. Dropped, it is gone.
#[derive(Debug)]
#[must_use = "the file changes by `commit` only"]
pub struct Prepared {
    path: PathBuf,
    temporary: Temporary,
}

/// Writes `content` beside the file at `path`, as a new file of `mode` less the umask. An error
/// leaves nothing behind.
pub fn prepare(path: &Path, content: &[u8], mode: u32) -> io::Result<Prepared> {
    let temporary = Temporary::take(path);
    // One that a killed process of the same id left may belong to another user.
    absent(fs::remove_file(&temporary.0))?;
    fill(options(mode).create_new(true).open(&temporary.0)?, content)?;
    Ok(Prepared { path: path.to_owned(), temporary })
}

impl Prepared {
    /// Puts the new content in place of the old. After an error a reader may see either.
    pub fn commit(self) -> io::Result<()> {
        fs::rename(&self.temporary.0, &self.path)?;
        sync_folder_of(&self.path)
    }
}

/// A file that is out of sight, under the name of a temporary file. Dropped, it is back.
#[derive(Debug)]
#[must_use = "the file goes by `commit` only"]
pub struct Hidden {
    path: PathBuf,
    temporary: Option<Temporary>,
}

/// Takes a file out of sight. None there is fine.
pub fn hide(path: &Path) -> io::Result<Hidden> {
    let temporary = Temporary::take(path);
    let hidden = match fs::rename(path, &temporary.0) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        renamed => renamed.map(|()| Some(temporary))?,
    };
    Ok(Hidden { path: path.to_owned(), temporary: hidden })
}

impl Hidden {
    /// Removes the file, so that it does not come back after a crash.
    pub fn commit(mut self) -> io::Result<()> {
        if let Some(temporary) = self.temporary.take() {
            absent(fs::remove_file(&temporary.0))?;
        }
        sync_folder_of(&self.path)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Where it cannot go back, a change of the same upstream makes it anew.
            let _ = fs::rename(&temporary.0, &self.path);
        }
    }
}

/// Writes a file that is there in place, for a folder where this process may make no files. A
/// crash may cut it short.
pub fn overwrite(path: &Path, content: &[u8]) -> io::Result<()> {
    fill(options(0).truncate(true).open(path)?, content)
}

/// The folder of a file; also of one that is named without any.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What was made or removed in a folder is on disk when the folder is.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Whether a process of the user and group `owner` may replace the file at `path`, by the mode of
/// its folder; without an owner whether this process can.
pub fn can_replace(path: &Path, owner: Option<(u32, u32)>) -> bool {
    let folder = folder_of(path);
    let Some((user, group)) = owner else {
        return File::open(folder).is_ok() && prepare(path, b"", 0o600).is_ok();
    };
    let Ok(metadata) = fs::metadata(folder) else {
        return false;
    };
    // To read the folder is to be able to sync it.
    let all = if metadata.uid() == user {
        0o700
    } else if metadata.gid() == group {
        0o070
    } else {
        0o007
    };
    user == 0 || metadata.mode() & all == all
}

/// Removes what killed processes left in a folder: temporary files of those files that `is_file`
/// knows by name, of processes that `is_alive` denies.
pub fn remove_left_over(
    folder: &Path,
    is_file: impl Fn(&str) -> bool,
    is_alive: impl Fn(i32) -> bool,
) {
    let is_left =
        |name: &str| parts(name).is_some_and(|(file, pid)| is_file(file) && !is_alive(pid));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_left) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The name of a temporary file that no other thread or process has, for as long as this lives.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Temporary {
    /// `FILE.PID.tmp`, or `FILE.PID-N.tmp` while other threads of this process are at the same
    /// file.
    fn take(path: &Path) -> Self {
        let mut taken = TAKEN.lock();
        let mut name = temporary(path, "");
        let mut number = 0u64;
        while !taken.insert(name.clone()) {
            number += 1;
            name = temporary(path, &format!("-{number}"));
        }
        Self(name)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // There is none after a rename, and what cannot be removed is in nobody's way.
        let _ = fs::remove_file(&self.0);
        TAKEN.lock().remove(&self.0);
    }
}

fn temporary(path: &Path, number: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}{number}{TEMPORARY}", std::process::id()));
    PathBuf::from(name)
}

/// The file and the process that a temporary file is of.
fn parts(temporary: &str) -> Option<(&str, i32)> {
    let (file, id) = temporary.strip_suffix(TEMPORARY)?.rsplit_once('.')?;
    let (pid, number) = id.split_once('-').unwrap_or((id, "0"));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let pid = pid.parse().ok().filter(|&id: &i32| id > 0 && is_number(pid));
    pid.filter(|_| is_number(number)).map(|pid| (file, pid))
}

/// A link is not followed: whoever may write to the folder would choose what is overwritten.
fn options(mode: u32) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(mode).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

fn fill(mut file: File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    file.sync_all()
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A folder for one test.
#[cfg(test)]
pub(crate) mod scratch {
    use std::fs;
    use std::ops::Deref;
    use std::path::{Path, PathBuf};

    /// Removed with all that is in it when it is dropped.
    pub struct Scratch(PathBuf);

    impl Scratch {
        /// `test` is a name that no other test has.
        pub fn new(test: &str) -> Self {
            let name = format!("upsync-{}-{test}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        /// The names of what is there, in order.
        pub fn names(&self) -> Vec<String> {
            names(&self.0)
        }
    }

    /// The names of what is in a folder, in order.
    pub fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    impl Deref for Scratch {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::scratch::Scratch;
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn the_file_changes_by_commit_and_nothing_else_is_left() {
        let folder = Scratch::new("disk-commit");
        let path = folder.join("a");
        let write = |content: &[u8], mode| prepare(&path, content, mode);
        write(b"1", 0o600).unwrap().commit().unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"1".to_vec(), 0o600));
        drop(write(b"2", 0o644).unwrap());
        assert_eq!((fs::read(&path).unwrap(), folder.names()), (b"1".to_vec(), vec!["a".into()]));
        let prepared = write(b"3", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
        prepared.commit().unwrap();
        assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"3".to_vec(), 0o644));
        assert_eq!(folder.names(), ["a"]);
    }

    #[test]
    fn threads_at_one_file_do_not_meet() {
        let folder = Scratch::new("disk-threads");
        let path = folder.join("a");
        std::thread::scope(|scope| {
            for content in [vec![b'a'; 100_000], vec![b'b'; 100_000]] {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        prepare(path, &content, 0o600).unwrap().commit().unwrap();
                        let seen = fs::read(path).unwrap();
                        assert_eq!(seen.len(), content.len());
                        assert!(seen.iter().all(|byte| Some(byte) == seen.first()));
                    }
                });
            }
        });
        assert_eq!(folder.names(), ["a"]);
        assert!(!TAKEN.lock().iter().any(|name| name.starts_with(&*folder)));
    }

    #[test]
    fn a_temporary_file_is_new() {
        let folder = Scratch::new("disk-new");
        let path = folder.join("a");
        fs::write(folder.join("other"), "stays").unwrap();
        symlink(folder.join("other"), temporary(&path, "")).unwrap();
        prepare(&path, b"1", 0o600).unwrap().commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
        assert_eq!(fs::read(folder.join("other")).unwrap(), b"stays");
        fs::create_dir(temporary(&path, "")).unwrap();
        assert!(prepare(&path, b"2", 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"1");
    }

    #[test]
    fn a_failed_commit_leaves_nothing_behind() {
        let folder = Scratch::new("disk-failed");
        let path = folder.join("a");
        fs::create_dir(&path).unwrap();
        assert!(prepare(&path, b"1", 0o600).unwrap().commit().is_err());
        assert_eq!(folder.names(), ["a"]);
        assert!(prepare(&folder.join("missing/a"), b"1", 0o600).is_err());
    }

    #[test]
    fn a_link_is_not_overwritten() {
        let folder = Scratch::new("disk-link");
        let path = folder.join("a");
        fs::write(folder.join("other"), "stays").unwrap();
        symlink(folder.join("other"), &path).unwrap();
        assert!(overwrite(&path, b"1").is_err());
        assert_eq!(fs::read(folder.join("other")).unwrap(), b"stays");
        overwrite(&folder.join("other"), b"1").unwrap();
        assert_eq!(fs::read(folder.join("other")).unwrap(), b"1");
    }

    #[test]
    fn a_hidden_file_is_back_unless_it_is_committed() {
        let folder = Scratch::new("disk-hide");
        let path = folder.join("a");
        fs::write(&path, "stays").unwrap();
        let hidden = hide(&path).unwrap();
        assert!(!path.exists());
        drop(hidden);
        assert_eq!((fs::read(&path).unwrap(), folder.names().len()), (b"stays".to_vec(), 1));
        hide(&path).unwrap().commit().unwrap();
        assert_eq!(folder.names(), [""; 0]);
        hide(&path).unwrap().commit().unwrap();
        drop(hide(&path).unwrap());
        assert_eq!(folder.names(), [""; 0], "none there is fine");
        assert!(hide(&folder.join("no/such")).unwrap().commit().is_err());
    }

    #[test]
    fn who_may_replace_a_file_hangs_on_the_mode_of_its_folder() {
        let folder = Scratch::new("disk-mode");
        let path = folder.join("a");
        let metadata = fs::metadata(&*folder).unwrap();
        let (user, group) = (metadata.uid(), metadata.gid());
        let can = |mode, user, group| {
            fs::set_permissions(&*folder, fs::Permissions::from_mode(mode)).unwrap();
            can_replace(&path, Some((user, group)))
        };
        assert!(can(0o000, 0, 1));
        assert!(can(0o070, user + 1, group) && !can(0o707, user + 1, group));
        assert!(can(0o007, user + 1, group + 1) && !can(0o770, user + 1, group + 1));
        assert!(can(0o700, user, group));
        assert!(can_replace(&path, None) && !can_replace(&folder.join("missing/a"), None));
        assert_eq!(folder.names(), [""; 0], "what was tried is removed");
    }

    #[test]
    fn what_killed_processes_left_is_removed() {
        let folder = Scratch::new("disk-left");
        let left = ["a.2.tmp", "a.2-1.tmp"];
        let stay = [
            "a",
            "a.+2.tmp",
            "a.0.tmp",
            "a.1-1.tmp",
            "a.1.tmp",
            "a.2-x.tmp",
            "a.2.tmp.conf",
            "a.4294967298.tmp",
            "a.b.2.tmp",
            "a.tmp",
            "b.2.tmp",
        ];
        for name in left.iter().chain(&stay) {
            fs::write(folder.join(name), "").unwrap();
        }
        fs::create_dir(folder.join("a.2-2.tmp")).unwrap();
        remove_left_over(&folder, |file| file == "a", |pid| pid == 1);
        fs::remove_dir(folder.join("a.2-2.tmp")).unwrap();
        assert_eq!(folder.names(), stay);
    }

    proptest! {
        #[test]
        fn the_parts_of_a_temporary_name_are_found_again(file in "[a-z0-9.~:-]{1,40}", number: u64) {
            let pid = std::process::id() as i32;
            for number in [String::new(), format!("-{number}")] {
                let name = temporary(Path::new(&file), &number);
                prop_assert_eq!(parts(name.to_str().unwrap()), Some((file.as_str(), pid)));
            }
        }

        #[test]
        fn any_name_has_parts_or_none(name in any::<String>()) {
            let _ = (parts(&name), parts(&format!("{name}{TEMPORARY}")));
        }
    }
}
