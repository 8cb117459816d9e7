//! Log lines of one upstream.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::sync::Arc;

use super::mailbox::{Level, Mailbox};
use crate::model::Printable;

/// Puts lines that begin with the upstream's name into the mailbox.
#[derive(Clone)]
pub struct Journal {
    mailbox: Arc<Mailbox>,
    start: String,
}

impl Journal {
    /// Of the upstream of this name.
    pub fn new(mailbox: Arc<Mailbox>, upstream: &str) -> Self {
        Self { mailbox, start: format!("upsync: upstream \"{}\": ", Printable(upstream)) }
    }

    /// Puts a line, whose text must be printable.
    pub fn log(&self, level: Level, text: impl Display) {
        self.mailbox.log(level, format!("{}{text}", self.start));
    }
}
