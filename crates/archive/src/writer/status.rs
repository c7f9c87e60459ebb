//! How a writer is doing.

use std::time::Instant;

use laredo_core::{Checksum, Lsn};

use crate::manifest::Kind;
use crate::rebase::Progress;

/// How the archive of a table is doing.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// What the writer is at.
    pub phase: Phase,
    /// Everything up to here has come, and is in the archive or in the buffer.
    pub position: Option<Lsn>,
    /// The state that the archive rebuilds.
    pub head_position: Option<Lsn>,
    /// The newest snapshot's epoch; 0 before the first.
    pub epoch: u64,
    /// Keys that were changed since the head.
    pub buffer_depth: u64,
    /// How far the archive is since its newest base.
    pub progress: Progress,
    /// The newest base that is in the archive.
    pub last_snapshot: Option<Written>,
    /// The newest diff that is in the archive.
    pub last_diff: Option<Written>,
    /// What went wrong last, if anything ever did.
    pub last_error: Option<String>,
    /// When that was. What is an hour old is over, most likely.
    pub last_error_at: Option<Instant>,
    /// When the writer was last known to have all that the source had.
    pub current_at: Option<Instant>,
    /// Bytes of the newest manifest of the first destination; 0 before this writer has written one.
    pub manifest_bytes: u64,
    /// Times that the manifest was found to be another one than expected.
    pub conflicts: u64,
    /// Values that were written in hex, because they do not have the form of their type. An artifact counts once.
    pub hex_cells: u64,
    /// The destinations, in their order.
    pub destinations: Vec<DestinationStatus>,
}

/// What a writer is at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// It has no rows yet.
    #[default]
    Waiting,
    /// It has rows, and collects what happens to them.
    Running,
    /// It writes what it has, and ends.
    Stopping,
    /// It has ended.
    Stopped,
}

/// How one destination is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationStatus {
    /// Its name.
    pub name: String,
    /// Objects that were written there since the start.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Whether it lacks something that the first one has.
    pub is_behind: bool,
}

/// An artifact that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What it is.
    pub kind: Kind,
    /// Its epoch.
    pub epoch: u64,
    /// Where a diff begins.
    pub from_position: Option<Lsn>,
    /// The state that it leads to.
    pub to_position: Lsn,
    /// Rows of a snapshot, changes of a diff.
    pub count: u64,
    /// Bytes of its largest object.
    pub bytes: u64,
    /// The checksum of the state that it leads to, as the manifest has it.
    pub checksum: Checksum,
    /// When: RFC 3339, UTC.
    pub created_at: String,
}
