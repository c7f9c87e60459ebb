//! The event trigger that writes each change of a definition into the stream.

use postgres_protocol::escape::escape_literal;

use crate::options::ConnectionOptions;
use crate::transport::{Connection, TransportError};

/// The statements that create the event trigger, for a role that may: a superuser, or the provider's.
pub const INSTALL: &str = include_str!("ddl/install.sql");
/// The statements that drop it.
pub const REMOVE: &str = include_str!("ddl/remove.sql");
/// The prefix of the messages that it writes.
pub(crate) const PREFIX: &str = "laredo.ddl";
/// The names of its two halves: changes, and objects that were dropped.
const TRIGGERS: [&str; 2] = ["laredo_ddl", "laredo_ddl_drop"];

/// The way in which changes of a definition are noticed that the stream does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DdlWatch {
    /// The catalogue is read from time to time.
    #[default]
    Poll,
    /// An event trigger writes them into the stream; the catalogue is read from time to time as well.
    Trigger,
}

/// Creates the event trigger.
///
/// # Errors
/// When the database cannot be reached, or the role may not.
pub async fn install(options: &ConnectionOptions) -> Result<(), TransportError> {
    Connection::connect(options).await?.simple_query(INSTALL).await.map(drop)
}

/// Drops the event trigger.
///
/// # Errors
/// When the database cannot be reached, or the role may not.
pub async fn remove(options: &ConnectionOptions) -> Result<(), TransportError> {
    Connection::connect(options).await?.simple_query(REMOVE).await.map(drop)
}

/// Returns true if the event trigger is there and fires.
pub(crate) async fn is_installed(connection: &mut Connection) -> Result<bool, TransportError> {
    let names = TRIGGERS.map(escape_literal).join(", ");
    let sql = format!("SELECT count(*) FROM pg_event_trigger WHERE evtname IN ({names}) AND evtenabled IN ('O', 'A')");
    let rows = connection.simple_query(&sql).await?;
    let found = rows.into_iter().flatten().flatten().next().and_then(|text| text.parse().ok());
    Ok(found == Some(TRIGGERS.len()))
}
