//! A server with a durable journal that is killed repeatedly. It resumes at the end of its files
//! and copies nothing, and its clients resume with a delta.

use laredo_client::Replica;
use laredo_core::{Lsn, TableName};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};
use laredo_testkit::{Cluster, ClusterOptions, eventually, is_full, oracle};
use tempfile::TempDir;

use crate::support::fleet::{CategoryFilter, ClientPair, await_transactions, cluster, compare_all, fleet, serve_all};
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig, numbers};

pub(super) fn with_durable_journal(config: ServerProcessConfig, folder: &TempDir) -> ServerProcessConfig {
    let path = serde_json::Value::from(folder.path().to_string_lossy());
    config.target(&format!("journal {{ store = local, store_config {{ path = {path} }} }}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_continues_from_its_journal_and_its_clients_by_delta() {
    // A truncated table is copied.
    let options = WorkloadOptions { truncates: false, ..WorkloadOptions::default() };
    let metrics = killed_again_and_again("laredo_journal", options).await;
    for metrics in metrics {
        assert_eq!(numbers(&metrics, "laredo_copies_total"), vec!["0"; TABLES.len()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_killed_server_continue_by_delta_while_tables_are_truncated_and_copied() {
    let options = WorkloadOptions { truncates: true, ..WorkloadOptions::default() };
    killed_again_and_again("laredo_truncates", options).await;
}

/// Kills a server under load, and compares its clients with the database each time. Returns the
/// metrics of each start.
async fn killed_again_and_again(slot: &str, options: WorkloadOptions) -> Vec<String> {
    let rounds = if is_full() { 20 } else { 4 };
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let sql = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 10, options);
    await_transactions(&workload, 100).await;
    let mut server = with_durable_journal(serve_all(cluster.url("postgres")).slot(slot), &folder).start().await;
    let pairs = fleet(&server.url());
    let paused = compare_all(&sql, &workload, &pairs, -10_000).await;
    workload.resume(paused);
    let mut metrics = Vec::new();
    for round in 1..=rounds {
        await_transactions(&workload, 60 + 17 * round).await;
        server.restart().await;
        await_transactions(&workload, 40).await;
        let paused = compare_all(&sql, &workload, &pairs, -10_000 - i32::try_from(round).unwrap()).await;
        metrics.push(server.metrics().await);
        workload.resume(paused);
    }
    for metrics in &metrics {
        assert_eq!(numbers(metrics, "laredo_snapshots_total"), Vec::<&str>::new());
        let syncs = numbers(metrics, "laredo_journal_syncs_total");
        assert!(syncs.len() == TABLES.len() && syncs.iter().all(|syncs| *syncs != "0"), "{syncs:?}");
    }
    for pair in &pairs {
        let (status, state) = (pair.replica.status(), pair.simple.state());
        assert_eq!((status.resyncs, state.snapshots), (0, 1), "{} {status:?}", pair.table);
        assert!(u64::from(state.deltas) >= rounds, "{} deltas", state.deltas);
    }
    workload.stop().await.unwrap();
    metrics
}

/// A table that is served with a durable journal, and two clients of it.
pub(super) struct DurableTable {
    // Before the cluster: when the server is dropped, it is verified.
    pub(super) server: ServerProcess,
    pub(super) cluster: Cluster,
    folder: TempDir,
    sql: tokio_postgres::Client,
    pub(super) table: TableName,
    pub(super) pair: ClientPair,
}

impl DurableTable {
    async fn start(slot: &str) -> DurableTable {
        DurableTable::start_on(cluster(), slot).await
    }

    /// Starts a server whose clients have only changes that are on disk. A client ahead of the disk
    /// would be inside the span of a copy.
    pub(super) async fn start_on(cluster: Cluster, slot: &str) -> DurableTable {
        let folder = tempfile::tempdir().unwrap();
        let sql = cluster.connect().await.unwrap();
        let create = "CREATE TYPE temper AS ENUM ('fine', 'bad');
             CREATE TABLE kept (n int PRIMARY KEY, temper temper NOT NULL DEFAULT 'fine', amount int);
             INSERT INTO kept SELECT n, 'fine', n FROM generate_series(1, 1000) n";
        sql.batch_execute(create).await.unwrap();
        let table = TableName::new("public", "kept");
        let config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).slot(slot);
        let server = with_durable_journal(config, &folder).start().await;
        let pair = ClientPair::start(&server.url(), &table, &["n"], CategoryFilter::All);
        let served = DurableTable { cluster, folder, sql, table, server, pair };
        let position = served.reach(-1).await;
        let durable = async || {
            let durable = served.server.metric("laredo_durable_position_bytes", &served.table).await;
            durable >= Some(position.0)
        };
        eventually(PATIENCE, durable).await.unwrap();
        served
    }

    pub(super) async fn reach(&self, mark: i32) -> Lsn {
        self.sql.batch_execute(&format!("INSERT INTO kept (n) VALUES ({mark})")).await.unwrap();
        let position = oracle::flushed(&self.sql).await.unwrap();
        self.pair.reach(position, mark).await;
        position
    }

    pub(super) async fn kill(&mut self) {
        self.server.process.kill9();
        self.server.process.wait(PATIENCE).await.unwrap();
    }

    /// Restarts the server, and waits until the table is copied and both clients have the
    /// database's rows.
    pub(super) async fn comes_back_with_a_copy(&mut self) {
        self.server.restart().await;
        self.is_copied(1).await;
        self.clients_have_everything(-2).await;
    }

    /// Waits until the server has copied the table `times` times.
    pub(super) async fn is_copied(&self, times: u64) {
        let copied = async || self.server.metric("laredo_copies_total", &self.table).await == Some(times);
        eventually(PATIENCE, copied).await.expect("it is copied");
    }

    /// Waits until both clients have the database's rows.
    pub(super) async fn clients_have_everything(&self, mark: i32) {
        self.reach(mark).await;
        let rows = oracle::rows_at_rest(&self.sql, &self.table, &["n"], "true").await.unwrap();
        self.pair.settle(&rows).await;
        assert_eq!(self.pair.differences(&rows), "");
    }
}

/// The definition changes while the server is down, in ways that the stream does not report.
#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_changed_meanwhile_sends_only_the_difference() {
    let mut served = DurableTable::start("laredo_kept").await;
    served.kill().await;
    let change = "ALTER TYPE temper RENAME VALUE 'fine' TO 'well';
         ALTER TABLE kept ALTER amount TYPE int USING amount % 10, ADD note text DEFAULT 'as always';
         DELETE FROM kept WHERE n = 7";
    served.sql.batch_execute(change).await.unwrap();
    served.comes_back_with_a_copy().await;
    assert_eq!(served.pair.simple.state().snapshots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_sends_only_the_difference() {
    let mut served = DurableTable::start("laredo_lost").await;
    served.kill().await;
    let drop = "SELECT pg_drop_replication_slot('laredo_lost')";
    let dropped = async || served.sql.batch_execute(drop).await.is_ok();
    eventually(PATIENCE, dropped).await.expect("nobody uses the slot any more");
    served
        .sql
        .batch_execute("DELETE FROM kept WHERE n % 100 = 7; UPDATE kept SET amount = 0 WHERE n = 8")
        .await
        .unwrap();
    served.comes_back_with_a_copy().await;
    assert_eq!(served.pair.simple.state().snapshots, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_is_named_and_put_aside_and_the_table_copied() {
    let mut served = DurableTable::start("laredo_damaged").await;
    served.kill().await;
    let folder = served.folder.path().join("public/kept");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let base = { files }.find(|path| path.extension().is_some_and(|extension| extension == "base")).unwrap();
    let mut bytes = std::fs::read(&base).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&base, bytes).unwrap();
    served.comes_back_with_a_copy().await;
    assert_eq!(served.pair.simple.state().snapshots, 2, "it is another journal");
    assert!(folder.join("set-aside").join(base.file_name().unwrap()).is_file());
    let named = format!("{} is damaged at byte 0: ", base.display());
    assert!(served.server.process.output().iter().any(|line| line.contains(&named)), "nothing says {named}");
}

/// A truncate gives the table another file. The server stores the catalog's new description as soon
/// as the stream has explained it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_truncated_is_not_copied_by_the_next_start() {
    let mut served = DurableTable::start("laredo_truncated").await;
    served.sql.batch_execute("TRUNCATE kept; INSERT INTO kept SELECT n FROM generate_series(1, 10) n").await.unwrap();
    served.clients_have_everything(-2).await;
    let file = served.cluster.psql("SELECT relfilenode FROM pg_class WHERE relname = 'kept'").unwrap();
    let defined = format!("{{\"number\":{file},\"toast\":");
    let is_kept = async || {
        let folder = served.folder.path().join("public/kept");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let journals = { files }.filter(|path| path.extension().is_some_and(|extension| extension == "journal"));
        let has = |bytes: Vec<u8>| bytes.windows(defined.len()).any(|part| part == defined.as_bytes());
        { journals }.any(|path| has(std::fs::read(path).unwrap()))
    };
    eventually(PATIENCE, is_kept).await.expect("the definition is in the journal");
    served.kill().await;
    served.sql.batch_execute("DELETE FROM kept WHERE n = 7").await.unwrap();
    served.server.restart().await;
    served.clients_have_everything(-3).await;
    assert_eq!(served.server.metric("laredo_copies_total", &served.table).await, Some(0));
    assert_eq!(served.pair.simple.state().snapshots, 1);
}

/// A million rows at full size. The test prints the time, and `./dev bench restart` measures it.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_there_again_after_a_crash_and_its_clients_continue() {
    let rows: u64 = if is_full() { 1_000_000 } else { 50_000 };
    let (folder, table) = (tempfile::tempdir().unwrap(), TableName::new("public", "big"));
    let cluster = Cluster::start(ClusterOptions { on_disk: true, ..ClusterOptions::default() }).unwrap();
    let fill = format!(
        "CREATE TABLE big (id bigint PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL, price numeric);
         INSERT INTO big SELECT i, 'name of ' || i, now(), i / 7.0 FROM generate_series(1, {rows}) i"
    );
    cluster.psql(&fill).unwrap();
    let config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).slot("laredo_big").target(PATIENT);
    let mut server = with_durable_journal(config, &folder).start().await;
    let replicas = [(), ()].map(|()| Replica::builder(server.url(), table.clone()).start().unwrap());
    for replica in &replicas {
        replica.ready(PATIENCE).await.unwrap();
    }
    let committed = async |sql: &str, rows: u64| {
        cluster.psql(sql).unwrap();
        for replica in &replicas {
            let is_there = async || replica.view().len() as u64 == rows;
            eventually(PATIENCE, is_there).await.unwrap_or_else(|_| panic!("{:?}", replica.status()));
        }
    };
    committed("DELETE FROM big WHERE id % 1000 = 7", rows - rows / 1000).await;
    let began = std::time::Instant::now();
    server.restart().await;
    println!("{rows} rows were served again {:.2} s after kill -9", began.elapsed().as_secs_f64());
    committed("DELETE FROM big WHERE id % 1000 = 8", rows - rows / 1000 * 2).await;
    let metrics = server.metrics().await;
    assert_eq!(numbers(&metrics, "laredo_copies_total"), ["0"]);
    assert_eq!(
        (numbers(&metrics, "laredo_snapshots_total"), numbers(&metrics, "laredo_deltas_total")),
        (vec![], vec!["2"])
    );
    for replica in replicas {
        assert_eq!((replica.status().connects, replica.status().resyncs), (2, 0), "{:?}", replica.status());
        replica.stop().await;
    }
}
