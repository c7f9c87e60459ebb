//! New clients that read Structs while PostgreSQL is written all the time. Each costs as much as
//! the table, and shows one recent commit at its SnapshotEnd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use laredo_core::TableName;
use laredo_proto::replication::laredo_replication_service_client::LaredoReplicationServiceClient;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{SyncRequest, SyncResponse};
use laredo_testkit::oracle::flushed;
use laredo_testkit::{Cluster, ClusterOptions, eventually, is_full};
use prost::Message as _;
use tokio::task::JoinHandle;

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use crate::support::simple::SimpleState;

fn table() -> TableName {
    TableName::new("public", "t")
}

fn request() -> SyncRequest {
    SyncRequest { schema: "public".to_owned(), table: "t".to_owned(), ..SyncRequest::default() }
}

/// A session that runs statements of one kind until it is stopped, and counts them.
struct CountingWriter {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl CountingWriter {
    async fn start(cluster: &Cluster, statement: impl Fn(u64) -> String + Send + 'static) -> CountingWriter {
        let client = cluster.connect().await.unwrap();
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), count.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed) + 1;
                client.batch_execute(&statement(number)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        CountingWriter { stop, count, task }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// Opens a stream with small windows, so that the server soon waits for reads.
async fn narrow(server: &ServerProcess) -> tonic::Streaming<SyncResponse> {
    let endpoint = tonic::transport::Endpoint::from_shared(server.url()).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut client = LaredoReplicationServiceClient::new(endpoint.connect().await.unwrap());
    client.sync(request()).await.unwrap().into_inner()
}

/// A client that has received its snapshot.
struct Newcomer {
    state: SimpleState,
    bytes: u64,
    rows: u64,
    /// The entries that arrived before SnapshotEnd.
    entries: u64,
}

/// Loads the table, with a pause after each message.
async fn load(server: &ServerProcess, pause: Option<Duration>) -> Newcomer {
    let mut stream = narrow(server).await;
    let mut newcomer = Newcomer { state: SimpleState::new(&["id"]), bytes: 0, rows: 0, entries: 0 };
    while !newcomer.state.is_loaded {
        let message = stream.message().await.unwrap().unwrap();
        match &message.message {
            Some(Message::Heartbeat(_)) => continue,
            Some(Message::SnapshotRow(_)) => newcomer.rows += 1,
            Some(Message::JournalEntry(_)) => newcomer.entries += 1,
            _ => {}
        }
        newcomer.bytes += message.encoded_len() as u64;
        newcomer.state.apply(message);
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    assert_eq!(newcomer.state.violations, Vec::<String>::new());
    newcomer
}

async fn serve(cluster: &Cluster) -> ServerProcess {
    ServerProcessConfig::new(cluster.url("postgres"), [table()]).start().await
}

async fn has_everything(cluster: &Cluster, server: &ServerProcess) {
    let position = flushed(&cluster.connect().await.unwrap()).await.unwrap();
    eventually(PATIENCE, async || server.is_live_at(position).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_clients_cost_the_table_however_much_was_written() {
    let (rows, rounds) = if is_full() { (41_000, 25) } else { (4_100, 25) };
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let fill = format!("INSERT INTO t SELECT i, 0 FROM generate_series(1, {rows}) i");
    cluster.psql(&format!("CREATE TABLE t (id int PRIMARY KEY, n int); {fill}")).unwrap();
    let server = serve(&cluster).await;
    let table_bytes = load(&server, None).await.bytes;
    let client = cluster.connect().await.unwrap();
    for round in 1..=rounds {
        client.batch_execute(&format!("UPDATE t SET n = {round}")).await.unwrap();
    }
    has_everything(&cluster, &server).await;
    let update = |number: u64| format!("UPDATE t SET n = {number} WHERE id <= 10");
    let writer = CountingWriter::start(&cluster, update).await;
    let loads = futures::future::join_all((0..50).map(|_| load(&server, None))).await;
    let written = writer.count() * 10;
    for newcomer in &loads {
        assert_eq!(newcomer.rows, rows);
        assert!(newcomer.entries <= written, "{} entries, {written} changes meanwhile", newcomer.entries);
        // In an entry a row is at most twice as long, with as many bytes again for its position and
        // names.
        let bound = table_bytes * 11 / 10 + newcomer.entries * 400;
        assert!(newcomer.bytes <= bound, "{} bytes, where the table has {table_bytes}", newcomer.bytes);
    }
    writer.stop().await;
}

/// Returns the number of the transaction that a state shows, and its rows.
fn state_of(newcomer: &Newcomer) -> (i64, BTreeMap<i64, i64>) {
    let number = |row: &serde_json::Map<String, serde_json::Value>, name: &str| row[name].as_f64().unwrap() as i64;
    let rows = newcomer.state.rows.values().map(|row| (number(row, "id"), number(row, "v")));
    let mut rows: BTreeMap<i64, i64> = rows.collect();
    (rows.remove(&0).unwrap(), rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_shows_one_commit_of_the_present_at_its_snapshots_end() {
    const ROWS: i64 = 3000;
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    // Row 0 counts the transactions. The table `h`, which is not followed, records the change of
    // each.
    let fill =
        format!("INSERT INTO t (id, v) SELECT i, CASE i WHEN 0 THEN 0 ELSE 100 END FROM generate_series(0, {ROWS}) i");
    let history = "CREATE TABLE h (c bigint, id bigint, v bigint)";
    cluster
        .psql(&format!(
            "CREATE TABLE t (id bigint PRIMARY KEY, v bigint, pad text DEFAULT repeat('x', 500)); {fill}; {history}"
        ))
        .unwrap();
    let server = serve(&cluster).await;
    let transfer = |number: u64| {
        let (from, to) = (number * 7 % 1500 + 1, number * 11 % 1500 + 1501);
        format!(
            "BEGIN; UPDATE t SET v = v - {number} WHERE id = {from}; UPDATE t SET v = v + {number} WHERE id = {to}; \
             UPDATE t SET v = {number} WHERE id = 0; \
             INSERT INTO h SELECT {number}, id, v FROM t WHERE id IN ({from}, {to}); COMMIT"
        )
    };
    let writer = CountingWriter::start(&cluster, transfer).await;
    let slow = Some(Duration::from_millis(1));
    let mut states = Vec::new();
    let rounds = if is_full() { 10 } else { 2 };
    for round in 0..rounds {
        has_everything(&cluster, &server).await;
        let client = cluster.connect().await.unwrap();
        let before: i64 = client.query_one("SELECT v FROM t WHERE id = 0", &[]).await.unwrap().get(0);
        let loads = futures::future::join_all((0..12).map(|i| load(&server, slow.filter(|_| i % 3 == 0)))).await;
        for (i, newcomer) in loads.into_iter().enumerate() {
            let (count, rows) = state_of(&newcomer);
            assert_eq!(rows.values().sum::<i64>(), ROWS * 100, "round {round}: half a transaction");
            if i % 3 == 0 {
                // The load took seconds, and shows the rows of a second ago.
                assert!(count >= before && newcomer.entries > 0, "round {round}: {count}, and {before} when it came");
            }
            states.push((count, rows));
        }
    }
    writer.stop().await;
    let client = cluster.connect().await.unwrap();
    let history = client.query("SELECT c, id, v FROM h ORDER BY c", &[]).await.unwrap();
    for (count, rows) in states {
        let mut wanted: BTreeMap<i64, i64> = (1..=ROWS).map(|id| (id, 100)).collect();
        let past = history.iter().filter(|row| row.get::<_, i64>(0) <= count);
        wanted.extend(past.map(|row| (row.get::<_, i64>(1), row.get::<_, i64>(2))));
        assert!(rows == wanted, "the rows after transaction {count}");
    }
}
