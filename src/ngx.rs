//! Small safe wrappers over what the `ngx` crate lacks.

pub mod boundary;
pub mod conf;
pub mod cycle;
pub mod interfaces;
pub mod phase;
pub mod pool;
pub mod request;
pub mod thread;
pub mod variable;
pub mod wake;
