//! A minimal client of the binary protocol. It has a map of rows by key, and applies one message at
//! a time.

use std::collections::BTreeMap;

use laredo_core::{Change, Lsn, RowCast, Schema, Sequence, Tuple};
use laredo_proto::batch::BatchEntries;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{RowBatch, RowEncoding, SourceIdentity, SyncMode, SyncRequest, SyncResponse};
use laredo_testkit::oracle::key_bytes;

/// The rows and the position of a client.
#[derive(Debug, Default)]
pub struct BinaryState {
    schema: Option<Schema>,
    /// The rows by the bytes of the key's cells.
    pub rows: BTreeMap<Vec<u8>, Tuple>,
    staged: Option<BTreeMap<Vec<u8>, Tuple>>,
    /// The batches of a transaction that has not ended yet.
    pending: Vec<RowBatch>,
    /// The end of the last whole transaction.
    pub position: Lsn,
    pub sequence: Sequence,
    instance: String,
    source: Option<SourceIdentity>,
    /// Streams that began with a snapshot.
    pub snapshots: u32,
    /// True if a delta began with another schema. The rows are then unusable, and the client has to
    /// load the table again. This happens only on another server, which noticed a change of the
    /// columns later than the first one.
    pub starts_over: bool,
}

impl BinaryState {
    /// Returns the request of a new client.
    pub fn fresh() -> SyncRequest {
        SyncRequest { accept: vec![RowEncoding::PostgresBinary.into()], ..SyncRequest::default() }
    }

    /// Returns the request that resumes by position.
    pub fn resume_by_position(&self) -> SyncRequest {
        let is_known = self.position > Lsn::ZERO;
        SyncRequest {
            last_known_source_position: if is_known { self.position.to_string() } else { String::new() },
            source: self.source.clone(),
            ..BinaryState::fresh()
        }
    }

    /// Returns the request that resumes by sequence.
    pub fn resume_by_sequence(&self) -> SyncRequest {
        SyncRequest {
            last_known_sequence: self.sequence.to_wire(),
            instance_id: self.instance.clone(),
            ..BinaryState::fresh()
        }
    }

    /// Applies one message.
    pub fn apply(&mut self, message: SyncResponse) {
        match message.message {
            Some(Message::Handshake(handshake)) => {
                let encoding = handshake.encoding.clone().unwrap_or_default();
                if handshake.mode() == SyncMode::FullSnapshot {
                    self.snapshots += 1;
                }
                let schema = laredo_proto::schema::from_wire(encoding.schema.unwrap_or_default()).unwrap();
                if handshake.mode() == SyncMode::FullSnapshot || self.schema.is_none() {
                    self.schema = Some(schema);
                } else if self.schema.as_ref() != Some(&schema) {
                    self.starts_over = true;
                }
                self.pending.clear();
                self.staged = None;
                self.instance = handshake.instance_id;
                self.source = handshake.source;
            }
            Some(Message::SnapshotBegin(_)) => self.staged = Some(BTreeMap::new()),
            Some(Message::SnapshotEnd(end)) => {
                self.rows = self.staged.take().expect("a snapshot that begins before it ends");
                self.sequence = Sequence::from_wire(end.sequence);
                self.position = end.source_position.parse().unwrap();
            }
            Some(Message::Batch(batch)) if self.staged.is_some() => {
                for change in changes(&batch, self.schema.as_ref().unwrap()) {
                    let Change::Insert(row) = change else { panic!("{change:?} in a snapshot") };
                    let key = self.key_of(&row);
                    self.staged.as_mut().unwrap().insert(key, row);
                }
            }
            Some(Message::Batch(batch)) => {
                let ends = batch.ends.then_some((Sequence::from_wire(batch.last_sequence), Lsn(batch.position)));
                self.pending.push(batch);
                if let Some((sequence, position)) = ends {
                    std::mem::take(&mut self.pending).into_iter().for_each(|batch| self.transact(batch));
                    (self.sequence, self.position) = (sequence, position);
                }
            }
            Some(Message::Heartbeat(heartbeat)) if self.pending.is_empty() && !heartbeat.source_position.is_empty() => {
                self.position = heartbeat.source_position.parse().unwrap();
            }
            _ => {}
        }
    }

    fn transact(&mut self, mut batch: RowBatch) {
        if let Some(schema) = batch.schema.take() {
            let schema = laredo_proto::schema::from_wire(schema).unwrap();
            let cast = RowCast::new(self.schema.as_ref().unwrap(), &schema);
            self.schema = Some(schema);
            let rows = std::mem::take(&mut self.rows).into_values();
            let rows: Vec<Tuple> = rows.map(|row| cast.apply(row.as_ref()).as_ref().to_tuple()).collect();
            self.rows = rows.into_iter().map(|row| (self.key_of(&row), row)).collect();
        }
        for change in changes(&batch, self.schema.as_ref().unwrap()) {
            match change {
                Change::Insert(row) | Change::Update(row) => drop(self.rows.insert(self.key_of(&row), row)),
                Change::Delete(key) => drop(self.rows.remove(key.as_ref().bytes())),
                Change::Truncate => self.rows.clear(),
                Change::Schema(_) => {}
            }
        }
    }

    fn key_of(&self, row: &Tuple) -> Vec<u8> {
        key_bytes(row.as_ref(), self.schema.as_ref().unwrap().key().columns())
    }

    /// Returns the columns.
    pub fn schema(&self) -> &Schema {
        self.schema.as_ref().expect("a handshake was read")
    }
}

fn changes(batch: &RowBatch, schema: &Schema) -> Vec<Change> {
    let found: Vec<Change> =
        BatchEntries::new(&batch.entries, schema).map(|entry| entry.unwrap().to_change()).collect();
    assert_eq!(found.len(), batch.count as usize, "a batch with another number of entries than it says");
    found
}
