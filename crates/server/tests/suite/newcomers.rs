//! New clients that connect while transactions commit all the time. At SnapshotEnd, each has the
//! database's rows at the snapshot's position, in every protocol and at any reading speed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::http::{ReplyFrames, SYNC, frame, http1, message};
use crate::support::{GrpcTestClient, SimServer, SimpleReplica, next, prefix, request, serve};
use laredo_core::Lsn;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{RowEncoding, SyncRequest, SyncResponse};
use laredo_testkit::SimChange::{self, Delete, Insert, Rekey, Update};
use laredo_testkit::SimDatabase;
use prost::Message as _;
use tonic::Streaming;

const ROWS: i64 = 2000;
/// The distance of the two IDs that a transaction changes together.
const APART: i64 = ROWS / 2;

/// The amount by which a rekeyed row's ID increases.
const MOVED: i64 = 1_000_000;

fn body(marked: &str, number: i64) -> String {
    format!("{marked} {number} {}", "x".repeat(4000))
}

/// Writers that commit transactions until they are stopped. Each transaction changes both rows of a
/// pair, and some insert, delete or rekey rows.
struct CommittingWriters {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<i64>,
}

impl CommittingWriters {
    fn start(database: &SimDatabase, pause: Duration) -> CommittingWriters {
        let (database, stop) = (database.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                database.commit(0, transaction(number));
                tokio::time::sleep(pause).await;
            }
            number
        });
        CommittingWriters { stop, task }
    }

    async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

fn transaction(number: i64) -> Vec<SimChange> {
    let (pair, marked) = (number * 7 % APART, if number % 2 == 0 { "even" } else { "odd" });
    let mut changes = vec![Update(pair, body(marked, number)), Update(pair + APART, body(marked, number))];
    let extra = ROWS + number;
    changes.push(Insert(extra, body(marked, number)));
    if number > 10 {
        changes.push(Rekey(extra - 5, extra + MOVED, body(marked, number)));
    }
    if number > 20 {
        changes.push(Delete(extra - 6 + MOVED));
    }
    changes
}

async fn table() -> (SimDatabase, SimServer) {
    let database = SimDatabase::new(1);
    database.commit(0, (0..ROWS).map(|id| Insert(id, body("even", 0))).collect());
    let server = serve(&database, "a").await;
    server.ready().await;
    (database, server)
}

/// The origin of a stream's messages.
enum IncomingMessages {
    Grpc(Streaming<SyncResponse>),
    Connect(ReplyFrames),
}

impl IncomingMessages {
    async fn grpc(server: &SimServer, request: SyncRequest) -> IncomingMessages {
        // Small windows make the server wait until the client reads.
        let endpoint = server.endpoint().initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        let mut client = GrpcTestClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(64 << 20);
        IncomingMessages::Grpc(client.sync(request).await.unwrap().into_inner())
    }

    async fn connect(server: &SimServer, request: SyncRequest) -> IncomingMessages {
        let headers = [("Content-Type", "application/connect+proto"), ("Connect-Protocol-Version", "1")];
        let reply = http1(server.grpc, "POST", SYNC, &headers, &frame(&request.encode_to_vec())).await;
        assert_eq!(reply.status, 200);
        IncomingMessages::Connect(reply.frames())
    }

    async fn next(&mut self) -> Message {
        match self {
            IncomingMessages::Grpc(stream) => next(stream).await.unwrap(),
            IncomingMessages::Connect(frames) => message(&frames.next().await.unwrap()).message.unwrap(),
        }
    }
}

