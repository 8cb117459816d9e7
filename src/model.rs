//! What every other room talks about: addresses, servers and their parameters, lists.
#![forbid(unsafe_code)]

pub mod address;
pub mod body;
pub mod list;
pub mod method;
pub mod name;
pub mod printable;

pub use address::{Address, Endpoint};
pub use list::{Difference, List, Parameters, Peer};
pub use method::Method;
pub use name::Name;
pub use printable::Printable;
