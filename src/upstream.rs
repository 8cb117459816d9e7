//! nginx's side of an upstream: peer hooks over snapshots of the list in force.

pub mod balancing;
pub mod choice;
pub mod live;
pub mod names;
pub mod peer;
pub mod snapshot;
#[cfg(nginx_http_ssl)]
pub mod tls;

pub use balancing::Balancing;
pub use live::{Checks, Live};
pub use names::Names;
