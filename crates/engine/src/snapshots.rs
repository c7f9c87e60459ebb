//! Snapshots of a table in a folder of their own. The next start, downloads and operators use them.
//!
//! A snapshot is made of the newest base and the later journal, which are immutable. So the server
//! and the writer never wait for it. `docs/snapshot-format.md` describes the files.

mod description;
mod error;
mod folder;
mod jsonl;
mod native;
mod open;
mod retention;
mod schedule;
#[cfg(test)]
mod tests;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, Lsn, Sequence, TableState};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::base::Base;
use crate::durable::DurablePosition;
use crate::journal::Journal;
use crate::source::KnownTable;
use crate::store::RowDefinition;

pub use error::SnapshotError;
pub use folder::SnapshotFolder;
pub(crate) use schedule::write_when_due;

/// The settings of a table's snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// The folder of the snapshots. It must be used for nothing else.
    pub folder: PathBuf,
    /// The format of new snapshots. Snapshots of the other format can still be read.
    pub format: SnapshotFormat,
    /// The interval between snapshots. None is written if nothing was committed since the last one.
    pub interval: Duration,
    /// The maximum number of snapshots kept. The newest one is always kept.
    pub keep_count: u32,
    /// The maximum age of snapshots kept; `None` for no maximum. The newest one is always kept.
    pub age_max: Option<Duration>,
}

/// The format of a snapshot's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotFormat {
    /// The frames that clients receive.
    Native,
    /// Lines of JSON.
    Jsonl,
}

impl SnapshotFormat {
    /// Returns the name of the format in configurations and file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SnapshotFormat::Native => "native",
            SnapshotFormat::Jsonl => "jsonl",
        }
    }
}

/// The properties of a snapshot that are known without reading its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The ID of the snapshot: the journal that issued it, and its sequence.
    pub id: String,
    /// The last journal entry that the snapshot covers.
    pub sequence: Sequence,
    /// The position of the snapshot: every commit up to it is included.
    pub position: Lsn,
    /// The time of the last of these commits.
    pub committed_at: CommitTime,
    /// The newest commit of any of the source's tables up to the position; all zeros if unknown.
    pub mark: CommitMark,
    /// The time when the snapshot was written.
    pub taken_at: CommitTime,
    /// The number of rows.
    pub rows: u64,
    /// The size of the file in bytes.
    pub size_bytes: u64,
    /// The format of the rows.
    pub format: SnapshotFormat,
    /// The metadata that was given when the snapshot was requested: a JSON object.
    pub user_meta: Option<serde_json::Value>,
    /// The path of the file.
    pub path: PathBuf,
}

/// The status of writing snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// The position of the newest snapshot that is known to be valid and on disk. A restart without
    /// a kept journal resumes from it.
    pub durable: DurablePosition,
    /// The number of snapshots written since the start.
    pub writes: u64,
    /// The number of failures since the start: of writing, reading or removing a snapshot.
    pub errors: u64,
    /// The error of the last attempt to write a snapshot; `None` if it succeeded.
    pub error: Option<String>,
    /// The time when the next snapshot is due.
    pub next_at: Option<CommitTime>,
}

/// A table recovered from a snapshot.
pub(crate) struct RecoveredSnapshot {
    pub(crate) info: SnapshotInfo,
    pub(crate) rows: TableState,
    pub(crate) definition: RowDefinition,
    /// The first position from which on the table did not change until the snapshot's position.
    pub(crate) unchanged_since: Lsn,
    /// True if PostgreSQL has not restarted since.
    pub(crate) is_of_same_server: bool,
}

impl RecoveredSnapshot {
    /// Returns the recovered state for the source, which resumes from it.
    pub(crate) fn to_known_table(&self) -> KnownTable {
        let (position, mark) = (self.info.position, self.info.mark);
        let (definition, is_of_same_server) = (self.definition.source.clone(), self.is_of_same_server);
        KnownTable { position, mark, definition, is_of_same_server }
    }
}

impl SnapshotFolder {
    /// Writes a snapshot of everything that is visible in the table's journal.
    ///
    /// `user_meta` is stored with it. Without it, the metadata of an earlier snapshot of the same
    /// entries is used.
    ///
    /// # Errors
    /// When the snapshot cannot be written. Other snapshots are not affected.
    pub async fn take_snapshot(
        self: &Arc<Self>,
        journal: Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        self.change_folder(move |snapshots| snapshots.write(&journal, user_meta)).await
    }

    /// Returns the rows of a snapshot, to be read frame by frame. They are verified when they are
    /// read.
    ///
    /// # Errors
    /// When there is no such snapshot, or it cannot be read, or is damaged.
    pub async fn fetch(self: &Arc<Self>, id: String) -> Result<Arc<Base>, SnapshotError> {
        let snapshots = self.clone();
        blocking(move || snapshots.base(&id)).await
    }

    /// Reads a whole snapshot to verify it, and returns its properties.
    ///
    /// # Errors
    /// When there is no such snapshot, or it cannot be read, or is damaged.
    pub async fn verify(self: &Arc<Self>, id: String) -> Result<SnapshotInfo, SnapshotError> {
        let snapshots = self.clone();
        blocking(move || snapshots.read_whole(&id)).await
    }

    /// Returns a snapshot with all its rows, verified.
    pub(crate) async fn recover(self: &Arc<Self>, id: String) -> Result<RecoveredSnapshot, SnapshotError> {
        let snapshots = self.clone();
        blocking(move || snapshots.recover_now(&id)).await
    }

    /// Removes a snapshot. The newest one cannot be removed, because a restart resumes from it.
    ///
    /// # Errors
    /// When there is no such snapshot, when it is the newest, or when its file cannot be removed.
    pub async fn delete(self: &Arc<Self>, id: String) -> Result<(), SnapshotError> {
        self.change_folder(move |snapshots| snapshots.remove(&id)).await
    }

    /// Removes all snapshots except the newest `keep`, but never the newest one. Returns the number
    /// of removed snapshots.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn prune(self: &Arc<Self>, keep: u32) -> Result<usize, SnapshotError> {
        self.change_folder(move |snapshots| snapshots.remove_beyond(keep, None)).await
    }

    /// Changes the contents of the folder, one change at a time. A change that has begun is
    /// completed even if the caller is dropped.
    async fn change_folder<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&SnapshotFolder) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let (snapshots, changing) = (self.clone(), self.changing.clone().lock_owned().await);
        blocking(move || {
            let _changing = changing;
            work(&snapshots)
        })
        .await
    }

    /// Returns a receiver that is notified of every change of the status.
    pub(crate) fn watch(&self) -> watch::Receiver<SnapshotStatus> {
        self.status.subscribe()
    }
}

/// Runs `work` on a thread that may block. It is completed even if the caller is dropped.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    spawn_blocking(work).await.map_err(|panic| SnapshotError::Panicked(panic.to_string()))?
}
