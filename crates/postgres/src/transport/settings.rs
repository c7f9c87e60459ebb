//! The settings of every session: a role's or a database's own settings must not change what laredo reads or how long it may take.

use super::error::TransportError;
use super::open::Purpose;
use super::query::Connection;

/// The first major version that has `transaction_timeout`.
const TRANSACTION_TIMEOUT_SINCE: u32 = 17;

/// Settings of the text forms of values. Cells that come as text must be the same from a copy and from the stream.
const TEXT: &[(&str, &str)] = &[
    ("DateStyle", "'ISO'"),
    ("IntervalStyle", "'postgres'"),
    ("TimeZone", "'UTC'"),
    ("extra_float_digits", "3"),
    ("bytea_output", "'hex'"),
    ("search_path", "pg_catalog"),
];

/// Other settings.
const SESSION: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "'read committed'"),
    ("default_transaction_deferrable", "off"),
    ("transform_null_equals", "off"),
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
    ("array_nulls", "on"),
    // Compiling a query of the catalogue takes a hundred times as long as running it.
    ("jit", "off"),
];

/// Raises a time limit of walsenders that is shorter than the usual one. A longer one stays: before PostgreSQL 16, decoding a
/// large transaction may take it.
const WALSENDER: &str = "SELECT set_config(name, '60s', false) FROM pg_catalog.pg_settings \
    WHERE name = 'wal_sender_timeout' AND setting::int BETWEEN 1 AND 59999; ";

/// Returns the settings of text forms as statements for one transaction: a pooler may run it in another session.
pub(crate) fn for_transaction() -> String {
    statements("SET LOCAL", TEXT)
}

/// Sets everything, and returns the number of the server process.
///
/// The startup packet would do, too, but poolers take few parameters there.
pub(super) async fn apply(connection: &mut Connection, purpose: Purpose) -> Result<i32, TransportError> {
    let timeout = match connection.major_version() >= TRANSACTION_TIMEOUT_SINCE {
        true => "SET transaction_timeout = 0; ",
        false => "",
    };
    let walsender = match purpose {
        Purpose::Sql => "",
        Purpose::Replication => WALSENDER,
    };
    let (session, text) = (statements("SET", SESSION), statements("SET", TEXT));
    let sql = format!("{timeout}{session}{text}{walsender}SELECT pg_catalog.pg_backend_pid()");
    let rows = connection.simple_query(&sql).await?;
    let process_id = rows.last().and_then(|row| row.first()?.as_deref()?.parse().ok());
    process_id.ok_or_else(|| TransportError::Protocol(format!("{rows:?} is not the number of a process")))
}

fn statements(verb: &str, settings: &[(&str, &str)]) -> String {
    settings.iter().map(|(name, value)| format!("{verb} {name} = {value}; ")).collect()
}
