//! What process this is, and what nginx is doing with its configuration.

use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use nginx_sys::{
    NGX_PROCESS_SIGNALLER, NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_core_conf_t,
    ngx_core_module, ngx_cycle, ngx_cycle_t, ngx_exiting, ngx_process, ngx_quit, ngx_terminate,
    ngx_test_config, ngx_worker,
};

/// Whether requests are served here: false in the master and in the cache manager and loader.
pub fn is_worker() -> bool {
    // SAFETY: plain integers, written by this thread only.
    let process = unsafe { ngx_process } as u32;
    process == NGX_PROCESS_WORKER || process == NGX_PROCESS_SINGLE
}

/// The number of this worker, from 0.
pub fn worker() -> u64 {
    // SAFETY: as above.
    unsafe { ngx_worker as u64 }
}

/// Whether this worker is about to end.
pub fn is_exiting() -> bool {
    // SAFETY: as above; signal handlers of this thread set some of them.
    unsafe {
        ngx_exiting != 0
            || (&raw const ngx_quit).read_volatile() != 0
            || (&raw const ngx_terminate).read_volatile() != 0
    }
}

/// Whether the configuration is only being tested (`nginx -t`), or read to find a running nginx.
pub fn is_test() -> bool {
    // SAFETY: as above.
    unsafe { ngx_test_config != 0 || ngx_process as u32 == NGX_PROCESS_SIGNALLER }
}

/// Whether nginx is starting: no configuration is in force yet.
pub fn is_start() -> bool {
    // SAFETY: while a configuration is read, `ngx_cycle` is the one before it: at start one with
    // no `conf_ctx`, which is what nginx's own `ngx_is_init_cycle()` asks.
    unsafe { ngx_cycle.as_ref().is_none_or(|cycle| cycle.conf_ctx.is_null()) }
}

/// The master of this process, or itself if it has none or is it.
pub fn master() -> i32 {
    // SAFETY: plain questions; the integer is written by this thread only, before it starts others.
    unsafe {
        if ngx_process as u32 == NGX_PROCESS_WORKER { libc::getppid() } else { libc::getpid() }
    }
}

/// The master that this worker began with.
static MASTER: AtomicI32 = AtomicI32::new(0);

/// Notes this worker's master, when the worker starts.
pub fn remember_master() {
    MASTER.store(master(), Relaxed);
}

/// Whether the master of this worker is still there.
pub fn has_master() -> bool {
    MASTER.load(Relaxed) == master()
}

/// Whether a process lives and is not the master of this one.
pub fn is_other_master(pid: i32) -> bool {
    pid > 0 && pid != master() && is_alive(pid)
}

/// How many workers there are.
pub fn workers() -> usize {
    core().map_or(1, |core| core.worker_processes.max(1) as usize)
}

/// The steps in which nginx's clock moves, in milliseconds: `timer_resolution`; 0 is any.
pub fn timer_resolution() -> u64 {
    core().map_or(0, |core| core.timer_resolution as u64)
}

/// Settings of nginx as a whole, in a worker.
fn core<'a>() -> Option<&'a ngx_core_conf_t> {
    // SAFETY: a worker has a cycle as long as it lives; the core module's configuration is at its
    // index there.
    unsafe {
        (*(*ngx_cycle).conf_ctx.add(ngx_core_module.index)).cast::<ngx_core_conf_t>().as_ref()
    }
}

/// The user and group that workers run as, if the master gives up its own.
pub fn worker_owner(cycle: &ngx_cycle_t) -> Option<(u32, u32)> {
    // SAFETY: asking for one's own effective user always works.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    // SAFETY: the core module's configuration is at its index in every cycle.
    let core =
        unsafe { (*cycle.conf_ctx.add(ngx_core_module.index)).cast::<ngx_core_conf_t>().as_ref()? };
    let unset = |id: u32| id == u32::MAX;
    (!unset(core.user) && !unset(core.group)).then_some((core.user, core.group))
}

/// Whether a process runs: one that has ended is not, though its parent, which may be this one,
/// has not asked about it yet.
pub fn is_alive(pid: i32) -> bool {
    // SAFETY: `waitid` fills the information it is given and with WNOWAIT changes nothing; signal
    // 0 only asks, and a process of another user exists too.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        if libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options) == 0 {
            return info.si_pid() != pid;
        }
        let errno = || std::io::Error::last_os_error().raw_os_error();
        libc::kill(pid, 0) == 0 || errno() == Some(libc::EPERM)
    }
}
