//! The settings of every session. A role's or a database's own settings must not change what laredo
//! reads or how long it may take.

use super::error::TransportError;
use super::open::SessionPurpose;
use super::query::SqlConnection;

/// The first major version that has `transaction_timeout`.
const TRANSACTION_TIMEOUT_SINCE: u32 = 17;

/// The settings of the text forms of values. Cells sent as text must be the same in a copy and in
/// the stream.
const TEXT: &[(&str, &str)] = &[
    ("DateStyle", "'ISO'"),
    ("IntervalStyle", "'postgres'"),
    ("TimeZone", "'UTC'"),
    ("extra_float_digits", "3"),
    ("bytea_output", "'hex'"),
    ("search_path", "pg_catalog"),
];

/// The other settings.
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
    // JIT compilation of a catalog query takes a hundred times as long as running it.
    ("jit", "off"),
];

/// A query that raises a `wal_sender_timeout` below the default of 60 s. A longer one stays: before
/// PostgreSQL 16, decoding a large transaction may take that long.
const WALSENDER: &str = "SELECT set_config(name, '60s', false) FROM pg_catalog.pg_settings \
    WHERE name = 'wal_sender_timeout' AND setting::int BETWEEN 1 AND 59999; ";

/// Returns the settings of text forms as statements for one transaction. A pooler may run the
/// transaction in another session.
pub(crate) fn for_transaction() -> String {
    statements("SET LOCAL", TEXT)
}

/// Applies all settings, and returns the ID of the server process.
///
/// The startup packet could set them as well, but poolers accept few parameters there.
pub(super) async fn apply(connection: &mut SqlConnection, purpose: SessionPurpose) -> Result<i32, TransportError> {
    let timeout = match connection.major_version() >= TRANSACTION_TIMEOUT_SINCE {
        true => "SET transaction_timeout = 0; ",
        false => "",
    };
    let walsender = match purpose {
        SessionPurpose::Sql => "",
        SessionPurpose::Replication => WALSENDER,
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
