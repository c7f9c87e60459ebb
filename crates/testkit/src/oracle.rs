//! The contents of a database, as the database itself reports them.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use futures::TryStreamExt as _;
use laredo_core::{Lsn, TableName, Tuple, TupleRef};
use tokio_postgres::Client;

use crate::types::identifier;
use crate::{HarnessError, Result};

/// The bytes before the first row of a binary COPY: signature, flags, and an extension that is
/// always empty.
const HEADER: usize = 19;

/// The rows of a table in PostgreSQL's binary form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OracleRows {
    /// The names of the columns, in order, without generated columns.
    pub columns: Vec<String>,
    /// The rows by the bytes of their key cells, in the order of the requested key.
    pub rows: BTreeMap<Vec<u8>, Tuple>,
}

/// Reads a table that does not change: the rows for which the SQL condition `filter` holds (`true`
/// for all), by the columns of `key`.
///
/// # Errors
/// When the table cannot be read, or two rows have the same key.
pub async fn rows_at_rest(client: &Client, table: &TableName, key: &[&str], filter: &str) -> Result<OracleRows> {
    let columns = columns(client, table).await?;
    let places: Vec<usize> = key.iter().filter_map(|name| columns.iter().position(|column| column == name)).collect();
    if places.len() != key.len() {
        return Err(HarnessError::Oracle(format!("{table} has no columns {key:?}")));
    }
    let list: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
    let (list, quoted) = (list.join(", "), table.quoted());
    let sql = format!("COPY (SELECT {list} FROM {quoted} WHERE {filter}) TO STDOUT (FORMAT binary)");
    let stream = std::pin::pin!(client.copy_out(sql.as_str()).await?);
    let copied: Vec<Bytes> = stream.try_collect().await?;
    let mut rows = BTreeMap::new();
    let copied = copied.concat();
    let mut rest = copied.get(HEADER..).unwrap_or_default();
    while let Some(row) = next_row(&mut rest, columns.len()).ok_or_else(|| torn(table))? {
        let cells = TupleRef::parse(row, columns.len()).map_err(|_| torn(table))?;
        if rows.insert(key_bytes(cells, &places), cells.to_tuple()).is_some() {
            return Err(HarnessError::Oracle(format!("{table} has two rows of one key")));
        }
    }
    Ok(OracleRows { columns, rows })
}

/// Returns the bytes of a row's key. `places` has the positions of the key's columns, in key order.
#[must_use]
pub fn key_bytes(row: TupleRef<'_>, places: &[usize]) -> Vec<u8> {
    laredo_core::KeyColumns::new(places).key_of(row).as_ref().bytes().to_vec()
}

/// Returns the position up to which the WAL is flushed. It is after every commit that PostgreSQL
/// has confirmed to a client.
///
/// # Errors
/// When the database does not answer.
pub async fn flushed(client: &Client) -> Result<Lsn> {
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
    row.get::<_, &str>(0).parse().map_err(|error| HarnessError::Oracle(format!("{error}")))
}

/// Takes the bytes of a row's cells. The inner `None` is the end of the copy, and the outer one
/// means invalid bytes.
fn next_row<'a>(rest: &mut &'a [u8], columns: usize) -> Option<Option<&'a [u8]>> {
    let count = rest.try_get_i16().ok()?;
    if count == -1 {
        return Some(None);
    }
    let row = *rest;
    for _ in 0..columns {
        let length = rest.try_get_i32().ok()?;
        *rest = rest.get(usize::try_from(length).unwrap_or(0)..)?;
    }
    let length = row.len() - rest.len();
    Some(Some(&row[..length]))
}

fn torn(table: &TableName) -> HarnessError {
    HarnessError::Oracle(format!("the copy of {table} is torn"))
}

/// Returns the replicated columns, in order.
async fn columns(client: &Client, table: &TableName) -> Result<Vec<String>> {
    const SQL: &str = "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 \
                       AND NOT attisdropped AND attgenerated = '' ORDER BY attnum";
    let rows = client.query(SQL, &[&table.quoted()]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
