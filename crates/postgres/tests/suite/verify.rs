//! A verification against PostgreSQL. Under a random workload it finds nothing. It finds and heals
//! every difference that a test plants without WAL.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, TableName};
use laredo_engine::source::TableRequest;
use laredo_engine::spool::SpoolOptions;
use laredo_engine::{TableHandle, TablePhase, VerifyReport, VerifyTerms};
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::{COPY_TIMEOUT, ConnectionOptions, PostgresOptions, PostgresSource, PublicationOptions};
use laredo_testkit::types::literal;
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions, schema_sql};
use laredo_testkit::{Cluster, ClusterOptions, RunningEngine, eventually, is_full, oracle, sim_table, stopped_clock};
use tokio::sync::oneshot;
use tokio_postgres::Client;

const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: VerifyTerms = VerifyTerms { bytes_per_second: None, heals: false };
const HEAL: VerifyTerms = VerifyTerms { bytes_per_second: None, heals: true };
/// A rate so low that a pass has several parts.
const SLOWLY: VerifyTerms = VerifyTerms { bytes_per_second: Some(2 << 20), heals: false };

struct VerifiedCluster {
    cluster: Cluster,
    sql: Client,
    engine: RunningEngine,
}

impl VerifiedCluster {
    async fn start(schema: &str, tables: Vec<TableRequest>) -> VerifiedCluster {
        let options = ClusterOptions::default().set("autovacuum", "off").set("wal_writer_delay", "10ms");
        let cluster = Cluster::start(options).unwrap();
        cluster.psql(schema).unwrap();
        let source = PostgresSource::new(PostgresOptions {
            ddl: Default::default(),
            connection: ConnectionOptions::parse(&cluster.url("postgres")).unwrap(),
            slot: SlotMode::Ephemeral { name_prefix: "laredo".to_owned() },
            publication: PublicationOptions { name: "laredo_pub".to_owned(), create: true },
            reconnect: ReconnectOptions::default(),
            copies_max: 4,
            copy_timeout: COPY_TIMEOUT,
            spool: Arc::new(SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() }),
            seed: 1,
        });
        let options = tables.into_iter().map(|request| laredo_engine::TableOptions { request, ..sim_table("t") });
        let engine = RunningEngine::start(source, options.collect(), stopped_clock(CommitTime(7))).await.unwrap();
        for table in engine.handle().tables().iter() {
            table.wait_journal().await.unwrap();
        }
        let sql = cluster.connect().await.unwrap();
        VerifiedCluster { cluster, sql, engine }
    }

    async fn of_one(schema: &str, name: &str, key_fields: &[&str]) -> VerifiedCluster {
        let key_fields = key_fields.iter().map(|field| (*field).to_owned()).collect();
        VerifiedCluster::start(schema, vec![TableRequest { name: name.parse().unwrap(), key_fields }]).await
    }

    fn table(&self) -> TableHandle {
        self.engine.table(0)
    }

    async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap();
    }

    /// Waits until every table follows the database and has everything that is committed.
    async fn settled(&self) {
        let position = oracle::flushed(&self.sql).await.unwrap();
        let is_there = |table: &TableHandle| {
            let status = table.status();
            status.phase == TablePhase::Live && status.position >= position
        };
        eventually(PATIENCE, async || self.engine.handle().tables().iter().all(is_there)).await.unwrap();
    }

    /// Changes three rows of a table without WAL. From then on, the update of one row, the delete
    /// of another and the insert of a third did not happen.
    async fn plant(&self, name: &TableName) {
        let table = name.quoted();
        // PostgreSQL keeps old row versions while this snapshot exists.
        let keeper = self.cluster.connect().await.unwrap();
        keeper.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1").await.unwrap();
        // Large values are stored in a separate table, and removed there.
        let places = format!(
            "SELECT tableoid::regclass::text, ctid::text FROM {table} t WHERE body IS NULL AND length(t::text) < 1000 \
             ORDER BY random() LIMIT 3"
        );
        let rows = self.sql.query(&places, &[]).await.unwrap();
        let place = |row: usize| (rows[row].get::<_, String>(0), rows[row].get::<_, String>(1));
        let at =
            |(file, ctid): &(String, String)| format!("ctid = '{ctid}' AND tableoid = {}::regclass", literal(file));
        let [updated, deleted, inserted] = [place(0), place(1), place(2)];
        let update = format!("UPDATE {table} SET n = coalesce(n, 0) + 1 WHERE {} RETURNING ctid::text", at(&updated));
        let newer: String = self.sql.query_one(&update, &[]).await.unwrap().get(0);
        self.run(&format!("DELETE FROM {table} WHERE {}", at(&deleted))).await;
        self.settled().await;
        let surgery = |what: &str, file: &str, ctid: &str| {
            format!("SELECT heap_force_{what}({}::regclass, ARRAY['{ctid}'::tid]);", literal(file))
        };
        self.run(&surgery("freeze", &updated.0, &updated.1)).await;
        self.run(&surgery("kill", &updated.0, &newer)).await;
        self.run(&surgery("freeze", &deleted.0, &deleted.1)).await;
        self.run(&surgery("kill", &inserted.0, &inserted.1)).await;
    }
}

