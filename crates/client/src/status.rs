//! The status of a replica or a subscription, and its errors.

use std::time::Duration;

use laredo_core::{Checksum, Lsn, StateError, TableName};
use tokio::sync::watch;

use crate::assembler::{ProtocolError, StreamMode};

/// The status of a replica or a subscription. For a subscription, the fields describe the events
/// that it has returned instead of the replica's table.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// True if a stream is open and its server has answered.
    pub connected: bool,
    /// True once the replica has reached the head that the server had when the replica connected.
    /// It never becomes false again.
    pub ready: bool,
    /// The mode in which the newest stream began; `None` before the first stream.
    pub mode: Option<StreamMode>,
    /// The server's reason for this mode.
    pub reason: String,
    /// The number of streams that were opened.
    pub connects: u64,
    /// The number of opened streams that began with a full snapshot.
    pub full_snapshots: u64,
    /// The number of full snapshots that replaced existing rows.
    pub resyncs: u64,
    /// The position of the table. Every commit up to here is applied.
    pub position: Lsn,
    /// The current number of rows. Zero for a subscription, which keeps none.
    pub rows: usize,
    /// The number of transactions that were applied since the start, without snapshots.
    pub transactions: u64,
    /// The number of changes in those transactions.
    pub changes: u64,
    /// The newest position that the server is known to have reached. It is ahead of `position`
    /// while the table catches up.
    pub server_position: Lsn,
    /// The newest position at which the rows had the server's checksum; zero before the first such
    /// comparison.
    pub checksum_position: Lsn,
    /// The number of times that the rows did not have the server's checksum. Each is logged as an
    /// error. A difference that was logged already is not counted again until the rows were loaded
    /// again or were equal.
    pub checksum_mismatches: u64,
    /// The error that ended the newest stream or prevented it from opening. `None` from the opening
    /// of a stream until its end.
    pub error: Option<ReplicaError>,
    /// The newest error since the start.
    pub last_error: Option<ReplicaError>,
    /// True if the replica has stopped. It continues to serve the rows that it has.
    pub stopped: bool,
}

/// A receiver of the status of a replica or a subscription. It may be used on any task or thread.
///
/// The status that it returns lacks what changes with each transaction: positions, rows,
/// transactions and changes. Use [`Replica::status`](crate::Replica::status) and
/// [`Subscription::status`](crate::Subscription::status) for those.
#[derive(Clone, Debug)]
pub struct StatusReceiver(watch::Receiver<ReplicaStatus>);

impl StatusReceiver {
    pub(crate) fn new(receiver: watch::Receiver<ReplicaStatus>) -> StatusReceiver {
        StatusReceiver(receiver)
    }

    /// Returns the current status.
    #[must_use]
    pub fn current(&self) -> ReplicaStatus {
        self.0.borrow().clone()
    }

    /// Waits until the status changes, and returns the new one. A change since the last call, or
    /// since the receiver was made, counts: the call then returns at once. Of several changes, only
    /// the newest is returned.
    ///
    /// Returns `None` when the replica or the subscription was dropped.
    pub async fn changed(&mut self) -> Option<ReplicaStatus> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// Waits until the status meets a condition, and returns it. Returns at once if it does now.
    ///
    /// Returns `None` when the replica or the subscription was dropped before.
    pub async fn wait_for(&mut self, condition: impl FnMut(&ReplicaStatus) -> bool) -> Option<ReplicaStatus> {
        self.0.wait_for(condition).await.ok().map(|status| status.clone())
    }
}

/// An error that ended a stream or prevented it from opening. The client retries, and a replica
/// serves the rows that it has meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// The connection failed.
    #[error("cannot connect to {server}: {reason}")]
    Connect {
        /// The server's address.
        server: String,
        /// The reason, as far as it is known.
        reason: String,
    },
    /// The server refused the request, and will refuse it again until the operator or the program
    /// changes something.
    #[error("the server refuses {table}: {reason} ({code:?})")]
    Refused {
        /// The requested table.
        table: TableName,
        /// The gRPC status code.
        code: GrpcCode,
        /// The server's reason.
        reason: String,
    },
    /// The server or the connection ended the stream.
    #[error("the stream ended: {reason} ({code:?})")]
    Ended {
        /// The gRPC status code.
        code: GrpcCode,
        /// The reason, from the server or the connection.
        reason: String,
    },
    /// The server sent nothing for this long, not even a heartbeat.
    #[error("the server was silent for {} s; the connection is given up", .0.as_secs())]
    Silent(Duration),
    /// The server violates the protocol, so the stream cannot be trusted. The client requests a
    /// full snapshot.
    #[error("{0}; the client requests a full snapshot")]
    Protocol(#[from] ProtocolError),
    /// A change does not fit the rows, so they cannot be trusted. The client requests a full
    /// snapshot.
    #[error("{0}; the client requests a full snapshot")]
    State(StateError),
    /// The server's rows are of another definition than the client's rows at the same position.
    #[error(
        "at {position} the server's rows have other columns or types than this client's; the client requests a full \
         snapshot"
    )]
    Schema {
        /// The client's position.
        position: Lsn,
    },
    /// The rows do not have the checksum that the server sent for their position.
    #[error("at {position} this client's rows have the checksum {ours} and the server's have {theirs}")]
    Contents {
        /// The client's position, which the server's checksum belongs to.
        position: Lsn,
        /// The checksum of the client's rows.
        ours: Checksum,
        /// The checksum of the server's rows.
        theirs: Checksum,
    },
    /// The declared indexes do not fit the table.
    #[error("{0}; change the columns given to the replica's builder")]
    Index(StateError),
    /// The server cannot send binary rows.
    #[error("the server cannot send PostgreSQL's binary rows; upgrade it to a version of laredo-server that can")]
    Encoding,
    /// The server has not reached the client's position.
    #[error("the server is at {theirs}, behind this client's {ours}; waiting until it catches up")]
    Behind {
        /// The client's position.
        ours: Lsn,
        /// The server's newest position.
        theirs: Lsn,
    },
}

