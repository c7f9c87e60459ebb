//! The errors that stop a table.

use std::io;

use laredo_core::StateError;

use super::apply::ApplyError;
use crate::base::BaseError;
use crate::pipeline::PipelineError;
use crate::source::SourceError;
use crate::store::StoreError;

/// The reason why a table can no longer be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("copying the table: {0}")]
    Copy(#[from] SourceError),
    #[error("{0}")]
    Source(String),
}

impl TableError {
    /// Returns true if the same may succeed later without an operator. For example, a full disk
    /// gets room, or a server accepts sessions again.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            TableError::Io(error) | TableError::Base(BaseError::Io(error)) => {
                error.kind() != io::ErrorKind::InvalidData
            }
            TableError::Base(BaseError::Store(error)) | TableError::Store(error) => error.may_pass(),
            TableError::Copy(SourceError::Transient(_) | SourceError::Held(_)) => true,
            TableError::Base(BaseError::Batch(_) | BaseError::Schema(_) | BaseError::KeyChanged)
            | TableError::Pipeline(_)
            | TableError::State(_)
            | TableError::Copy(SourceError::Definite(_))
            | TableError::Source(_) => false,
        }
    }
}

impl From<ApplyError> for TableError {
    fn from(error: ApplyError) -> TableError {
        match error {
            ApplyError::Io(error) => TableError::Io(error),
            ApplyError::Diverged(error) => TableError::State(error),
            ApplyError::Incomplete => TableError::Source(error.to_string()),
        }
    }
}
