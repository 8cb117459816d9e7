//! The folder of `dyups_state_path`, made ready by the master, and the lists in it.

use std::path::Path;
use std::time::Duration;

use nginx_sys::{NGX_LOG_ERR, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_cycle_t, ngx_log_t};

use super::settings::Main;
use super::shared;
use crate::grammar::body;
use crate::model::{List, Name};
use crate::ngx::cycle;
use crate::shm::post::Base;
use crate::shm::zone::Zone;
use crate::state::{Change, Folder, Lock};

/// The longest that the master waits for workers to be done with the folder.
const LOCK_MAX: Duration = Duration::from_secs(2);

/// The most complaints about files that are logged one by one.
const COMPLAINTS_MAX: usize = 20;

/// Makes the folder, if there is to be one, so that workers can write it.
pub fn prepare(main: &Main, nginx_cycle: &ngx_cycle_t) -> Option<Folder> {
    let path = main.state_path.get()?;
    let owner = cycle::worker_owner(nginx_cycle);
    let log = nginx_cycle.log;
    match Folder::prepare(Path::new(path), owner, cycle::is_alive) {
        Ok((folder, warnings)) => {
            for warning in warnings {
                ngx::ngx_log_error!(NGX_LOG_WARN, log, "upsync: {warning}");
            }
            Some(folder)
        }
        Err(error) => {
            ngx::ngx_log_error!(
                NGX_LOG_ERR,
                log,
                "upsync: cannot use \"{path}\" of \"dyups_state_path\": {error}"
            );
            None
        }
    }
}

/// Puts the lists of the folder in force, once in the life of a zone: after that the zone has
/// what was posted. The files of `unused` names go, so that no later start has them again.
pub fn load(main: &Main, folder: Option<Folder>, unused: &[Name], log: *mut ngx_log_t) {
    let Some(zone) = main.zone.get() else {
        return;
    };
    let was_loaded = zone.set_loaded(folder.is_some());
    let Some(folder) = folder else {
        return;
    };
    // What a worker is about to write it has written, or does not write any more.
    let lock = folder.lock_within(LOCK_MAX).inspect_err(|error| {
        complain(&[format!("\"dyups_state_path\": {error}, its files are only read")], log);
    });
    let lock = lock.ok();
    if let Err(error) = folder.own(cycle::master()) {
        complain(&[format!("cannot write to \"dyups_state_path\": {error}")], log);
    }
    for name in unused.iter().filter(|name| folder.has(name)) {
        if Base::of(zone, name.clone()).posted().is_none() {
            forget(&folder, lock.as_ref(), name, log);
        }
    }
    if !was_loaded {
        keep(zone, &folder, lock.as_ref(), log);
        read(main, zone, &folder, lock.as_ref(), log);
    }
}

fn read(main: &Main, zone: Zone, folder: &Folder, lock: Option<&Lock>, log: *mut ngx_log_t) {
    let loaded = match folder.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            return complain(&[format!("cannot read \"dyups_state_path\": {error}")], log);
        }
    };
    let mut count = 0;
    for (name, list) in &loaded.lists {
        // An upstream that nginx.conf no longer has cannot be one whose servers were deleted.
        if list.is_empty() && main.upstream(name.as_str()).is_none() {
            forget(folder, lock, name, log);
        } else {
            count += usize::from(put(zone, name, list, log));
        }
    }
    complain(&loaded.complaints, log);
    let all = loaded.lists.len();
    ngx::ngx_log_error!(
        NGX_LOG_NOTICE,
        log,
        "upsync: {count} of {all} lists of \"dyups_state_path\" in force"
    );
}

/// Writes the lists that were posted before the configuration had the folder.
fn keep(zone: Zone, folder: &Folder, lock: Option<&Lock>, log: *mut ngx_log_t) {
    let Some(lock) = lock else {
        return;
    };
    for (name, list) in shared::posted(zone) {
        let text = body::render_upstream(name.as_str(), &list);
        let kept = folder.prepare_list(lock, &name, &text).and_then(Change::commit);
        if let Err(error) = kept {
            let text =
                format!("upstream \"{name}\": cannot write to \"dyups_state_path\": {error}");
            complain(&[text], log);
        }
    }
}

fn forget(folder: &Folder, lock: Option<&Lock>, name: &Name, log: *mut ngx_log_t) {
    let Some(lock) = lock else {
        return;
    };
    let removed = folder.prepare_removal(lock, name).and_then(Change::commit);
    if let Err(error) = removed {
        let text =
            format!("upstream \"{name}\": cannot remove its file of \"dyups_state_path\": {error}");
        complain(&[text], log);
    }
}

fn complain(complaints: &[String], log: *mut ngx_log_t) {
    for complaint in complaints.iter().take(COMPLAINTS_MAX) {
        ngx::ngx_log_error!(NGX_LOG_ERR, log, "upsync: {complaint}");
    }
    if complaints.len() > COMPLAINTS_MAX {
        let more = complaints.len() - COMPLAINTS_MAX;
        ngx::ngx_log_error!(NGX_LOG_ERR, log, "upsync: {more} more files skipped");
    }
}

/// Whether the list is in force now. One that was posted since the folder was last used stays.
fn put(zone: Zone, name: &Name, list: &List, log: *mut ngx_log_t) -> bool {
    let base = Base::of(zone, name.clone());
    if base.posted().is_some() {
        return false;
    }
    base.publish(list)
        .inspect_err(|error| complain(&[format!("upstream \"{name}\": {error}")], log))
        .is_ok()
}
