//! What is answered to requests about upstreams.
//!
//! ```text
//! route → job → mail → desk → clerk → shm
//!          ├ slardar, grammar   └ plan
//!          └ state
//! shown → view → text, json, slardar → answer → send
//! ```

pub mod answer;
pub mod check_status;
#[cfg(feature = "nginx")]
pub mod clerk;
#[cfg(feature = "nginx")]
pub mod desk;
#[cfg(feature = "nginx")]
pub mod dyups;
pub mod job;
pub mod json;
pub mod mail;
pub mod plan;
pub mod route;
#[cfg(feature = "nginx")]
pub mod send;
pub mod show;
#[cfg(feature = "nginx")]
pub mod shown;
pub mod slardar;
pub mod status;
#[cfg(feature = "nginx")]
pub mod status_pages;
pub mod text;
#[cfg(feature = "nginx")]
pub mod upstream_show;
pub mod view;
