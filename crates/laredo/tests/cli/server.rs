//! A scripted server of one table, `public.t (id int8 primary key, name text, flag bool)`.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::{Stream, StreamExt, stream};
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
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

type GrpcMessageStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type SyncResponseSender = mpsc::UnboundedSender<Result<SyncResponse, Status>>;

/// A server that ends when it is dropped.
pub(crate) struct SingleTableServer {
    pub(crate) url: String,
    table: Arc<SingleTable>,
    _stop: oneshot::Sender<()>,
}

/// The served table: its state, and the streams of its followers.
struct SingleTable(Mutex<SingleTableState>);

struct SingleTableState {
    state: TableState,
    position: Lsn,
    sequence: Sequence,
    feeds: Vec<SyncResponseSender>,
    requests: Vec<SyncRequest>,
}

impl SingleTableServer {
    /// Starts a server whose table has the row (1, a, null) at 0/100.
    pub(crate) fn start() -> SingleTableServer {
        let mut state = TableState::new(table_schema(), &[], 0).expect("there are no indexes");
        state.put(row(1, "a"));
        let (position, sequence) = (Lsn(0x100), Sequence(1000));
        let inner = SingleTableState { state, position, sequence, feeds: Vec::new(), requests: Vec::new() };
        let table = Arc::new(SingleTable(Mutex::new(inner)));
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, bound) = std::sync::mpsc::channel();
        let service = SingleTableService(table.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
                address.send(listener.local_addr().expect("it is bound")).expect("the test waits");
                let server =
                    tonic::transport::Server::builder().add_service(LaredoReplicationServiceServer::new(service));
                tokio::select! {
                    _ = stopped => {}
                    served = server.serve_with_incoming(TcpListenerStream::new(listener)) => served.expect("it serves"),
                }
            });
        });
        let url = format!("http://{}", bound.recv().expect("it starts"));
        SingleTableServer { url, table, _stop: stop }
    }

    /// Commits a transaction, and sends it to all streams.
    pub(crate) fn commit(&self, position: u64, changes: Vec<Change>) {
        let mut table = self.table.lock();
        let (position, committed_at) = (Lsn(position), CommitTime(5));
        let mut batch = BatchBuilder::default();
        for change in &changes {
            match change {
                Change::Insert(row) => batch.push(EntryAction::Insert, row.as_ref()),
                Change::Update(row) => batch.push(EntryAction::Update, row.as_ref()),
                Change::Delete(key) => batch.push(EntryAction::Delete, key.as_ref()),
                Change::Truncate | Change::Schema(_) => unreachable!("no test does so"),
            }
        }
        table.sequence = table.sequence.plus(changes.len() as u64);
        let header =
            BatchHeader { position, committed_at, last_sequence: table.sequence, ends: true, ..BatchHeader::default() };
        table.state.apply(&Transaction { position, span_from: None, committed_at, changes }).expect("it fits");
        table.position = position;
        let message = finish(&mut batch, &header);
        table.feeds.retain(|feed| feed.send(Ok(message.clone())).is_ok());
    }

    /// Ends every stream.
    pub(crate) fn cut(&self) {
        for feed in self.table.lock().feeds.drain(..) {
            // A stream without a client needs no cut.
            let _ = feed.send(Err(Status::unavailable("cut by the test")));
        }
    }

    pub(crate) fn requests(&self) -> Vec<SyncRequest> {
        self.table.lock().requests.clone()
    }
}

impl SingleTable {
    fn lock(&self) -> MutexGuard<'_, SingleTableState> {
        self.0.lock().expect("no test panics in here")
    }
}

