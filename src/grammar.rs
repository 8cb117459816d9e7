//! nginx's own notations: times, sizes, `server` lines, methods, checks and bodies of them, read and written
//! without nginx.
#![forbid(unsafe_code)]

pub mod body;
pub mod check;
pub mod key;
pub mod method;
pub mod parameter;
pub mod server;
pub mod size;
pub mod time;
mod words;
