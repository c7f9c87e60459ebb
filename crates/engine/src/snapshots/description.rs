//! The description of a snapshot as readable text, which both formats contain.

use std::path::Path;

use laredo_core::{CommitTime, Lsn};
use serde::{Deserialize, Serialize};

use crate::store::{JournalManifest, StoreError, check_format};

/// The properties of a snapshot other than its position and its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SnapshotDescription {
    /// The journal that issued it, the table and the source.
    #[serde(flatten)]
    pub(super) manifest: JournalManifest,
    /// The time when it was written, in microseconds since 2000-01-01.
    taken_at: i64,
    /// The first position from which on the table did not change until the snapshot's position.
    /// Missing in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unchanged_since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user_meta: Option<serde_json::Value>,
}

impl SnapshotDescription {
    pub(super) fn new(
        manifest: JournalManifest,
        taken_at: CommitTime,
        unchanged_since: Lsn,
        user_meta: Option<serde_json::Value>,
    ) -> SnapshotDescription {
        SnapshotDescription {
            manifest,
            taken_at: taken_at.0,
            unchanged_since: Some(unchanged_since.to_string()),
            user_meta,
        }
    }

    /// Returns the first position from which on the table is the same as in the snapshot.
    pub(super) fn unchanged_since(&self) -> Option<Lsn> {
        self.unchanged_since.as_ref()?.parse().ok()
    }

    pub(super) fn taken_at(&self) -> CommitTime {
        CommitTime(self.taken_at)
    }
}

/// Parses the description in a file.
///
/// # Errors
/// When it has a format that this version does not know, or is invalid.
pub(super) fn parse<T: serde::de::DeserializeOwned>(text: &[u8], path: &Path) -> Result<T, StoreError> {
    let damaged =
        |error: serde_json::Error| StoreError::damaged(path, 0, format!("its description is invalid: {error}"));
    // The format is checked first: another one may have other keys.
    let value: serde_json::Value = serde_json::from_slice(text).map_err(damaged)?;
    check_format(&value, path)?;
    serde_json::from_value(value).map_err(damaged)
}
