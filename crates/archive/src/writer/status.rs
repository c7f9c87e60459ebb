//! The status of a writer.

use std::sync::Arc;
use std::time::Instant;

use laredo_core::{Checksum, DurationHistogram, Lsn};
use parking_lot::Mutex;

use crate::layout::ArtifactKind;
use crate::rebase::ChainProgress;

/// The status of the archive of a table.
#[derive(Clone, Debug, Default)]
pub struct WriterStatus {
    /// The phase of the writer.
    pub phase: WriterPhase,
    /// The position up to which all changes are in the archive or in the buffer.
    pub position: Option<Lsn>,
    /// The position of the state that the archive rebuilds.
    pub head_position: Option<Lsn>,
    /// The newest snapshot's epoch; 0 before the first.
    pub epoch: u64,
    /// The number of keys that changed since the head.
    pub buffer_depth: u64,
    /// The progress of the archive since its newest snapshot.
    pub progress: ChainProgress,
    /// The newest snapshot that this writer has written.
    pub last_snapshot: Option<WrittenArtifact>,
    /// The newest diff that this writer has written.
    pub last_diff: Option<WrittenArtifact>,
    /// The durations of writing snapshots: encoding, storing at the destinations, and publishing in
    /// the manifest.
    pub snapshot_times: DurationHistogram,
    /// The durations of writing diffs, in the same way.
    pub diff_times: DurationHistogram,
    /// The newest error, if there ever was one.
    pub last_error: Option<String>,
    /// The time of that error. An error of an hour ago has most likely been resolved.
    pub last_error_at: Option<Instant>,
    /// The time when the writer was last known to have everything that the source had.
    pub current_at: Option<Instant>,
    /// The size in bytes of the newest manifest at the first destination; 0 before this writer has
    /// written one.
    pub manifest_bytes: u64,
    /// The number of times that the manifest was not the expected one.
    pub conflicts: u64,
    /// The number of values written in hex because they do not have the form of their type. A value
    /// counts once for each artifact, whatever the number of formats.
    pub hex_cells: u64,
    /// The destinations, in their order.
    pub destinations: Vec<DestinationStatus>,
}

/// The place where a writer keeps its status. Clones share the status, so a program can read it
/// before [`ArchiveWriter::open`](crate::ArchiveWriter::open) returns.
#[derive(Clone, Debug, Default)]
pub struct SharedWriterStatus(Arc<Mutex<WriterStatus>>);

impl SharedWriterStatus {
    /// Returns the current status.
    #[must_use]
    pub fn current(&self) -> WriterStatus {
        self.0.lock().clone()
    }

    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut WriterStatus) -> T) -> T {
        change(&mut self.0.lock())
    }
}

/// The phases of a writer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriterPhase {
    /// The writer has no rows yet.
    #[default]
    Waiting,
    /// The writer has rows and collects their changes.
    Running,
    /// The writer writes the collected changes, and then ends.
    Stopping,
    /// The writer has ended.
    Stopped,
}

/// The status of one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationStatus {
    /// The destination's name.
    pub name: String,
    /// The number of objects written there since the start.
    pub objects: u64,
    /// The bytes of those objects.
    pub bytes: u64,
    /// The number of calls that failed.
    pub errors: u64,
    /// True if the destination lacks something that the first one has.
    pub is_behind: bool,
}

/// An artifact that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenArtifact {
    /// The kind of the artifact.
    pub kind: ArtifactKind,
    /// The artifact's epoch.
    pub epoch: u64,
    /// The position at which a diff begins; `None` for a snapshot.
    pub from_position: Option<Lsn>,
    /// The position of the state that the artifact leads to.
    pub to_position: Lsn,
    /// The number of rows of a snapshot, or of changes of a diff.
    pub count: u64,
    /// The size in bytes of the artifact's largest object.
    pub bytes: u64,
    /// The checksum that the manifest has for the state that the artifact leads to.
    pub checksum: Checksum,
    /// The time when the artifact was written: RFC 3339, UTC.
    pub created_at: String,
}
