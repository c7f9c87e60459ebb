//! A snapshot's file, of which only its ends were read.

use std::path::Path;

use super::about::About;
use super::{SnapshotError, SnapshotFormat, SnapshotInfo, jsonl, native};
use crate::base::Base;
use crate::journal::Head;
use crate::store::{Definition, StoreError};

/// What a file says of itself, and the way to its rows.
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

/// The format of a file, as its name has it; `None` for a file that is no snapshot.
pub(super) fn format_of(path: &Path) -> Option<SnapshotFormat> {
    let extension = path.extension()?.to_str()?;
    [SnapshotFormat::Native, SnapshotFormat::Jsonl].into_iter().find(|format| format.name() == extension)
}

/// Opens a file.
///
/// # Errors
/// When it cannot be read, is not what was written, or is of a format that this version does not know.
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

    /// Its rows as frames; those of the native format are checked only as they are read.
    ///
    /// # Errors
    /// When they cannot be read, or are not what was written.
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
