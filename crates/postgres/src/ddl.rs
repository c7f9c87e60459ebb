//! The event trigger that writes each change of a definition into the stream.

use postgres_protocol::escape::escape_literal;

use crate::options::ConnectionOptions;
use crate::transport::{SqlConnection, TransportError};

/// The statements that create the event trigger. They need a superuser, or the role that the
/// provider allows to create event triggers.
pub const INSTALL: &str = include_str!("ddl/install.sql");
/// The statements that drop the event trigger.
pub const REMOVE: &str = include_str!("ddl/remove.sql");
/// The prefix of the messages that the event trigger writes.
pub(crate) const PREFIX: &str = "laredo.ddl";
/// The names of its two parts: for changed objects, and for dropped objects.
const TRIGGERS: [&str; 2] = ["laredo_ddl", "laredo_ddl_drop"];

/// The way in which definition changes are noticed that the stream does not report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DdlWatch {
    /// The catalog is read at intervals.
    #[default]
    Poll,
    /// An event trigger writes the changes into the stream. The catalog is read at intervals as
    /// well.
    Trigger,
}

/// Creates the event trigger.
///
/// # Errors
/// Fails if the database cannot be reached or the role lacks the privilege.
pub async fn install(options: &ConnectionOptions) -> Result<(), TransportError> {
    SqlConnection::connect(options).await?.simple_query(INSTALL).await.map(drop)
}

/// Drops the event trigger.
///
/// # Errors
/// Fails if the database cannot be reached or the role lacks the privilege.
pub async fn remove(options: &ConnectionOptions) -> Result<(), TransportError> {
    SqlConnection::connect(options).await?.simple_query(REMOVE).await.map(drop)
}

/// Returns true if any part of the event trigger exists.
pub(crate) async fn exists(connection: &mut SqlConnection) -> Result<bool, TransportError> {
    let names = TRIGGERS.map(escape_literal).join(", ");
    let sql = format!("SELECT FROM pg_event_trigger WHERE evtname IN ({names})");
    Ok(!connection.simple_query(&sql).await?.is_empty())
}

/// Returns true if both parts of the event trigger exist and fire.
pub(crate) async fn is_installed(connection: &mut SqlConnection) -> Result<bool, TransportError> {
    let names = TRIGGERS.map(escape_literal).join(", ");
    let sql = format!("SELECT count(*) FROM pg_event_trigger WHERE evtname IN ({names}) AND evtenabled IN ('O', 'A')");
    let rows = connection.simple_query(&sql).await?;
    let found = rows.into_iter().flatten().flatten().next().and_then(|text| text.parse().ok());
    Ok(found == Some(TRIGGERS.len()))
}
