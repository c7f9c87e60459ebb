//! The simplest possible clients. One reads Structs, applies each entry and keeps the last
//! position. The other reads batches and applies whole transactions.

use std::sync::Arc;

use laredo_core::{Lsn, Schema, Sequence};
use laredo_proto::batch::{BatchEntries, EntryAction};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    ReplicationJournalEntry, RowBatch, RowEncoding, SourceIdentity, SyncHandshake, SyncMode, SyncRequest, SyncResponse,
};
use laredo_testkit::{SimDatabase, SimRows};
use prost_types::Struct;
use prost_types::value::Kind;
use tonic::Streaming;

/// A copy of the table, with its sequence and position.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimpleReplica {
    pub(crate) rows: SimRows,
    pub(crate) sequence: Sequence,
    pub(crate) position: Lsn,
    pub(crate) handshake: SyncHandshake,
    /// The number of snapshots since the client was created.
    pub(crate) snapshots: usize,
    /// The number of times that the server asked the client to leave.
    pub(crate) farewells: usize,
    pub(crate) heartbeats: usize,
    pub(crate) messages: usize,
    snapshot_id: String,
    instance_id: String,
    source: Option<SourceIdentity>,
    in_snapshot: bool,
    schema: Option<Arc<Schema>>,
    pending: Vec<(EntryAction, i64, String)>,
    fresh: SimRows,
    /// The rows of the snapshot, without the entries that arrived before its end.
    fresh_count: i64,
    /// The entries that arrived inside a snapshot since the client was created.
    pub(crate) entries_inside: usize,
}

impl SimpleReplica {
    pub(crate) fn encoding(&self) -> RowEncoding {
        match self.handshake.encoding {
            Some(_) => RowEncoding::PostgresBinary,
            None => RowEncoding::Struct,
        }
    }

    /// Makes a request that resumes by sequence, on the same server.
    pub(crate) fn by_sequence(&self, request: SyncRequest) -> SyncRequest {
        SyncRequest {
            last_known_sequence: self.sequence.to_wire(),
            last_snapshot_id: self.snapshot_id.clone(),
            instance_id: self.instance_id.clone(),
            ..request
        }
    }

    /// Makes a request that resumes by position, on any server of the same database.
    pub(crate) fn by_position(&self, request: SyncRequest) -> SyncRequest {
        let last_known_source_position = match self.position {
            Lsn::ZERO => String::new(),
            position => position.to_string(),
        };
        SyncRequest { last_known_source_position, source: self.source.clone(), ..request }
    }

    /// Reads until the client has everything up to `position`.
    pub(crate) async fn read_to(&mut self, stream: &mut Streaming<SyncResponse>, position: Lsn) {
        while self.position < position || self.in_snapshot {
            self.read(stream).await;
        }
    }

    /// Reads and applies one message.
    pub(crate) async fn read(&mut self, stream: &mut Streaming<SyncResponse>) -> Message {
        let message = super::next(stream).await.unwrap();
        self.apply(message.clone());
        message
    }

    pub(crate) fn apply(&mut self, message: Message) {
        self.messages += 1;
        match message {
            Message::Handshake(handshake) => self.begin(handshake),
            Message::SnapshotBegin(begin) => {
                self.in_snapshot = true;
                self.fresh.clear();
                self.fresh_count = 0;
                self.snapshot_id = begin.snapshot_id;
            }
            Message::SnapshotRow(row) => {
                let (id, body) = parse(&row.row.unwrap());
                self.fresh_count += 1;
                assert!(self.fresh.insert(id, body).is_none(), "a row comes once");
            }
            Message::SnapshotEnd(end) => {
                assert_eq!(end.rows_sent, self.fresh_count);
                self.in_snapshot = false;
                self.snapshots += 1;
                self.rows = std::mem::take(&mut self.fresh);
                self.sequence = Sequence::from_wire(end.sequence);
                if !end.source_position.is_empty() {
                    self.position = end.source_position.parse().unwrap();
                }
            }
            Message::JournalEntry(entry) => self.entry(&entry),
            Message::Batch(batch) => self.batch(&batch),
            Message::Heartbeat(heartbeat) => {
                self.heartbeats += 1;
                if !heartbeat.source_position.is_empty() {
                    self.position = self.position.max(heartbeat.source_position.parse().unwrap());
                }
            }
            Message::GoAway(_) => self.farewells += 1,
            other => panic!("unexpected {other:?}"),
        }
    }

