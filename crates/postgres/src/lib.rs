//! PostgreSQL as a source: connection, slot, publication, schema discovery, copies, and pgoutput as
//! transactions.

mod care;
mod catalog;
mod copy;
pub mod ddl;
mod identity;
mod inspect;
mod options;
mod publication;
mod reset;
mod restore;
mod resume;
mod slot;
mod source;
mod tls;
pub mod transport;
mod validate;
mod watch;

pub use options::{
    ChannelBinding, ConnectionOptions, Host, OptionsError, RootCertificates, Secret, SslMode, TlsOptions,
};
pub use publication::PublicationOptions;
pub use restore::{Restore, RestoreError, RestoreMode, TouchedTable};
pub use source::{COPY_TIMEOUT, PostgresOptions, PostgresSource};

pub mod assemble;
pub mod pgoutput;
pub mod stream;

#[cfg(test)]
mod message_bytes;
