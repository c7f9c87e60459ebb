//! Checksums reveal a wrong row in a server or in a client. The row is served only until the table
//! is loaded again.

use laredo_client::{Replica, TableName};
use laredo_core::{CanaryFault, Lsn};
use laredo_testkit::{Cluster, ClusterOptions, eventually, oracle};

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

const REASON: &str = "reason=\"the client's rows differed from the checksum\"";

struct CanaryServer {
    // Before the cluster: when the server is dropped, it is verified.
    server: ServerProcess,
    _cluster: Cluster,
    sql: tokio_postgres::Client,
    canary: tempfile::TempPath,
}

impl CanaryServer {
    async fn start() -> CanaryServer {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        let sql = cluster.connect().await.unwrap();
        sql.batch_execute(
            "CREATE TABLE items (id int PRIMARY KEY, body text, at timestamptz, tags text[], doc jsonb);
             INSERT INTO items SELECT n, 'row ' || n, '2026-01-01', ARRAY['a', n::text], jsonb_build_object('n', n)
             FROM generate_series(1, 300) n",
        )
        .await
        .unwrap();
        let canary = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table()]);
        config.environment.push(("LAREDO_TEST_CANARY", canary.to_string_lossy().into_owned()));
        let server = config.start().await;
        CanaryServer { server, _cluster: cluster, sql, canary }
    }

    async fn replica(&self) -> Replica {
        let replica = Replica::builder(self.server.url(), table()).client_id("compared").seed(1).start().unwrap();
        replica.ready(PATIENCE).await.unwrap();
        replica
    }

    /// Changes a row. Returns a position after the commit.
    async fn touch(&self) -> Lsn {
        self.sql.batch_execute("UPDATE items SET body = body || '.' WHERE id = 300").await.unwrap();
        oracle::flushed(&self.sql).await.unwrap()
    }

    /// Returns the number of the server's streams that began with all rows because of a checksum.
    async fn differed(&self) -> u64 {
        let metrics = self.server.metrics().await;
        let line = metrics.lines().find(|line| line.contains(REASON));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

fn table() -> TableName {
    TableName::new("public", "items")
}

async fn await_condition<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) {
    assert!(eventually(PATIENCE, holds).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_went_wrong_says_so_and_loads_the_table_again() {
    let scene = CanaryServer::start().await;
    for canary in CanaryFault::ALL {
        let replica = scene.replica().await;
        let end = scene.touch().await;
        await_condition("it is compared", async || replica.status().checksum_position >= end).await;
        assert_eq!(replica.status().checksum_mismatches, 0, "{canary:?}");
        let before = scene.differed().await;
        assert!(replica.plant(canary).await, "{canary:?}");
        // The difference shows only at the next comparison, which follows a commit at once.
        let end = scene.touch().await;
        await_condition("it is found", async || replica.status().checksum_mismatches == 1).await;
        await_condition("it is right again", async || replica.status().checksum_position >= end).await;
        let status = replica.status();
        assert_eq!((status.checksum_mismatches, status.resyncs, status.rows), (1, 1, 300), "{canary:?}: {status:?}");
        assert_eq!(scene.differed().await, before + 1, "{canary:?}");
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_went_wrong_is_found_by_its_clients() {
    for canary in ["changed-cell", "missing-row", "extra-row"] {
        let mut scene = CanaryServer::start().await;
        scene.server.ends_unverified();
        let replica = scene.replica().await;
        let end = scene.touch().await;
        await_condition("it is compared", async || replica.status().checksum_position >= end).await;
        std::fs::write(&scene.canary, format!("public.items {canary}\n")).unwrap();
        await_condition("the canary is planted", async || {
            scene.touch().await;
            !scene.canary.exists()
        })
        .await;
        scene.touch().await;
        await_condition("it is found", async || replica.status().checksum_mismatches >= 1).await;
        await_condition("the server counts it", async || scene.differed().await == 1).await;
        // The client cannot fix the server. It loads the available rows, serves them, and does not
        // load again in a loop.
        await_condition("it is found again", async || replica.status().checksum_mismatches == 2).await;
        let end = scene.touch().await;
        await_condition("it is served all the same", async || replica.view().position() >= end).await;
        let status = replica.status();
        assert_eq!((status.checksum_mismatches, status.rows), (2, 300), "{canary}: {status:?}");
        assert_eq!(scene.differed().await, 1, "{canary}");
    }
}
