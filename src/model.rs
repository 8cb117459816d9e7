//! What every other room talks about: addresses, servers and their parameters, lists.
#![forbid(unsafe_code)]

pub mod address;
pub mod body;
pub mod check;
pub mod list;
pub mod method;
pub mod name;
pub mod out;
pub mod printable;
pub mod reason;

pub use address::{Address, Endpoint};
pub use check::Check;
pub use list::{Difference, List, Parameters, Peer};
pub use method::Method;
pub use name::Name;
pub use out::{Out, Outs};
pub use printable::Printable;
pub use reason::Reason;
