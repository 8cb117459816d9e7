//! What is said to a server to see whether it is well: one conversation for each type of check. None
//! of them knows connections: they are told what came and say what to send.
#![forbid(unsafe_code)]

pub mod ajp;
pub mod fastcgi;
pub mod grpc;
pub mod hello;
pub mod http;
pub mod make;
pub mod mysql;
pub mod tcp;
#[cfg(test)]
mod testing;

use crate::model::Reason;

/// One conversation over a connection that has been made.
pub trait Talk {
    /// What is sent first; nothing if the server speaks first.
    fn open(&mut self) -> Vec<u8>;

    /// Bytes came from the server.
    fn received(&mut self, bytes: &[u8]) -> Step;

    /// All is sent, and for now nothing more has come, nor has the server closed its side.
    fn idle(&mut self) -> Step {
        Step::Wait
    }

    /// The server has closed its side: nothing will come. The result of this ends the conversation.
    fn closed(&mut self) -> Verdict;

    /// For `reason`, as the time being over or a reset, the conversation cannot go on. The result of
    /// this ends it; it is another than a failure where the server has shown before that it is well.
    fn cut(&mut self, reason: Reason) -> Verdict {
        Verdict::Failed(reason)
    }
}

/// How a conversation goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// More has to come.
    Wait,
    /// This is to be sent; then more has to come.
    Send(Vec<u8>),
    /// It is over.
    Done(Verdict),
}

/// What came of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server is well.
    Well {
        /// Another conversation may go over the same connection.
        reusable: bool,
    },
    /// It is not.
    Failed(Reason),
}

impl Verdict {
    /// The server is well, and the connection of no more use.
    pub const WELL: Self = Self::Well { reusable: false };
}
