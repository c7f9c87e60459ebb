//! Rows as Structs, one message each, for clients that know the protocol without extensions.

use laredo_core::{CommitTime, Lsn, Schema, Sequence, TupleBuf, TupleRef};
use laredo_engine::journal::BatchFrame;
use laredo_proto::batch::BatchEntries;
use laredo_proto::frame;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{ReplicationJournalEntry, SchemaChangeNotification, SnapshotRow, SyncResponse};
use laredo_values::{HexCells, Value, show_row};
use prost::Message as _;
use prost_types::{Struct, Timestamp, value::Kind};

use super::changes::{FrameChanges, VisibleChange};
use super::{EntryMode, ProjectedFrame, RowSelection, ViewError};

pub(super) fn rows(
    from: &BatchFrame,
    schema: &Schema,
    selection: &RowSelection,
    hex: &HexCells,
) -> Result<ProjectedFrame, ViewError> {
    rows_as(from, schema, selection, hex, |row, out| put(Message::SnapshotRow(SnapshotRow { row: Some(row) }), out))
}

/// Returns the rows of a base, each as the message that `put` appends for it.
pub(super) fn rows_as(
    from: &BatchFrame,
    schema: &Schema,
    selection: &RowSelection,
    hex: &HexCells,
    put: impl Fn(Struct, &mut Vec<u8>),
) -> Result<ProjectedFrame, ViewError> {
    let (mut out, mut count, mut scratch) = (Vec::new(), 0, TupleBuf::new());
    for entry in BatchEntries::new(&from.batch.entries, schema) {
        let row = entry?.row;
        if selection.matches(row) {
            put(row_struct(selection.schema(), selection.show(row, &mut scratch), hex)?, &mut out);
            count += 1;
        }
    }
    Ok(ProjectedFrame { bytes: out.into(), count, carries_end: false })
}

pub(super) fn changes(changes: &FrameChanges<'_>, hex: &HexCells) -> Result<ProjectedFrame, ViewError> {
    let mut out = Vec::new();
    let is_redefined = changes.has_schema() && changes.selection_before.schema() != changes.selection.schema();
    if is_redefined && changes.first() > changes.after {
        let notice = SchemaChangeNotification {
            sequence: changes.first().to_wire(),
            old_columns: laredo_proto::schema::column_definitions(changes.selection_before.schema()),
            new_columns: laredo_proto::schema::column_definitions(changes.selection.schema()),
        };
        put(Message::SchemaChange(notice), &mut out);
    }
    let mut writer = StructEntryWriter { changes, hex, out, pending: None, count: 0 };
    changes.each(|sequence, change| writer.change(sequence, change))?;
    Ok(writer.finish())
}

/// A writer of entries that keeps the last entry back. Only the last entry of a transaction carries
/// its end, and the writer learns at the end which one that is.
struct StructEntryWriter<'a> {
    changes: &'a FrameChanges<'a>,
    hex: &'a HexCells,
    out: Vec<u8>,
    pending: Option<(Sequence, ReplicationJournalEntry)>,
    count: u64,
}

impl StructEntryWriter<'_> {
    fn change(&mut self, sequence: Sequence, change: VisibleChange<'_>) -> Result<(), ViewError> {
        let (selection, mut scratch) = (self.changes.selection, TupleBuf::new());
        let mut row =
            |row: TupleRef<'_>| row_struct(selection.schema(), selection.show(row, &mut scratch), self.hex).map(Some);
        let (action, old, new) = match change {
            VisibleChange::Insert(new) => ("INSERT", None, row(new)?),
            VisibleChange::Update { old, new } => ("UPDATE", row(old)?, row(new)?),
            VisibleChange::Delete(old) => ("DELETE", row(old)?, None),
            VisibleChange::Truncate => ("TRUNCATE", None, None),
        };
        if self.changes.mode == EntryMode::Repeat && action == "DELETE" {
            // Some clients treat a delete of a row that they no longer have as a truncate, so they
            // are sent the row first. It has the previous sequence, so a client that is cut here
            // resumes with the delete.
            self.push(Sequence(sequence.0 - 1), "UPDATE", old.clone(), old.clone());
        }
        self.push(sequence, action, old, new);
        Ok(())
    }

    fn push(&mut self, sequence: Sequence, action: &str, old_values: Option<Struct>, new_values: Option<Struct>) {
        self.flush(None);
        self.count += 1;
        let entry = ReplicationJournalEntry {
            sequence: sequence.to_wire(),
            source_position: String::new(),
            timestamp: Some(timestamp(self.changes.frame.header.committed_at)),
            action: action.to_owned(),
            old_values,
            new_values,
        };
        self.pending = Some((sequence, entry));
    }

    fn flush(&mut self, end: Option<Lsn>) {
        let Some((sequence, mut entry)) = self.pending.take() else { return };
        let nth = sequence.entries_since(self.changes.began_after);
        let position = match (self.changes.mode, end) {
            (EntryMode::Snapshot, _) => NOWHERE,
            (EntryMode::Ordinary | EntryMode::Repeat, Some(end)) => end,
            (EntryMode::Ordinary | EntryMode::Repeat, None) => {
                between(self.changes.before, nth, self.changes.frame.header.position)
            }
        };
        entry.source_position = position.to_string();
        put(Message::JournalEntry(entry), &mut self.out);
    }

    fn finish(mut self) -> ProjectedFrame {
        let header = &self.changes.frame.header;
        let carries_end = header.ends && self.pending.is_some();
        self.flush(carries_end.then_some(header.position));
        ProjectedFrame { bytes: self.out.into(), count: self.count, carries_end }
    }
}

