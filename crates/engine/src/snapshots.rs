//! Snapshots of a table in a folder of their own: for the next start, for those who fetch them, and for operators.
//!
//! Each is made of the newest base and the journal since, which nobody writes to: serving and the writer never wait for it.
//! `docs/snapshot-format.md` draws the files.

mod about;
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
use crate::durable::Durable;
use crate::journal::Journal;
use crate::source::KnownTable;
use crate::store::Definition;

pub use error::SnapshotError;
pub use folder::Snapshots;
pub(crate) use schedule::write_when_due;

/// Where a table's snapshots are, how often one is written, and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOptions {
    /// A folder for them alone.
    pub folder: PathBuf,
    /// The format of new ones. Those of the other format are read all the same.
    pub format: SnapshotFormat,
    /// How often one is written, where anything has been committed since the last one.
    pub interval: Duration,
    /// The most that are kept.
    pub keep_count: u32,
    /// How long they are kept; `None` for as long as there are no more than that. The newest one always is.
    pub age_max: Option<Duration>,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotFormat {
    /// As the frames that clients are sent.
    Native,
    /// As lines of JSON.
    Jsonl,
}

impl SnapshotFormat {
    /// Its name, in configurations and in the names of files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SnapshotFormat::Native => "native",
            SnapshotFormat::Jsonl => "jsonl",
        }
    }
}

/// What is known of a snapshot without reading its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Names it: the journal that issued it, and its sequence.
    pub id: String,
    /// The last journal entry that it covers.
    pub sequence: Sequence,
    /// Every commit up to here is in it.
    pub position: Lsn,
    /// When the last of them committed.
    pub committed_at: CommitTime,
    /// The newest commit of any of the source's tables up to there; all zeros where it is unknown.
    pub mark: CommitMark,
    /// When it was written.
    pub taken_at: CommitTime,
    /// Its rows.
    pub rows: u64,
    /// Bytes of its file.
    pub size_bytes: u64,
    /// How its rows are written.
    pub format: SnapshotFormat,
    /// What whoever asked for it has noted: a JSON object.
    pub user_meta: Option<serde_json::Value>,
    /// Its file.
    pub path: PathBuf,
}

/// How the writing of snapshots goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// The position of the newest one that is known to be whole and on disk: where a restart without a kept journal goes on from.
    pub durable: Durable,
    /// Written since the start.
    pub writes: u64,
    /// Failures since the start: of writing one, of reading one, or of removing an old one.
    pub errors: u64,
    /// Why the last one was not written; `None` when the last one was.
    pub error: Option<String>,
    /// When the next one is due.
    pub next_at: Option<CommitTime>,
}

/// A table as a snapshot has it.
pub(crate) struct Recovered {
    pub(crate) info: SnapshotInfo,
    pub(crate) rows: TableState,
    pub(crate) definition: Definition,
    /// The table is the same at every position from this one to the snapshot's.
    pub(crate) unchanged_since: Lsn,
    /// True where PostgreSQL was not restarted since.
    pub(crate) is_of_same_server: bool,
}

impl Recovered {
    /// What the source is told of it.
    pub(crate) fn known(&self) -> KnownTable {
        let (position, mark) = (self.info.position, self.info.mark);
        let (definition, is_of_same_server) = (self.definition.source.clone(), self.is_of_same_server);
        KnownTable { position, mark, definition, is_of_same_server }
    }
}

impl Snapshots {
    /// Writes one now, of everything that is visible in the table's journal. `user_meta` is kept with it; without one, that of an
    /// earlier snapshot of the same entries is.
    ///
    /// # Errors
    /// When it cannot be written. Nothing else is harmed.
    pub async fn take(
        self: &Arc<Self>,
        journal: Journal,
        user_meta: Option<serde_json::Value>,
    ) -> Result<SnapshotInfo, SnapshotError> {
        self.change(move |snapshots| snapshots.write(&journal, user_meta)).await
    }

    /// The rows of one, to be read frame by frame; they are checked as they are read.
    ///
    /// # Errors
    /// When there is no such snapshot, or it cannot be read, or is not what was written.
    pub async fn fetch(self: &Arc<Self>, id: String) -> Result<Arc<Base>, SnapshotError> {
        let snapshots = self.clone();
        blocking(move || snapshots.base(&id)).await
    }

    /// Reads a whole snapshot, and tells what it is if it is what was written.
    ///
    /// # Errors
    /// When there is no such snapshot, or it cannot be read, or is not what was written.
    pub async fn verify(self: &Arc<Self>, id: String) -> Result<SnapshotInfo, SnapshotError> {
        let snapshots = self.clone();
        blocking(move || snapshots.read_whole(&id)).await
    }

    /// One with all its rows, checked.
    pub(crate) async fn recover(self: &Arc<Self>, id: String) -> Result<Recovered, SnapshotError> {
        let snapshots = self.clone();
        blocking(move || snapshots.recover_now(&id)).await
    }

    /// Removes one. The newest cannot be removed: a restart goes on from it.
    ///
    /// # Errors
    /// When there is no such snapshot, when it is the newest, or when its file cannot be removed.
    pub async fn delete(self: &Arc<Self>, id: String) -> Result<(), SnapshotError> {
        self.change(move |snapshots| snapshots.remove(&id)).await
    }

    /// Removes all but the newest `keep` (and at least one); tells how many those were.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn prune(self: &Arc<Self>, keep: u32) -> Result<usize, SnapshotError> {
        self.change(move |snapshots| snapshots.remove_beyond(keep, None)).await
    }

    /// Changes what is in the folder, one change after another. One that has begun is completed, though nobody waits for it any more.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Snapshots) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let (snapshots, changing) = (self.clone(), self.changing.clone().lock_owned().await);
        blocking(move || {
            let _changing = changing;
            work(&snapshots)
        })
        .await
    }

    /// Tells of every change of its status.
    pub(crate) fn watch(&self) -> watch::Receiver<SnapshotStatus> {
        self.status.subscribe()
    }
}

/// On a thread that may block, to its end.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    spawn_blocking(work).await.map_err(|panic| SnapshotError::Panicked(panic.to_string()))?
}
