//! The connections that a server takes from its database. They are counted in `pg_stat_activity`
//! while many tables are copied. The application must never be refused a connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

const TABLES: usize = 20;

/// The highest numbers of sessions at one time, by application name and in total.
#[derive(Clone, Debug, Default)]
struct SessionPeaks {
    by_name: BTreeMap<String, i64>,
    all: i64,
}

/// A task that reads the sessions as often as PostgreSQL answers.
struct SessionMonitor {
    most: Arc<Mutex<SessionPeaks>>,
    task: JoinHandle<()>,
}

impl SessionMonitor {
    async fn start(cluster: &Cluster) -> SessionMonitor {
        let (sql, most) = (cluster.connect().await.unwrap(), Arc::new(Mutex::new(SessionPeaks::default())));
        let seen = most.clone();
        let task = tokio::spawn(async move {
            loop {
                let names = names(&sql).await;
                let mut seen = seen.lock();
                seen.all = seen.all.max(names.values().sum());
                for (name, count) in names {
                    let most = seen.by_name.entry(name).or_default();
                    *most = count.max(*most);
                }
            }
        });
        SessionMonitor { most, task }
    }

    /// Returns the highest numbers since the last call.
    fn take_peaks(&self) -> SessionPeaks {
        std::mem::take(&mut *self.most.lock())
    }
}

impl Drop for SessionMonitor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn names(sql: &Client) -> BTreeMap<String, i64> {
    let query =
        "SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name LIKE 'laredo%' GROUP BY 1";
    sql.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn cluster(rows: usize) -> (Cluster, Vec<TableName>) {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let create = format!(
        "SELECT format('CREATE TABLE t%s AS SELECT g AS id, repeat(''x'', 300) AS v FROM generate_series(1, {rows}) g;
                        ALTER TABLE t%s ADD PRIMARY KEY (id)', n, n) FROM generate_series(1, {TABLES}) n \\gexec"
    );
    cluster.psql(&create).unwrap();
    let tables = (1..=TABLES).map(|n| TableName::new("public", format!("t{n}"))).collect();
    (cluster, tables)
}

async fn copies(server: &ServerProcess, tables: &[TableName]) -> u64 {
    let mut sum = 0;
    for table in tables {
        sum += server.metric("laredo_copies_total", table).await.unwrap_or(0);
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_copies_than_may_run_take_a_connection() {
    let (cluster, tables) = cluster(4000);
    let watch = SessionMonitor::start(&cluster).await;
    let config = ServerProcessConfig::new(cluster.url("postgres"), tables.clone()).slot("laredo_connections");
    let config = ServerProcessConfig { source: format!("{}\ncopies_max = 3", config.source), ..config };
    let server = config.start().await;
    let first = watch.take_peaks();
    let sql = cluster.connect().await.unwrap();
    let connections_max = i64::try_from(server.source_metric("laredo_connections_max").await.unwrap()).unwrap();
    // After a lost slot every table needs a copy at once.
    let lose = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL";
    sql.batch_execute(lose).await.unwrap();
    let dropped = async || sql.batch_execute("SELECT pg_drop_replication_slot('laredo_connections')").await.is_ok();
    assert!(eventually(PATIENCE, dropped).await.is_ok());
    let all_copied = async || copies(&server, &tables).await >= 2 * TABLES as u64;
    assert!(eventually(PATIENCE, all_copied).await.is_ok(), "{:#?}", server.health().await);
    let lost = watch.take_peaks();
    for (when, most) in [("the first start", first), ("a lost slot", lost)] {
        let copying = most.by_name.get("laredo copy").copied().unwrap_or(0);
        assert!((1..=3).contains(&copying), "{when}: {most:?}");
        assert!(most.all <= connections_max, "{when}: more than {connections_max} connections: {most:?}");
        let known = ["laredo stream", "laredo copy", "laredo verify", "laredo watch", "laredo slot", "laredo check"];
        assert!(most.by_name.keys().all(|name| known.contains(&name.as_str())), "{when}: {most:?}");
    }
    assert_eq!(server.source_metric("laredo_copies_running").await, Some(0));
    assert_eq!(server.source_metric("laredo_copies_waiting").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_cannot_be_copied_yet_do_not_keep_others_waiting() {
    let (cluster, tables) = cluster(10);
    let mut other = cluster.connect().await.unwrap();
    let locking = other.transaction().await.unwrap();
    let config = ServerProcessConfig::new(cluster.url("postgres"), tables.clone());
    let config = ServerProcessConfig { source: format!("{}\ncopies_max = 2", config.source), ..config };
    let server = config.start().await;
    locking.batch_execute("LOCK TABLE t1, t2 IN ACCESS EXCLUSIVE MODE").await.unwrap();
    for table in &tables[..5] {
        server.reload(table).await;
    }
    let copied = async || {
        let mut all = true;
        for table in &tables[2..5] {
            all &= server.metric("laredo_copies_total", table).await == Some(2);
        }
        all
    };
    assert!(eventually(PATIENCE, copied).await.is_ok(), "{:#?}", server.health().await);
    // Between two attempts the table is retrying.
    let (_, health) = server.health().await;
    let state = health["tables"][0]["state"].as_str();
    assert!(matches!(state, Some("copying" | "retrying")), "{health:#?}");
    assert_eq!(server.metric("laredo_copies_total", &tables[0]).await, Some(1));
    locking.commit().await.unwrap();
    let copied = async || {
        server.metric("laredo_copies_total", &tables[0]).await == Some(2)
            && server.metric("laredo_copies_total", &tables[1]).await == Some(2)
    };
    assert!(eventually(PATIENCE, copied).await.is_ok(), "{:#?}", server.health().await);
}
