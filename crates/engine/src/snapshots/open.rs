//! Opened files of snapshots, of which only the beginning or the end has been read.

use std::path::Path;

use super::about::About;
use super::{SnapshotError, SnapshotFormat, SnapshotInfo, jsonl, native};
use crate::base::Base;
use crate::journal::Head;
use crate::store::{Definition, StoreError};

/// The description of a snapshot, and access to its rows.
pub(super) struct Opened {
    pub(super) about: About,
    pub(super) definition: Definition,
    head: Head,
    rows: u64,
    format: SnapshotFormat,
    contents: Contents,
}

enum Contents {
    Native(Base),
    Jsonl(Box<jsonl::Rows>),
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
pub(super) fn open(path: &Path, format: SnapshotFormat) -> Result<Opened, StoreError> {
    match format {
        SnapshotFormat::Native => native::open(path),
        SnapshotFormat::Jsonl => jsonl::open(path),
    }
}

impl Opened {
    pub(super) fn native(about: About, definition: Definition, base: Base) -> Opened {
        let (head, rows, format) = (base.head(), base.rows(), SnapshotFormat::Native);
        Opened { about, definition, head, rows, format, contents: Contents::Native(base) }
    }

    pub(super) fn jsonl(header: jsonl::Header, head: Head, rows: jsonl::Rows) -> Opened {
        let (definition, contents) = (header.definition(), Contents::Jsonl(Box::new(rows)));
        let (rows, format) = (header.rows, SnapshotFormat::Jsonl);
        Opened { about: header.about, definition, head, rows, format, contents }
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
            Contents::Native(base) => base,
            Contents::Jsonl(rows) => rows.into_base(self.head, temporary)?,
        };
        if base.rows() != self.rows {
            let what = format!("it has {} rows and says it has {}", base.rows(), self.rows);
            return Err(StoreError::damaged(path, 0, what).into());
        }
        Ok(base)
    }
}
