//! Directives to settings.

pub mod chosen;
pub mod upsync;

#[cfg(feature = "nginx")]
pub mod balancer;
#[cfg(feature = "nginx")]
pub mod check;
#[cfg(feature = "nginx")]
pub mod directives;
#[cfg(feature = "nginx")]
pub mod dump;
#[cfg(feature = "nginx")]
pub mod dyups;
#[cfg(feature = "nginx")]
pub mod initial;
#[cfg(feature = "nginx")]
pub mod server_line;
#[cfg(feature = "nginx")]
pub mod settings;
#[cfg(feature = "nginx")]
pub mod shared;
#[cfg(feature = "nginx")]
pub mod state;
#[cfg(feature = "nginx")]
pub mod template;
