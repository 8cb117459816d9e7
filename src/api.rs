//! What is answered to requests about upstreams.

#[cfg(feature = "nginx")]
pub mod handler;
pub mod show;
