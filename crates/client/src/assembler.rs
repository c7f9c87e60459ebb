//! Assembles the messages of a stream into complete snapshots and transactions. The code accesses
//! neither sockets nor readers.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{
    Change, Checksum, ChecksumError, DefinitionVersion, IndexSpec, Lsn, LsnError, Schema, ScopedMark, Sequence,
    StateError, TableState, Transaction, Xid,
};
use laredo_proto::batch::{BatchEntries, BatchError, BatchHeader, EntryAction};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    Heartbeat, RowBatch, RowEncoding, SnapshotBegin, SnapshotEnd, SyncHandshake, SyncMode, SyncResponse,
};
use laredo_proto::schema::{self, SchemaError};
use prost_types::Timestamp;

/// The most rows to reserve memory for in advance, whatever row count a server announces.
const ROWS_EXPECTED_MAX: usize = 1 << 20;

/// A complete item of a stream.
#[derive(Debug)]
pub(crate) enum AssemblerEvent {
    /// No item is complete yet.
    Nothing,
    /// The beginning of the stream.
    Opened(Box<SyncHandshake>),
    /// All rows of the table.
    Snapshot {
        table: Box<TableState>,
        position: Lsn,
        sequence: Sequence,
        mark: Option<ScopedMark>,
        definition: DefinitionVersion,
        /// The checksum of the rows from the sender, the server or the local snapshot.
        checksum: Option<Checksum>,
    },
    /// A transaction to apply. If `definition` is known, rows are of that definition from here on.
    Transaction {
        transaction: Transaction,
        sequence: Sequence,
        mark: Option<ScopedMark>,
        definition: DefinitionVersion,
    },
    /// A transaction that the table already has. If `definition` is known, it is the table's.
    Repeated { sequence: Sequence, definition: DefinitionVersion },
    /// A heartbeat with the server's time. If it has a position, everything up to there was sent.
    Heartbeat {
        server_time: Option<Timestamp>,
        position: Option<Lsn>,
        mark: Option<ScopedMark>,
        /// The server's checksum of the rows at the position.
        checksum: Option<Checksum>,
        /// The server's request for the checksum of the client's own rows at the position.
        check: Option<Vec<u8>>,
        /// The time since the server last knew its rows to be all that the database had.
        source_lag: Duration,
    },
}

/// The way in which a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StreamMode {
    /// The server sends all rows, and then changes.
    FullSnapshot,
    /// The server sends only changes of the rows that the client has.
    Delta,
}

impl StreamMode {
    /// Returns the mode of a handshake, or `None` if it is not one of a replication stream.
    pub(crate) fn from_wire(mode: SyncMode) -> Option<StreamMode> {
        match mode {
            SyncMode::FullSnapshot => Some(StreamMode::FullSnapshot),
            SyncMode::Delta | SyncMode::DeltaFromSnapshot => Some(StreamMode::Delta),
            SyncMode::Unspecified | SyncMode::ReplayArchive => None,
        }
    }
}

/// A violation of the protocol by a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message of one kind where another kind is expected.
    #[error("the server sent {found} instead of {expected}")]
    Unexpected {
        /// The kind that arrived.
        found: &'static str,
        /// The kind that is expected.
        expected: &'static str,
    },
    /// A batch whose entries are malformed or do not fit the table.
    #[error("the server sent an invalid batch: {0}")]
    Batch(#[from] BatchError),
    /// An invalid schema.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// An invalid position.
    #[error("the server sent an invalid position: {0}")]
    Position(#[from] LsnError),
    /// An invalid checksum.
    #[error("the server sent an invalid checksum: {0}")]
    Checksum(#[from] ChecksumError),
    /// A snapshot with too many or too few rows.
    #[error("the server announced a snapshot of {expected} rows and sent {found}")]
    SnapshotRows {
        /// The number of rows that the server announced.
        expected: i64,
        /// The number of rows that arrived. Rows with the same key count once.
        found: usize,
    },
    /// A net change from a new copy of the table, whose range includes the client's position.
    #[error("the server copied the table again between {from} and {to}, and this client is at {ours}, between the two")]
    Span {
        /// The start of the range. The net change is relative to the rows at this position.
        from: Lsn,
        /// The end of the range, and the position that the net change leads to.
        to: Lsn,
        /// The client's position.
        ours: Lsn,
    },
    /// A transaction whose position is before that of the previous transaction.
    #[error("the server sent position {to} after {from}, which is later")]
    Backwards {
        /// The position of the previous transaction.
        from: Lsn,
        /// The position of this transaction.
        to: Lsn,
    },
}

/// An error that makes a stream unusable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StreamAssemblyError {
    /// The server violates the protocol.
    Protocol(ProtocolError),
    /// The server cannot send binary rows.
    Encoding,
    /// The declared indexes do not fit the table.
    Index(StateError),
    /// The server's rows are of another definition than the client's rows at this position.
    Schema(Lsn),
}

/// The rows that the client has when a message arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PresentRows<'a> {
    pub(crate) schema: &'a Arc<Schema>,
    /// The position of the rows.
    pub(crate) position: Lsn,
    /// The position of the newest transaction or snapshot. From here to `position` no row changed.
    pub(crate) unchanged_since: Lsn,
}

