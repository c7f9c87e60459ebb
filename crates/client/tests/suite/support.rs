//! A server that follows a script, and a journal from which scripts are written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use laredo_client::{Replica, ReplicaBuilder, TableName, Unique, View};
use laredo_core::{
    Cell, Change, Column, CommitTime, Key, KeyColumns, Lsn, Schema, Sequence, TableState, Transaction, Tuple, TupleBuf,
};
use laredo_proto::batch::{BatchBuilder, BatchHeader, EntryAction};
use laredo_proto::replication::laredo_replication_service_server::{
    LaredoReplicationService, LaredoReplicationServiceServer,
};
use laredo_proto::replication::*;
use laredo_proto::{frame, schema};
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

pub(crate) type SyncResponseStream = Pin<Box<dyn Stream<Item = Result<SyncResponse, Status>> + Send>>;
type SyncScript = Box<dyn Fn(usize, SyncRequest) -> Result<SyncResponseStream, Status> + Send + Sync>;

/// The longest time that a test waits for an expected event.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct ScriptedServer {
    pub(crate) url: String,
    pub(crate) requests: Arc<Mutex<Vec<SyncRequest>>>,
    task: tokio::task::JoinHandle<()>,
}

impl ScriptedServer {
    /// Answers the n-th request (from 0) as the script requires.
    pub(crate) async fn start(
        script: impl Fn(usize, SyncRequest) -> Result<SyncResponseStream, Status> + Send + Sync + 'static,
    ) -> ScriptedServer {
        ScriptedServer::start_on(tonic::transport::Server::builder(), "http://127.0.0.1", script).await
    }

    /// Sends [`history`] and cuts the n-th stream after `cuts[n]` messages. With `another_server`,
    /// two servers take turns.
    pub(crate) async fn cutting(cuts: Vec<usize>, another_server: bool) -> ScriptedServer {
        ScriptedServer::start(move |number, request| {
            let journal = if another_server && number % 2 == 1 { history().on_another_server() } else { history() };
            let mut messages = journal.answer(&request);
            Ok(match cuts.get(number) {
                Some(&cut) => {
                    messages.truncate(cut);
                    then_cut(messages)
                }
                None => then_hang(messages),
            })
        })
        .await
    }

