//! Reading a table part by part, to compare it with the rows that laredo has.

use std::ops::Range;
use std::sync::Arc;

use laredo_core::{Cell, Key, Lsn, Schema, TableName};
use laredo_engine::source::{SourceError, TablePart, TablePartEvent, TablePartOrder};
use tokio::sync::mpsc;

use crate::catalog::{TableDefinition, quoted};
use crate::copy::rows::{rows_of, send, send_rows};
use crate::copy::{
    SourceTable, begin_snapshot, checked_schema, published_filter, read_existing_facts, select_statement, write_mark,
};
use crate::options::SessionWork;
use crate::signals::SourceSignals;
use crate::source_options::PostgresOptions;
use crate::transport::{QueryParameter, SqlConnection, TransportError};

/// The SQLSTATE `undefined_function`: here, a type without an `=` operator.
const UNDEFINED_FUNCTION: &str = "42883";

/// Reads the ordered parts until the orders end. Each part has a transaction of its own.
pub(crate) async fn read_parts(
    options: &PostgresOptions,
    table: &SourceTable,
    signals: &SourceSignals,
    mut orders: mpsc::Receiver<TablePartOrder>,
    parts: &mpsc::Sender<TablePartEvent>,
) -> Result<(), SourceError> {
    let connection = SqlConnection::connect(&options.connection.for_work(SessionWork::Verify)).await?;
    let mut inspector =
        TableInspector { options, table, signals, connection, marker: None, equality: KeyEquality::Operator };
    while let Some(order) = orders.recv().await {
        inspector.read_part(order, parts).await?;
    }
    Ok(())
}

struct TableInspector<'a> {
    options: &'a PostgresOptions,
    table: &'a SourceTable,
    signals: &'a SourceSignals,
    connection: SqlConnection,
    /// The connection that writes marks into the WAL, which a read-only transaction cannot.
    marker: Option<SqlConnection>,
    equality: KeyEquality,
}

/// The comparison by which rows are looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyEquality {
    /// The operator `=`, which can use an index.
    Operator,
    /// Equality of the bytes, which every type has.
    Image,
}

/// The sizes of a table's files.
struct TableFileSizes {
    block_bytes: u64,
    /// The number of blocks of the longest file.
    blocks: u64,
    count: u64,
}

/// The rows of a table that the publication sends.
struct PublishedRows<'a> {
    name: &'a TableName,
    definition: &'a TableDefinition,
    schema: &'a Schema,
    filter: Option<String>,
}

impl PublishedRows<'_> {
    /// Returns the query for the rows that meet a condition.
    fn select(&self, condition: &str) -> String {
        select_statement(self.name, self.definition, self.schema, [self.filter.as_deref(), Some(condition)])
    }
}