/// Assembles the messages of one stream after another.
#[derive(Debug)]
pub(crate) struct StreamAssembler {
    indexes: Vec<IndexSpec>,
    phase: AssemblerPhase,
}

#[derive(Debug)]
enum AssemblerPhase {
    /// No message of this stream has arrived.
    New,
    /// A snapshot is announced and has not begun.
    Promised(Arc<Schema>),
    /// A snapshot is arriving.
    Snapshot(Box<PartialSnapshot>),
    /// Changes are arriving.
    Live(LiveStream),
}

#[derive(Debug)]
struct PartialSnapshot {
    table: TableState,
    begin: SnapshotBegin,
}

#[derive(Debug)]
struct LiveStream {
    /// The schema of the next entry.
    schema: Arc<Schema>,
    /// The position of the table when the stream began. Transactions up to here are repeats.
    floor: Lsn,
    /// The position from which on no row had changed when the stream began.
    unchanged_since: Lsn,
    /// The position of the newest transaction.
    position: Lsn,
    /// The changes of the transaction that has not ended.
    pending: Vec<Change>,
    /// The definition version from the unfinished transaction on. Unknown if that transaction does
    /// not change it.
    definition: DefinitionVersion,
}

impl StreamAssembler {
    pub(crate) fn new(indexes: Vec<IndexSpec>) -> StreamAssembler {
        StreamAssembler { indexes, phase: AssemblerPhase::New }
    }

    /// Returns the indexes that each table must have.
    pub(crate) fn indexes(&self) -> &[IndexSpec] {
        &self.indexes
    }

    /// Discards what was received in part.
    pub(crate) fn reset(&mut self) {
        self.phase = AssemblerPhase::New;
    }

