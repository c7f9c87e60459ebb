//! Copying a table under an ordinary snapshot.

mod polling;
pub(crate) mod rows;
mod source_table;
mod writers;

use laredo_core::{Lsn, Schema, TableName, Xid};
use laredo_engine::source::{CopyEvent, SnapshotCheck, SourceError, TableRequest, TransactionSnapshot};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

use crate::catalog::{self, TableDefinition, TableFacts, TablePublication, quoted};
use crate::identity::SERVER_STARTED;
use crate::source_options::PostgresOptions;
use crate::transport::{SqlConnection, TextRow, TransportError, for_transaction};
use crate::{publication, validate};
use polling::PollingWait;
pub(crate) use source_table::SourceTable;
use source_table::{EarlierWriters, StreamingScope};
pub(crate) use writers::{WritingTransaction, open_writers, still_open};

/// The SQLSTATE `lock_not_available`: the lock was not granted within `lock_timeout`.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The time that a session waits for its lock before it lets another table be copied.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// The time after which PostgreSQL ends a session that holds a lock on a table, if the session
/// neither asks for anything nor takes what it is sent. laredo may be frozen, or the network
/// between the two may be gone, and writers of the table may wait for the lock.
const IDLE_PATIENCE: Duration = Duration::from_secs(30);

/// A copy that is complete except for its [`CopyEvent::End`].
pub(crate) struct CompletedCopy {
    /// The definition that the rows were copied under.
    pub(crate) definition: TableDefinition,
    /// A position in the WAL after every commit that the copy's snapshot sees.
    pub(crate) inserted: Lsn,
}

/// An error that made an attempt to read a table fail.
#[derive(Debug)]
pub(crate) enum TableReadError {
    /// An error of the connection or the server.
    Transport(TransportError),
    /// The table cannot be copied, or the reader has gone.
    Table(SourceError),
}

impl From<TransportError> for TableReadError {
    fn from(error: TransportError) -> TableReadError {
        TableReadError::Transport(error)
    }
}

impl From<SourceError> for TableReadError {
    fn from(error: SourceError) -> TableReadError {
        TableReadError::Table(error)
    }
}

impl From<TableReadError> for SourceError {
    fn from(error: TableReadError) -> SourceError {
        match error {
            TableReadError::Transport(error) if error.may_pass_for_table() => SourceError::Transient(error.to_string()),
            TableReadError::Transport(error) => SourceError::Definite(vec![error.to_string()]),
            TableReadError::Table(error) => error,
        }
    }
}

/// Copies a table, and starts again whenever its definition changes. `slot` is the number of the
/// slot that keeps commits from now on. `route` makes the stream follow a definition's table, and
/// returns true if that differs from the table followed before.
pub(crate) async fn copy_table(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    table: &SourceTable,
    slot: u64,
    route: impl Fn(&TableDefinition) -> bool,
    admits: &SnapshotCheck,
    rows: &mpsc::Sender<CopyEvent>,
) -> Result<CompletedCopy, TableReadError> {
    let (publication, request) = (options.publication.name.as_str(), &table.request);
    loop {
        let facts = read_existing_facts(connection, publication, request).await?;
        let schema = match checked_schema(&facts, options, request) {
            Ok(schema) => Arc::new(schema),
            // Some catalog views see more than the query's snapshot does. While a publication is
            // being replaced, they show neither the old one nor the new one.
            Err(_) if read_existing_facts(connection, publication, request).await? != facts => continue,
            Err(error) => return Err(error.into()),
        };
        let definition = facts.definition;
        settle(connection, table, slot, &definition, route(&definition)).await?;
        let snapshot = begin_snapshot(connection, definition.kind, request, admits).await?;
        let read = read_rows(connection, publication, request, &definition, &schema, snapshot, rows);
        let is_read =
            tokio::time::timeout(options.copy_timeout, read).await.map_err(|_| overdue(options, request))??;
        if !is_read {
            continue;
        }
        // Read outside the snapshot: enum labels, partitions and publications can change despite
        // the lock.
        let now = read_existing_facts(connection, publication, request).await?.definition;
        match definition.difference(&now) {
            None => {
                return Ok(CompletedCopy { definition, inserted: write_mark(connection).await? });
            }
            Some(reason) => tracing::info!(event = "copy_repeated", table = %request.name, %reason, "copying again"),
        }
    }
}