/// Loads the table with a new client, and compares it with the database at the position of its
/// snapshot.
async fn load(
    mut incoming: IncomingMessages,
    database: &SimDatabase,
    pause: Option<Duration>,
    marked: &str,
) -> SimpleReplica {
    let mut replica = SimpleReplica::default();
    // The marker after SnapshotEnd gives the position of the snapshot.
    while replica.position == Lsn::ZERO {
        let message = incoming.next().await;
        replica.apply(message);
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    let mut wanted = database.rows_at(0, replica.position);
    wanted.retain(|_, body| body.starts_with(marked));
    let differ = wanted.iter().filter(|(id, body)| replica.rows.get(id) != Some(body)).count();
    assert!(replica.rows == wanted, "{differ} of {} rows, {} sent", wanted.len(), replica.rows.len());
    for pair in (0..APART).filter(|_| marked.is_empty()) {
        assert_eq!(replica.rows.get(&pair), replica.rows.get(&(pair + APART)), "half a transaction");
    }
    // The later changes also fit.
    let end = database.end();
    while replica.position < end {
        let message = incoming.next().await;
        replica.apply(message);
    }
    if marked.is_empty() {
        assert_eq!(replica.position, end);
        assert!(replica.rows == database.rows_at(0, end), "the rows at {end}");
    }
    assert_eq!(replica.snapshots, 1);
    replica
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_of_every_protocol_have_what_the_database_held_at_their_snapshots_end() {
    let (database, server) = table().await;
    let writers = CommittingWriters::start(&database, Duration::from_millis(5));
    for round in 0..10 {
        let filtered = SyncRequest { filters: vec![prefix("odd")], ..request(RowEncoding::Struct) };
        let (grpc, connect, odd) = tokio::join!(
            IncomingMessages::grpc(&server, request(RowEncoding::Struct)),
            IncomingMessages::connect(&server, request(RowEncoding::Struct)),
            IncomingMessages::connect(&server, filtered),
        );
        let loads = tokio::join!(
            load(grpc, &database, None, ""),
            load(connect, &database, None, ""),
            load(odd, &database, None, "odd")
        );
        assert!(loads.2.rows.len() < loads.0.rows.len(), "round {round}");
    }
    assert!(writers.stop().await > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_newcomers_have_what_was_committed_while_they_read() {
    let (database, server) = table().await;
    let writers = CommittingWriters::start(&database, Duration::from_millis(30));
    let slow = Some(Duration::from_millis(1));
    let filtered = SyncRequest { filters: vec![prefix("even")], ..request(RowEncoding::Struct) };
    let (grpc, connect, even) = tokio::join!(
        IncomingMessages::grpc(&server, request(RowEncoding::Struct)),
        IncomingMessages::connect(&server, request(RowEncoding::Struct)),
        IncomingMessages::grpc(&server, filtered),
    );
    let before = database.end();
    let loads = tokio::join!(
        load(grpc, &database, slow, ""),
        load(connect, &database, slow, ""),
        load(even, &database, slow, "even")
    );
    for replica in [loads.0, loads.1, loads.2] {
        assert!(replica.entries_inside > 0, "it was sent no more than a base");
        assert!(replica.position > before, "it shows what was there when it came");
    }
    writers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_cut_inside_its_snapshot_loads_again() {
    let (database, server) = table().await;
    let writers = CommittingWriters::start(&database, Duration::from_millis(30));
    let mut incoming = IncomingMessages::grpc(&server, request(RowEncoding::Struct)).await;
    let mut replica = SimpleReplica::default();
    while replica.entries_inside == 0 {
        replica.apply(incoming.next().await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(replica.snapshots, 0, "it was cut after its snapshot");
    // The position of the last entry, as the simplest client keeps it.
    let position = SyncRequest { last_known_source_position: Lsn::ZERO.to_string(), ..request(RowEncoding::Struct) };
    for request in [position, replica.by_position(request(RowEncoding::Struct))] {
        load(IncomingMessages::grpc(&server, request).await, &database, None, "").await;
    }
    writers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newcomers_cost_the_table_and_not_its_past() {
    let (database, server) = table().await;
    for number in 1..=3000 {
        database.commit(0, (0..10).map(|i| Update((number + i) % ROWS, format!("{number}"))).collect());
    }
    let end = database.end();
    let journal = server.engine.tables()[0].journal().unwrap();
    crate::support::within(journal.watch_head().wait_for(|head| head.position >= end), "the changes").await.unwrap();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..50 {
        let incoming = match number % 2 {
            0 => IncomingMessages::grpc(&server, request(RowEncoding::Struct)).await,
            _ => IncomingMessages::connect(&server, request(RowEncoding::Struct)).await,
        };
        let database = database.clone();
        clients.spawn(async move {
            let (mut incoming, mut replica) = (incoming, SimpleReplica::default());
            while replica.position == Lsn::ZERO {
                replica.apply(incoming.next().await);
            }
            assert_eq!(replica.rows, database.rows_at(0, end));
            replica.messages - replica.heartbeats
        });
    }
    for messages in clients.join_all().await {
        assert_eq!(messages as i64, ROWS + 4, "handshake, begin, end and marker in addition to the rows");
    }
    assert_eq!(journal.info().bases, 2, "one for all of them");
}
