//! Live upstreams for stock nginx: one dynamic module that keeps server lists in shared memory
//! and follows their source.
//!
//! Data flows one way; a room knows those above it in this list, none below:
//!
//! - [`model`]: addresses, servers, lists;
//! - [`grammar`]: `server …;` lines, times and sizes as nginx writes them;
//! - [`disk`]: files that survive a crash;
//! - [`state`]: the lists that were posted, on disk for the next start;
//! - [`source`]: Consul's answers, and the threads that wait for them;
//! - [`shm`]: the lists in force, in shared memory;
//! - [`balance`]: which server is next;
//! - [`health`]: how a server is checked;
//! - `upstream`: nginx's peer hooks over a worker's snapshot of a list;
//! - [`api`]: what is shown, and changed by request;
//! - [`conf`]: directives to settings;
//! - `worker`: what a worker does beside requests, as to check servers; `module`: what nginx calls when.
//!
//! The room `ngx` holds small wrappers over nginx. Rooms that need nginx are left out without the feature
//! `nginx`, so that the pure code is tested without an nginx tree.

pub mod api;
pub mod balance;
pub mod conf;
pub mod disk;
pub mod grammar;
pub mod health;
pub mod model;
pub mod shm;
pub mod source;
pub mod state;

#[cfg(feature = "nginx")]
pub mod module;
#[cfg(feature = "nginx")]
pub mod ngx;
#[cfg(feature = "nginx")]
pub mod upstream;
#[cfg(feature = "nginx")]
pub mod worker;