    fn begin(&mut self, handshake: SyncHandshake) {
        self.in_snapshot = handshake.mode() == SyncMode::FullSnapshot;
        self.pending.clear();
        self.instance_id = handshake.instance_id.clone();
        self.source = handshake.source.clone();
        let typed = handshake.encoding.clone().and_then(|encoding| encoding.schema);
        self.schema = typed.map(|schema| Arc::new(laredo_proto::schema::from_wire(schema).unwrap()));
        self.handshake = handshake;
    }

    fn entry(&mut self, entry: &ReplicationJournalEntry) {
        let position: Lsn = entry.source_position.parse().unwrap();
        let sequence = Sequence::from_wire(entry.sequence);
        assert!(sequence >= self.sequence || self.snapshots == 0 || entry.action.is_empty(), "{entry:?}");
        assert_eq!(position == Lsn::ZERO, self.in_snapshot, "an entry inside a snapshot has no position: {entry:?}");
        self.entries_inside += usize::from(self.in_snapshot);
        let rows = if self.in_snapshot { &mut self.fresh } else { &mut self.rows };
        let old = entry.old_values.as_ref().map(parse);
        let new = entry.new_values.as_ref().map(parse);
        match (entry.action.as_str(), old, new) {
            ("", None, None) => assert!(!self.in_snapshot, "a marker inside a snapshot"),
            ("INSERT", None, Some((id, body))) => drop(rows.insert(id, body)),
            ("UPDATE", Some((old, _)), Some((id, body))) => {
                assert_eq!(old, id, "a changed key comes as delete and insert");
                rows.insert(id, body);
            }
            ("DELETE", Some((id, body)), None) => {
                assert_eq!(rows.remove(&id), Some(body), "a delete of a row that is there, as it is");
            }
            ("TRUNCATE", None, None) => rows.clear(),
            other => panic!("a strange entry: {other:?}"),
        }
        if !self.in_snapshot {
            (self.sequence, self.position) = (sequence, position);
        }
    }

    fn batch(&mut self, batch: &RowBatch) {
        let schema = self.schema.clone().unwrap();
        assert!(batch.schema.is_none());
        let entries: Vec<_> = BatchEntries::new(&batch.entries, &schema).map(Result::unwrap).collect();
        assert_eq!(entries.len(), batch.count as usize);
        for entry in entries {
            let (id, body) = match entry.action {
                EntryAction::Delete => {
                    (i64::from_be_bytes(entry.row.cell(0).value().unwrap().try_into().unwrap()), String::new())
                }
                EntryAction::Truncate => (0, String::new()),
                EntryAction::Insert | EntryAction::Update => SimDatabase::parse(entry.row).unwrap(),
            };
            if self.in_snapshot {
                self.fresh_count += 1;
                assert!(self.fresh.insert(id, body).is_none(), "a row comes once");
            } else {
                self.pending.push((entry.action, id, body));
            }
        }
        if !batch.ends {
            return;
        }
        let repeat = Lsn(batch.position) <= self.position;
        for (action, id, body) in std::mem::take(&mut self.pending) {
            match action {
                EntryAction::Insert => drop(self.rows.insert(id, body)),
                EntryAction::Update => drop(self.rows.insert(id, body).expect("an update of a row that is there")),
                EntryAction::Delete => drop(self.rows.remove(&id).expect("a delete of a row that is there")),
                EntryAction::Truncate => self.rows.clear(),
            }
        }
        assert!(!repeat, "a client at a commit gets nothing twice");
        (self.sequence, self.position) = (Sequence::from_wire(batch.last_sequence), Lsn(batch.position));
    }
}

/// Returns the ID and the text of a Struct row.
pub(crate) fn parse(row: &Struct) -> (i64, String) {
    let id = match row.fields["id"].kind.as_ref().unwrap() {
        Kind::NumberValue(id) => *id as i64,
        other => panic!("not an id: {other:?}"),
    };
    match row.fields["body"].kind.as_ref().unwrap() {
        Kind::StringValue(body) => (id, body.clone()),
        other => panic!("not a body: {other:?}"),
    }
}