    /// Does the same as [`ScriptedServer::start`], on a transport that may require TLS.
    pub(crate) async fn start_on(
        mut transport: tonic::transport::Server,
        host: &str,
        script: impl Fn(usize, SyncRequest) -> Result<SyncResponseStream, Status> + Send + Sync + 'static,
    ) -> ScriptedServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{host}:{}", listener.local_addr().unwrap().port());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let service =
            ScriptedService { script: Box::new(script), count: AtomicUsize::new(0), requests: requests.clone() };
        let server = transport.add_service(LaredoReplicationServiceServer::new(service));
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        ScriptedServer { url, requests, task }
    }

    pub(crate) fn replica(&self) -> ReplicaBuilder {
        Replica::builder(&self.url, TableName::new("public", "t"))
            .lookup(["name"])
            .index("by_group", ["group"], Unique::No)
            .seed(1)
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct ScriptedService {
    script: SyncScript,
    count: AtomicUsize,
    requests: Arc<Mutex<Vec<SyncRequest>>>,
}

#[tonic::async_trait]
impl LaredoReplicationService for ScriptedService {
    type SyncStream = SyncResponseStream;
    type FetchSnapshotStream = Pin<Box<dyn Stream<Item = Result<FetchSnapshotResponse, Status>> + Send>>;

    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<SyncResponseStream>, Status> {
        let request = request.into_inner();
        self.requests.lock().unwrap().push(request.clone());
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        (self.script)(number, request).map(Response::new)
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn fetch_snapshot(
        &self,
        _: Request<FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn get_replication_status(
        &self,
        _: Request<GetReplicationStatusRequest>,
    ) -> Result<Response<GetReplicationStatusResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn report_checksum(
        &self,
        _: Request<ReportChecksumRequest>,
    ) -> Result<Response<ReportChecksumResponse>, Status> {
        Ok(Response::new(ReportChecksumResponse {}))
    }
}

/// Sends these messages, then an error that ends the stream.
pub(crate) fn then_cut(messages: Vec<SyncResponse>) -> SyncResponseStream {
    let cut = stream::iter([Err(Status::unavailable("cut by the script"))]);
    stream::iter(messages).map(Ok).chain(cut).boxed()
}

/// Sends these messages, then nothing more.
pub(crate) fn then_hang(messages: Vec<SyncResponse>) -> SyncResponseStream {
    stream::iter(messages).map(Ok).chain(stream::pending()).boxed()
}

/// Sends these messages, then the messages that the test sends.
pub(crate) fn then_fed(
    messages: Vec<SyncResponse>,
) -> (tokio::sync::mpsc::UnboundedSender<SyncResponse>, SyncResponseStream) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let fed = stream::poll_fn(move |context| receiver.poll_recv(context)).map(Ok);
    (sender, stream::iter(messages).map(Ok).chain(fed).chain(stream::pending()).boxed())
}

/// Returns the schema of `t (id int8 primary key, name text, "group" text)`, with the extra
/// columns.
pub(crate) fn table_schema(extra: &[&str]) -> Arc<Schema> {
    table_schema_with("name", extra)
}

/// Does the same as [`table_schema`], with another name for the column `name`.
pub(crate) fn table_schema_with(name: &str, extra: &[&str]) -> Arc<Schema> {
    let column = |(name, oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid: oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: name == "id",
        is_text: false,
    };
    let columns = [("id", 20, "bigint"), (name, 25, "text"), ("group", 25, "text")];
    let extra = extra.iter().map(|name| (*name, 25, "text"));
    let columns = columns.into_iter().chain(extra).map(column).collect();
    Arc::new(Schema::new(columns, KeyColumns::new([0]), BTreeMap::new()))
}

pub(crate) fn row(id: i64, cells: &[&str]) -> Tuple {
    let mut row = TupleBuf::new();
    row.push(Cell::Value(&id.to_be_bytes()));
    cells.iter().for_each(|cell| row.push(Cell::Value(cell.as_bytes())));
    row.as_ref().to_tuple()
}

pub(crate) fn insert(id: i64, name: &str, group: &str) -> Change {
    Change::Insert(row(id, &[name, group]))
}

pub(crate) fn update(id: i64, name: &str, group: &str) -> Change {
    Change::Update(row(id, &[name, group]))
}

pub(crate) fn delete(id: i64) -> Change {
    Change::Delete(Key::new([Cell::Value(&id.to_be_bytes())]))
}

/// The data of a scripted server: a base, and the transactions after it.
pub(crate) struct ScriptedJournal {
    pub(crate) instance: String,
    pub(crate) first_sequence: u64,
    pub(crate) entries_per_batch: usize,
    /// The number of transactions that the server repeats to a client that resumes by position.
    pub(crate) repeats: usize,
    base: TableState,
    base_position: Lsn,
    transactions: Vec<Transaction>,
}

impl ScriptedJournal {
    pub(crate) fn new(base: &[Tuple]) -> ScriptedJournal {
        let mut state = TableState::new(table_schema(&[]), &[], 0).unwrap();
        base.iter().for_each(|row| drop(state.put(row.clone())));
        ScriptedJournal {
            instance: "one".to_owned(),
            first_sequence: 1000,
            entries_per_batch: 2,
            repeats: 0,
            base: state,
            base_position: Lsn(0x100),
            transactions: Vec::new(),
        }
    }

    /// Returns the same history on another server, which does not know the position of every
    /// commit.
    pub(crate) fn on_another_server(&self) -> ScriptedJournal {
        ScriptedJournal {
            instance: "another".to_owned(),
            first_sequence: 77,
            entries_per_batch: 3,
            repeats: 2,
            base: self.base.clone(),
            base_position: self.base_position,
            transactions: self.transactions.clone(),
        }
    }

    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> Lsn {
        let position = Lsn(self.head().0 + 0x100);
        self.transactions.push(Transaction {
            position,
            span_from: None,
            committed_at: CommitTime(i64::try_from(position.0).unwrap()),
            changes,
        });
        position
    }

    pub(crate) fn head(&self) -> Lsn {
        self.transactions.last().map_or(self.base_position, |t| t.position)
    }

    pub(crate) fn head_sequence(&self) -> Sequence {
        self.sequence_after(self.transactions.len())
    }

    /// Returns the rows at every commit.
    pub(crate) fn states(&self) -> BTreeMap<Lsn, BTreeSet<Vec<u8>>> {
        let mut state = self.base.clone();
        let mut states = BTreeMap::from([(self.base_position, rows_of(&state)), (Lsn::ZERO, BTreeSet::new())]);
        for transaction in &self.transactions {
            state.apply(transaction).unwrap();
            states.insert(transaction.position, rows_of(&state));
        }
        states
    }

    /// Returns the complete stream that answers a request, up to the head.
    pub(crate) fn answer(&self, request: &SyncRequest) -> Vec<SyncResponse> {
        match self.resumed(request) {
            Some(from) => {
                let mut messages = vec![self.handshake_in(SyncMode::Delta, self.state_at(from).schema())];
                messages.extend((from..self.transactions.len()).flat_map(|i| self.batches(i)));
                messages
            }
            None => {
                let mut messages = self.snapshot_at(0);
                messages.extend((0..self.transactions.len()).flat_map(|i| self.batches(i)));
                messages
            }
        }
    }

    /// Returns the number of transactions that the client already has, if the request identifies
    /// it.
    fn resumed(&self, request: &SyncRequest) -> Option<usize> {
        let sequence = Sequence::from_wire(request.last_known_sequence);
        if request.instance_id == self.instance {
            return Some((0..=self.transactions.len()).find(|&i| self.sequence_after(i) == sequence).unwrap());
        }
        let position: Lsn = request.last_known_source_position.parse().ok()?;
        assert!(position >= self.base_position && position <= self.head());
        let known = self.transactions.iter().filter(|t| t.position <= position).count();
        // Transactions before a schema change are not repeated. Otherwise the client would receive
        // a schema older than its own.
        let changes_schema = |t: &Transaction| t.changes.iter().any(|change| matches!(change, Change::Schema(_)));
        let changed = self.transactions[..known].iter().rposition(changes_schema).map_or(0, |i| i + 1);
        Some(known.saturating_sub(self.repeats).max(changed))
    }

    fn state_at(&self, count: usize) -> TableState {
        let mut state = self.base.clone();
        self.transactions[..count].iter().for_each(|t| state.apply(t).unwrap());
        state
    }

    pub(crate) fn snapshot_at(&self, count: usize) -> Vec<SyncResponse> {
        let state = self.state_at(count);
        let before = count.checked_sub(1).map_or(self.base_position, |i| self.transactions[i].position);
        let sequence = self.sequence_after(count).to_wire();
        let mut messages = vec![self.handshake_in(SyncMode::FullSnapshot, state.schema())];
        messages.push(message(sync_response::Message::SnapshotBegin(SnapshotBegin {
            snapshot_id: "s".to_owned(),
            sequence,
            row_count: state.len() as i64,
            source_position: before.to_string(),
        })));
        let rows: Vec<_> = state.rows().collect();
        for chunk in rows.chunks(self.entries_per_batch) {
            let mut builder = BatchBuilder::default();
            chunk.iter().for_each(|row| builder.push(EntryAction::Insert, row.as_ref()));
            messages.push(finish(&mut builder, &BatchHeader::default()));
        }
        messages.push(message(sync_response::Message::SnapshotEnd(SnapshotEnd {
            sequence,
            rows_sent: state.len() as i64,
            source_position: before.to_string(),
            checksum: state.checksum().to_bytes().to_vec(),
            ..SnapshotEnd::default()
        })));
        messages
    }

    pub(crate) fn handshake_in(&self, mode: SyncMode, of: &Schema) -> SyncResponse {
        message(sync_response::Message::Handshake(SyncHandshake {
            mode: mode.into(),
            server_current_sequence: self.head_sequence().to_wire(),
            encoding: Some(Encoding { format: RowEncoding::PostgresBinary.into(), schema: Some(schema::to_wire(of)) }),
            instance_id: self.instance.clone(),
            server_current_position: self.head().0,
            reason: "the script says so".to_owned(),
            ..SyncHandshake::default()
        }))
    }

    /// Returns the messages of one transaction.
    pub(crate) fn batches(&self, index: usize) -> Vec<SyncResponse> {
        let transaction = &self.transactions[index];
        let mut sequence = self.sequence_after(index);
        let mut header = BatchHeader {
            position: transaction.position,
            committed_at: transaction.committed_at,
            ..BatchHeader::default()
        };
        let mut messages = Vec::new();
        let mut builder = BatchBuilder::default();
        let mut flush = |builder: &mut BatchBuilder, sequence: Sequence, ends| {
            (header.last_sequence, header.ends) = (sequence, ends);
            messages.push(finish(builder, &header));
        };
        for change in &transaction.changes {
            if builder.count() as usize >= self.entries_per_batch
                || (matches!(change, Change::Schema(_)) && !builder.is_empty())
            {
                flush(&mut builder, sequence, false);
            }
            match change {
                Change::Insert(row) => builder.push(EntryAction::Insert, row.as_ref()),
                Change::Update(row) => builder.push(EntryAction::Update, row.as_ref()),
                Change::Delete(key) => builder.push(EntryAction::Delete, key.as_ref()),
                Change::Truncate => builder.push(EntryAction::Truncate, TupleBuf::new().as_ref()),
                Change::Schema(schema) => builder.set_schema(schema),
            }
            sequence = sequence.plus(1);
        }
        flush(&mut builder, self.sequence_after(index + 1), true);
        messages
    }

    fn sequence_after(&self, count: usize) -> Sequence {
        let entries: usize = self.transactions[..count].iter().map(|t| t.changes.len()).sum();
        Sequence(self.first_sequence).plus(entries as u64)
    }
}

/// Returns a table's history in which each kind of change occurs.
pub(crate) fn history() -> ScriptedJournal {
    let mut journal = ScriptedJournal::new(&[row(1, &["a", "x"]), row(2, &["b", "x"]), row(3, &["c", "y"])]);
    journal.commit(vec![insert(4, "d", "y")]);
    journal.commit(vec![update(1, "a2", "y"), delete(2), insert(5, "e", "x"), insert(6, "f", "x"), delete(4)]);
    journal.commit(vec![]);
    journal.commit(vec![Change::Schema(table_schema(&["note"])), Change::Update(row(1, &["a3", "x", "n"]))]);
    journal.commit(vec![Change::Insert(row(7, &["g", "x", "n"])), Change::Insert(row(8, &["h", "x", "n"]))]);
    journal.commit(vec![
        Change::Truncate,
        Change::Insert(row(1, &["a", "z", "n"])),
        Change::Insert(row(9, &["i", "z", "n"])),
        Change::Update(row(9, &["j", "z", "n"])),
    ]);
    journal.commit(vec![delete(1)]);
    journal
}

pub(crate) fn heartbeat(current_sequence: Sequence, position: Option<Lsn>) -> SyncResponse {
    message(sync_response::Message::Heartbeat(Heartbeat {
        current_sequence: current_sequence.to_wire(),
        server_time: None,
        source_position: position.map_or_else(String::new, |p| p.to_string()),
        ..Heartbeat::default()
    }))
}

pub(crate) fn message(message: sync_response::Message) -> SyncResponse {
    SyncResponse { message: Some(message) }
}

fn finish(builder: &mut BatchBuilder, header: &BatchHeader) -> SyncResponse {
    let mut bytes = Vec::new();
    builder.finish(header, &mut bytes);
    SyncResponse::decode(&bytes[frame::PREFIX_LENGTH..]).unwrap()
}

pub(crate) fn rows_of(state: &TableState) -> BTreeSet<Vec<u8>> {
    state.rows().map(|row| row.as_ref().bytes().to_vec()).collect()
}

pub(crate) fn rows_in(view: &View<'_>) -> BTreeSet<Vec<u8>> {
    view.rows().map(|row| row.tuple().as_ref().bytes().to_vec()).collect()
}

/// Checks that all indexes of a view agree with its rows.
pub(crate) fn check_indexes(view: &View<'_>) {
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    for row in view.rows() {
        let (id, name, group): (i64, &str, &str) =
            (row.get("id").unwrap(), row.get("name").unwrap(), row.get("group").unwrap());
        assert_eq!(view.get(id).unwrap(), Some(row));
        assert_eq!(view.lookup(name).unwrap(), Some(row));
        *groups.entry(group.to_owned()).or_default() += 1;
    }
    for (group, count) in groups {
        assert_eq!(view.index("by_group", &group).unwrap().count(), count, "{group}");
    }
}

/// Waits until a view fulfills a condition.
pub(crate) async fn until(replica: &Replica, mut is_so: impl FnMut(&View<'_>) -> bool) {
    let mut transactions = replica.transactions();
    let waited = tokio::time::timeout(LONG, async {
        while !is_so(&replica.view()) {
            let _ = transactions.next().await.expect("the replica goes on");
        }
    });
    waited.await.unwrap_or_else(|_| panic!("it never came to be: {replica:?}"));
}
