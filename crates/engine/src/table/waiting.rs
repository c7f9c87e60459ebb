//! Transactions that wait for a copy.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::TableCommit;
use crate::spool::SharedFile;

/// Together they stay in memory up to this many bytes.
const MEMORY_BYTES: u64 = 32 * 1024 * 1024;

/// Transactions in the order in which they came; what is beyond a bound of memory waits in a file.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    commits: VecDeque<TableCommit>,
    bytes: u64,
    changes: u64,
    memory: u64,
    file: Option<SharedFile>,
}

impl Waiting {
    /// Adds one; not where a file has to be written and cannot be.
    pub(super) fn push(&mut self, mut commit: TableCommit, folder: &Path) -> io::Result<()> {
        let memory = commit.spool.memory_bytes() as u64;
        if memory == 0 || self.memory + memory > MEMORY_BYTES {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(SharedFile::new(folder)?),
            };
            commit.spool.move_to(file)?;
        }
        self.push_back(commit);
        Ok(())
    }

    /// Takes the first one.
    pub(super) fn pop_front(&mut self) -> Option<TableCommit> {
        let commit = self.commits.pop_front()?;
        self.bytes -= cost(&commit);
        self.changes -= commit.spool.changes();
        self.memory -= commit.spool.memory_bytes() as u64;
        Some(commit)
    }

    /// Adds one that waited before, where it waited.
    pub(super) fn push_back(&mut self, commit: TableCommit) {
        self.count(&commit);
        self.commits.push_back(commit);
    }

    /// Puts back what [`Waiting::pop_front`] took.
    pub(super) fn push_front(&mut self, commit: TableCommit) {
        self.count(&commit);
        self.commits.push_front(commit);
    }

    /// Takes all.
    pub(super) fn take(&mut self) -> VecDeque<TableCommit> {
        std::mem::take(self).commits
    }

    fn count(&mut self, commit: &TableCommit) {
        self.bytes += cost(commit);
        self.changes += commit.spool.changes();
        self.memory += commit.spool.memory_bytes() as u64;
    }

    /// Their changes.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// What they take, wherever they are.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a transaction takes, wherever its changes are: millions of tiny ones are not free.
fn cost(commit: &TableCommit) -> u64 {
    commit.spool.bytes() + size_of::<TableCommit>() as u64
}