    /// Returns true if the table follows this stream: a snapshot is complete, or none was needed.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, AssemblerPhase::Live(_))
    }

    /// Accepts the next message.
    ///
    /// # Errors
    /// When the stream is unusable. The caller must then call [`StreamAssembler::reset`].
    pub(crate) fn feed(
        &mut self,
        response: SyncResponse,
        present: Option<PresentRows<'_>>,
    ) -> Result<AssemblerEvent, StreamAssemblyError> {
        let Some(message) = response.message else {
            return Ok(AssemblerEvent::Nothing);
        };
        if matches!(self.phase, AssemblerPhase::New) && !matches!(message, Message::Handshake(_)) {
            return unexpected(name_of(&message), "a handshake");
        }
        match message {
            Message::Handshake(handshake) => self.handshake(handshake, present),
            Message::SnapshotBegin(begin) => self.snapshot_begin(begin),
            Message::SnapshotEnd(end) => self.snapshot_end(&end),
            Message::Batch(batch) => self.batch(&batch),
            Message::Heartbeat(heartbeat) => heartbeat_event(&heartbeat).map_err(StreamAssemblyError::Protocol),
            Message::GoAway(_) => Ok(AssemblerEvent::Nothing),
            other @ (Message::SnapshotRow(_) | Message::JournalEntry(_) | Message::SchemaChange(_)) => {
                unexpected(name_of(&other), "a batch of binary rows")
            }
        }
    }

    fn handshake(
        &mut self,
        mut handshake: SyncHandshake,
        present: Option<PresentRows<'_>>,
    ) -> Result<AssemblerEvent, StreamAssemblyError> {
        if !matches!(self.phase, AssemblerPhase::New) {
            return unexpected("a handshake", "a batch");
        }
        let encoding = handshake.encoding.take();
        let encoding = encoding.filter(|e| e.format() == RowEncoding::PostgresBinary);
        let schema = encoding.and_then(|e| e.schema).ok_or(StreamAssemblyError::Encoding)?;
        self.phase = match (StreamMode::from_wire(handshake.mode()), present) {
            (Some(StreamMode::FullSnapshot), _) => AssemblerPhase::Promised(new_schema(schema)?),
            // The rows that follow are of the handshake's schema. If the client's schema differs,
            // servers disagree on when the definition changed. The same bytes would then be read as
            // other columns.
            (Some(StreamMode::Delta), Some(present)) => {
                if *new_schema(schema)? != **present.schema {
                    return Err(StreamAssemblyError::Schema(present.position));
                }
                AssemblerPhase::Live(LiveStream::new(present))
            }
            (Some(StreamMode::Delta), None) => return unexpected("changes only", "a snapshot"),
            (None, _) => return unexpected("an unknown mode", "a snapshot or changes"),
        };
        Ok(AssemblerEvent::Opened(Box::new(handshake)))
    }

    fn snapshot_begin(&mut self, begin: SnapshotBegin) -> Result<AssemblerEvent, StreamAssemblyError> {
        let schema = match &self.phase {
            AssemblerPhase::Promised(schema) => schema.clone(),
            AssemblerPhase::Live(live) if live.pending.is_empty() => live.schema.clone(),
            _ => return unexpected("the beginning of a snapshot", "a batch"),
        };
        let rows = usize::try_from(begin.row_count).unwrap_or(0).min(ROWS_EXPECTED_MAX);
        let table = TableState::new(schema, &self.indexes, rows).map_err(StreamAssemblyError::Index)?;
        self.phase = AssemblerPhase::Snapshot(Box::new(PartialSnapshot { table, begin }));
        Ok(AssemblerEvent::Nothing)
    }

    fn snapshot_end(&mut self, end: &SnapshotEnd) -> Result<AssemblerEvent, StreamAssemblyError> {
        let AssemblerPhase::Snapshot(snapshot) = std::mem::replace(&mut self.phase, AssemblerPhase::New) else {
            return unexpected("the end of a snapshot", "its beginning");
        };
        let PartialSnapshot { table, begin } = *snapshot;
        if usize::try_from(end.rows_sent) != Ok(table.len()) {
            let (expected, found) = (end.rows_sent, table.len());
            return Err(StreamAssemblyError::Protocol(ProtocolError::SnapshotRows { expected, found }));
        }
        let position = match (position(&end.source_position)?, position(&begin.source_position)?) {
            (Some(position), _) | (None, Some(position)) => position,
            (None, None) => Lsn::ZERO,
        };
        let checksum = Checksum::from_wire(&end.checksum).map_err(|e| StreamAssemblyError::Protocol(e.into()))?;
        let present = PresentRows { schema: table.schema(), position, unchanged_since: position };
        self.phase = AssemblerPhase::Live(LiveStream::new(present));
        let (sequence, definition) = (Sequence::from_wire(end.sequence), DefinitionVersion(end.definition));
        Ok(AssemblerEvent::Snapshot {
            table: Box::new(table),
            position,
            sequence,
            mark: end.mark.map(Into::into),
            definition,
            checksum,
        })
    }

    fn batch(&mut self, batch: &RowBatch) -> Result<AssemblerEvent, StreamAssemblyError> {
        match &mut self.phase {
            AssemblerPhase::Snapshot(snapshot) => snapshot.batch(batch),
            AssemblerPhase::Live(live) => live.batch(batch).map_err(StreamAssemblyError::Protocol),
            AssemblerPhase::New | AssemblerPhase::Promised(_) => unexpected("a batch", "the beginning of a snapshot"),
        }
    }
}

impl PartialSnapshot {
    fn batch(&mut self, batch: &RowBatch) -> Result<AssemblerEvent, StreamAssemblyError> {
        if let Some(schema) = &batch.schema {
            let schema = new_schema(schema.clone())?;
            self.table.cast_to(schema).map_err(StreamAssemblyError::Index)?;
        }
        let schema = self.table.schema().clone();
        let mut found = 0;
        for entry in BatchEntries::new(&batch.entries, &schema) {
            let entry = entry.map_err(|e| StreamAssemblyError::Protocol(e.into()))?;
            if entry.action != EntryAction::Insert {
                return unexpected("a change", "a row of the snapshot");
            }
            self.table.put(entry.row.to_tuple());
            found += 1;
        }
        check_count(batch, found).map_err(StreamAssemblyError::Protocol)?;
        Ok(AssemblerEvent::Nothing)
    }
}

impl LiveStream {
    fn new(present: PresentRows<'_>) -> LiveStream {
        let PresentRows { schema, position, unchanged_since } = present;
        LiveStream {
            schema: schema.clone(),
            floor: position,
            unchanged_since,
            position,
            pending: Vec::new(),
            definition: DefinitionVersion::UNKNOWN,
        }
    }