/// Copies the rows within the transaction that [`begin_snapshot`] has opened, and ends it. Returns
/// false if the definition has changed in the meantime.
async fn read_rows(
    connection: &mut SqlConnection,
    publication: &str,
    request: &TableRequest,
    definition: &TableDefinition,
    schema: &Arc<Schema>,
    snapshot: TransactionSnapshot,
    rows: &mpsc::Sender<CopyEvent>,
) -> Result<bool, TableReadError> {
    // The snapshot has to be newer than the end of every transaction that wrote before the
    // publication got its current settings.
    if read_existing_facts(connection, publication, request).await?.definition != *definition {
        connection.simple_query("ROLLBACK").await?;
        return Ok(false);
    }
    let filter = published_filter(connection, publication, definition).await?;
    let sql = copy_statement(&request.name, definition, schema, filter.as_deref());
    rows::copy(connection, &request.name, &sql, schema, snapshot, rows).await?;
    connection.simple_query("COMMIT").await?;
    Ok(true)
}

/// Returns the error of a copy that has held its lock and its snapshot for too long.
fn overdue(options: &PostgresOptions, request: &TableRequest) -> SourceError {
    SourceError::Transient(format!(
        "the copy of table {} was given up: it had held its lock and its snapshot for {:?}; raise copy_timeout if the table is \
         that large, or find what slows the copy down",
        request.name, options.copy_timeout
    ))
}

/// Returns the error of a copy whose reader has gone.
pub(crate) fn given_up() -> SourceError {
    SourceError::Transient("the copy was given up by its reader".to_owned())
}

/// Waits until every transaction has ended that wrote the table too early to be streamed
/// completely. It is too early before the slot keeps commits, before the stream follows the table,
/// before the publication has its current settings for it, and before the types of its columns are
/// what they are. PostgreSQL applies settings and types as of each change: a row that was written
/// before a label was renamed is sent with the old label. The wait includes writers of the table
/// that had the name before: the changes of such a transaction are not assigned to this table.
///
/// # Errors
/// Fails if they do not end soon. The next attempt waits for the same transactions. Another table
/// may be copied in the meantime.
async fn settle(
    connection: &mut SqlConnection,
    table: &SourceTable,
    slot: u64,
    definition: &TableDefinition,
    is_other: bool,
) -> Result<(), TableReadError> {
    let (published, types) = (definition.published.clone(), definition.types.clone());
    let scope = StreamingScope { slot, published, oid: definition.oid, types };
    let writers = match table.earlier_writers(&scope, is_other) {
        EarlierWriters::Ended => return Ok(()),
        EarlierWriters::Known(writers) => writers,
        EarlierWriters::Unknown(oids) => open_writers(connection, &oids).await?,
    };
    table.await_writers(&scope, &writers);
    let writers = writers::wait_for(connection, writers).await?;
    table.await_writers(&scope, &writers);
    if !writers.is_empty() {
        let whom: Vec<&str> = writers.iter().map(|writer| writer.who.as_str()).collect();
        let error = format!("the copy can begin when these transactions have ended: {}", whom.join("; "));
        return Err(SourceError::Transient(error).into());
    }
    table.settle(scope);
    Ok(())
}

pub(crate) fn checked_schema(
    facts: &TableFacts,
    options: &PostgresOptions,
    request: &TableRequest,
) -> Result<Schema, SourceError> {
    let mut problems = validate::table_problems(facts, request, &[], &options.connection.user);
    problems.extend(publication::table_problem(&options.publication.name, &request.name, facts));
    if !problems.is_empty() {
        return Err(SourceError::Definite(problems));
    }
    catalog::schema_of(&facts.definition, request).map_err(SourceError::Definite)
}

