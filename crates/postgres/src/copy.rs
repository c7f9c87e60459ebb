//! Copying a table under an ordinary snapshot.

pub(crate) mod rows;
mod wait;
mod writers;

use laredo_core::{Lsn, Schema, TableName, Xid};
use laredo_engine::source::{Admission, CopyEvent, Snapshot, SourceError, TableRequest};
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::catalog::{self, Definition, Facts, Published, quoted};
use crate::source::{Followed, PostgresOptions, Settled};
use crate::transport::{Connection, Row, TransportError, for_transaction};
use crate::{publication, validate};
use wait::Wait;

/// A copy that is complete but for its [`CopyEvent::End`].
pub(crate) struct Copied {
    /// What its rows were defined by.
    pub(crate) definition: Definition,
    /// Everything that it sees lies before.
    pub(crate) inserted: Lsn,
}

/// Why an attempt to read a table failed.
#[derive(Debug)]
pub(crate) enum AttemptError {
    /// The connection or the server.
    Transport(TransportError),
    /// The table is not one that can be copied, or the reader has gone.
    Table(SourceError),
}

impl From<TransportError> for AttemptError {
    fn from(error: TransportError) -> AttemptError {
        AttemptError::Transport(error)
    }
}

impl From<SourceError> for AttemptError {
    fn from(error: SourceError) -> AttemptError {
        AttemptError::Table(error)
    }
}

impl From<AttemptError> for SourceError {
    fn from(error: AttemptError) -> SourceError {
        match error {
            AttemptError::Transport(error) if error.may_pass_for_table() => SourceError::Transient(error.to_string()),
            AttemptError::Transport(error) => SourceError::Definite(vec![error.to_string()]),
            AttemptError::Table(error) => error,
        }
    }
}

/// Copies a table, from the start again while its definition moves. `slot` is the number of the slot that keeps what
/// commits from now on; `route` has the stream follow a definition's table, and returns whether that is another one.
pub(crate) async fn copy_table(
    connection: &mut Connection,
    options: &PostgresOptions,
    table: &Followed,
    slot: u64,
    route: impl Fn(&Definition) -> bool,
    admits: &Admission,
    rows: &mpsc::Sender<CopyEvent>,
) -> Result<Copied, AttemptError> {
    let (publication, request) = (options.publication.name.as_str(), &table.request);
    loop {
        let facts = read_facts(connection, publication, request).await?;
        let schema = match schema_of(&facts, options, request) {
            Ok(schema) => Arc::new(schema),
            // Some of the catalogue's views see more than the query's snapshot does: of a publication that is just being replaced they
            // show neither the old one nor the new one.
            Err(_) if read_facts(connection, publication, request).await? != facts => continue,
            Err(error) => return Err(error.into()),
        };
        let definition = facts.definition;
        settle(connection, table, slot, &definition, route(&definition)).await?;
        let snapshot = begin(connection, definition.kind, request, admits).await?;
        // The snapshot has to be younger than the end of those who wrote before the publication was what it is now.
        if read_facts(connection, publication, request).await?.definition != definition {
            connection.simple_query("ROLLBACK").await?;
            continue;
        }
        let filter = row_filter(connection, publication, &definition).await?;
        let sql = copy_statement(&request.name, &definition, &schema, filter.as_deref());
        rows::copy(connection, &request.name, &sql, &schema, snapshot, rows).await?;
        connection.simple_query("COMMIT").await?;
        // Seen from outside the snapshot: enum labels, partitions and publications change under the lock, too.
        let now = read_facts(connection, publication, request).await?.definition;
        match definition.difference(&now) {
            None => {
                return Ok(Copied { definition, inserted: mark(connection).await? });
            }
            Some(reason) => tracing::info!(table = %request.name, %reason, "copying again"),
        }
    }
}

/// Waits until the transactions have ended that wrote the table before the slot kept what commits, before the stream followed it, or
/// while the publication had it otherwise: each change is sent, or not, as the publication was when it was made. Of a table that the
/// name had before, too: a transaction of its own is not one of this.
async fn settle(
    connection: &mut Connection,
    table: &Followed,
    slot: u64,
    definition: &Definition,
    is_other: bool,
) -> Result<(), TransportError> {
    let wanted = Settled { slot, published: definition.published.clone(), oid: definition.oid };
    let before = table.progress.lock().settled.clone();
    if is_other || before.as_ref() != Some(&wanted) {
        let before = before.map(|before| before.oid);
        writers::wait_for_writers(connection, &table.request.name, &[definition.oid, before.unwrap_or(definition.oid)])
            .await?;
        table.progress.lock().settled = Some(wanted);
    }
    Ok(())
}

