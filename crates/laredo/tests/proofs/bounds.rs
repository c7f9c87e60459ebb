//! A huge transaction and a client that has stopped reading, and clients with costly filters.
//! Memory stays within its bound, and other clients continue.

use std::process::Command;
use std::time::{Duration, Instant};

use laredo_client::{ColumnPredicate, Replica};
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, FaultProxy, eventually, is_full};
use tokio_postgres::Client;

use super::support::server::{PATIENCE, ServerProcessConfig};

const MEMORY_MAX_MIB: u64 = 16;
/// The longest time that the huge transaction may take.
const LONG: Duration = PATIENCE.saturating_mul(10);
/// The number of commits for a median.
const COMMITS: usize = 50;
/// The shortest time that is significant. Shorter times depend on other users of the machine.
const NOISE: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_and_neighbors_continue() {
    let rows: u64 = if is_full() { 5_000_000 } else { 500_000 };
    let options = ClusterOptions { on_disk: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(options.set("max_wal_size", "16GB")).unwrap();
    cluster
        .psql(
            "CREATE TABLE big (id bigint PRIMARY KEY, a text, b int, c numeric, d timestamptz, e uuid, f float8, g text);
             CREATE TABLE small (id int PRIMARY KEY, n int); INSERT INTO small VALUES (1, 0)",
        )
        .unwrap();
    let (big, small) = (TableName::new("public", "big"), TableName::new("public", "small"));
    let config = ServerProcessConfig::new(cluster.url("postgres"), [big.clone(), small.clone()])
        .target(&format!("journal {{ memory_max_bytes = {MEMORY_MAX_MIB}MiB }}"));
    let server = config.start().await;
    let stalling = FaultProxy::start(format!("127.0.0.1:{}", server.ports.fanout)).await.unwrap();
    let stalled = Replica::builder(format!("http://{}", stalling.addr()), big.clone()).start().unwrap();
    let [reading, live] = [&big, &small].map(|table| Replica::builder(server.url(), table.clone()).start().unwrap());
    for replica in [&stalled, &reading, &live] {
        replica.ready(PATIENCE).await.unwrap();
    }
    stalling.stall(true);

    let client = cluster.connect().await.unwrap();
    let mut neighbor = NeighborProbe { sql: cluster.connect().await.unwrap(), live: &live, n: 0 };
    let before = neighbor.median_lag().await;
    let fill = format!(
        "BEGIN; INSERT INTO big SELECT i, repeat('a', 60), i % 1000, i / 7.0, now(), gen_random_uuid(), i / 3.0, repeat('g', 40)
           FROM generate_series(1, {rows}::bigint) i"
    );
    client.batch_execute(&fill).await.unwrap();
    // PostgreSQL reads its WAL in order, so the first commit arrives after all these rows.
    neighbor.commit_and_see().await;
    let streamed = "SELECT coalesce(max(stream_txns), 0)::bigint FROM pg_stat_replication_slots";
    let is_streamed = async || neighbor.sql.query_one(streamed, &[]).await.unwrap().get::<_, i64>(0) > 0;
    eventually(PATIENCE, is_streamed).await.expect("the open transaction is streamed");
    let open = neighbor.median_lag().await;
    client.batch_execute("COMMIT").await.unwrap();
    let applying = neighbor.median_lag().await;
    let bearable = before.max(NOISE) * 10;
    assert!(open < bearable && applying < bearable, "a commit is seen after {before:?}, {open:?} and {applying:?}");

    let applied = async || server.metric("laredo_rows", &big).await == Some(rows);
    eventually(LONG, applied).await.unwrap();
    has_all(&cluster, &reading, rows).await;
    for replica in [&reading, &live] {
        assert_eq!(replica.status().connects, 1, "who reads is not cut: {:?}", replica.status());
    }
    let tuple_bytes = tuple_bytes(&cluster, rows);
    let bound = tuple_bytes * 3 / 2 + (MEMORY_MAX_MIB + 100) * 1024 * 1024;
    let peak = server.process.peak_rss_bytes().unwrap();
    assert!(peak < bound, "{peak} bytes at the most, where {tuple_bytes} bytes of rows allow {bound}");

    stalling.stall(false);
    has_all(&cluster, &stalled, rows).await;
    for replica in [stalled, reading, live] {
        replica.stop().await;
    }
}

/// The number of clients with the most costly filters that are allowed.
const COSTLY: u16 = 12;

/// Returns the predicates of a client, which are different for each. Together they have the most
/// predicates and values, and every row passes all of them.
fn costly_filters(client: u16) -> Vec<ColumnPredicate> {
    // One list of numbers has a number of the client's own. All others have the table's numbers.
    let numbers = |number: u16| {
        let own = i64::from(1000 + client);
        ColumnPredicate::any_of(["c", "d"][usize::from(number % 2)], (0..48).chain([own]))
    };
    let prefixes = (0..12).map(|_| ColumnPredicate::prefix("g", ""));
    (0..20).map(numbers).chain(prefixes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn costly_filters_cost_their_neighbors_no_latency() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster
        .psql(
            "CREATE TABLE wide (id int PRIMARY KEY, c numeric, d numeric, g text, h text);
             INSERT INTO wide SELECT i, i % 48, i % 48, 'g', repeat('h', 200) FROM generate_series(1, 5000) i;
             CREATE TABLE small (id int PRIMARY KEY, n int); INSERT INTO small VALUES (1, 0)",
        )
        .unwrap();
    let (wide, small) = (TableName::new("public", "wide"), TableName::new("public", "small"));
    let server = ServerProcessConfig::new(cluster.url("postgres"), [wide.clone(), small.clone()]).start().await;
    let live = Replica::builder(server.url(), small).start().unwrap();
    live.ready(PATIENCE).await.unwrap();
    // Some transactions are filtered in place, others on threads of their own.
    let writer = cluster.connect().await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        for number in 1_u64.. {
            if *stopped.borrow() {
                return;
            }
            let rows = if number.is_multiple_of(2) { 20 } else { 2000 };
            writer.batch_execute(&format!("UPDATE wide SET h = h WHERE id <= {rows}")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut neighbor = NeighborProbe { sql: cluster.connect().await.unwrap(), live: &live, n: 0 };
    let before = neighbor.median_lag().await;
    let filtered = |client| {
        let builder = Replica::builder(server.url(), wide.clone());
        costly_filters(client)
            .into_iter()
            .fold(builder, |builder, predicate| builder.filter(predicate))
            .start()
            .unwrap()
    };
    let costly: Vec<Replica> = (0..COSTLY).map(filtered).collect();
    for replica in &costly {
        replica.ready(PATIENCE).await.unwrap();
        assert_eq!(replica.view().len(), 5000, "every row passes");
    }
    let together = neighbor.median_lag().await;
    assert!(together < before.max(NOISE) * 10, "a commit is seen after {before:?}, and then after {together:?}");
    stop.send_replace(true);
    writing.await.unwrap();
    for replica in costly {
        assert_eq!(replica.status().connects, 1, "{:?}", replica.status());
        replica.stop().await;
    }
    live.stop().await;
}

/// A session that writes to the small table, and a client that reads it.
struct NeighborProbe<'a> {
    sql: Client,
    live: &'a Replica,
    n: i32,
}

impl NeighborProbe<'_> {
    /// Returns the median time from a commit's answer until the client shows it.
    async fn median_lag(&mut self) -> Duration {
        let mut lags = Vec::new();
        for _ in 0..COMMITS {
            lags.push(self.commit_and_see().await);
        }
        lags.sort();
        lags[COMMITS / 2]
    }

    async fn commit_and_see(&mut self) -> Duration {
        let mut transactions = self.live.transactions();
        self.n += 1;
        self.sql.batch_execute(&format!("UPDATE small SET n = {}", self.n)).await.unwrap();
        let committed = Instant::now();
        let seen = async {
            while self.live.get(1).unwrap().is_none_or(|row| row.get::<i32>("n").unwrap() != self.n) {
                let _ = transactions.next().await.expect("the replica goes on");
            }
        };
        tokio::time::timeout(LONG, seen).await.expect("the commit is seen");
        committed.elapsed()
    }
}

/// Waits until a client of the big table has all rows, and compares them with the database's.
async fn has_all(cluster: &Cluster, replica: &Replica, rows: u64) {
    let is_whole = async || replica.view().len() as u64 == rows;
    assert!(eventually(LONG, is_whole).await.is_ok(), "a client is not whole: {:?}", replica.status());
    let theirs = cluster.psql("SELECT count(*), sum(id), sum(b), sum(length(a) + length(g)) FROM big").unwrap();
    let view = replica.view();
    let mut sums = [0; 3];
    for row in view.rows() {
        sums[0] += row.get::<i64>("id").unwrap();
        sums[1] += i64::from(row.get::<i32>("b").unwrap());
        sums[2] += ["a", "g"].map(|text| row.get::<&str>(text).unwrap().len() as i64).iter().sum::<i64>();
    }
    assert_eq!(format!("{}|{}|{}|{}", view.len(), sums[0], sums[1], sums[2]), theirs);
}

/// Returns the bytes of the rows' cells in binary COPY, without the field counts, the header and
/// the trailer.
fn tuple_bytes(cluster: &Cluster, rows: u64) -> u64 {
    let url = cluster.url("postgres");
    let copy = format!("'{}' '{url}' -c '\\copy big to stdout binary' | wc -c", cluster.bin("psql").display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &copy]);
    let counted = shell.output().unwrap();
    let bytes: u64 = String::from_utf8(counted.stdout).unwrap().trim().parse().unwrap();
    bytes - 2 * rows - 21
}
