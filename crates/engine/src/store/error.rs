use std::io;
use std::path::{Path, PathBuf};

use laredo_core::TableName;

use super::format::VERSION;
use super::queue;

/// An error that makes a table's folder unusable.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An error of reading or writing.
    #[error("{what} {}: {error}", path.display())]
    Io {
        /// The operation that failed.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// A lock that another server holds.
    #[error(
        "{} is in use by another laredo-server ({holder}); stop that one, or give each its own folder (store_config.path)",
        path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that holds the lock, as it wrote into the lock file.
        holder: String,
    },
    /// A file of another format, which a newer version wrote.
    #[error(
        "{} is of format {found}, and this version knows format {VERSION}; start the version that wrote it, or move the folder away and run \
         `laredo reload`, which copies the table again", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u32,
    },
    /// Contents of another table.
    #[error("{} holds the data of table {found}, not of {wanted}; move it away and run `laredo reload`, or name another folder (store_config.path) and restart", path.display())]
    Table {
        /// The folder or file.
        path: PathBuf,
        /// The table that the contents belong to.
        found: Box<TableName>,
        /// The table that was expected.
        wanted: Box<TableName>,
    },
    /// Contents of another database, or of a history that the database no longer has.
    #[error("{} is of another history: {why}", path.display())]
    History {
        /// The folder or file.
        path: PathBuf,
        /// The difference.
        why: String,
    },
    /// A write for a journal that another one has replaced.
    #[error("{} belongs to a newer journal: the database's history has forked", .0.display())]
    Replaced(PathBuf),
    /// Contents that are not what was written.
    #[error("{} is damaged at byte {at}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The offset of the damage in bytes.
        at: u64,
        /// The problem at that offset.
        what: String,
    },
    /// A full disk, with a full queue before it. Changes that are not on disk are not acknowledged.
    #[error("the journal cannot be written ({0}); make room on its disk, and the table continues by itself")]
    Stalled(String),
    /// A failed write or fsync. Entries that were served since the last successful one are not on
    /// disk, and PostgreSQL keeps them.
    #[error(
        "the journal cannot be written ({0}); fix the disk and restart laredo, which continues where the journal ends"
    )]
    Failed(String),
}

impl StoreError {
    /// Returns true if the operation may succeed later without an operator.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            StoreError::Io { error, .. } => error.kind() != io::ErrorKind::InvalidData,
            // The process that holds the lock may be about to end.
            StoreError::Stalled(_) | StoreError::Locked { .. } => true,
            StoreError::Version { .. }
            | StoreError::Table { .. }
            | StoreError::History { .. }
            | StoreError::Replaced(_)
            | StoreError::Damaged { .. }
            | StoreError::Failed(_) => false,
        }
    }

    /// Returns true if a resource of the machine is exhausted: disk space, a quota, or descriptors.
    pub(crate) fn is_exhaustion(&self) -> bool {
        matches!(self, StoreError::Io { error, .. } if queue::is_exhaustion(error))
    }

    /// Returns true if the table can only be copied again, and the contents are kept only for
    /// inspection.
    pub(crate) fn is_unusable(&self) -> bool {
        matches!(self, StoreError::Damaged { .. } | StoreError::History { .. })
    }

    /// Returns the I/O error, or wraps another error.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            StoreError::Io { error, .. } => error,
            error => io::Error::other(error),
        }
    }

    pub(crate) fn damaged(path: &Path, at: u64, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: path.to_owned(), at, what: what.into() }
    }
}

/// Converts an error of reading a file: into the damage that the reader found, or into an I/O
/// error.
pub(crate) fn read_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |error| match error.downcast::<StoreError>() {
        Ok(error) => error,
        Err(error) => StoreError::Io { what: "reading", path: path.to_owned(), error },
    }
}

/// Adds the operation and the file to an I/O error.
pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |error| StoreError::Io { what, path: path.to_owned(), error }
}
