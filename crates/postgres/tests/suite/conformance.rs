//! The PostgreSQL source fulfills the contract of a source.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::Lsn;
use laredo_engine::spool::SpoolOptions;
use laredo_postgres::ddl::DdlWatch;
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::{COPY_TIMEOUT, ConnectionOptions, PostgresOptions, PostgresSource, PublicationOptions};
use laredo_testkit::conformance::{ConformanceDatabase, keeps_to_the_contract};
use laredo_testkit::{Cluster, ClusterOptions, oracle};
use tokio_postgres::Client;

struct PostgresFixture {
    cluster: Cluster,
    sql: Client,
}

impl PostgresFixture {
    async fn lsn(&self, sql: &str) -> Lsn {
        let row = self.sql.query_opt(&format!("SELECT ({sql})::text"), &[]).await.unwrap();
        row.and_then(|row| row.get::<_, Option<String>>(0)).map_or(Lsn::ZERO, |text| text.parse().unwrap())
    }
}

impl ConformanceDatabase for PostgresFixture {
    type Source = PostgresSource;

    fn source(&self) -> PostgresSource {
        PostgresSource::new(PostgresOptions {
            connection: ConnectionOptions::parse(&self.cluster.url("postgres")).unwrap(),
            slot: SlotMode::Stateful { name: "laredo".to_owned() },
            publication: PublicationOptions { name: "laredo_pub".to_owned(), create: true },
            ddl: DdlWatch::Poll,
            reconnect: ReconnectOptions {
                attempts_max: None,
                backoff_initial: Duration::from_millis(2),
                backoff_max: Duration::from_millis(100),
                multiplier: 2.0,
            },
            copies_max: 4,
            copy_timeout: COPY_TIMEOUT,
            spool: Arc::new(SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() }),
            seed: 1,
        })
    }

    async fn insert(&self, rows: &[(usize, i64)]) {
        let inserts = rows.iter().map(|(table, id)| format!("INSERT INTO t{table} VALUES ({id}, 'body');"));
        self.sql.batch_execute(&format!("BEGIN; {} COMMIT", inserts.collect::<String>())).await.unwrap();
    }

    async fn write_elsewhere(&self) -> Lsn {
        self.sql.batch_execute("INSERT INTO elsewhere SELECT generate_series(1, 100)").await.unwrap();
        oracle::flushed(&self.sql).await.unwrap()
    }

    async fn write_far(&self) -> Lsn {
        let write = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 17 << 20))";
        self.sql.batch_execute(write).await.unwrap();
        oracle::flushed(&self.sql).await.unwrap()
    }

    async fn forgotten(&self) -> Lsn {
        self.lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_to_the_contract() {
    let cluster = Cluster::start(ClusterOptions::default().set("wal_writer_delay", "10ms")).unwrap();
    cluster
        .psql(
            "CREATE TABLE t0 (id bigint PRIMARY KEY, body text); CREATE TABLE t1 (id bigint PRIMARY KEY, body text);
             CREATE TABLE elsewhere (id int)",
        )
        .unwrap();
    let sql = cluster.connect().await.unwrap();
    keeps_to_the_contract(&PostgresFixture { cluster, sql }).await;
}