/// Counts the differences of each kind.
fn kinds(report: &VerifyReport) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    report.differences.iter().for_each(|difference| *kinds.entry(difference.kind()).or_default() += 1);
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_makes_no_difference_and_what_is_planted_is_found_and_healed() {
    let requests = TABLES.iter().map(|table| TableRequest {
        name: table.name(),
        key_fields: table.key_fields().iter().map(|field| (*field).to_owned()).collect(),
    });
    let schema = format!("CREATE EXTENSION pg_surgery; {}", schema_sql());
    let setting = VerifiedCluster::start(&schema, requests.collect()).await;
    for table in TABLES {
        setting.run(&table.fill(20_000)).await;
    }
    setting.settled().await;
    let options = WorkloadOptions { value_bytes_max: 100_000, ..WorkloadOptions::default() };
    let workload = Workload::start(&setting.cluster.url("postgres"), 3, options);
    for _ in 0..if is_full() { 20 } else { 2 } {
        for table in setting.engine.handle().tables().iter() {
            let report = table.verify(SLOWLY).await.unwrap();
            assert_eq!((report.differing, report.unverified), (0, 0), "{}: {:?}", table.name(), report.differences);
        }
    }
    let counts = workload.stop().await.unwrap();
    assert!(counts.committed > 100, "{counts:?}");
    // The workload may have truncated the tables.
    for table in TABLES {
        setting.run(&table.fill(3000)).await;
    }
    setting.settled().await;
    for table in setting.engine.handle().tables().iter() {
        setting.plant(table.name()).await;
        let report = table.verify(HEAL).await.unwrap();
        assert_eq!(report.differing, 3, "{}", table.name());
        let planted = BTreeMap::from([("different", 1), ("extra", 1), ("missing", 1)]);
        assert_eq!(kinds(&report), planted, "{}", table.name());
        let columns = report.differences.iter().find(|row| row.kind() == "different").map(|row| row.columns.clone());
        assert_eq!(columns, Some(vec!["n".to_owned()]), "{}", table.name());
        let copies = table.status().copies;
        eventually(PATIENCE, async || table.status().copies > copies || table.status().phase == TablePhase::Live)
            .await
            .unwrap();
        assert_eq!(table.verify(LOOK).await.unwrap().differing, 0, "{}", table.name());
    }
}

