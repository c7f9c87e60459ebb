//! PostgreSQL as a source: connection, slot, publication, schema discovery, copies, and pgoutput as
//! transactions.

mod catalog;
mod copy;
pub mod ddl;
mod definition_watch;
mod history_proof;
mod identity;
mod inspect;
mod options;
mod publication;
mod relation_identity;
mod reset;
mod restore;
mod resume;
mod signals;
mod slot;
mod slot_monitor;
mod source;
mod source_options;
mod tls;
pub mod transport;
mod validate;

pub use options::{
    ChannelBinding, ConnectionOptions, ConnectionStringError, Host, PostgresTlsOptions, RootCertificates, SecretText,
    SslMode,
};
pub use publication::PublicationOptions;
pub use restore::{RestoreError, RestoreMode, TableRestore, TouchedTable};
pub use source::PostgresSource;
pub use source_options::{COPY_TIMEOUT, PostgresOptions};

pub mod assemble;
pub mod pgoutput;
pub mod stream;

#[cfg(test)]
mod message_bytes;
