//! The encoding of a [`RowBatch`]: many rows or changes in one message, as PostgreSQL sent them.

use laredo_core::{
    Change, CommitMark, CommitTime, DefinitionVersion, Key, Lsn, Schema, Sequence, TupleError, TupleRef, Xid,
};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::frame;
use crate::replication::{RowBatch, TypedSchema};

/// The size in bytes of entries at which a batch is closed. The header's cost is negligible at this
/// size, and HTTP/2 can still interleave streams. A single larger row is not split.
pub const BATCH_BYTES: usize = 256 * 1024;

/// The fields of `SyncResponse` that holds a batch, and of `RowBatch` that holds the entries.
const BATCH_FIELD: u32 = 100;
const ENTRIES_FIELD: u32 = 8;

/// The action of an entry, as numbered in the `.proto` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryAction {
    /// A new row, or any row of a snapshot.
    Insert = 1,
    /// A row that replaces the one with the same key.
    Update = 2,
    /// A key whose row was deleted.
    Delete = 3,
    /// The removal of all rows.
    Truncate = 4,
}

/// An entry of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchEntry<'a> {
    /// The action of the entry.
    pub action: EntryAction,
    /// The row's cells, the key's cells for a delete, or nothing for a truncate.
    pub row: TupleRef<'a>,
}

/// The fields of a batch other than its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchHeader {
    /// The sequence of the last entry; zero in a snapshot.
    pub last_sequence: Sequence,
    /// The end of the transaction's commit.
    pub position: Lsn,
    /// Set if the batch covers everything in `(span_from, position]`.
    pub span_from: Option<Lsn>,
    /// The time of the commit.
    pub committed_at: CommitTime,
    /// True if this is the last batch of its transaction.
    pub ends: bool,
    /// The transaction's ID. It is zero in a snapshot, in a span, and before the transaction's last
    /// batch.
    pub xid: Xid,
}

/// A builder that collects the entries of a batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    entries: Vec<u8>,
    count: u32,
    schema: Option<TypedSchema>,
    definition: DefinitionVersion,
}

impl BatchBuilder {
    /// Appends an entry.
    pub fn push(&mut self, action: EntryAction, row: TupleRef<'_>) {
        self.entries.reserve(5 + row.bytes().len());
        self.entries.push(action as u8);
        let length = u32::try_from(row.bytes().len()).expect("PostgreSQL's rows are below 2 GiB");
        self.entries.extend_from_slice(&length.to_be_bytes());
        self.entries.extend_from_slice(row.bytes());
        self.count += 1;
    }

    /// Sets a new schema for the entries that follow. It must come first in a batch.
    pub fn set_schema(&mut self, schema: &Schema) {
        debug_assert!(self.entries.is_empty(), "a schema change opens a batch");
        self.schema = Some(crate::schema::to_wire(schema));
    }

    /// Sets another definition for the entries that follow. It must come first in a batch.
    pub fn set_definition(&mut self, definition: DefinitionVersion) {
        debug_assert!(self.entries.is_empty(), "another definition opens a batch");
        self.definition = definition;
    }

    /// Returns true if the batch has reached [`BATCH_BYTES`] and should be closed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_BYTES
    }

    /// Returns true if there are no entries and no schema.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.schema.is_none()
    }

    /// Returns the number of entries so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Appends the collected entries as one frame, and empties the builder.
    pub fn finish(&mut self, header: &BatchHeader, out: &mut Vec<u8>) {
        // The entries are left out of the message and written by hand, so that they are copied just
        // once.
        let message = RowBatch {
            last_sequence: header.last_sequence.to_wire(),
            count: self.count,
            position: header.position.0,
            span_from: header.span_from.map_or(0, |lsn| lsn.0),
            committed_at_us: header.committed_at.unix_us(),
            ends: header.ends,
            schema: self.schema.take(),
            entries: bytes::Bytes::new(),
            xid: header.xid.0,
            definition: std::mem::take(&mut self.definition).0,
            ..RowBatch::default()
        };
        let entries_length = match self.entries.len() {
            0 => 0,
            length => 1 + encoded_len_varint(length as u64) + length,
        };
        let batch_length = message.encoded_len() + entries_length;
        let response_length = 2 + encoded_len_varint(batch_length as u64) + batch_length;
        out.reserve(frame::PREFIX_LENGTH + response_length);
        frame::prefix(response_length, out);
        encode_key(BATCH_FIELD, WireType::LengthDelimited, out);
        encode_varint(batch_length as u64, out);
        message.encode_raw(out);
        if !self.entries.is_empty() {
            encode_key(ENTRIES_FIELD, WireType::LengthDelimited, out);
            encode_varint(self.entries.len() as u64, out);
            out.extend_from_slice(&self.entries);
        }
        self.entries.clear();
        self.count = 0;
    }
}

/// An error for bytes that are not a batch of the expected table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// An entry that exceeds the batch.
    #[error("batch is torn at byte {0} of its entries")]
    Torn(usize),
    /// An unknown action.
    #[error("batch has an entry with the unknown action {0}")]
    Action(u8),
    /// An entry whose row is invalid.
    #[error("batch has an entry that is not a row of its table: {0}")]
    Row(#[from] TupleError),
    /// A number of entries that differs from the header's.
    #[error("batch has {found} entries, but its header has the count {expected}")]
    Count {
        /// The number in the header.
        expected: u32,
        /// The number found.
        found: u32,
    },
}