/// The position of an entry inside a snapshot. A client that is cut there and resumes from it is
/// sent the whole table again, because it may have dropped the earlier rows.
const NOWHERE: Lsn = Lsn::ZERO;

/// Returns the position of a transaction's nth entry that is not its last. It is after the previous
/// commit and before the transaction's own end. So a client that resumes from it is sent the whole
/// transaction again.
fn between(before: Lsn, nth: u64, end: Lsn) -> Lsn {
    let last = Lsn(end.0.saturating_sub(1));
    Lsn(before.0.saturating_add(nth)).min(last).max(before)
}

/// The content of an entry that only marks a place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PositionMarker {
    pub(crate) sequence: Sequence,
    pub(crate) position: Lsn,
    pub(crate) committed_at: CommitTime,
}

/// Appends an entry without action and values.
pub(crate) fn marker(marker: PositionMarker, out: &mut Vec<u8>) {
    let entry = ReplicationJournalEntry {
        sequence: marker.sequence.to_wire(),
        source_position: marker.position.to_string(),
        timestamp: Some(timestamp(marker.committed_at)),
        ..ReplicationJournalEntry::default()
    };
    put(Message::JournalEntry(entry), out);
}

pub(crate) fn timestamp(time: CommitTime) -> Timestamp {
    let us = time.unix_us();
    Timestamp { seconds: us.div_euclid(1_000_000), nanos: i32::try_from(us.rem_euclid(1_000_000) * 1000).unwrap_or(0) }
}

fn put(message: Message, out: &mut Vec<u8>) {
    let message = Some(message);
    frame::encode(&SyncResponse { message }, out);
}

pub(crate) fn row_struct(schema: &Schema, row: TupleRef<'_>, hex: &HexCells) -> Result<Struct, ViewError> {
    let fields = show_row(schema, row, hex)?.into_iter();
    let fields = fields.map(|(name, value)| (name.to_owned(), to_wire(value))).collect();
    let shown = Struct { fields };
    // The size of a Struct takes time to compute, and that of a small row is far below the limit.
    match row.bytes().len() > LARGE_ROW_BYTES && shown.encoded_len() > STRUCT_BYTES_MAX {
        true => Err(ViewError::TooLarge),
        false => Ok(shown),
    }
}

/// The size of a row in bytes from which its Struct may be too large.
const LARGE_ROW_BYTES: usize = 16 << 20;
/// The maximum size of a row as a Struct, in bytes. A message has at most two rows, and its length
/// is a `u32`.
const STRUCT_BYTES_MAX: usize = (2 << 30) - (1 << 20);

pub(crate) fn to_wire(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value),
        Value::String(text) => Kind::StringValue(text),
        Value::List(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(to_wire).collect() })
        }
        Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(name, value)| (name, to_wire(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_inside_a_transaction_lie_between_its_neighbors_and_the_last_repeats() {
        let inside: Vec<u64> = (1..6).map(|nth| between(Lsn(100), nth, Lsn(104)).0).collect();
        assert_eq!(inside, [101, 102, 103, 103, 103]);
        assert_eq!(between(Lsn(100), 1, Lsn(101)), Lsn(100), "no room: the transaction comes again");
    }

    #[test]
    fn times_before_1970_have_positive_nanoseconds() {
        let time = timestamp(CommitTime::from_unix_us(-1));
        assert_eq!((time.seconds, time.nanos), (-1, 999_999_000));
    }
}