pub(crate) fn schema_of(
    facts: &Facts,
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

pub(crate) async fn read_facts(
    connection: &mut Connection,
    publication: &str,
    request: &TableRequest,
) -> Result<Facts, AttemptError> {
    let found = catalog::read(connection, publication, std::slice::from_ref(&request.name)).await?;
    found.into_iter().flatten().next().ok_or_else(|| {
        let name = &request.name;
        let problem = format!("table {name} does not exist any more, or never did; create it, or take it out of the configuration (names are case-sensitive)");
        AttemptError::Table(SourceError::Definite(vec![problem]))
    })
}

/// Opens a transaction whose snapshot is admitted, with the table locked against redefinition.
pub(crate) async fn begin(
    connection: &mut Connection,
    kind: char,
    request: &TableRequest,
    admits: &Admission,
) -> Result<Snapshot, AttemptError> {
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    // The lock comes before the snapshot, so that no redefinition can fall between the two.
    let table = format!("{}{}", only(kind), request.name.quoted());
    let begin =
        format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}SET LOCAL row_security = off", for_transaction());
    let mut start = format!("{begin}; LOCK TABLE {table} IN ACCESS SHARE MODE");
    // A role that may read some columns may not do that. The query locks the table, too, but behind the snapshot: what falls between
    // the two shows when the definition is read again after the copy.
    let mut fallback = Some(format!("{begin}; SELECT FROM {table} LIMIT 0"));
    let mut wait = Wait::new();
    loop {
        if let Err(error) = connection.simple_query(&start).await {
            let Some(server) = error.server() else { return Err(error.into()) };
            let query = fallback.take_if(|_| server.code == INSUFFICIENT_PRIVILEGE);
            connection.simple_query("ROLLBACK").await?;
            let Some(query) = query else { return Err(error.into()) };
            start = query;
            continue;
        }
        let snapshot = parse_snapshot(&connection.simple_query("SELECT pg_current_snapshot()").await?)?;
        if admits(&snapshot) {
            return Ok(snapshot);
        }
        connection.simple_query("ROLLBACK").await?;
        // That takes microseconds, or as long as a synchronous standby takes.
        if wait.pause().await {
            tracing::warn!(
                table = %request.name,
                "the copy can begin when commits that were streamed already are visible on the server; they wait for \
                 a synchronous standby (see synchronous_standby_names and pg_stat_replication), or a transaction runs \
                 that is so old that it might be one of them (see pg_stat_activity, backend_xid)"
            );
        }
    }
}

/// Marks the copy's end in the WAL and says where that is: behind all that the snapshot sees and behind every position
/// that the stream had told before, also where nobody else writes.
///
/// PostgreSQL sends what is flushed. The mark is transactional because a commit is flushed at once; other records may
/// stay in memory for as long as the database is idle. The stream passes over it, where it asks for messages
/// at all.
pub(crate) async fn mark(connection: &mut Connection) -> Result<Lsn, TransportError> {
    // Not for longer than the local flush takes: a standby may be away.
    let sql = "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; \
               SELECT pg_catalog.pg_logical_emit_message(true, 'laredo', ''); COMMIT";
    let rows = connection.simple_query(sql).await?;
    let position = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
    position.ok_or_else(|| TransportError::Protocol(format!("{rows:?} is not the position of a message")))
}

/// An inheritance parent is followed without its children, a partitioned table with its partitions.
fn only(kind: char) -> &'static str {
    if kind == 'p' { "" } else { "ONLY " }
}

fn parse_snapshot(rows: &[Row]) -> Result<Snapshot, TransportError> {
    let text = rows.first().and_then(|row| row.first()?.as_deref());
    text.and_then(snapshot_of).ok_or_else(|| TransportError::Protocol(format!("{rows:?} is not a snapshot")))
}

/// Reads `xmin:xmax:id,id,…`.
fn snapshot_of(text: &str) -> Option<Snapshot> {
    let xid = |text: &str| text.parse().ok().map(Xid);
    let mut parts = text.split(':');
    let (xmin, xmax, list) = (xid(parts.next()?)?, xid(parts.next()?)?, parts.next()?);
    let running = list.split(',').filter(|id| !id.is_empty());
    let mut in_progress = running.map(xid).collect::<Option<Vec<_>>>()?;
    in_progress.sort_unstable();
    Some(Snapshot { xmin, xmax, in_progress })
}

/// The statement that copies what is published of a table.
fn copy_statement(name: &TableName, definition: &Definition, schema: &Schema, filter: Option<&str>) -> String {
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

/// The query for what is published of a table, as far as it meets all conditions.
pub(crate) fn select_statement(
    name: &TableName,
    definition: &Definition,
    schema: &Schema,
    conditions: [Option<&str>; 2],
) -> String {
    let conditions: Vec<String> = conditions.into_iter().flatten().map(|part| format!("({part})")).collect();
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!("SELECT {} FROM {}{}{condition}", columns(schema), only(definition.kind), name.quoted())
}

/// Reads the condition that the publication sets for a table's rows.
pub(crate) async fn row_filter(
    connection: &mut Connection,
    publication: &str,
    definition: &Definition,
) -> Result<Option<String>, TransportError> {
    match &definition.published {
        Some(Published { filter: Some(_), .. }) => catalog::row_filter(connection, publication, definition.oid).await,
        Some(Published { filter: None, .. }) | None => Ok(None),
    }
}

/// The columns of a copy.
fn columns(schema: &Schema) -> String {
    let columns: Vec<String> = schema
        .columns()
        .iter()
        .map(|column| {
            let name = quoted(&column.name);
            match column.is_text {
                // The type's own text, as pgoutput sends it; a cast to text may be something else.
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
        let snapshot = snapshot_of("10:20:11,15").unwrap();
        assert!(snapshot.sees(Xid(9)) && snapshot.sees(Xid(12)));
        assert!(!snapshot.sees(Xid(15)) && !snapshot.sees(Xid(20)));
        let wide = snapshot_of("8589934592:8589934592:").unwrap();
        assert_eq!((wide.xmin, wide.in_progress), (Xid(1 << 33), vec![]));
        for text in ["", "1", "1:2", "a:2:", "1:2:x"] {
            assert_eq!(snapshot_of(text), None, "{text}");
        }
    }
}
