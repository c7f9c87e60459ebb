//! A table's changes as they are committed, for watchers. They contain the action and the place,
//! but not the row.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use laredo_core::{Lsn, Schema};
use laredo_engine::journal::{self, BatchFrame, JournalCursor};
use laredo_proto::batch::{BatchEntries, BatchError, EntryAction};
use laredo_proto::oam::RowChange;
use laredo_proto::schema;
use tonic::Status;

use super::status::{self, count};
use crate::refusal;
use crate::table::ServedTable;

/// A place in a table's journal. There is no queue: a watcher that reads nothing stays behind, as
/// far as the journal reaches.
pub(super) struct RowChangeCursor {
    table: Arc<ServedTable>,
    /// `None` before the first copy.
    cursor: Option<JournalCursor>,
    /// The frames that were taken from the journal and not yet reported, and the schema before
    /// them.
    taken: Option<(Bytes, Arc<Schema>)>,
}

impl RowChangeCursor {
    /// Begins at the head of the journal.
    pub(super) fn new(table: Arc<ServedTable>) -> RowChangeCursor {
        let mut rows = RowChangeCursor { table, cursor: None, taken: None };
        rows.begin();
        rows
    }

    pub(super) fn table(&self) -> &ServedTable {
        &self.table
    }

    fn begin(&mut self) {
        if self.cursor.is_none() {
            self.cursor = self.table.handle().journal().map(|journal| journal.cursor(journal.head().sequence));
        }
    }

    /// Returns the next changes, at most one batch. The result is empty if there are no more now.
    ///
    /// # Errors
    /// Returns an error if the journal no longer holds the next entries, or cannot be read.
    pub(super) async fn next(&mut self) -> Result<Vec<RowChange>, Status> {
        self.begin();
        let Some(cursor) = &mut self.cursor else { return Ok(Vec::new()) };
        if cursor.is_abandoned() {
            return Err(refusal::journal_replaced());
        }
        let (mut frames, mut schema) = match self.taken.take() {
            Some(taken) => taken,
            None => match cursor.next_piece_async().await.map_err(|error| refusal::watched(&error))? {
                Some(piece) => (piece.frames, piece.schema),
                None => return Ok(Vec::new()),
            },
        };
        let damaged = |what: &dyn std::fmt::Display| Status::internal(format!("reading the journal: {what}"));
        let frame = journal::frames(frames.clone()).next().ok_or_else(|| damaged(&"a frame is torn"))?;
        frames.advance(frame.length);
        if let Some(changed) = frame.batch.schema.clone() {
            schema = Arc::new(schema::from_wire(changed).map_err(|error| damaged(&error))?);
        }
        let changes = self.changes(&frame, &schema).map_err(|error| damaged(&error))?;
        self.taken = (!frames.is_empty()).then_some((frames, schema));
        Ok(changes)
    }

    fn changes(&self, frame: &BatchFrame, schema: &Schema) -> Result<Vec<RowChange>, BatchError> {
        let (name, position) = (self.table.name(), frame.header.position);
        let (pipeline_id, xid) = (status::pipeline_id(&self.table), self.xid(position));
        let change = |action: EntryAction| RowChange {
            pipeline_id: pipeline_id.clone(),
            schema: name.schema.clone(),
            table: name.table.clone(),
            action: word(action).to_owned(),
            position: position.to_string(),
            xid,
        };
        let entries = BatchEntries::new(&frame.batch.entries, schema);
        entries.map(|entry| entry.map(|entry| change(entry.action))).collect()
    }

    /// Returns the transaction's ID. It is zero for changes that a copy found, which belong to no
    /// single transaction, and for old transactions.
    fn xid(&self, position: Lsn) -> i64 {
        self.table.handle().xid_of(position).map_or(0, |xid| count(xid.0))
    }
}

fn word(action: EntryAction) -> &'static str {
    match action {
        EntryAction::Insert => "INSERT",
        EntryAction::Update => "UPDATE",
        EntryAction::Delete => "DELETE",
        EntryAction::Truncate => "TRUNCATE",
    }
}
