use std::sync::Arc;

use laredo_core::{Schema, TableName};
use laredo_engine::source::{CopyEvent, SourceError, TransactionSnapshot};
use postgres_protocol::escape::escape_literal;
use tokio::sync::mpsc;

use super::TableReadError;
use crate::transport::{SqlConnection, TransportError};

/// The approximate size of the chunks in which rows are passed on.
const CHUNK_BYTES: usize = 256 * 1024;
/// The signature of binary COPY. After it come 32 bits of flags and the length of a header
/// extension.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Copies a table with the statement `sql`, within the transaction that is open on the connection.
pub(super) async fn copy(
    connection: &mut SqlConnection,
    name: &TableName,
    sql: &str,
    schema: &Arc<Schema>,
    snapshot: TransactionSnapshot,
    out: &mpsc::Sender<CopyEvent>,
) -> Result<(), TableReadError> {
    let (rows_estimated, bytes_estimated) = size(connection, name).await?;
    send(out, CopyEvent::Begin { schema: schema.clone(), snapshot, rows_estimated, bytes_estimated }).await?;
    send_rows(connection, sql, schema, out, CopyEvent::Rows).await
}

/// Runs a binary `COPY … TO STDOUT` and sends its rows in chunks, which `event` converts to events.
pub(crate) async fn send_rows<E>(
    connection: &mut SqlConnection,
    sql: &str,
    schema: &Schema,
    out: &mpsc::Sender<E>,
    event: impl Fn(Vec<u8>) -> E,
) -> Result<(), TableReadError> {
    let mut rows = CopyRowParser::new(schema.columns().len());
    let mut copy = connection.copy_out(sql).await?;
    while let Some(bytes) = copy.next().await? {
        rows.take(bytes)?;
        if rows.chunk.len() >= CHUNK_BYTES {
            send(out, event(rows.take_chunk())).await?;
        }
    }
    let rest = rows.finish()?;
    if !rest.is_empty() {
        send(out, event(rest)).await?;
    }
    Ok(())
}

/// Returns the rows that a query has sent as a chunk of a copy. Each row is an `i16` count and its
/// cells.
pub(crate) fn rows_of(rows: &[Vec<u8>], columns: usize) -> Result<Vec<u8>, TransportError> {
    let mut reader = CopyRowParser::new(columns);
    reader.state = CopyParserState::Rows;
    rows.iter().try_for_each(|row| reader.take(row))?;
    Ok(reader.chunk)
}

/// Sends an event to the reader of a copy or of a part.
pub(crate) async fn send<E>(out: &mpsc::Sender<E>, event: E) -> Result<(), SourceError> {
    out.send(event).await.map_err(|_| super::given_up())
}

async fn size(connection: &mut SqlConnection, name: &TableName) -> Result<(u64, u64), TransportError> {
    let table = escape_literal(&name.quoted());
    let sql = format!(
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::int8, coalesce(sum(pg_table_size(c.oid)), 0)::int8
         FROM pg_class c WHERE c.relkind = 'r' AND (c.oid = {table}::regclass
            OR c.oid IN (SELECT relid FROM pg_partition_tree({table}::regclass)))"
    );
    let rows = connection.simple_query(&sql).await?;
    let number = |column: usize| rows.first()?.get(column)?.as_ref()?.parse().ok();
    Ok((number(0).unwrap_or(0), number(1).unwrap_or(0)))
}

/// A parser that turns binary COPY into chunks of rows.
struct CopyRowParser {
    columns: usize,
    state: CopyParserState,
    chunk: Vec<u8>,
}

#[derive(PartialEq, Eq)]
enum CopyParserState {
    Header,
    Rows,
    Complete,
}

