//! Which server takes the next request. Pure: what a server's state is, the caller answers.
#![forbid(unsafe_code)]

pub mod rotation;
pub mod tried;

pub use rotation::Rotation;
pub use tried::Tried;
