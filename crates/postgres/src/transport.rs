//! One connection to PostgreSQL: startup, authentication, plain queries, COPY, replication.
//!
//! Everything goes over this: the catalogue has to be read in the very transaction that copies a table, and a
//! replication stream needs its status replies written while nobody reads.

mod address;
mod auth;
mod error;
mod frame;
mod open;
mod query;
mod replication;
mod settings;
mod sqlstate;

pub use error::{ServerError, TransportError};
pub(crate) use query::Parameter;
pub use query::{Connection, Row};
pub use replication::{ReplicationConnection, ReplicationMessage, ReplicationReader, ReplicationWriter};
pub(crate) use settings::for_transaction;
