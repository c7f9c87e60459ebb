//! Opened files of snapshots, of which only the beginning or the end has been read.

use std::path::Path;

use super::description::SnapshotDescription;
use super::{SnapshotError, SnapshotFormat, SnapshotInfo, jsonl, native};
use crate::base::Base;
use crate::head::Head;
use crate::store::{RowDefinition, StoreError};

/// The description of a snapshot, and access to its rows.
pub(super) struct OpenSnapshot {
    pub(super) about: SnapshotDescription,
    pub(super) definition: RowDefinition,
    head: Head,
    rows: u64,
    format: SnapshotFormat,
    contents: SnapshotContents,
}

enum SnapshotContents {
    Native(Base),
    Jsonl(Box<jsonl::JsonlRowReader>),
}

/// Returns the format of a file by its name. Returns `None` if the file is not a snapshot.
pub(super) fn format_of(path: &Path) -> Option<SnapshotFormat> {
    let extension = path.extension()?.to_str()?;
    [SnapshotFormat::Native, SnapshotFormat::Jsonl].into_iter().find(|format| format.name() == extension)
}

/// Opens a file.
///
/// # Errors
/// When the file cannot be read, is damaged, or has a format that this version does not know.
pub(super) fn open(path: &Path, format: SnapshotFormat) -> Result<OpenSnapshot, StoreError> {
    match format {
        SnapshotFormat::Native => native::open(path),
        SnapshotFormat::Jsonl => jsonl::open(path),
    }
}

impl OpenSnapshot {
    pub(super) fn native(about: SnapshotDescription, definition: RowDefinition, base: Base) -> OpenSnapshot {
        let (head, rows, format) = (base.head(), base.rows(), SnapshotFormat::Native);
        OpenSnapshot { about, definition, head, rows, format, contents: SnapshotContents::Native(base) }
    }

    pub(super) fn jsonl(header: jsonl::JsonlHeader, head: Head, rows: jsonl::JsonlRowReader) -> OpenSnapshot {
        let (definition, contents) = (header.definition(), SnapshotContents::Jsonl(Box::new(rows)));
        let (rows, format) = (header.rows, SnapshotFormat::Jsonl);
        OpenSnapshot { about: header.about, definition, head, rows, format, contents }
    }

    pub(super) fn position(&self) -> laredo_core::Lsn {
        self.head.position
    }

    pub(super) fn info(&self, path: &Path, size_bytes: u64) -> SnapshotInfo {
        SnapshotInfo {
            id: self.about.manifest.instance().snapshot_id(self.head.sequence),
            sequence: self.head.sequence,
            position: self.head.position,
            committed_at: self.head.committed_at,
            mark: self.head.mark,
            taken_at: self.about.taken_at(),
            rows: self.rows,
            size_bytes,
            format: self.format,
            user_meta: self.about.user_meta.clone(),
            path: path.to_owned(),
        }
    }

    /// Returns the rows as frames. Rows of the native format are verified only when they are read.
    ///
    /// # Errors
    /// When the rows cannot be read, or are damaged.
    pub(super) fn into_base(self, path: &Path, temporary: &Path) -> Result<Base, SnapshotError> {
        let base = match self.contents {
            SnapshotContents::Native(base) => base,
            SnapshotContents::Jsonl(rows) => rows.into_base(self.head, temporary)?,
        };
        if base.rows() != self.rows {
            let what = format!("it has {} rows, and states {}", base.rows(), self.rows);
            return Err(StoreError::damaged(path, 0, what).into());
        }
        Ok(base)
    }
}