impl TableInspector<'_> {
    async fn read_part(
        &mut self,
        TablePartOrder { part, admits }: TablePartOrder,
        parts: &mpsc::Sender<TablePartEvent>,
    ) -> Result<(), SourceError> {
        let request = &self.table.request;
        let Some(copied) = self.table.copied() else {
            let reason = "the table's definition is not known until its next copy".to_owned();
            return send(parts, TablePartEvent::Changed(reason)).await;
        };
        let snapshot = begin_snapshot(&mut self.connection, copied.kind, request, &admits).await?;
        let facts = read_existing_facts(&mut self.connection, &self.options.publication.name, request).await?;
        if let Some(reason) = copied.difference(&facts.definition) {
            self.connection.simple_query("ROLLBACK").await?;
            self.signals.announce_change();
            return send(parts, TablePartEvent::Changed(format!("since the table was copied, {reason}"))).await;
        }
        let schema = Arc::new(checked_schema(&facts, self.options, request)?);
        let filter = published_filter(&mut self.connection, &self.options.publication.name, &facts.definition).await?;
        let inserted = self.inserted().await?;
        let files = self.files().await?;
        let begin = TablePartEvent::Begin { schema: schema.clone(), snapshot, inserted, blocks: files.blocks };
        send(parts, begin).await?;
        let rows = PublishedRows { name: &request.name, definition: &copied, schema: &schema, filter };
        let next = match part {
            TablePart::Blocks { from, bytes } => {
                let next = from + (bytes / files.block_bytes / files.count).max(1);
                self.read_blocks(from..next, &rows, parts).await?;
                Some(next).filter(|next| *next < files.blocks)
            }
            TablePart::Keys(keys) => {
                self.read_keys(&keys, &rows, parts).await?;
                None
            }
        };
        self.connection.simple_query("COMMIT").await?;
        send(parts, TablePartEvent::End { next }).await
    }

    /// Returns a position after everything that the snapshot sees. PostgreSQL sends only WAL that
    /// is flushed. If the end of the WAL is not flushed yet, a mark is written, since an idle
    /// database may not flush it.
    async fn inserted(&mut self) -> Result<Lsn, SourceError> {
        let sql = "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()";
        let rows = self.connection.simple_query(sql).await?;
        let position = |column: usize| rows.first()?.get(column)?.as_ref()?.parse::<Lsn>().ok();
        let (Some(inserted), Some(flushed)) = (position(0), position(1)) else {
            return Err(TransportError::Protocol(format!("{rows:?} are not two positions")).into());
        };
        if flushed >= inserted {
            return Ok(inserted);
        }
        let marker = match &mut self.marker {
            Some(marker) => marker,
            None => {
                let options = self.options.connection.for_work(SessionWork::Verify);
                self.marker.insert(SqlConnection::connect(&options).await?)
            }
        };
        Ok(write_mark(marker).await?)
    }

    async fn files(&mut self) -> Result<TableFileSizes, TransportError> {
        let table = postgres_protocol::escape::escape_literal(&self.table.request.name.quoted());
        let sql = format!(
            "SELECT current_setting('block_size'), coalesce(max(pg_relation_size(c.oid)), 0), greatest(count(*), 1)
             FROM pg_class c WHERE c.relkind = 'r' AND (c.oid = {table}::regclass
                OR c.oid IN (SELECT relid FROM pg_partition_tree({table}::regclass)))"
        );
        let rows = self.connection.simple_query(&sql).await?;
        let number = |column: usize| rows.first()?.get(column)?.as_ref()?.parse::<u64>().ok();
        match (number(0), number(1), number(2)) {
            (Some(block_bytes), Some(bytes), Some(count)) if block_bytes > 0 && count > 0 => {
                Ok(TableFileSizes { block_bytes, blocks: bytes.div_ceil(block_bytes), count })
            }
            (_, _, _) => Err(TransportError::Protocol(format!("{rows:?} are not the sizes of a table"))),
        }
    }

    /// Reads the rows of the same range of blocks from each file. A row's block is the one that
    /// this transaction sees; an update may have moved it since another part was read. A row beyond
    /// the last block was written later.
    async fn read_blocks(
        &mut self,
        blocks: Range<u64>,
        rows: &PublishedRows<'_>,
        parts: &mpsc::Sender<TablePartEvent>,
    ) -> Result<(), SourceError> {
        // The highest block number is `u32::MAX - 1`.
        let Range { start: from, end: next } = blocks;
        let next = next.min(u64::from(u32::MAX - 1));
        let condition = format!("ctid >= '({from},0)'::tid AND ctid < '({next},0)'::tid");
        let query = rows.select(&condition);
        let sql = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
        Ok(send_rows(&mut self.connection, &sql, rows.schema, parts, TablePartEvent::Rows).await?)
    }

    /// Looks up the rows of some keys.
    async fn read_keys(
        &mut self,
        keys: &[Key],
        rows: &PublishedRows<'_>,
        parts: &mpsc::Sender<TablePartEvent>,
    ) -> Result<(), SourceError> {
        self.connection.simple_query("SAVEPOINT lookup").await?;
        let found = loop {
            let (condition, parameters) = key_condition(keys, rows.schema, self.equality);
            let sql = rows.select(&condition);
            match (self.connection.query(&sql, &parameters).await, self.equality) {
                (Err(TransportError::Server(error)), KeyEquality::Operator) if error.code == UNDEFINED_FUNCTION => {
                    self.connection.simple_query("ROLLBACK TO lookup").await?;
                    self.equality = KeyEquality::Image;
                }
                (found, _) => break found?,
            }
        };
        send(parts, TablePartEvent::Rows(rows_of(&found, rows.schema.columns().len())?)).await
    }
}

/// Returns the condition for the rows of these keys, with its parameters.
fn key_condition<'k>(keys: &'k [Key], schema: &Schema, equality: KeyEquality) -> (String, Vec<QueryParameter<'k>>) {
    let mut parameters = Vec::new();
    let conditions: Vec<String> = keys
        .iter()
        .map(|key| {
            let cells = key.as_ref().cells();
            let columns = schema.key().columns().iter().filter_map(|index| schema.columns().get(*index));
            let parts = columns.zip(cells).map(|(column, cell)| {
                let name = quoted(&column.name);
                let Cell::Value(value) = cell else { return format!("{name} IS NULL") };
                parameters.push(QueryParameter { type_oid: column.type_oid, is_text: column.is_text, value });
                match equality {
                    KeyEquality::Operator => format!("{name} = ${}", parameters.len()),
                    KeyEquality::Image => format!("record_image_eq(ROW({name}), ROW(${}))", parameters.len()),
                }
            });
            format!("({})", parts.collect::<Vec<_>>().join(" AND "))
        })
        .collect();
    (conditions.join(" OR "), parameters)
}
