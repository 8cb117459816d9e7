//! A worker's own copy of a list. Requests pin it, so what they point at stays.
#![forbid(unsafe_code)]

use crate::balance::Rotation;
use crate::shm::block::{Block, Record};

/// One list as the requests of one worker see it.
#[derive(Debug)]
pub struct Snapshot {
    /// The word that published the list.
    pub published: u64,
    block: Block,
    /// The servers that are neither `down` nor `backup`.
    pub primary: Rotation,
    /// The `backup` servers that are not `down`.
    pub backup: Rotation,
}

impl Snapshot {
    /// Builds the order of the servers of a block.
    pub fn new(published: u64, block: Block) -> Self {
        let rotation = |backup: bool| {
            let servers = block.records().iter().map(Record::parameters).enumerate();
            let usable = servers.filter(move |(_, p)| p.backup == backup && !p.down);
            Rotation::new(usable.map(|(server, p)| (server as u32, p.weight)))
        };
        let (primary, backup) = (rotation(false), rotation(true));
        Self { published, block, primary, backup }
    }

    /// The list.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// A server by its number.
    pub fn record(&self, server: u32) -> &Record {
        &self.block.records()[server as usize]
    }

    /// How many servers a request may try.
    pub fn tries(&self) -> usize {
        self.primary.len() + self.backup.len()
    }

    /// "If there is only a single server in a group, max_fails, fail_timeout and slow_start
    /// parameters are ignored": nginx's documentation of `server`.
    pub fn is_single(&self) -> bool {
        self.block.records().len() == 1
    }
}
