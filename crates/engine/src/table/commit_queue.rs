//! Transactions that wait for a copy.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use super::TableCommit;
use crate::spool::SharedSpoolFile;

/// The number of bytes that the transactions may take in memory together.
const MEMORY_BYTES: u64 = 32 * 1024 * 1024;

/// Transactions in the order in which they came. Those beyond a memory limit wait in a file.
#[derive(Debug, Default)]
pub(super) struct CommitQueue {
    commits: VecDeque<TableCommit>,
    bytes: u64,
    changes: u64,
    memory: u64,
    file: Option<SharedSpoolFile>,
}

impl CommitQueue {
    /// Adds a transaction. Returns an error, without adding it, if a file is needed and cannot be
    /// written.
    pub(super) fn push(&mut self, mut commit: TableCommit, folder: &Path) -> io::Result<()> {
        let memory = commit.spool.memory_bytes() as u64;
        if memory == 0 || self.memory + memory > MEMORY_BYTES {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(SharedSpoolFile::new(folder)?),
            };
            commit.spool.move_to(file)?;
        }
        self.push_back(commit);
        Ok(())
    }

    /// Removes and returns the first transaction.
    pub(super) fn pop_front(&mut self) -> Option<TableCommit> {
        let commit = self.commits.pop_front()?;
        self.bytes -= cost(&commit);
        self.changes -= commit.spool.changes();
        self.memory -= commit.spool.memory_bytes() as u64;
        Some(commit)
    }

    /// Adds a transaction that has waited before. Its changes stay in memory or in their file.
    pub(super) fn push_back(&mut self, commit: TableCommit) {
        self.count(&commit);
        self.commits.push_back(commit);
    }

    /// Puts back a transaction that [`CommitQueue::pop_front`] has removed.
    pub(super) fn push_front(&mut self, commit: TableCommit) {
        self.count(&commit);
        self.commits.push_front(commit);
    }

    /// Removes and returns all transactions.
    pub(super) fn take_all(&mut self) -> VecDeque<TableCommit> {
        std::mem::take(self).commits
    }

    fn count(&mut self, commit: &TableCommit) {
        self.bytes += cost(commit);
        self.changes += commit.spool.changes();
        self.memory += commit.spool.memory_bytes() as u64;
    }

    /// Returns the number of changes in all transactions.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Returns the number of bytes of all transactions, in memory and in files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Returns the number of bytes of a transaction, in memory and in its file. Its fixed size counts,
/// too, because millions of tiny transactions are not free.
fn cost(commit: &TableCommit) -> u64 {
    commit.spool.bytes() + size_of::<TableCommit>() as u64
}
