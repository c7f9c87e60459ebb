//! [`RowBatch`]: many rows or changes in one message, as PostgreSQL sent them.

use laredo_core::{
    Change, CommitMark, CommitTime, DefinitionVersion, Key, Lsn, Schema, Sequence, TupleError, TupleRef, Xid,
};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::frame;
use crate::replication::{RowBatch, TypedSchema};

/// A batch is closed once its entries reach this many bytes: large enough that its header costs nothing, small enough that
/// HTTP/2 can interleave streams. A single larger row still travels whole.
pub const BATCH_BYTES: usize = 256 * 1024;

/// The field of `SyncResponse` that holds a batch, and of `RowBatch` that holds the entries.
const BATCH_FIELD: u32 = 100;
const ENTRIES_FIELD: u32 = 8;

/// What an entry does, as numbered in the .proto file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// A new row (or, in a snapshot, a row).
    Insert = 1,
    /// A row whose key was there.
    Update = 2,
    /// A key that is gone.
    Delete = 3,
    /// Everything is gone.
    Truncate = 4,
}

/// One entry of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it does.
    pub action: Action,
    /// The row's cells, or the key's for a delete, or nothing.
    pub row: TupleRef<'a>,
}

/// What stands beside the entries of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchHeader {
    /// The sequence of the last entry; zero in a snapshot.
    pub last_sequence: Sequence,
    /// The transaction's commit end.
    pub position: Lsn,
    /// Set where it stands for everything in `(span_from, position]`.
    pub span_from: Option<Lsn>,
    /// When it committed.
    pub committed_at: CommitTime,
    /// Whether it is its transaction's last batch.
    pub ends: bool,
    /// The transaction's id; zero in a snapshot, in a span, and before the transaction's last batch.
    pub xid: Xid,
}

/// Entries that are collected for one batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    entries: Vec<u8>,
    count: u32,
    schema: Option<TypedSchema>,
    definition: DefinitionVersion,
}

impl BatchBuilder {
    /// Adds an entry.
    pub fn push(&mut self, action: Action, row: TupleRef<'_>) {
        self.entries.reserve(5 + row.bytes().len());
        self.entries.push(action as u8);
        let length = u32::try_from(row.bytes().len()).expect("PostgreSQL's rows are below 2 GiB");
        self.entries.extend_from_slice(&length.to_be_bytes());
        self.entries.extend_from_slice(row.bytes());
        self.count += 1;
    }

    /// Says that the entries which follow have a new schema. Must come first in a batch.
    pub fn set_schema(&mut self, schema: &Schema) {
        debug_assert!(self.entries.is_empty(), "a schema change opens a batch");
        self.schema = Some(crate::schema::to_wire(schema));
    }

    /// Says that the entries which follow are of another definition. Must come first in a batch.
    pub fn set_definition(&mut self, definition: DefinitionVersion) {
        debug_assert!(self.entries.is_empty(), "another definition opens a batch");
        self.definition = definition;
    }

    /// Whether it is time to close the batch.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_BYTES
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0 && self.schema.is_none()
    }

    /// Entries so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Appends what was collected as one frame, and starts anew.
    pub fn finish(&mut self, header: &BatchHeader, out: &mut Vec<u8>) {
        // The entries are left out of the message and written by hand, so that they are copied just once.
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

/// Bytes that are not a batch of this table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// An entry runs past the end.
    #[error("batch is torn at byte {0} of its entries")]
    Torn(usize),
    /// An unknown action.
    #[error("batch has an entry with the unknown action {0}")]
    Action(u8),
    /// An entry whose row is not one.
    #[error("batch has an entry that is not a row of its table: {0}")]
    Row(#[from] TupleError),
    /// Another number of entries than its header says.
    #[error("batch says it has {expected} entries, but has {found}")]
    Count {
        /// As the header says.
        expected: u32,
        /// As found.
        found: u32,
    },
}

/// The entries of a batch; each is checked as it is reached.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    columns: usize,
    key_columns: usize,
}

impl<'a> Entries<'a> {
    /// Reads the entries of a batch of a table with this schema.
    #[must_use]
    pub fn new(bytes: &'a [u8], schema: &Schema) -> Entries<'a> {
        Entries { bytes, at: 0, columns: schema.columns().len(), key_columns: schema.key().columns().len() }
    }

    fn read(&mut self) -> Result<Entry<'a>, BatchError> {
        let torn = BatchError::Torn(self.at);
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(([action, a, b, c, d], rest)) = rest.split_first_chunk::<5>() else {
            return Err(torn);
        };
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let bytes = rest.get(..length).ok_or(torn)?;
        let (action, columns) = match action {
            1 => (Action::Insert, self.columns),
            2 => (Action::Update, self.columns),
            3 => (Action::Delete, self.key_columns),
            4 => (Action::Truncate, 0),
            other => return Err(BatchError::Action(*other)),
        };
        self.at += 5 + length;
        Ok(Entry { action, row: TupleRef::parse(bytes, columns)? })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let entry = self.read();
        if entry.is_err() {
            self.at = self.bytes.len();
        }
        Some(entry)
    }
}

impl Entry<'_> {
    /// The change, with a row of its own.
    #[must_use]
    pub fn to_change(&self) -> Change {
        match self.action {
            Action::Insert => Change::Insert(self.row.to_tuple()),
            Action::Update => Change::Update(self.row.to_tuple()),
            Action::Delete => Change::Delete(Key::from_tuple(self.row.to_tuple())),
            Action::Truncate => Change::Truncate,
        }
    }
}

impl BatchHeader {
    /// What a received batch says beside its entries.
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

    /// Returns the commit that the batch ends, or the end of a span as a mark without a transaction.
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
            rows.iter().for_each(|row| builder.push(Action::Insert, row.as_ref()));
            let header = BatchHeader { last_sequence: Sequence(7), position: Lsn(position), ends: true, xid: Xid(position), ..Default::default() };
            let mut out = Vec::new();
            builder.finish(&header, &mut out);
            prop_assert_eq!(frame::length(&out), Some(out.len() - frame::PREFIX_LENGTH));
            let response = SyncResponse::decode(&out[frame::PREFIX_LENGTH..]).unwrap();
            let Some(sync_response::Message::Batch(batch)) = response.message else { panic!("not a batch") };
            prop_assert_eq!(BatchHeader::of(&batch), header);
            prop_assert_eq!(batch.count as usize, rows.len());
            let back: Vec<_> = Entries::new(&batch.entries, &schema(3)).map(|e| e.unwrap().row.to_tuple()).collect();
            prop_assert_eq!(back, rows.iter().map(|r| r.as_ref().to_tuple()).collect::<Vec<_>>());
        }

        #[test]
        fn hostile_entries_are_refused(bytes: Vec<u8>) {
            let entries: Vec<_> = Entries::new(&bytes, &schema(2)).collect();
            prop_assert!(entries.iter().rev().skip(1).all(Result::is_ok));
        }
    }
}
