use laredo_core::Lsn;
use laredo_values::ProjectError;

use crate::base::BaseError;
use crate::store::StoreError;

/// An error of an operation on snapshots.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A snapshot ID that does not exist.
    #[error("there is no snapshot `{0}`")]
    Unknown(String),
    /// An attempt to remove the newest snapshot.
    #[error(
        "snapshot `{0}` cannot be removed: it is the newest one, and a restart continues from it; remove it once there is a newer one"
    )]
    Newest(String),
    /// An error of the folder, or of a file in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An error of merging or reading the rows of a snapshot.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// A row that cannot be written as JSON.
    #[error("a row cannot be written as JSON: {0}")]
    Project(#[from] ProjectError),
    /// A table that is served already, with rows that are at least as new.
    #[error("the table is already served as of {0}, and its rows never go back in time; reload it to copy it again")]
    Served(Lsn),
    /// A table that has failed and is not served.
    #[error("the table cannot be followed, and is not served: {0}")]
    Failed(String),
    /// A journal whose rows belong to a history that the database has abandoned.
    #[error("the database's history has forked, and the table is being copied; try again once it is copied")]
    Forked,
    /// A table whose task has ended.
    #[error("the server is stopping")]
    Stopping,
    /// A panic in a task, which is a bug in laredo.
    #[error("the task failed ({0}); report this")]
    Panicked(String),
}

impl SnapshotError {
    /// Returns true if the file is at fault: it is damaged, belongs to another table or history, or
    /// has an unknown format.
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
