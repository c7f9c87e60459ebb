//! PostgreSQL as a source: connection, slot, publication, schema discovery, copies, and pgoutput as
//! transactions.
//!
//! The modules are layers. Each uses only modules of the layers before it, or of its own without a
//! circle:
//!
//! 1. `options`, `tls` and `transport` make a connection.
//! 2. `relation_identity`, `pgoutput`, `history_proof`, `catalog`, `publication`, `slot`,
//!    `identity` and `ddl` each know one thing of PostgreSQL: a message, a table, the slot.
//! 3. `assemble`, `signals` and `stream` follow the slot.
//! 4. `validate`, `resume`, `copy`, `inspect`, `reset`, `slot_monitor` and `definition_watch` do
//!    the rest of a source's work, with the options of `source_options`.
//! 5. `source` puts these together. `restore` and `retire` are tools of their own on the first
//!    two layers.

pub mod assemble;
mod catalog;
mod copy;
pub mod ddl;
mod definition_watch;
#[cfg(test)]
mod fuzz_tests;
mod history_proof;
mod identity;
mod inspect;
#[cfg(test)]
mod message_bytes;
mod options;
pub mod pgoutput;
mod provider;
mod publication;
mod relation_identity;
mod reset;
mod restore;
mod resume;
mod retire;
mod signals;
mod slot;
mod slot_monitor;
mod source;
mod source_options;
pub mod stream;
mod tls;
pub mod transport;
mod validate;

pub use options::{
    ChannelBinding, ConnectionOptions, ConnectionStringError, Host, PasswordCommand, PasswordSource,
    PostgresTlsOptions, RequiredAuth, RootCertificates, SecretText, SslMode,
};
pub use publication::PublicationOptions;
pub use restore::{RestoreError, RestoreMode, TableRestore, TouchedTable};
pub use retire::{DatabaseRemains, RetirablePublication, RetirableSlot, RetirementError, SourceRetirement};
pub use source::PostgresSource;
pub use source_options::{COPY_TIMEOUT, PostgresOptions};
