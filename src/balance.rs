//! Which server takes the next request. Pure: what a server's state is, the caller answers.
#![forbid(unsafe_code)]

pub mod hash;
pub mod least;
pub mod random;
pub mod ring;
pub mod rotation;
pub mod tier;
pub mod tried;

pub use rotation::Rotation;
pub use tier::{Ask, Chooser, Tier, Walk};
pub use tried::Tried;

/// What becomes of asking for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The request has it.
    Yes,
    /// Not this request, but the next one may: it was tried, or is growing its share.
    NotNow,
    /// No request, for the time being.
    Out,
}
