//! With real folders.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::disk::scratch::{Scratch, names};
use crate::grammar::body::render_upstream;
use crate::model::{Address, Check, List, Method, Parameters, Peer};

fn name(text: &str) -> Name {
    Name::parse(text.as_bytes()).unwrap()
}

fn list(port: u16) -> List {
    let address = Address::Ip(([127, 0, 0, 1], port).into());
    List::new([Peer { address, parameters: Parameters { weight: 0, ..Parameters::NGINX } }])
}

fn text(name: &Name, list: &List) -> String {
    render_upstream(name.as_str(), list)
}

/// A state folder in a folder of the test's own.
fn state(test: &str) -> (Scratch, Folder) {
    let scratch = Scratch::new(test);
    let folder = prepare(&scratch.join("state")).unwrap().0;
    (scratch, folder)
}

fn prepare(path: &Path) -> io::Result<(Folder, Vec<String>)> {
    Folder::prepare(path, None, |_| false)
}

fn keep(folder: &Folder, name: &Name, list: &List) {
    let lock = folder.lock().unwrap();
    folder.prepare_list(&lock, name, &text(name, list)).unwrap().commit().unwrap();
}

fn remove(folder: &Folder, name: &Name) {
    let lock = folder.lock().unwrap();
    folder.prepare_removal(&lock, name).unwrap().commit().unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// The lists, and the complaints without the folder's path.
fn loaded(folder: &Folder) -> (Vec<(Name, List)>, Vec<String>) {
    let Loaded { lists, complaints } = folder.load().unwrap();
    let start = format!("\"{}/", folder.0.display());
    let complaints = complaints.iter().map(|c| format!("\"{}", c.strip_prefix(&start).unwrap()));
    (lists, complaints.collect())
}

#[test]
fn what_is_kept_is_loaded_again() {
    let (_scratch, folder) = state("state-kept");
    assert_eq!(loaded(&folder), (vec![], vec![]));
    let long = "x".repeat(255);
    let mut kept = vec![];
    for (text, port) in
        [(".", 1), ("..", 2), ("-", 3), (".conf", 4), ("a:80", 5), ("a.conf.7.tmp", 6), (&long, 7)]
    {
        keep(&folder, &name(text), &list(port + 1));
        keep(&folder, &name(text), &list(port));
        kept.push((name(text), list(port)));
    }
    keep(&folder, &name("empty"), &List::default());
    kept.push((name("empty"), List::default()));
    kept.sort_by_key(|(name, _)| file_name(name));
    assert_eq!(loaded(&folder), (kept.clone(), vec![]));
    assert_eq!(names(&folder.0).len(), kept.len());
    for (name, _) in &kept {
        assert_eq!(mode(&folder.file(name)), 0o600);
        remove(&folder, name);
        remove(&folder, name);
    }
    assert_eq!(names(&folder.0), [""; 0]);
}

#[test]
fn a_list_is_kept_with_its_method_and_checks() {
    let (_scratch, folder) = state("state-method");
    let method = Method::Hash { key: "$host${uri}".to_owned(), consistent: true };
    let check = Check { send: Some("GET /\r\n\r\n".to_owned()), ..Check::default() };
    let list = list(1).with_method(Some(method)).with_check(Some(Arc::new(check)));
    keep(&folder, &name("a"), &list);
    assert_eq!(loaded(&folder), (vec![(name("a"), list)], vec![]));
}

#[test]
fn names_of_files() {
    for (text, file) in [("a", "a.conf"), (".", "..conf"), ("..", "...conf"), ("A:80", "a:80.conf")]
    {
        assert_eq!(file_name(&name(text)), file);
    }
    let uncut = "x".repeat(UNCUT_MAX);
    assert_eq!(file_name(&name(&uncut)), format!("{uncut}.conf"));
    assert_eq!(file_name(&name(&format!("{uncut}y"))), format!("{uncut}~36314f0d06f3b9f4.conf"));
    // From the authors' own list of test vectors.
    assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
}

#[test]
fn a_folder_is_made_for_its_owner() {
    let scratch = Scratch::new("state-made");
    let path = scratch.join("state");
    let metadata = fs::metadata(&*scratch).unwrap();
    // The slash at the end is one of nginx.conf.
    let owner = Some((metadata.uid(), metadata.gid()));
    let (folder, warnings) = Folder::prepare(&path.join(""), owner, |_| false).unwrap();
    assert_eq!((mode(&path), warnings), (0o700, vec![]));
    assert_eq!(prepare(&path).unwrap().1, [""; 0]);
    keep(&folder, &name("a"), &list(1));
    assert!(prepare(&scratch.join("missing/state")).is_err(), "one folder only is made");
    assert_eq!(scratch.names(), ["state"]);
}

#[test]
fn a_folder_that_is_there_stays_as_it_is() {
    let (scratch, folder) = state("state-there");
    let path = folder.0.display();
    let open =
        |mode| format!("\"{path}\" of \"dyups_state_path\" has the mode {mode}, expected 0700");
    let closed = format!(
        "workers cannot make files in \"{path}\" of \"dyups_state_path\", expected a folder of their user with the mode 0700"
    );
    let metadata = fs::metadata(&*scratch).unwrap();
    let (owner, other) = ((metadata.uid(), 1), (metadata.uid() + 1, metadata.gid() + 1));
    for (bits, user, expected) in [
        (0o755, owner, vec![open("0755")]),
        (0o1701, owner, vec![open("1701")]),
        (0o700, other, vec![closed.clone()]),
        (0o750, other, vec![open("0750"), closed.clone()]),
    ] {
        fs::set_permissions(&folder.0, Permissions::from_mode(bits)).unwrap();
        let (_, warnings) = Folder::prepare(&folder.0, Some(user), |_| false).unwrap();
        assert_eq!((warnings, mode(&folder.0)), (expected, bits));
    }
}

#[test]
fn what_is_no_folder_is_an_error() {
    let scratch = Scratch::new("state-no-folder");
    fs::create_dir(scratch.join("real")).unwrap();
    fs::write(scratch.join("file"), "").unwrap();
    symlink(scratch.join("real"), scratch.join("link")).unwrap();
    symlink(scratch.join("nowhere"), scratch.join("broken")).unwrap();
    for path in ["file", "file/", "link", "link/", "link/.", "broken"] {
        assert_eq!(prepare(&scratch.join(path)).unwrap_err().to_string(), "not a folder", "{path}");
    }
    assert!(Folder::open(&scratch.join("link/")).lock().is_err());
    assert!(Folder::open(&scratch.join("missing")).load().is_err());
}

#[test]
fn what_is_damaged_costs_its_own_list_only() {
    let (scratch, folder) = state("state-damaged");
    keep(&folder, &name("a"), &list(1));
    keep(&folder, &name("z"), &list(2));
    let whole = text(&name("cut"), &list(3));
    let put = |file: &str, content: &str| fs::write(folder.0.join(file), content).unwrap();
    put("b-copy.conf", &text(&name("a"), &list(4)));
    put("bad.conf", "upstream bad {\n    server 127.0.0.1:0;\n}\n");
    put("cut.conf", &whole[..whole.len() - 2]);
    put("empty.conf", "");
    put("two.conf", &format!("{}{}", text(&name("two"), &list(1)), text(&name("a"), &list(1))));
    put("Upper.conf", &text(&name("upper"), &list(1)));
    File::create(folder.0.join("large.conf")).unwrap().set_len((64 << 20) + 1).unwrap();
    put("zeros.conf", "\0\0\0\0");
    // None of these is a state file.
    put("a.conf.1.tmp", "left over");
    put("README", "");
    put("a.conf~", "");
    symlink(folder.0.join("a.conf"), folder.0.join("link.conf")).unwrap();
    fs::create_dir(folder.0.join("folder.conf")).unwrap();
    assert!(Command::new("mkfifo").arg(folder.0.join("pipe.conf")).status().unwrap().success());
    let _listener = UnixListener::bind(scratch.join("state/socket.conf")).unwrap();
    let strange = folder.0.join(OsStr::from_bytes(b"\x1b[2J\xff.conf"));
    fs::write(&strange, text(&name("a"), &list(1))).unwrap();
    let (lists, complaints) = loaded(&folder);
    assert_eq!(lists, [(name("a"), list(1)), (name("z"), list(2))]);
    let end = " of \"dyups_state_path\": ";
    let expected = [
        ("\\u{1b}[2J\u{fffd}.conf", "the upstream \"a\" belongs into \"a.conf\""),
        ("Upper.conf", "the upstream \"upper\" belongs into \"upper.conf\""),
        ("b-copy.conf", "the upstream \"a\" belongs into \"a.conf\""),
        ("bad.conf", "line 2, column 12: invalid port in \"127.0.0.1:0\", expected 1 to 65535"),
        ("cut.conf", ""),
        ("empty.conf", ""),
        ("folder.conf", "not a regular file"),
        ("large.conf", "larger than 64 MiB"),
        ("link.conf", "not a regular file"),
        ("pipe.conf", "not a regular file"),
        ("socket.conf", "not a regular file"),
        ("two.conf", "line 4, column 1: "),
        ("zeros.conf", "line 1, column 1: "),
    ];
    assert_eq!(complaints.len(), expected.len(), "{complaints:#?}");
    for (complaint, (file, reason)) in complaints.iter().zip(expected) {
        let start = format!("\"{file}\"{end}{reason}");
        assert!(complaint.starts_with(&start), "{complaint} is not about {start}");
        assert!(complaint.ends_with(", skipped") && !complaint.contains(char::is_control));
    }
}

#[test]
fn a_crash_before_the_commit_leaves_the_old_list() {
    let (_scratch, folder) = state("state-crash");
    keep(&folder, &name("a"), &list(1));
    let lock = folder.lock().unwrap();
    let prepared = |port| folder.prepare_list(&lock, &name("a"), &text(&name("a"), &list(port)));
    // As a killed process leaves it.
    std::mem::forget(prepared(2).unwrap());
    drop(folder.prepare_removal(&lock, &name("a")).unwrap());
    assert_eq!(loaded(&folder), (vec![(name("a"), list(1))], vec![]));
    assert_eq!(names(&folder.0).len(), 2);
    Folder::prepare(&folder.0, None, |_| true).unwrap();
    assert_eq!(names(&folder.0).len(), 2, "its process may be at it yet");
    prepare(&folder.0).unwrap();
    assert_eq!(names(&folder.0), ["a.conf"]);
    drop(prepared(3).unwrap());
    assert_eq!(names(&folder.0), ["a.conf"]);
    prepared(4).unwrap().commit().unwrap();
    assert_eq!(loaded(&folder), (vec![(name("a"), list(4))], vec![]));
}

#[test]
fn a_folder_that_is_gone_is_an_error() {
    let (_scratch, folder) = state("state-gone");
    let lock = folder.lock().unwrap();
    let removal = folder.prepare_removal(&lock, &name("a")).unwrap();
    let change = folder.prepare_list(&lock, &name("a"), "").unwrap();
    fs::remove_dir_all(&folder.0).unwrap();
    assert!(change.commit().is_err());
    assert!(removal.commit().is_err());
    assert!(folder.prepare_list(&lock, &name("a"), "").is_err());
    assert!(folder.lock().is_err());
}

#[test]
fn one_holds_the_lock_at_a_time() {
    let (_scratch, folder) = state("state-lock");
    let lock = folder.lock().unwrap();
    let (sender, receiver) = channel();
    let other = folder.clone();
    let thread = thread::spawn(move || sender.send(other.lock().map(drop)).unwrap());
    let soon = Duration::from_millis(100);
    assert_eq!(receiver.recv_timeout(soon).unwrap_err(), RecvTimeoutError::Timeout);
    drop(lock);
    receiver.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    thread.join().unwrap();
    let lock = folder.lock().unwrap();
    let taken = |command: &str| {
        let status = Command::new("flock").args(["-n", "-x"]).arg(&folder.0).arg(command).status();
        status.unwrap().success()
    };
    assert!(!taken("true"), "also over processes");
    drop(lock);
    assert!(taken("true"));
}

#[test]
fn a_killed_process_holds_no_lock() {
    let (_scratch, folder) = state("state-killed");
    let mut holder = Command::new("flock")
        .arg("--no-fork")
        .arg(&folder.0)
        .args(["sh", "-c", "echo held; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut held = [0; 5];
    holder.stdout.as_mut().unwrap().read_exact(&mut held).unwrap();
    let (sender, receiver) = channel();
    let other = folder.clone();
    let thread = thread::spawn(move || sender.send(other.lock().is_ok()).unwrap());
    let before = receiver.recv_timeout(Duration::from_millis(100));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(before, Err(RecvTimeoutError::Timeout));
    assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok(true));
    thread.join().unwrap();
}

#[test]
fn thousands_of_lists() {
    let (_scratch, folder) = state("state-many");
    let lock = folder.lock().unwrap();
    let many: Vec<_> = (0..2000).map(|n| (name(&format!("app-{n:04}")), list(n + 1))).collect();
    for (name, list) in &many {
        folder.prepare_list(&lock, name, &text(name, list)).unwrap().commit().unwrap();
    }
    assert_eq!(loaded(&folder), (many, vec![]));
}

proptest! {
    #[test]
    fn names_of_files_are_short_and_differ(
        names in proptest::collection::hash_set("[a-z0-9.:_-]{1,4}|[a-b]{198,255}", 1..50),
    ) {
        let files: HashSet<_> = names.iter().map(|text| file_name(&name(text))).collect();
        prop_assert_eq!(files.len(), names.len());
        for file in files {
            prop_assert!(file.len() <= UNCUT_MAX + 1 + 16 + SUFFIX.len());
            prop_assert!(file.len() > SUFFIX.len() && file.ends_with(SUFFIX));
            prop_assert!(!file.contains('/'));
        }
    }
}