pub(crate) async fn read_existing_facts(
    connection: &mut SqlConnection,
    publication: &str,
    request: &TableRequest,
) -> Result<TableFacts, TableReadError> {
    let found = catalog::read_facts(connection, publication, std::slice::from_ref(&request.name)).await?;
    found.into_iter().flatten().next().ok_or_else(|| {
        let name = &request.name;
        let problem = format!(
            "table {name} does not exist; create it, or remove it from the configuration (names are case-sensitive)"
        );
        TableReadError::Table(SourceError::Definite(vec![problem]))
    })
}

/// Returns the error of a session that did not get its lock on the table.
fn locked(request: &TableRequest) -> SourceError {
    SourceError::Transient(format!(
        "table {} has been locked by another session for {} s; see pg_locks for the one that holds AccessExclusiveLock",
        request.name,
        LOCK_PATIENCE.as_secs()
    ))
}

/// Opens a transaction whose snapshot is admitted, with the table locked against redefinition.
pub(crate) async fn begin_snapshot(
    connection: &mut SqlConnection,
    kind: char,
    request: &TableRequest,
    admits: &SnapshotCheck,
) -> Result<TransactionSnapshot, TableReadError> {
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    // The lock comes before the snapshot, so that no redefinition can fall between the two.
    let table = format!("{}{}", only(kind), request.name.quoted());
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}SET LOCAL row_security = off; \
         SET LOCAL lock_timeout = '{lock}s'; SET LOCAL idle_in_transaction_session_timeout = '{idle}s'; \
         SET LOCAL tcp_user_timeout = '{idle}s'",
        for_transaction(),
        lock = LOCK_PATIENCE.as_secs(),
        idle = IDLE_PATIENCE.as_secs()
    );
    let mut start = format!("{begin}; LOCK TABLE {table} IN ACCESS SHARE MODE");
    // A role that may read only some columns may not run LOCK TABLE. The query locks the table too,
    // but after the snapshot. A change between the two shows when the definition is read again
    // after the copy.
    let mut fallback = Some(format!("{begin}; SELECT FROM {table} LIMIT 0"));
    let mut wait = PollingWait::new();
    loop {
        if let Err(error) = connection.simple_query(&start).await {
            let Some(server) = error.server() else { return Err(error.into()) };
            let query = fallback.take_if(|_| server.code == INSUFFICIENT_PRIVILEGE);
            let is_locked = server.code == LOCK_NOT_AVAILABLE;
            connection.simple_query("ROLLBACK").await?;
            if is_locked {
                return Err(locked(request).into());
            }
            let Some(query) = query else { return Err(error.into()) };
            start = query;
            continue;
        }
        let sql = format!("SELECT pg_current_snapshot(), {SERVER_STARTED}");
        let snapshot = parse_snapshot(&connection.simple_query(&sql).await?)?;
        if admits(&snapshot) {
            return Ok(snapshot);
        }
        connection.simple_query("ROLLBACK").await?;
        // The wait takes microseconds, or as long as a synchronous standby takes.
        if wait.pause().await {
            tracing::warn!(
                event = "copy_waits_for_commits",
                table = %request.name,
                "the copy can begin when commits that were streamed already are visible on the server; they wait for \
                 a synchronous standby (see synchronous_standby_names and pg_stat_replication), or a transaction runs \
                 that is so old that it might be one of them (see pg_stat_activity, backend_xid)"
            );
        }
    }
}

/// Marks the copy's end in the WAL and returns the mark's position. It is after everything that the
/// snapshot sees and after every position that the stream reported before, even on an idle
/// database.
///
/// PostgreSQL sends only WAL that is flushed. The mark is transactional because a commit is flushed
/// at once. Other records may stay in memory for as long as the database is idle. The stream
/// ignores the mark, if it receives messages at all.
pub(crate) async fn write_mark(connection: &mut SqlConnection) -> Result<Lsn, TransportError> {
    // Waits no longer than for the local flush: a synchronous standby may be away.
    let sql = "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; \
               SELECT pg_catalog.pg_logical_emit_message(true, 'laredo', ''); COMMIT";
    let rows = connection.simple_query(sql).await?;
    let position = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
    position.ok_or_else(|| TransportError::Protocol(format!("{rows:?} is not the position of a message")))
}