    fn batch(&mut self, batch: &RowBatch) -> Result<AssemblerEvent, ProtocolError> {
        let header = BatchHeader::of(batch);
        let is_empty = batch.count == 0 && batch.schema.is_none() && self.pending.is_empty() && header.ends;
        let is_known = header.position <= self.floor || (is_empty && header.position == self.position);
        if is_known && header.position != Lsn::ZERO {
            // A repeat may have an older schema, so its entries are not read.
            let sequence = header.last_sequence;
            // An older transaction does not determine the current definition.
            let is_newest = header.position == self.position;
            let definition = DefinitionVersion(if is_newest { batch.definition } else { 0 });
            return Ok(if header.ends {
                AssemblerEvent::Repeated { sequence, definition }
            } else {
                AssemblerEvent::Nothing
            });
        }
        if let Some(from) = header.span_from
            && from < self.unchanged_since
        {
            // A span has the net change between its two ends. The client's table is between them,
            // and may differ from both. A server may begin a span before positions that it sent in
            // heartbeats, for it may have been killed before it stored them.
            return Err(ProtocolError::Span { from, to: header.position, ours: self.floor });
        }
        if header.position < self.position || header.position == Lsn::ZERO {
            let (from, to) = (self.position, header.position);
            return Err(ProtocolError::Backwards { from, to });
        }
        if let Some(schema) = &batch.schema {
            self.schema = Arc::new(schema::from_wire(schema.clone())?);
            self.pending.push(Change::Schema(self.schema.clone()));
        }
        if batch.definition != 0 {
            self.definition = DefinitionVersion(batch.definition);
        }
        self.pending.reserve(capacity(batch));
        let before = self.pending.len();
        for entry in BatchEntries::new(&batch.entries, &self.schema) {
            self.pending.push(entry?.to_change());
        }
        check_count(batch, self.pending.len() - before)?;
        if !header.ends {
            return Ok(AssemblerEvent::Nothing);
        }
        self.position = header.position;
        Ok(AssemblerEvent::Transaction {
            transaction: Transaction {
                position: header.position,
                span_from: header.span_from,
                committed_at: header.committed_at,
                changes: std::mem::take(&mut self.pending),
            },
            sequence: header.last_sequence,
            mark: mark_of(&header),
            definition: std::mem::take(&mut self.definition),
        })
    }
}

/// Returns the number of entries to reserve memory for. Each entry has at least five bytes of
/// header.
fn capacity(batch: &RowBatch) -> usize {
    let count = usize::try_from(batch.count).unwrap_or(usize::MAX);
    count.min(batch.entries.len() / 5)
}

fn check_count(batch: &RowBatch, found: usize) -> Result<(), ProtocolError> {
    match u32::try_from(found) {
        Ok(found) if found == batch.count => Ok(()),
        found => {
            Err(ProtocolError::Batch(BatchError::Count { expected: batch.count, found: found.unwrap_or(u32::MAX) }))
        }
    }
}

fn heartbeat_event(heartbeat: &Heartbeat) -> Result<AssemblerEvent, ProtocolError> {
    let Heartbeat { server_time, source_position, earlier_source_position, mark, checksum, source_lag_ms, .. } =
        heartbeat;
    // Older servers send the position only in the second field.
    let position = if source_position.is_empty() { earlier_source_position } else { source_position };
    Ok(AssemblerEvent::Heartbeat {
        check: Some(heartbeat.check.clone()).filter(|check| !check.is_empty()),
        server_time: *server_time,
        position: parse_position(position)?,
        mark: mark.map(Into::into),
        checksum: Checksum::from_wire(checksum)?,
        source_lag: Duration::from_millis(*source_lag_ms),
    })
}

/// Returns the mark of the commit that a batch ends, or `None` if the batch represents a span.
fn mark_of(header: &BatchHeader) -> Option<ScopedMark> {
    (header.xid != Xid(0)).then(|| ScopedMark { commit: header.mark(), scope: 0 })
}

fn parse_position(text: &str) -> Result<Option<Lsn>, LsnError> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some),
    }
}

fn position(text: &str) -> Result<Option<Lsn>, StreamAssemblyError> {
    parse_position(text).map_err(|e| StreamAssemblyError::Protocol(e.into()))
}

fn new_schema(wire: laredo_proto::replication::TypedSchema) -> Result<Arc<Schema>, StreamAssemblyError> {
    let schema = schema::from_wire(wire).map_err(|e| StreamAssemblyError::Protocol(e.into()))?;
    Ok(Arc::new(schema))
}

fn unexpected(found: &'static str, expected: &'static str) -> Result<AssemblerEvent, StreamAssemblyError> {
    Err(StreamAssemblyError::Protocol(ProtocolError::Unexpected { found, expected }))
}

fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Handshake(_) => "a handshake",
        Message::SnapshotBegin(_) => "the beginning of a snapshot",
        Message::SnapshotRow(_) => "a row as a Struct",
        Message::SnapshotEnd(_) => "the end of a snapshot",
        Message::JournalEntry(_) => "a change as a Struct",
        Message::SchemaChange(_) => "a notice of a schema change",
        Message::Heartbeat(_) => "a heartbeat",
        Message::GoAway(_) => "a farewell",
        Message::Batch(_) => "a batch",
    }
}

#[cfg(test)]
mod tests;
