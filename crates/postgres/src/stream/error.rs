//! The errors that end the stream of a connection.

use std::time::Duration;

use laredo_core::Lsn;
use laredo_engine::source::SourceError;

use crate::assemble::PgoutputAssemblyError;
use crate::transport::TransportError;

#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Assemble(#[from] PgoutputAssemblyError),
    /// An error that only an operator can fix.
    #[error("{0}")]
    Definite(String),
    /// The database no longer contains what was sent.
    #[error("{what}")]
    Forked {
        /// A description of the event.
        what: String,
        /// The newest position that both histories are known to share.
        common: Lsn,
    },
    /// The server is in recovery, so the end of its WAL does not count yet.
    #[error("the server is a standby, or still in recovery")]
    Recovering,
    #[error("PostgreSQL ended the stream, because it shuts down")]
    Ended,
    #[error("PostgreSQL has sent nothing for {0:?}")]
    Silent(Duration),
    /// Another process streams from the slot.
    #[error("{0}")]
    Held(String),
    /// PostgreSQL has not noticed yet that the last connection has ended.
    #[error("process {0} of PostgreSQL still serves the connection before this one")]
    Lingering(i32),
    /// The consumer accepted nothing for too long, or a definition could not be checked. The
    /// connection is closed, so that PostgreSQL can shut down.
    #[error("no event was accepted for {0:?}")]
    NoRoom(Duration),
    /// A check did not find the publication. PostgreSQL 18 and newer leave out its changes without
    /// an error, so the next connection looks for it.
    #[error("the publication is gone")]
    PublicationLost,
    /// An operator reset the source. The next connection creates the slot again.
    #[error("an operator reset the source")]
    Reset,
    #[error("the receiver of the events was dropped")]
    Closed,
}

impl StreamError {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            // The start of the next connection finds out more about these errors.
            StreamError::Transport(error) => {
                let unusable = self.sqlstate() == Some("55000");
                let unreadable = self.is_internal() || self.is_beyond_limit() || self.concerns_slot_or_publication();
                error.is_transient() || unusable || unreadable
            }
            // A disk may get free space again, but an invalid message stays invalid.
            StreamError::Assemble(error) => {
                matches!(error, PgoutputAssemblyError::Spool(_) | PgoutputAssemblyError::Mismatch(_))
            }
            StreamError::Recovering
            | StreamError::Ended
            | StreamError::Silent(_)
            | StreamError::Held(_)
            | StreamError::Lingering(_)
            | StreamError::NoRoom(_)
            | StreamError::PublicationLost
            | StreamError::Reset
            | StreamError::Forked { .. } => true,
            StreamError::Definite(_) | StreamError::Closed => false,
        }
    }

    /// Returns a description of the fork and the newest shared position, if the database no longer
    /// contains what was sent.
    pub(super) fn as_fork(&self) -> Option<(String, Lsn)> {
        match self {
            StreamError::Forked { what, common } => Some((what.clone(), *common)),
            StreamError::Assemble(PgoutputAssemblyError::Mismatch(mismatch)) => {
                Some((mismatch.to_string(), mismatch.common))
            }
            StreamError::Assemble(
                PgoutputAssemblyError::Decode(_)
                | PgoutputAssemblyError::Order { .. }
                | PgoutputAssemblyError::Unannounced(_)
                | PgoutputAssemblyError::Cells { .. }
                | PgoutputAssemblyError::Spool(_),
            )
            | StreamError::Transport(_)
            | StreamError::Definite(_)
            | StreamError::Recovering
            | StreamError::Ended
            | StreamError::Silent(_)
            | StreamError::Held(_)
            | StreamError::Lingering(_)
            | StreamError::NoRoom(_)
            | StreamError::PublicationLost
            | StreamError::Reset
            | StreamError::Closed => None,
        }
    }

    /// Returns true for an internal error of PostgreSQL (SQLSTATE class XX). The next attempt may
    /// succeed or fail in the same way.
    pub(super) fn is_internal(&self) -> bool {
        self.sqlstate().is_some_and(|code| code.starts_with("XX"))
    }

    /// Returns true if a change is too large for PostgreSQL to send. The old and the new row have
    /// to fit into one message of 1 GB. Each attempt fails in the same way.
    pub(super) fn is_beyond_limit(&self) -> bool {
        self.sqlstate() == Some("54000")
    }

    /// Returns true if PostgreSQL cannot find the slot, the publication, or WAL that the slot
    /// needs. PostgreSQL looks up the publication as of each change. A publication created after
    /// the slot is therefore missing permanently.
    pub(super) fn concerns_slot_or_publication(&self) -> bool {
        matches!(self.sqlstate(), Some("42704" | "58P01"))
    }

    /// Returns the SQLSTATE of an error that PostgreSQL reported.
    fn sqlstate(&self) -> Option<&str> {
        let StreamError::Transport(error) = self else { return None };
        error.server().map(|server| server.code.as_str())
    }
}

impl From<StreamError> for SourceError {
    fn from(error: StreamError) -> SourceError {
        match error {
            StreamError::Transport(error) => error.into(),
            error if error.is_transient() => SourceError::Transient(error.to_string()),
            error => SourceError::Definite(vec![error.to_string()]),
        }
    }
}
