//! Copying a table under an ordinary snapshot.

mod rows;
mod writers;

use std::time::Duration;

use laredo_core::{Lsn, Schema, TableName, Xid};
use laredo_engine::source::{Admission, CopyEvent, Snapshot, SourceError, TableRequest};
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::catalog::{self, Definition, Facts, quoted};
use crate::transport::{Connection, Row, TransportError};

pub(crate) use writers::wait_for_writers;

/// Between two snapshots, while a transaction that was applied already is not visible: that takes microseconds, or as
/// long as a synchronous standby takes.
const ADMISSION_PAUSE: Duration = Duration::from_millis(5);

/// Copies a table, from the start again while its definition moves. Returns what the copy's rows were defined by, once
/// the copy is complete but for its [`CopyEvent::End`], and that event.
pub(crate) async fn copy_table(
    connection: &mut Connection,
    publication: &str,
    request: &TableRequest,
    admits: &Admission,
    rows: &mpsc::Sender<CopyEvent>,
) -> Result<(Definition, CopyEvent), SourceError> {
    loop {
        let (snapshot, inserted, definition) = begin(connection, publication, request, admits).await?;
        let schema = Arc::new(schema_of(&definition, request)?);
        rows::copy(connection, &request.name, &definition, &schema, snapshot, rows).await?;
        connection.simple_query("COMMIT").await?;
        // Seen from outside the snapshot: enum labels, partitions and publications change under the lock, too.
        let now = read_facts(connection, publication, request).await?.definition;
        match definition.difference(&now) {
            None => {
                flush(connection, inserted).await?;
                return Ok((definition, CopyEvent::End { inserted }));
            }
            Some(reason) => tracing::info!(table = %request.name, %reason, "copying again"),
        }
    }
}

fn schema_of(definition: &Definition, request: &TableRequest) -> Result<Schema, SourceError> {
    if definition.published.is_none() {
        return Err(SourceError::Definite(vec![format!(
            "table {} is not in the publication any more; add it with ALTER PUBLICATION … ADD TABLE {}",
            request.name,
            request.name.quoted()
        )]));
    }
    catalog::schema_of(definition, request).map_err(SourceError::Definite)
}

async fn read_facts(
    connection: &mut Connection,
    publication: &str,
    request: &TableRequest,
) -> Result<Facts, SourceError> {
    let found = catalog::read(connection, publication, std::slice::from_ref(&request.name)).await?;
    found.into_iter().flatten().next().ok_or_else(|| {
        let name = &request.name;
        SourceError::Definite(vec![format!("table {name} does not exist any more")])
    })
}

/// Opens a transaction whose snapshot is admitted, with the table locked against redefinition.
async fn begin(
    connection: &mut Connection,
    publication: &str,
    request: &TableRequest,
    admits: &Admission,
) -> Result<(Snapshot, Lsn, Definition), SourceError> {
    // What kind of table it is decides how it is locked, and may change until the lock is there.
    let kind = read_facts(connection, publication, request).await?.definition.kind;
    // The lock comes before the snapshot, so that no redefinition can fall between the two.
    let start = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; \
         LOCK TABLE {}{} IN ACCESS SHARE MODE",
        only(kind),
        request.name.quoted()
    );
    loop {
        if let Err(error) = connection.simple_query(&start).await {
            if error.server().is_some() {
                connection.simple_query("ROLLBACK").await?;
            }
            return Err(error.into());
        }
        // The position is read after the snapshot is taken: a statement takes its snapshot before it runs.
        let answer = connection.simple_query(SNAPSHOT).await?;
        let (snapshot, inserted) = parse_snapshot(&answer)?;
        if admits(&snapshot) {
            let definition = read_facts(connection, publication, request).await?.definition;
            return Ok((snapshot, inserted, definition));
        }
        connection.simple_query("ROLLBACK").await?;
        tokio::time::sleep(ADMISSION_PAUSE).await;
    }
}

/// Makes sure that the stream gets past what was inserted: PostgreSQL sends what is flushed, and on an idle database nobody flushes
/// the records that no commit waits for. The message goes to nobody (it is not asked for on the stream).
async fn flush(connection: &mut Connection, inserted: Lsn) -> Result<(), TransportError> {
    let rows = connection.simple_query("SELECT pg_current_wal_flush_lsn()").await?;
    let flushed = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok()).unwrap_or(Lsn::ZERO);
    if flushed < inserted {
        // Not for longer than the local flush takes: a standby may be away.
        let message = "BEGIN; SET LOCAL synchronous_commit = local; \
                       SELECT pg_catalog.pg_logical_emit_message(true, 'laredo', 'flush'); COMMIT";
        connection.simple_query(message).await?;
    }
    Ok(())
}

/// An inheritance parent is followed without its children, a partitioned table with its partitions.
fn only(kind: char) -> &'static str {
    if kind == 'p' { "" } else { "ONLY " }
}

const SNAPSHOT: &str = "SELECT pg_current_snapshot(), pg_current_wal_insert_lsn(), current_setting('wal_block_size'),
    pg_size_bytes(current_setting('wal_segment_size'))";

fn parse_snapshot(rows: &[Row]) -> Result<(Snapshot, Lsn), TransportError> {
    let parsed = || {
        let [row] = rows else { return None };
        let [Some(snapshot), Some(inserted), Some(block), Some(segment)] = row.as_slice() else { return None };
        let inserted = end_of_records(inserted.parse().ok()?, block.parse().ok()?, segment.parse().ok()?);
        Some((snapshot_of(snapshot)?, inserted))
    };
    parsed().ok_or_else(|| TransportError::Protocol(format!("{rows:?} is not a snapshot")))
}

/// Where the last record ends. The next one would begin behind a page header, and there PostgreSQL says that the WAL ends; but
/// an idle server's stream never comes past the page's beginning. No record ends just behind a header.
fn end_of_records(inserted: Lsn, block: u64, segment: u64) -> Lsn {
    const PAGE_HEADER: u64 = 24;
    const SEGMENT_HEADER: u64 = 40;
    if inserted.0.checked_rem(segment) == Some(SEGMENT_HEADER) {
        Lsn(inserted.0 - SEGMENT_HEADER)
    } else if inserted.0.checked_rem(block) == Some(PAGE_HEADER) {
        Lsn(inserted.0 - PAGE_HEADER)
    } else {
        inserted
    }
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
fn copy_statement(name: &TableName, definition: &Definition, schema: &Schema) -> String {
    let filter = definition.published.as_ref().and_then(|published| published.filter.as_ref());
    let is_plain = definition.kind != 'p' && filter.is_none() && !schema.columns().iter().any(|column| column.is_text);
    let table = name.quoted();
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
    let columns = columns.join(", ");
    if is_plain {
        return format!("COPY {table} ({columns}) TO STDOUT (FORMAT binary)");
    }
    let condition = filter.map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
    let only = only(definition.kind);
    format!("COPY (SELECT {columns} FROM {only}{table}{condition}) TO STDOUT (FORMAT binary)")
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

    #[test]
    fn an_idle_server_reaches_the_end_of_its_records() {
        let end = |at| super::end_of_records(super::Lsn(at), 8192, 16 << 20).0;
        assert_eq!(end(8192 * 5 + 24), 8192 * 5, "behind a page header");
        assert_eq!(end((16 << 20) * 3 + 40), (16 << 20) * 3, "behind a segment's first header");
        assert_eq!(end(8192 * 5 + 40), 8192 * 5 + 40, "a record that goes on over a page");
        assert_eq!(end(8192 * 5 + 4000), 8192 * 5 + 4000);
    }
}
