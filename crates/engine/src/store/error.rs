use std::io;
use std::path::{Path, PathBuf};

use laredo_core::TableName;

use super::format::VERSION;

/// Why a table's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing.
    #[error("{what} {}: {error}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Somebody else has it.
    #[error(
        "{} is in use by another laredo-server ({holder}); stop that one, or give each its own folder (store_config.path)",
        path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that has it, as it has written into the lock.
        holder: String,
    },
    /// A newer version wrote it.
    #[error(
        "{} is of format {found}, and this version knows format {VERSION}; start the version that wrote it, or move the folder away to copy \
         the table anew", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It is of another table.
    #[error("{} holds what was kept of table {found}, not of {wanted}; move it away, or name another folder", path.display())]
    Table {
        /// The folder or file.
        path: PathBuf,
        /// Whose it is.
        found: Box<TableName>,
        /// Whose it should be.
        wanted: Box<TableName>,
    },
    /// It is of another database, or of a past that the database does not have any more.
    #[error("{} is of another history: {why}", path.display())]
    History {
        /// The folder or file.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// Another journal has taken the place of the one that was written for.
    #[error("{} belongs to a newer journal: the database's history has forked", .0.display())]
    Replaced(PathBuf),
    /// It is not what was written.
    #[error("{} is damaged at byte {at}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong there.
        what: String,
    },
    /// The disk is full, and the queue before it too. Changes that are not on disk are not acknowledged.
    #[error("the journal cannot be kept ({0}); make room on its disk: the table goes on by itself then")]
    Stalled(String),
    /// A write or an fsync has failed. What was served since the last good one is not on disk, and PostgreSQL is asked to keep it.
    #[error("the journal cannot be kept ({0}); see to the disk and restart laredo: it goes on where the journal ends")]
    Failed(String),
}

impl StoreError {
    /// Returns true if the same may succeed later without an operator.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            StoreError::Io { error, .. } => error.kind() != io::ErrorKind::InvalidData,
            StoreError::Stalled(_) => true,
            StoreError::Locked { .. }
            | StoreError::Version { .. }
            | StoreError::Table { .. }
            | StoreError::History { .. }
            | StoreError::Replaced(_)
            | StoreError::Damaged { .. }
            | StoreError::Failed(_) => false,
        }
    }

    /// Whether the table can only begin anew, and what is in the folder is of no use but for looking at it.
    pub(super) fn is_of_no_use(&self) -> bool {
        matches!(self, StoreError::Damaged { .. } | StoreError::History { .. })
    }

    /// Returns the error of the disk, if it was one.
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

/// What reading a file of a store has failed with: damage, as the reader found it, or the disk.
pub(crate) fn read_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |error| match error.downcast::<StoreError>() {
        Ok(error) => error,
        Err(error) => StoreError::Io { what: "reading", path: path.to_owned(), error },
    }
}

/// Says what was being done to which file.
pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |error| StoreError::Io { what, path: path.to_owned(), error }
}
