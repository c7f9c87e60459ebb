use laredo_core::{Lsn, ProjectError};

use crate::base::BaseError;
use crate::store::StoreError;

/// Why something could not be done with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none of this id.
    #[error("there is no snapshot `{0}`")]
    Unknown(String),
    /// It is the newest one.
    #[error("`{0}` is the newest snapshot, from which a restart goes on; it can be removed when there is a newer one")]
    Newest(String),
    /// The folder, or a file in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it is made of, or what it holds.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// A row that JSON has no words for.
    #[error("a row cannot be written as JSON: {0}")]
    Project(#[from] ProjectError),
    /// The table is served with rows that are at least as new.
    #[error("the table is served as of {0} already, and its rows never go back in time; to copy it anew, reload it")]
    Served(Lsn),
    /// The table has failed, and nothing of it is served.
    #[error("the table cannot be followed, and is not served: {0}")]
    Failed(String),
    /// The journal's rows are of a history that the database has abandoned.
    #[error("the database's history has forked, and the table is being copied; ask again once it is")]
    Forked,
    /// The table's task has ended.
    #[error("the server is stopping")]
    Stopping,
    /// A fault of laredo.
    #[error("the task failed ({0}); report this")]
    Panicked(String),
}

impl SnapshotError {
    /// Whether it is the file that is at fault: it was damaged, or is not the table's.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            SnapshotError::Store(error) => !matches!(error, StoreError::Io { .. }),
            SnapshotError::Base(BaseError::Batch(_) | BaseError::Schema(_)) => true,
            SnapshotError::Base(BaseError::Io(error)) => error.get_ref().is_some_and(|inner| inner.is::<StoreError>()),
            _ => false,
        }
    }
}