/// Returns `ONLY` except for a partitioned table. An inheritance parent is followed without its
/// children, a partitioned table with its partitions.
fn only(kind: char) -> &'static str {
    if kind == 'p' { "" } else { "ONLY " }
}

fn parse_snapshot(rows: &[TextRow]) -> Result<TransactionSnapshot, TransportError> {
    let fields = rows.first().and_then(|row| Some((row.first()?.as_deref()?, row.get(1)?.as_deref()?)));
    fields
        .and_then(|(text, started)| snapshot_of(text, started))
        .ok_or_else(|| TransportError::Protocol(format!("{rows:?} is not a snapshot")))
}

/// Parses `xmin:xmax:id,id,…`.
fn snapshot_of(text: &str, server_started: &str) -> Option<TransactionSnapshot> {
    let xid = |text: &str| text.parse().ok().map(Xid);
    let mut parts = text.split(':');
    let (xmin, xmax, list) = (xid(parts.next()?)?, xid(parts.next()?)?, parts.next()?);
    let running = list.split(',').filter(|id| !id.is_empty());
    let mut in_progress = running.map(xid).collect::<Option<Vec<_>>>()?;
    in_progress.sort_unstable();
    Some(TransactionSnapshot { xmin, xmax, in_progress, server_started: server_started.to_owned() })
}

/// Returns the statement that copies the published rows and columns of a table.
fn copy_statement(name: &TableName, definition: &TableDefinition, schema: &Schema, filter: Option<&str>) -> String {
    // `COPY` of a table refuses generated columns, which PostgreSQL 18 may send.
    let is_generated = definition.sent_columns().any(|column| column.generated);
    let is_text = schema.columns().iter().any(|column| column.is_text);
    let is_plain = definition.kind != 'p' && filter.is_none() && !is_text && !is_generated;
    match is_plain {
        true => format!("COPY {} ({}) TO STDOUT (FORMAT binary)", name.quoted(), columns(schema)),
        false => {
            let query = select_statement(name, definition, schema, [filter, None]);
            format!("COPY ({query}) TO STDOUT (FORMAT binary)")
        }
    }
}

/// Returns the query for the published rows and columns of a table that meet all conditions.
pub(crate) fn select_statement(
    name: &TableName,
    definition: &TableDefinition,
    schema: &Schema,
    conditions: [Option<&str>; 2],
) -> String {
    let conditions: Vec<String> = conditions.into_iter().flatten().map(|part| format!("({part})")).collect();
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!("SELECT {} FROM {}{}{condition}", columns(schema), only(definition.kind), name.quoted())
}

/// Reads the condition that the publication sets for a table's rows.
pub(crate) async fn published_filter(
    connection: &mut SqlConnection,
    publication: &str,
    definition: &TableDefinition,
) -> Result<Option<String>, TransportError> {
    match &definition.published {
        Some(TablePublication { filter: Some(_), .. }) => {
            catalog::row_filter(connection, publication, definition.oid).await
        }
        Some(TablePublication { filter: None, .. }) | None => Ok(None),
    }
}

/// Returns the column list of a copy.
fn columns(schema: &Schema) -> String {
    let columns: Vec<String> = schema
        .columns()
        .iter()
        .map(|column| {
            let name = quoted(&column.name);
            match column.is_text {
                // The type's own text form, as pgoutput sends it. A cast to text may differ.
                true => format!("CASE WHEN {name} IS NOT NULL THEN format('%s', {name}) END"),
                false => name,
            }
        })
        .collect();
    columns.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_read_as_postgres_writes_them() {
        let snapshot = snapshot_of("10:20:11,15", "7").unwrap();
        assert!(snapshot.sees(Xid(9)) && snapshot.sees(Xid(12)) && snapshot.server_started == "7");
        assert!(!snapshot.sees(Xid(15)) && !snapshot.sees(Xid(20)));
        let wide = snapshot_of("8589934592:8589934592:", "7").unwrap();
        assert_eq!((wide.xmin, wide.in_progress), (Xid(1 << 33), vec![]));
        for text in ["", "1", "1:2", "a:2:", "1:2:x"] {
            assert_eq!(snapshot_of(text, "7"), None, "{text}");
        }
    }
}
