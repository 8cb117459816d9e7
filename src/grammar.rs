//! nginx's own notations: times, sizes and `server` lines, read and written without nginx.
#![forbid(unsafe_code)]

pub mod parameter;
pub mod server;
pub mod size;
pub mod time;
