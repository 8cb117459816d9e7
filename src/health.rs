//! Checks of servers by requests of our own.
//!
//! - [`talk`]: what is said to a server and what a good one answers, without connections;
//! - [`schedule`]: when a worker checks which server, without a clock;
//! - [`waiting`]: checks for which there is no room;
//! - `asked`: the checks of an upstream, ready to be made;
//! - `probe`: one check at a time of one server, on nginx's event loop;
//! - `tls`: its TLS.
//!
//! Who is checked by which worker, and what comes of it, is decided in `worker::checker`.

pub mod schedule;
pub mod talk;
pub mod waiting;

#[cfg(feature = "nginx")]
pub mod asked;
#[cfg(feature = "nginx")]
pub mod probe;
#[cfg(all(feature = "nginx", nginx_http_ssl))]
pub mod tls;
