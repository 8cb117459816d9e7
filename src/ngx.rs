//! Small safe wrappers over what the `ngx` crate lacks.

pub mod boundary;
pub mod conf;
pub mod cycle;
pub mod interfaces;
pub mod phase;
pub mod pool;
pub mod quiet;
#[cfg(nginx_pcre)]
pub mod regex;
#[cfg(not(nginx_pcre))]
#[path = "ngx/no_regex.rs"]
pub mod regex;
pub mod request;
pub mod thread;
pub mod timer;
pub mod variable;
pub mod wake;
