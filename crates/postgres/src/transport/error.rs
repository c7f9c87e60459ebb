use std::fmt;
use std::io;

use fallible_iterator::FallibleIterator;
use laredo_engine::source::SourceError;
use postgres_protocol::message::backend::ErrorFields;

use super::sqlstate::{RetryOutlook, outlook};

/// An error that PostgreSQL reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostgresError {
    /// The severity: `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// The message, in the server's language.
    pub message: String,
    /// Details of the error.
    pub detail: Option<String>,
    /// PostgreSQL's advice.
    pub hint: Option<String>,
}

impl fmt::Display for PostgresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PostgresError {}

impl PostgresError {
    pub(super) fn read(mut fields: ErrorFields<'_>) -> PostgresError {
        let mut error = PostgresError::default();
        // The fields of a truncated message are used as far as they go.
        while let Ok(Some(field)) = fields.next() {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' if error.severity.is_empty() => error.severity = value,
                b'V' => error.severity = value,
                b'C' => error.code = value,
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                // The protocol asks clients to ignore the fields that they do not know.
                _ => {}
            }
        }
        error
    }

    /// Returns true if the same statement may succeed later without an operator.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        outlook(&self.code) == RetryOutlook::Passing
    }
}

/// An error that prevented a connection from doing what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The server cannot be reached.
    #[error("cannot connect to PostgreSQL at {address}: {source}")]
    Connect {
        /// The address of the server.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The connection was made, but cannot be encrypted as asked.
    #[error("cannot connect to PostgreSQL at {address} by TLS: {problem}")]
    Tls {
        /// The address of the server.
        address: String,
        /// The cause.
        problem: String,
    },
    /// The server refused the login, or the login was not of the kind that was asked for.
    #[error("cannot log in to PostgreSQL at {address}: {problem}")]
    Login {
        /// The address of the server.
        address: String,
        /// The cause.
        problem: String,
    },
    /// The connection broke.
    #[error("lost the connection to PostgreSQL: {0}")]
    Lost(#[from] io::Error),
    /// The server reported an error.
    #[error("PostgreSQL: {0}")]
    Server(#[from] PostgresError),
    /// The server sent data that the protocol does not allow.
    #[error("PostgreSQL broke its protocol: {0}")]
    Protocol(String),
}

impl TransportError {
    /// Returns true if the same attempt may succeed later without an operator.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            TransportError::Connect { .. } | TransportError::Lost(_) => true,
            TransportError::Server(error) => error.is_transient(),
            TransportError::Tls { .. } | TransportError::Login { .. } | TransportError::Protocol(_) => false,
        }
    }

    /// Returns true if the same attempt at one table may succeed later without an operator. The
    /// next catalog read shows whether a missing object is gone permanently. A password that stays
    /// wrong is an error of the source, not of the table.
    pub(crate) fn may_pass_for_table(&self) -> bool {
        match self {
            TransportError::Connect { .. }
            | TransportError::Lost(_)
            | TransportError::Tls { .. }
            | TransportError::Login { .. } => true,
            TransportError::Server(error) => outlook(&error.code) != RetryOutlook::Lasting,
            TransportError::Protocol(_) => false,
        }
    }

    /// Returns the server's error, if the server reported one.
    #[must_use]
    pub fn server(&self) -> Option<&PostgresError> {
        match self {
            TransportError::Server(error) => Some(error),
            TransportError::Connect { .. }
            | TransportError::Tls { .. }
            | TransportError::Login { .. }
            | TransportError::Lost(_)
            | TransportError::Protocol(_) => None,
        }
    }

    pub(super) fn closed() -> TransportError {
        TransportError::Lost(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it"))
    }
}

impl From<TransportError> for SourceError {
    fn from(error: TransportError) -> SourceError {
        match error.is_transient() {
            true => SourceError::Transient(error.to_string()),
            false => SourceError::Definite(vec![error.to_string()]),
        }
    }
}
