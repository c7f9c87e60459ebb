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

use std::path::PathBuf;
use std::time::Duration;

use laredo_core::{CommitMark, CommitTime, DurationHistogram, Lsn, Sequence, TableState};
use tokio::task::spawn_blocking;
use tracing::Span;

use crate::durable::DurablePosition;
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
    /// The durations of those writes, each with its fsync.
    pub write_times: DurationHistogram,
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

/// Runs `work` inside `span` on a thread that may block. It is completed even if the caller is
/// dropped.
async fn blocking<T: Send + 'static>(
    span: Span,
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    spawn_blocking(move || span.in_scope(work)).await.map_err(|panic| SnapshotError::Panicked(panic.to_string()))?
}
