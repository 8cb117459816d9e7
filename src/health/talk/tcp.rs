//! `tcp`: a connection that the server does not close at once.
#![forbid(unsafe_code)]

use super::{Step, Talk, Verdict};
use crate::model::Reason;
use crate::model::reason::Stage;

/// The conversation, in which nothing is said.
pub struct Tcp;

impl Talk for Tcp {
    fn open(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn received(&mut self, _: &[u8]) -> Step {
        Step::Done(Verdict::WELL)
    }

    fn idle(&mut self) -> Step {
        Step::Done(Verdict::WELL)
    }

    fn closed(&mut self) -> Verdict {
        Verdict::Failed(Reason::Closed(Stage::Read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_keeps_the_connection_is_well() {
        assert!(Tcp.open().is_empty());
        assert_eq!(Tcp.idle(), Step::Done(Verdict::WELL));
        assert_eq!(Tcp.received(b"220 mail\r\n"), Step::Done(Verdict::WELL));
        assert_eq!(Tcp.closed(), Verdict::Failed(Reason::Closed(Stage::Read)));
    }
}