/// On an idle database, only the verification's own writes move the stream.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_and_an_empty_table_are_verified() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let setting = VerifiedCluster::of_one(schema, "public.t", &[]).await;
    let report = setting.table().verify(LOOK).await.unwrap();
    assert_eq!((report.rows, report.differing), (0, 0));
    // An asynchronous commit becomes visible before it is flushed.
    setting.run("SET synchronous_commit = off; INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i").await;
    let report = setting.table().verify(LOOK).await.unwrap();
    assert_eq!((report.rows, report.differing), (1000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_column_lists_and_keys_without_an_operator_are_verified() {
    let schema = "CREATE EXTENSION pg_surgery; CREATE TYPE pair AS (a int, b text);
        CREATE TABLE t (id int, j json, p point, k pair, secret text, kind text);
        ALTER TABLE t REPLICA IDENTITY FULL;
        INSERT INTO t SELECT i, '{}', point(i, 1), ROW(i, 'b'::text)::pair, 's', 'kept' FROM generate_series(1, 300) i;
        INSERT INTO t SELECT i, '{}', NULL, NULL, 's', 'left' FROM generate_series(301, 600) i;
        DO $$ BEGIN IF current_setting('server_version_num')::int >= 150000 THEN
            EXECUTE 'CREATE PUBLICATION laredo_pub FOR TABLE t (id, j, p, k, kind) WHERE (kind = ''kept'')';
        END IF; END $$";
    let setting = VerifiedCluster::of_one(schema, "public.t", &["id", "j", "p", "k"]).await;
    let rows = if setting.cluster.major_version() >= 15 { 300 } else { 600 };
    assert_eq!(setting.table().verify(LOOK).await.unwrap().rows, rows);
    // Remove a row that lacks a value of its key, and one that has all values.
    setting.run("INSERT INTO t VALUES (1001, NULL, NULL, NULL, 's', 'kept')").await;
    setting.settled().await;
    setting
        .run(
            "CREATE TEMP TABLE places AS SELECT array_agg(ctid) AS places FROM t WHERE id IN (1001, 7);
             SELECT heap_force_kill('t'::regclass, places) FROM places",
        )
        .await;
    let report = setting.table().verify(LOOK).await.unwrap();
    assert_eq!(kinds(&report), BTreeMap::from([("extra", 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redefined_table_is_verified_when_it_is_copied() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text);
        INSERT INTO t SELECT i, repeat('v', 500) FROM generate_series(1, 20000) i";
    let setting = VerifiedCluster::of_one(schema, "public.t", &[]).await;
    let table = setting.table();
    let verifying = table.verify(SLOWLY);
    let redefine = async {
        let begun = || setting.table().status().verify.running.is_some_and(|running| running.blocks > 0);
        eventually(PATIENCE, async || begun()).await.unwrap();
        setting.run("ALTER TABLE t ADD w int DEFAULT 7; UPDATE t SET w = 8 WHERE id < 100").await;
    };
    let (report, ()) = tokio::join!(verifying, redefine);
    let report = report.unwrap();
    assert_eq!((report.differing, report.schema.columns().len()), (0, 3));
    assert_eq!(setting.table().status().verify.failures, 0);
}

/// The stream is read while a part waits, and transactions of any size arrive in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_changes_as_a_whole_again_and_again_is_verified() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text, n int);
        INSERT INTO t SELECT i, (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 100) j), 0
        FROM generate_series(1, 2000) i";
    let setting = VerifiedCluster::of_one(schema, "public.t", &[]).await;
    let (stop, mut stopped) = oneshot::channel::<()>();
    let writer = setting.cluster.connect().await.unwrap();
    let writing = tokio::spawn(async move {
        while stopped.try_recv().is_err() {
            writer.batch_execute("UPDATE t SET n = n + 1 WHERE id % 3 <> 0").await.unwrap();
            writer.batch_execute("DELETE FROM t WHERE id % 97 = 1").await.unwrap();
            writer
                .batch_execute("INSERT INTO t SELECT i, 'short', 0 FROM generate_series(1, 2000, 97) i")
                .await
                .unwrap();
        }
    });
    for _ in 0..3 {
        let report = setting.table().verify(LOOK).await.unwrap();
        assert_eq!((report.differing, report.unverified), (0, 0), "{:?}", report.differences);
    }
    stop.send(()).unwrap();
    writing.await.unwrap();
}