impl CopyRowParser {
    fn new(columns: usize) -> CopyRowParser {
        CopyRowParser {
            columns,
            state: CopyParserState::Header,
            chunk: Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8),
        }
    }

    /// Takes a message. PostgreSQL puts whole rows into each message, and the header before the
    /// first row.
    fn take(&mut self, message: &[u8]) -> Result<(), TransportError> {
        let mut rest = message;
        if self.state == CopyParserState::Header {
            rest = after_header(rest).ok_or_else(|| broken("header"))?;
            self.state = CopyParserState::Rows;
        }
        while let Some((count, after)) = rest.split_first_chunk::<2>() {
            if self.state == CopyParserState::Complete {
                return Err(broken("row after the end"));
            }
            let count = i16::from_be_bytes(*count);
            if count == -1 {
                self.state = CopyParserState::Complete;
                rest = after;
                continue;
            }
            let cells = usize::try_from(count).ok().filter(|count| *count == self.columns);
            let length = cells.and_then(|cells| row_length(after, cells)).ok_or_else(|| broken("row"))?;
            let (row, next) = after.split_at(length);
            let length = u32::try_from(length).map_err(|_| broken("row's length"))?;
            self.chunk.extend_from_slice(&length.to_ne_bytes());
            self.chunk.extend_from_slice(row);
            rest = next;
        }
        match rest {
            [] => Ok(()),
            _ => Err(broken("row")),
        }
    }

    fn take_chunk(&mut self) -> Vec<u8> {
        let next = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
        std::mem::replace(&mut self.chunk, next)
    }

    /// Returns the remaining rows of a complete copy.
    fn finish(self) -> Result<Vec<u8>, TransportError> {
        match self.state {
            CopyParserState::Complete => Ok(self.chunk),
            CopyParserState::Header | CopyParserState::Rows => Err(broken("end")),
        }
    }
}

fn broken(what: &str) -> TransportError {
    TransportError::Protocol(format!("binary COPY has a malformed {what}"))
}

fn after_header(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(SIGNATURE)?;
    let (flags, rest) = rest.split_first_chunk::<4>()?;
    let (extension, rest) = rest.split_first_chunk::<4>()?;
    // The upper half of the flags marks critical features, which a reader must understand.
    (u32::from_be_bytes(*flags) >> 16 == 0).then_some(())?;
    rest.get(u32::from_be_bytes(*extension) as usize..)
}

/// Returns the number of bytes that the first `cells` cells occupy.
fn row_length(bytes: &[u8], cells: usize) -> Option<usize> {
    let mut at = 0_usize;
    for _ in 0..cells {
        let head = bytes.get(at..)?.first_chunk::<4>()?;
        at += 4;
        match i32::from_be_bytes(*head) {
            -1 => {}
            length => at = at.checked_add(usize::try_from(length).ok()?)?,
        }
    }
    (at <= bytes.len()).then_some(at)
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Vec<u8> {
        [SIGNATURE, &[0; 8]].concat()
    }

    fn row(cells: &[Option<&[u8]>]) -> Vec<u8> {
        let mut bytes = i16::try_from(cells.len()).unwrap().to_be_bytes().to_vec();
        for cell in cells {
            let length = cell.map_or(-1, |cell| i32::try_from(cell.len()).unwrap());
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(cell.unwrap_or_default());
        }
        bytes
    }

    #[test]
    fn rows_come_out_as_they_went_in() {
        let (one, two) = (row(&[Some(b"ab"), None]), row(&[None, Some(b"")]));
        let mut reader = CopyRowParser::new(2);
        reader.take(&[header(), one.clone()].concat()).unwrap();
        reader.take(&[two.clone(), one.clone(), vec![0xff, 0xff]].concat()).unwrap();
        let expected: Vec<u8> = [&one, &two, &one]
            .iter()
            .flat_map(|row| [&u32::try_from(row.len() - 2).unwrap().to_ne_bytes(), &row[2..]].concat())
            .collect();
        assert_eq!(reader.finish().unwrap(), expected);
    }

    #[test]
    fn what_is_not_a_copy_is_refused() {
        let good = row(&[Some(b"ab")]);
        for message in [
            b"PGCOPZ".to_vec(),
            [header(), row(&[None, None])].concat(),
            [header(), good[..5].to_vec()].concat(),
            [header(), vec![0xff, 0xff], good.clone()].concat(),
            [header(), vec![0xff, 0xfe]].concat(),
            [header(), vec![0]].concat(),
        ] {
            assert!(CopyRowParser::new(1).take(&message).is_err(), "{message:?}");
        }
        let mut cut = CopyRowParser::new(1);
        cut.take(&[header(), good].concat()).unwrap();
        assert!(cut.finish().is_err(), "a copy without its end is not whole");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>, columns in 0_usize..5) {
            let _ = CopyRowParser::new(columns).take(&bytes);
            let _ = CopyRowParser::new(columns).take(&[header(), bytes].concat());
        }
    }
}
