//! nginx's own notations: times, sizes, `server` lines, methods and bodies of them, read and written
//! without nginx.
#![forbid(unsafe_code)]

pub mod body;
pub mod key;
pub mod method;
pub mod parameter;
pub mod server;
pub mod size;
pub mod time;
mod words;
