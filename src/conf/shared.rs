//! The zone of a configuration: made, or taken over from the one before.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use nginx_sys::{
    NGX_ERROR, NGX_LOG_EMERG, NGX_LOG_ERR, NGX_LOG_NOTICE, NGX_OK, ngx_conf_t, ngx_cycle,
    ngx_cycle_t, ngx_int_t, ngx_list_part_t, ngx_log_t, ngx_shared_memory_add, ngx_shm_zone_t,
    ngx_str_t,
};
use thiserror::Error;

use super::initial::{self, InitialError};
use super::settings::{Main, Managed};
use crate::model::{List, Name};
use crate::module::ngx_http_upsync_module;
use crate::ngx::boundary::guarded;
use crate::shm::directory::{Origin, Upstream};
use crate::shm::post::{self, Base};
use crate::shm::publish::{PublishError, now};
use crate::shm::zone::{Full, Zone};
use crate::upstream::Live;

/// The zone's name, by which a reload finds it again.
const NAME: &[u8] = b"upsync";

/// Why there is no zone.
#[derive(Debug, Error)]
enum ZoneError {
    #[error("upstream \"{upstream}\": {cause}")]
    Publish { upstream: String, cause: PublishError },
    #[error(transparent)]
    Full(#[from] Full),
    #[error("upstream \"{upstream}\": {cause}")]
    Initial { upstream: String, cause: InitialError },
}

/// Asks nginx for the zone.
///
/// # Safety
///
/// Called from `init_main_conf` with its argument and the settings being read.
pub unsafe fn add(cf: *mut ngx_conf_t, main: &Main) -> bool {
    let mut name = ngx_str_t { len: NAME.len(), data: NAME.as_ptr().cast_mut() };
    let tag = (&raw mut ngx_http_upsync_module).cast();
    // SAFETY: nginx copies nothing of the name, which is static.
    let zone = unsafe { ngx_shared_memory_add(cf, &mut name, main.zone_size(), tag).as_mut() };
    let Some(zone) = zone else {
        return false;
    };
    zone.init = Some(init);
    zone.data = ptr::from_ref(main).cast_mut().cast();
    true
}

/// nginx has mapped the zone, or found that of the configuration before.
unsafe extern "C" fn init(zone: *mut ngx_shm_zone_t, last: *mut c_void) -> ngx_int_t {
    // SAFETY: `add` gave nginx a `Main` as the zone's data, and `shm.addr` is a slab pool.
    guarded(NGX_ERROR as ngx_int_t, || unsafe {
        let (main, pool) = (&*(*zone).data.cast::<Main>(), (*zone).shm.addr.cast());
        let Some(pool) = NonNull::new(pool) else {
            return NGX_ERROR as ngx_int_t;
        };
        let result = match (last.is_null(), Zone::attach(pool)) {
            (false, Some(zone)) => enter(main, zone, false),
            _ => Zone::create(pool)
                .map_err(ZoneError::from)
                .and_then(|new| enter_new(main, new, (*zone).shm.log)),
        };
        match result {
            Ok(()) => NGX_OK as ngx_int_t,
            Err(error) => {
                ngx::ngx_log_error!(NGX_LOG_EMERG, (*zone).shm.log, "upsync: {error}");
                NGX_ERROR as ngx_int_t
            }
        }
    })
}

/// Finds the upstreams in the zone. A list that came from a source stays; another is put in force
/// now if the zone is new, else by [`commit`]: until then the configuration may yet be refused.
fn enter(main: &Main, zone: Zone, is_new: bool) -> Result<(), ZoneError> {
    main.zone.set(Some(zone));
    main.cycle.set(zone.cycle() + 1);
    for managed in main.managed() {
        let upstream = Upstream::open(zone, &managed.entry_name())?;
        if is_new && upstream.block().is_none() {
            publish_initial(main, &managed, &upstream, true)?;
        } else {
            managed.server.awaits_commit.set(upstream.origin() != Origin::Source);
        }
        let _ = managed.server.live.set(Rc::new(Live::configured(
            upstream,
            managed.server.balancing(),
            managed.server.checks.get().cloned().unwrap_or_default(),
        )));
    }
    Ok(())
}

/// A new zone takes over what the one before it knew, if that was ours and only the size is new.
fn enter_new(main: &Main, zone: Zone, log: *mut ngx_log_t) -> Result<(), ZoneError> {
    if let Some(last) = last_zone() {
        main.last_zone.set(Some(last));
        zone.enter_cycle(last.cycle());
        zone.set_loaded(last.is_loaded());
        let mut count = 0;
        for (theirs, name) in Upstream::all(last) {
            let Some((_, block)) = theirs.block() else {
                continue;
            };
            let ours = Upstream::open(zone, &name)?;
            ours.copy_from(last.cycle(), &theirs, &block).map_err(|cause| ZoneError::Publish {
                upstream: String::from_utf8_lossy(&name).into_owned(),
                cause,
            })?;
            count += 1;
        }
        ngx::ngx_log_error!(
            NGX_LOG_NOTICE,
            log,
            "upsync: {count} upstreams copied to a zone of a new size"
        );
    }
    enter(main, zone, true)
}

/// The zone of the configuration in force while another is being read.
fn last_zone() -> Option<Zone> {
    // SAFETY: `ngx_cycle` is the cycle in force; its zones are mapped until the new one replaces
    // it, and its pools' `data` was set by us if the name and the magic number are ours.
    unsafe {
        let mut part: *const ngx_list_part_t =
            &raw const (*(ngx_cycle as *mut ngx_cycle_t)).shared_memory.part;
        while let Some(zones) = part.as_ref() {
            for i in 0..zones.nelts {
                let zone = &*zones.elts.cast::<ngx_shm_zone_t>().add(i);
                if zone.shm.name.as_bytes() == NAME {
                    return NonNull::new(zone.shm.addr.cast()).and_then(|pool| Zone::attach(pool));
                }
            }
            part = zones.next;
        }
    }
    None
}

fn publish_initial(
    main: &Main,
    managed: &Managed<'_>,
    upstream: &Upstream,
    may_fetch: bool,
) -> Result<(), ZoneError> {
    let (list, origin) = initial::list(main, managed, may_fetch)
        .map_err(|cause| ZoneError::Initial { upstream: managed.name(), cause })?;
    // One that was posted before the upstream had a source goes in any case.
    if list.is_empty() && origin == Origin::Config && upstream.origin() != Origin::Api {
        return Ok(());
    }
    upstream
        .publish(main.cycle.get(), &list, origin)
        .map(|_| ())
        .map_err(|cause| ZoneError::Publish { upstream: managed.name(), cause })
}

/// The configuration is in force: older ones write no more. Where no source has spoken yet, the
/// `server` lines of this configuration replace those of the one before. Gives the names that have
/// no use for a list that was posted.
pub fn commit(main: &Main, log: *mut ngx_log_t) -> Vec<Name> {
    let Some(zone) = main.zone.get() else {
        return Vec::new();
    };
    if let Some(last) = main.last_zone.take() {
        catch_up(zone, last, log);
    }
    main.since.set(now());
    for live in main.managed().iter().filter_map(|managed| managed.server.live.get()) {
        live.upstream().follow(main.cycle.get());
    }
    zone.enter_cycle(main.cycle.get());
    let unused = remove_unused(main, zone);
    for managed in main.managed() {
        let Some(upstream) = managed.server.live.get().map(|live| live.upstream()) else {
            continue;
        };
        if managed.server.awaits_commit.get()
            && upstream.origin() != Origin::Source
            && let Err(error) = publish_initial(main, &managed, upstream, false)
        {
            ngx::ngx_log_error!(NGX_LOG_ERR, log, "upsync: {error}");
        }
    }
    let followed = main.managed().into_iter().filter_map(|managed| managed.posted_name());
    followed.chain(unused).collect()
}

/// Workers of the configuration before may have posted lists to their zone since it was copied.
/// From now on they do not.
fn catch_up(zone: Zone, last: Zone, log: *mut ngx_log_t) {
    last.supersede();
    let theirs: HashMap<Name, List> = posted(last).collect();
    for (name, _) in posted(zone).filter(|(name, _)| !theirs.contains_key(name)) {
        // No other process has the new zone yet, so nobody came first.
        let _ = Base::of(zone, name).remove();
    }
    for (name, list) in theirs {
        if let Err(error) = Base::of(zone, name.clone()).publish(&list) {
            ngx::ngx_log_error!(NGX_LOG_ERR, log, "upsync: upstream \"{name}\": {error}");
        }
    }
}

/// The lists that were posted to a zone.
pub fn posted(zone: Zone) -> impl Iterator<Item = (Name, List)> {
    let all = Upstream::all(zone).into_iter();
    all.filter(|(upstream, _)| upstream.origin() == Origin::Api)
        .filter_map(|(upstream, name)| Some((Name::parse(&name).ok()?, upstream.block()?.1.list())))
}

/// Takes the names away that no source has had for two configurations, as workers of the last one
/// may still have requests for theirs; and those that nginx.conf had, whose servers were deleted.
fn remove_unused(main: &Main, zone: Zone) -> Vec<Name> {
    let mut removed = Vec::new();
    for (upstream, name) in Upstream::all(zone) {
        let followed = upstream.followed();
        if followed != 0 && followed + 1 < main.cycle.get() {
            post::remove_unfollowed(upstream);
        } else if upstream.origin() == Origin::Api
            && let Ok(name) = Name::parse(&name)
            && main.upstream(name.as_str()).is_none()
            && remove_if_empty(&Base::of(zone, name.clone()))
        {
            removed.push(name);
        }
    }
    removed
}

/// If somebody posts a list just now, that stays.
fn remove_if_empty(base: &Base) -> bool {
    base.posted().is_some_and(|list| list.records().is_empty()) && base.remove().is_ok()
}
