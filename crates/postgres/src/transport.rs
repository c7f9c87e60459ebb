//! A connection to PostgreSQL: startup, authentication, plain queries, COPY, replication.
//!
//! All communication with PostgreSQL uses it. The catalog has to be read in the same transaction
//! that copies a table. A replication stream needs status messages to be written while nothing is
//! read.

mod address;
mod auth;
mod error;
mod frame;
mod open;
mod query;
mod replication;
mod settings;
mod sqlstate;

pub use error::{PostgresError, TransportError};
pub(crate) use query::QueryParameter;
pub use query::{SqlConnection, TextRow};
pub use replication::{ReplicationConnection, ReplicationMessage, ReplicationReader, ReplicationWriter};
pub(crate) use settings::for_transaction;
