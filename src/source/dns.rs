//! Host names to addresses, by the system's own resolver.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use thiserror::Error;

/// In bytes. What the C library's modules for names take of it is not ours to bound.
const STACK: usize = 512 * 1024;

/// The most addresses of one name.
const ADDRESSES_MAX: usize = 256;

/// The most lookups at a time. Those for which no answer comes hold up to so many.
pub const LOOKUPS_MAX: usize = 64;

/// Why a name has no address.
#[derive(Debug, Error)]
pub enum DnsError {
    /// The system's resolver says no, or no thread could be started.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It says nothing.
    #[error("name resolution timed out")]
    Timeout,
    /// It knows the name, but no address of it.
    #[error("no address")]
    NoAddress,
}

/// Addresses, the preferred first, each once.
pub type Found = Result<Vec<IpAddr>, DnsError>;

/// How a name is looked up: [`system`], or what a test has in its place.
pub type Lookup = Arc<dyn Fn(&str) -> Found + Send + Sync>;

/// Asks the system's resolver, which may take its time.
pub fn system(host: &str) -> Found {
    let mut found = Vec::new();
    for address in (host, 0).to_socket_addrs()?.take(ADDRESSES_MAX) {
        if !found.contains(&address.ip()) {
            found.push(address.ip());
        }
    }
    if found.is_empty() { Err(DnsError::NoAddress) } else { Ok(found) }
}

/// Looks a name up in a thread of its own, so that one which gets no answer delays no other, and
/// hands the result to `done` there.
pub fn start(
    lookup: &Lookup,
    host: &str,
    done: impl FnOnce(Found) + Send + 'static,
) -> io::Result<()> {
    let (lookup, host) = (Arc::clone(lookup), host.to_owned());
    let run = move || done(lookup(&host));
    thread::Builder::new().name("upsync dns".to_owned()).stack_size(STACK).spawn(run).map(drop)
}

/// Looks one host up, for no longer than `within`. An address is its own answer.
pub fn lookup_within(host: &str, within: Duration) -> Found {
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let (sender, receiver) = mpsc::channel();
    let lookup: Lookup = Arc::new(system);
    // If nobody waits any more, nobody needs the answer.
    start(&lookup, host, move |found| drop(sender.send(found)))?;
    receiver.recv_timeout(within).unwrap_or(Err(DnsError::Timeout))
}

/// Lookups of [`lookup_all`] that have not ended, those that nobody waits for any more too: each is
/// a thread.
static RUNNING: Mutex<usize> = Mutex::new(0);

/// Signalled when one of them ends.
static ENDED: Condvar = Condvar::new();

/// The right to one lookup more.
struct Permit;

impl Permit {
    fn wait(until: Instant) -> Option<Self> {
        let mut running = RUNNING.lock();
        while *running >= LOOKUPS_MAX {
            if ENDED.wait_until(&mut running, until).timed_out() {
                return None;
            }
        }
        *running += 1;
        (Instant::now() < until).then_some(Self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock() -= 1;
        ENDED.notify_one();
    }
}

/// Looks names up, many at a time in the whole process, for no longer than `within` in all. What
/// has no answer by then is not in the result.
pub fn lookup_all<'a>(
    hosts: impl IntoIterator<Item = &'a str>,
    within: Duration,
) -> HashMap<String, Vec<IpAddr>> {
    lookup_all_by(&(Arc::new(system) as Lookup), hosts, within)
}

fn lookup_all_by<'a>(
    lookup: &Lookup,
    hosts: impl IntoIterator<Item = &'a str>,
    within: Duration,
) -> HashMap<String, Vec<IpAddr>> {
    let until = Instant::now() + within;
    let (sender, receiver) = mpsc::channel();
    for host in hosts {
        let Some(permit) = Permit::wait(until) else {
            break;
        };
        let (sender, name) = (sender.clone(), host.to_owned());
        let done = move |found| {
            drop(permit);
            drop(sender.send((name, found)));
        };
        // Where no thread starts, or nobody waits any more, there is nothing to be had.
        let _ = start(lookup, host, done);
    }
    drop(sender);
    let mut all = HashMap::new();
    while let Ok((host, found)) =
        receiver.recv_timeout(until.saturating_duration_since(Instant::now()))
    {
        if let Ok(mut addresses) = found {
            addresses.sort_unstable();
            all.insert(host, addresses);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn an_address_needs_no_resolver() {
        assert_eq!(
            lookup_within("::1", Duration::ZERO).unwrap(),
            ["::1".parse::<IpAddr>().unwrap()]
        );
    }

    #[test]
    fn localhost_is_known_once_for_each_address() {
        let found = lookup_within("localhost", Duration::from_secs(20)).unwrap();
        assert!(found.iter().all(IpAddr::is_loopback) && (1..=2).contains(&found.len()));
    }

    #[test]
    fn names_without_an_answer_take_no_more_threads_than_there_may_be() {
        let asked = Arc::new(AtomicUsize::new(0));
        let (counter, (gate, open)) = (Arc::clone(&asked), mpsc::channel::<()>());
        let open = Mutex::new(open);
        let lookup: Lookup = Arc::new(move |host: &str| {
            if host.starts_with("good") {
                return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
            }
            counter.fetch_add(1, Ordering::SeqCst);
            // Until the test is over.
            let _ = open.lock().recv();
            Err(DnsError::NoAddress)
        });
        let hosts: Vec<String> = (0..3000).map(|i| format!("h{i}")).collect();
        let within = Duration::from_millis(100);
        for _ in 0..2 {
            let hosts = hosts.iter().map(String::as_str);
            assert!(lookup_all_by(&lookup, hosts, within).is_empty());
            assert_eq!(asked.load(Ordering::SeqCst), LOOKUPS_MAX);
        }
        drop(gate);
        let found = lookup_all_by(&lookup, ["good1", "good2"], Duration::from_secs(20));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_name_that_cannot_be_is_an_error() {
        assert!(matches!(system("a..b"), Err(DnsError::Io(_))));
    }
}
