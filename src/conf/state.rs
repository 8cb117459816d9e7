//! The folder of `dyups_state_path`, made ready by the master, and the lists in it.

use std::path::Path;

use nginx_sys::{NGX_LOG_ERR, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_cycle_t, ngx_log_t};

use super::settings::Main;
use crate::model::{List, Name};
use crate::ngx::cycle;
use crate::shm::post::Base;
use crate::shm::zone::Zone;
use crate::state::Folder;

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
    unused.iter().for_each(|name| forget(&folder, name, log));
    if was_loaded {
        return;
    }
    match folder.load() {
        Ok(loaded) => {
            let count = loaded.lists.len();
            let put = |(name, list): &&(Name, List)| put(main, zone, &folder, name, list, log);
            let put = loaded.lists.iter().filter(put).count();
            complain(&loaded.complaints, log);
            ngx::ngx_log_error!(
                NGX_LOG_NOTICE,
                log,
                "upsync: {put} of {count} lists of \"dyups_state_path\" in force"
            );
        }
        Err(error) => {
            ngx::ngx_log_error!(
                NGX_LOG_ERR,
                log,
                "upsync: cannot read the folder of \"dyups_state_path\": {error}"
            );
        }
    }
}

fn forget(folder: &Folder, name: &Name, log: *mut ngx_log_t) {
    if let Err(error) = folder.forget(name) {
        ngx::ngx_log_error!(
            NGX_LOG_ERR,
            log,
            "upsync: upstream \"{name}\": cannot remove its file of \"dyups_state_path\": {error}"
        );
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
fn put(
    main: &Main,
    zone: Zone,
    folder: &Folder,
    name: &Name,
    list: &List,
    log: *mut ngx_log_t,
) -> bool {
    // An upstream that nginx.conf no longer has cannot be one whose servers were deleted.
    if list.is_empty() && main.upstream(name.as_str()).is_none() {
        forget(folder, name, log);
        return false;
    }
    let base = Base::of(zone, name.clone());
    if base.posted().is_some() {
        return false;
    }
    base.publish(list)
        .inspect_err(|error| {
            ngx::ngx_log_error!(NGX_LOG_ERR, log, "upsync: upstream \"{name}\": {error}");
        })
        .is_ok()
}