/// An iterator over the entries of a batch. Each entry is checked when it is reached.
#[derive(Clone, Debug)]
pub struct BatchEntries<'a> {
    bytes: &'a [u8],
    at: usize,
    columns: usize,
    key_columns: usize,
}

impl<'a> BatchEntries<'a> {
    /// Returns an iterator over the entries of a batch, for a table with this schema.
    #[must_use]
    pub fn new(bytes: &'a [u8], schema: &Schema) -> BatchEntries<'a> {
        BatchEntries { bytes, at: 0, columns: schema.columns().len(), key_columns: schema.key().columns().len() }
    }

    fn read_entry(&mut self) -> Result<BatchEntry<'a>, BatchError> {
        let torn = BatchError::Torn(self.at);
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(([action, a, b, c, d], rest)) = rest.split_first_chunk::<5>() else {
            return Err(torn);
        };
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let bytes = rest.get(..length).ok_or(torn)?;
        let (action, columns) = match action {
            1 => (EntryAction::Insert, self.columns),
            2 => (EntryAction::Update, self.columns),
            3 => (EntryAction::Delete, self.key_columns),
            4 => (EntryAction::Truncate, 0),
            other => return Err(BatchError::Action(*other)),
        };
        self.at += 5 + length;
        Ok(BatchEntry { action, row: TupleRef::parse(bytes, columns)? })
    }
}

impl<'a> Iterator for BatchEntries<'a> {
    type Item = Result<BatchEntry<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let entry = self.read_entry();
        if entry.is_err() {
            self.at = self.bytes.len();
        }
        Some(entry)
    }
}

impl BatchEntry<'_> {
    /// Returns the change, with an owned row.
    #[must_use]
    pub fn to_change(&self) -> Change {
        match self.action {
            EntryAction::Insert => Change::Insert(self.row.to_tuple()),
            EntryAction::Update => Change::Update(self.row.to_tuple()),
            EntryAction::Delete => Change::Delete(Key::from_tuple(self.row.to_tuple())),
            EntryAction::Truncate => Change::Truncate,
        }
    }
}

impl BatchHeader {
    /// Returns the header of a received batch.
    #[must_use]
    pub fn of(batch: &RowBatch) -> BatchHeader {
        BatchHeader {
            last_sequence: Sequence::from_wire(batch.last_sequence),
            position: Lsn(batch.position),
            span_from: (batch.span_from != 0).then_some(Lsn(batch.span_from)),
            committed_at: CommitTime::from_unix_us(batch.committed_at_us),
            ends: batch.ends,
            xid: Xid(batch.xid),
        }
    }

    /// Returns the commit that the batch ends. The end of a span is a mark without a transaction.
    #[must_use]
    pub fn mark(&self) -> CommitMark {
        CommitMark { end: self.position, xid: self.xid, committed_at: self.committed_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::{SyncResponse, sync_response};
    use laredo_core::{Cell, Column, KeyColumns, TupleBuf};
    use proptest::prelude::*;

    fn schema(columns: usize) -> Schema {
        let column = |i: usize| Column {
            name: format!("c{i}"),
            type_oid: 25,
            type_modifier: -1,
            type_name: "text".to_owned(),
            not_null: false,
            is_text: false,
        };
        Schema::new((0..columns).map(column).collect(), KeyColumns::new([0]), Default::default())
    }

    proptest! {
        #[test]
        fn a_batch_is_what_the_proto_says(rows in prop::collection::vec(any::<[Option<Vec<u8>>; 3]>(), 0..20), position: u64) {
            let mut builder = BatchBuilder::default();
            let rows: Vec<TupleBuf> = rows
                .iter()
                .map(|cells| cells.iter().map(|c| c.as_deref().map_or(Cell::Null, Cell::Value)).collect())
                .collect();
            rows.iter().for_each(|row| builder.push(EntryAction::Insert, row.as_ref()));
            let header = BatchHeader { last_sequence: Sequence(7), position: Lsn(position), ends: true, xid: Xid(position), ..Default::default() };
            let mut out = Vec::new();
            builder.finish(&header, &mut out);
            prop_assert_eq!(frame::length(&out), Some(out.len() - frame::PREFIX_LENGTH));
            let response = SyncResponse::decode(&out[frame::PREFIX_LENGTH..]).unwrap();
            let Some(sync_response::Message::Batch(batch)) = response.message else { panic!("not a batch") };
            prop_assert_eq!(BatchHeader::of(&batch), header);
            prop_assert_eq!(batch.count as usize, rows.len());
            let back: Vec<_> = BatchEntries::new(&batch.entries, &schema(3)).map(|e| e.unwrap().row.to_tuple()).collect();
            prop_assert_eq!(back, rows.iter().map(|r| r.as_ref().to_tuple()).collect::<Vec<_>>());
        }

        #[test]
        fn hostile_entries_are_refused(bytes: Vec<u8>) {
            let entries: Vec<_> = BatchEntries::new(&bytes, &schema(2)).collect();
            prop_assert!(entries.iter().rev().skip(1).all(Result::is_ok));
        }
    }
}