impl SingleTableState {
    /// Returns the present state as a snapshot.
    fn snapshot(&self) -> Vec<SyncResponse> {
        use sync_response::Message;
        let message = |message| SyncResponse { message: Some(message) };
        let encoding =
            Encoding { format: RowEncoding::PostgresBinary.into(), schema: Some(schema::to_wire(self.state.schema())) };
        let sequence = self.sequence.to_wire();
        let source_position = self.position.to_string();
        let mut rows = BatchBuilder::default();
        self.state.rows().for_each(|row| rows.push(EntryAction::Insert, row.as_ref()));
        let count = self.state.len() as i64;
        vec![
            message(Message::Handshake(SyncHandshake {
                mode: SyncMode::FullSnapshot.into(),
                server_current_sequence: sequence,
                encoding: Some(encoding),
                instance_id: "one".to_owned(),
                server_current_position: self.position.0,
                reason: "the test says so".to_owned(),
                ..SyncHandshake::default()
            })),
            message(Message::SnapshotBegin(SnapshotBegin {
                snapshot_id: "s".to_owned(),
                sequence,
                row_count: count,
                source_position: source_position.clone(),
            })),
            finish(&mut rows, &BatchHeader::default()),
            message(Message::SnapshotEnd(SnapshotEnd {
                sequence,
                rows_sent: count,
                source_position,
                ..SnapshotEnd::default()
            })),
        ]
    }
}

struct SingleTableService(Arc<SingleTable>);

#[tonic::async_trait]
impl LaredoReplicationService for SingleTableService {
    type SyncStream = GrpcMessageStream<SyncResponse>;
    type FetchSnapshotStream = GrpcMessageStream<FetchSnapshotResponse>;

    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<Self::SyncStream>, Status> {
        let request = request.into_inner();
        known(&request.schema, &request.table)?;
        let (feed, mut fed) = mpsc::unbounded_channel();
        let mut table = self.0.lock();
        table.requests.push(request);
        table.feeds.push(feed);
        let fed = stream::poll_fn(move |context| fed.poll_recv(context));
        Ok(Response::new(stream::iter(table.snapshot()).map(Ok).chain(fed).boxed()))
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(Status::unimplemented("no test asks"))
    }

    async fn fetch_snapshot(
        &self,
        _: Request<FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        Err(Status::unimplemented("no test asks"))
    }

    async fn get_replication_status(
        &self,
        request: Request<GetReplicationStatusRequest>,
    ) -> Result<Response<GetReplicationStatusResponse>, Status> {
        let request = request.into_inner();
        known(&request.schema, &request.table)?;
        let client =
            ConnectedClient { client_id: "myapp".to_owned(), state: "live".to_owned(), ..ConnectedClient::default() };
        Ok(Response::new(GetReplicationStatusResponse {
            row_count: 7,
            connected_clients: 1,
            clients: vec![client],
            ..GetReplicationStatusResponse::default()
        }))
    }

    async fn report_checksum(
        &self,
        _: Request<ReportChecksumRequest>,
    ) -> Result<Response<ReportChecksumResponse>, Status> {
        Err(Status::unimplemented("no test asks"))
    }
}

fn known(schema: &str, table: &str) -> Result<(), Status> {
    match (schema, table) {
        ("public", "t") => Ok(()),
        _ => Err(Status::not_found(format!("no table {schema}.{table}"))),
    }
}

fn finish(batch: &mut BatchBuilder, header: &BatchHeader) -> SyncResponse {
    let mut bytes = Vec::new();
    batch.finish(header, &mut bytes);
    SyncResponse::decode(&bytes[frame::PREFIX_LENGTH..]).expect("it was just encoded")
}

fn table_schema() -> Arc<Schema> {
    let column = |(name, type_oid, type_name): (&str, u32, &str)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        type_name: type_name.to_owned(),
        not_null: name == "id",
        is_text: false,
    };
    let columns = [("id", 20, "bigint"), ("name", 25, "text"), ("flag", 16, "boolean")].map(column);
    Arc::new(Schema::new(columns.into(), KeyColumns::new([0]), BTreeMap::new()))
}

fn row(id: i64, name: &str) -> Tuple {
    let id = id.to_be_bytes();
    let row: TupleBuf = [Cell::Value(&id), Cell::Value(name.as_bytes()), Cell::Null].into_iter().collect();
    row.as_ref().to_tuple()
}

pub(crate) fn insert(id: i64, name: &str) -> Change {
    Change::Insert(row(id, name))
}

pub(crate) fn update(id: i64, name: &str) -> Change {
    Change::Update(row(id, name))
}

pub(crate) fn delete(id: i64) -> Change {
    Change::Delete(Key::new([Cell::Value(&id.to_be_bytes())]))
}
