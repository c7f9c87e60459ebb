//! How a replica or a subscription is doing, and what went wrong.

use std::time::Duration;

use laredo_core::{Checksum, Lsn, StateError, TableName};
use laredo_proto::replication::SyncMode;

use crate::assembler::ProtocolError;

/// How a replica is doing, or a subscription: what is said of the replica's table is then said of what was handed out.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether a stream is open and its server has answered.
    pub connected: bool,
    /// Whether the replica has ever been at the head that the server had when it connected. Stays true.
    pub ready: bool,
    /// How the newest stream began; `None` before the first.
    pub mode: Option<SyncMode>,
    /// Why it began so, in the server's words.
    pub reason: String,
    /// Streams that were opened.
    pub connects: u64,
    /// Those among them that began with a full snapshot.
    pub full_snapshots: u64,
    /// Full snapshots that replaced a state which was there before.
    pub resyncs: u64,
    /// Every commit up to here is applied.
    pub position: Lsn,
    /// Rows now; zero for a subscription, which keeps none.
    pub rows: usize,
    /// The newest position at which the rows were found to have the server's checksum; zero before the first.
    pub checksum_position: Lsn,
    /// Times that the rows did not have the server's checksum. Each is an error in the log, and a reason to load all rows again.
    pub checksum_mismatches: u64,
    /// What ended the newest stream or kept one from being opened; `None` since the last one was.
    pub error: Option<ReplicaError>,
    /// The newest error there ever was.
    pub last_error: Option<ReplicaError>,
    /// Whether the replica has stopped; it goes on serving what it had.
    pub stopped: bool,
}

/// What ended a stream, or kept one from being opened. The client goes on trying, and a replica serves what it has meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaError {
    /// No connection.
    #[error("cannot connect to {server}: {reason}")]
    Connect {
        /// The server's address.
        server: String,
        /// Why, as far as it is known.
        reason: String,
    },
    /// The server said no, and will say so again until something is changed.
    #[error("the server refuses {table}: {reason} ({code:?})")]
    Refused {
        /// The table.
        table: TableName,
        /// The gRPC status code.
        code: tonic::Code,
        /// In the server's words.
        reason: String,
    },
    /// The stream ended.
    #[error("the stream ended: {reason} ({code:?})")]
    Ended {
        /// The gRPC status code.
        code: tonic::Code,
        /// In the server's words.
        reason: String,
    },
    /// Nothing came for too long, not even a heartbeat.
    #[error("the server was silent for {} s; the connection is given up", .0.as_secs())]
    Silent(Duration),
    /// The stream does not keep to the protocol, so that it cannot be trusted: a full snapshot is asked for.
    #[error("{0}; a full snapshot is asked for")]
    Protocol(#[from] ProtocolError),
    /// A change does not fit the state, so that it cannot be trusted: a full snapshot is asked for.
    #[error("{0}; a full snapshot is asked for")]
    State(StateError),
    /// The server's rows are of another definition than the client's at the same position.
    #[error(
        "at {position} the server's rows have other columns or types than this client's; a full snapshot is asked for"
    )]
    Schema {
        /// The client's position.
        position: Lsn,
    },
    /// The rows do not have the checksum that the server sent for their position.
    #[error("at {position} this client's rows have the checksum {ours} and the server's have {theirs}")]
    Contents {
        /// The client's position, which the server's checksum is of.
        position: Lsn,
        /// The checksum of the client's rows.
        ours: Checksum,
        /// The server's.
        theirs: Checksum,
    },
    /// The declared indexes do not fit the table.
    #[error("{0}; change the columns given to the replica's builder")]
    Index(StateError),
    /// The server cannot send binary rows.
    #[error("the server does not send PostgreSQL's binary rows; it needs to be a laredo server of this generation")]
    Encoding,
    /// The server has not come as far as this client has.
    #[error("the server is at {theirs}, behind this client's {ours}; waiting until it catches up")]
    Behind {
        /// The client's position.
        ours: Lsn,
        /// The server's newest position.
        theirs: Lsn,
    },
}

impl ReplicaError {
    /// Whether trying again is no use before somebody changes something.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, ReplicaError::Refused { .. } | ReplicaError::Index(_) | ReplicaError::Encoding)
    }

    pub(crate) fn from_status(status: &tonic::Status, table: &TableName) -> ReplicaError {
        use tonic::Code;
        let (code, mut reason) = (status.code(), status.message().to_owned());
        // It is this client that refused what it was sent.
        if code == Code::OutOfRange && reason.contains("message length too large") {
            reason.push_str("; raise message_bytes_max of this client");
        }
        match code {
            Code::InvalidArgument
            | Code::NotFound
            | Code::Unauthenticated
            | Code::PermissionDenied
            | Code::Unimplemented => ReplicaError::Refused { table: table.clone(), code, reason },
            _ => ReplicaError::Ended { code, reason },
        }
    }
}

impl From<StateError> for ReplicaError {
    fn from(error: StateError) -> ReplicaError {
        match error {
            StateError::IndexColumn { .. } => ReplicaError::Index(error),
            StateError::KeyExists | StateError::KeyMissing => ReplicaError::State(error),
        }
    }
}

/// Why a replica is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It cannot become ready before somebody changes something.
    #[error(transparent)]
    Definite(ReplicaError),
    /// It took too long.
    #[error("not ready after {} s{}", waited.as_secs_f32(), last.as_ref().map_or_else(String::new, |e| format!(": {e}")))]
    Timeout {
        /// How long it was waited.
        waited: Duration,
        /// What last went wrong, if anything.
        last: Option<ReplicaError>,
    },
    /// It was stopped.
    #[error("the replica was stopped before it was ready")]
    Stopped,
}

/// The innermost cause: what is around it says only "transport error".
pub(crate) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