impl ReplicaError {
    /// Returns true if retrying cannot help until the operator or the program changes something.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        matches!(self, ReplicaError::Refused { .. } | ReplicaError::Index(_) | ReplicaError::Encoding)
    }

    pub(crate) fn from_status(status: &tonic::Status, table: &TableName) -> ReplicaError {
        let (code, mut reason) = (GrpcCode::of(status.code()), status.message().to_owned());
        // This error is the client's own: the server's message exceeds the client's limit.
        if code == GrpcCode::OutOfRange && reason.contains("message length too large") {
            reason.push_str("; raise message_bytes_max of this client");
        }
        match code {
            GrpcCode::InvalidArgument
            | GrpcCode::NotFound
            | GrpcCode::Unauthenticated
            | GrpcCode::PermissionDenied
            | GrpcCode::Unimplemented => ReplicaError::Refused { table: table.clone(), code, reason },
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

/// A status code of gRPC. The discriminants are gRPC's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrpcCode {
    /// Success.
    Ok = 0,
    /// The operation was canceled.
    Cancelled = 1,
    /// An unknown error.
    Unknown = 2,
    /// The request has an invalid argument.
    InvalidArgument = 3,
    /// The deadline passed before the operation was complete.
    DeadlineExceeded = 4,
    /// A requested item does not exist.
    NotFound = 5,
    /// An item to be created exists already.
    AlreadyExists = 6,
    /// The caller has no permission.
    PermissionDenied = 7,
    /// A resource is exhausted, for example the number of clients.
    ResourceExhausted = 8,
    /// The system is not in the state that the operation needs.
    FailedPrecondition = 9,
    /// The operation was aborted.
    Aborted = 10,
    /// A value is past the valid range.
    OutOfRange = 11,
    /// The server does not implement the operation.
    Unimplemented = 12,
    /// An internal error.
    Internal = 13,
    /// The server is unavailable. The connection failed, or the server is stopping.
    Unavailable = 14,
    /// Data was lost or corrupted.
    DataLoss = 15,
    /// The caller has no valid credentials.
    Unauthenticated = 16,
}

impl GrpcCode {
    fn of(code: tonic::Code) -> GrpcCode {
        match code {
            tonic::Code::Ok => GrpcCode::Ok,
            tonic::Code::Cancelled => GrpcCode::Cancelled,
            tonic::Code::Unknown => GrpcCode::Unknown,
            tonic::Code::InvalidArgument => GrpcCode::InvalidArgument,
            tonic::Code::DeadlineExceeded => GrpcCode::DeadlineExceeded,
            tonic::Code::NotFound => GrpcCode::NotFound,
            tonic::Code::AlreadyExists => GrpcCode::AlreadyExists,
            tonic::Code::PermissionDenied => GrpcCode::PermissionDenied,
            tonic::Code::ResourceExhausted => GrpcCode::ResourceExhausted,
            tonic::Code::FailedPrecondition => GrpcCode::FailedPrecondition,
            tonic::Code::Aborted => GrpcCode::Aborted,
            tonic::Code::OutOfRange => GrpcCode::OutOfRange,
            tonic::Code::Unimplemented => GrpcCode::Unimplemented,
            tonic::Code::Internal => GrpcCode::Internal,
            tonic::Code::Unavailable => GrpcCode::Unavailable,
            tonic::Code::DataLoss => GrpcCode::DataLoss,
            tonic::Code::Unauthenticated => GrpcCode::Unauthenticated,
        }
    }
}

/// The reason why a replica is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// An error that lasts until the operator or the program changes something.
    #[error(transparent)]
    Definite(ReplicaError),
    /// The replica was not ready within the timeout.
    #[error("the replica was not ready after {} s{}", waited.as_secs_f32(), last.as_ref().map_or_else(String::new, |e| format!(": {e}")))]
    Timeout {
        /// The timeout.
        waited: Duration,
        /// The newest error, if there was one.
        last: Option<ReplicaError>,
    },
    /// The replica was stopped.
    #[error("the replica was stopped before it was ready")]
    Stopped,
}

/// Returns the message of the innermost cause. The outer errors say only "transport error".
pub(crate) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
