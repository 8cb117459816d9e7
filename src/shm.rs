//! The shared memory zone: the lists of all upstreams and the state of their servers.
//!
//! This room is the only writer of shared memory. What stands there is plain `#[repr(C)]` data
//! and atomics, reached by offsets from the zone's start, so it outlives the process that wrote
//! it and the module that reads it.
//!
//! - [`zone`]: the memory itself, its lock, and who may write;
//! - [`layout`]: what stands at which place;
//! - [`block`]: one immutable list, as bytes;
//! - [`slot`]: what changes about one server while lists come and go;
//! - [`health`]: what checks of a server came to;
//! - [`directory`]: upstreams by name;
//! - [`publish`]: a new list in the place of the old one, safe against a writer killed anywhere;
//! - [`post`]: lists of names that are made and removed at run time;
//! - [`recover`]: what a killed writer left behind, put right;
//! - [`source`]: how following a source goes;
//! - [`ledger`]: the connections each worker holds, so that a killed one's are given back;
//! - [`news`]: which servers got a connection back, told from worker to worker.

pub mod block;
pub mod health;
pub mod layout;
pub mod slot;
pub mod source;

#[cfg(feature = "nginx")]
pub mod directory;
#[cfg(feature = "nginx")]
pub mod ledger;
#[cfg(feature = "nginx")]
pub mod news;
#[cfg(feature = "nginx")]
pub mod post;
#[cfg(feature = "nginx")]
pub mod publish;
#[cfg(feature = "nginx")]
pub mod recover;
#[cfg(feature = "nginx")]
pub mod zone;
