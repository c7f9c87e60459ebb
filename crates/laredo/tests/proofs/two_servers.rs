//! Servers of which only one has noticed a change of a table's definition. A client that moves
//! between them ends with the database's rows.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use laredo_archive::{Archive, ArchivePoint, FolderDestination, ReadProgress};
use laredo_client::Replica;
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, FaultProxy, eventually};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::server::{PATIENCE, PATIENT, ServerProcessConfig};
use crate::support::simple::SimpleClient;
use crate::support::snapshotter::{SnapshotterProcess, table};

const KEY: &[&str] = &["id"];

/// The sessions in which a server reads the catalog, stopped until this is dropped. Meanwhile the
/// server notices nothing that only the catalog shows.
struct BlindServer {
    sessions: Vec<i32>,
}

impl BlindServer {
    async fn new(sql: &Client) -> BlindServer {
        let find = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()
            AND (query LIKE '%laredo_facts%' OR query LIKE '%WITH RECURSIVE%' OR query LIKE '%pg_current_wal_insert_lsn%'
                 OR query LIKE '%pg_snapshot_xmax%')";
        let mut sessions = Vec::new();
        for _ in 0..600 {
            sessions = sql.query(find, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
            if !sessions.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(!sessions.is_empty(), "the server has a session that looks at the catalog");
        let blind = BlindServer { sessions };
        blind.signal("STOP");
        blind
    }

    fn signal(&self, signal: &str) {
        for pid in &self.sessions {
            // A session that has ended cannot be stopped, and need not be.
            let _ = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
        }
    }
}

impl Drop for BlindServer {
    fn drop(&mut self) {
        self.signal("CONT");
    }
}

type RowIdSet = BTreeSet<i64>;

async fn ids_of_database(sql: &Client) -> RowIdSet {
    sql.query("SELECT id::bigint FROM p", &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

fn ids_of_replica(replica: &Replica) -> RowIdSet {
    let id = |bytes: &[u8]| i64::from(i32::from_be_bytes(bytes.try_into().unwrap()));
    replica.view().rows().map(|row| id(row.tuple().as_ref().cell(0).value().unwrap())).collect()
}

fn ids_of_simple(simple: &SimpleClient) -> RowIdSet {
    simple.state().rows.values().map(|row| row["id"].as_i64().unwrap()).collect()
}

async fn ids_of_archive(folder: &Path) -> RowIdSet {
    let Ok(archive) = Archive::open(Arc::new(FolderDestination::new(folder)), None).await else {
        return RowIdSet::new();
    };
    let Ok(rebuilt) = archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await else {
        return RowIdSet::new();
    };
    let id = |bytes: &[u8]| i64::from(i32::from_be_bytes(bytes.try_into().unwrap()));
    rebuilt.table.rows().map(|row| id(row.as_ref().cell(0).value().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_server_that_has_noticed_nothing_are_sent_all_rows_by_one_that_has() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let create = "CREATE TABLE p (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200);
        CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (200) TO (9999);
        INSERT INTO p SELECT g, 0 FROM generate_series(0, 199) g";
    cluster.psql(create).unwrap();
    let (sql, name) = (cluster.connect().await.unwrap(), TableName::new("public", "p"));
    let config = ServerProcessConfig::new(cluster.url("postgres"), [name.clone()]).target(PATIENT);
    let mut old = config.clone().slot("laredo_old").start().await;
    let way = FaultProxy::start(format!("127.0.0.1:{}", old.ports.fanout)).await.unwrap();
    let url = format!("http://{}", way.addr());
    let folder = tempfile::tempdir().unwrap();
    let replica = Replica::builder(url.clone(), name.clone()).start().unwrap();
    let local = || {
        let builder = Replica::builder(url.clone(), name.clone());
        builder.local_snapshot_path(folder.path().join("local")).start().unwrap()
    };
    let saved = local();
    let simple = SimpleClient::start_naming_snapshots(&url, &name, KEY, Vec::new());
    let keys = json!({ "diff": { "interval": "200ms" }, "formats": { "snapshot": ["jsonl"], "diff": ["jsonl"] } });
    let archive = |kind: &str| folder.path().join(kind);
    let settings = |kind: &str| table(&url, &name, &archive(kind), &keys);
    let snapshotter = |kind: &str| SnapshotterProcess::launch(&[settings(kind)], &Value::Null, &[]);
    let (running, restarted) = (snapshotter("running"), snapshotter("restarted"));
    let shown = async |with_saved: Option<&Replica>| {
        let mut shown = vec![("replica", ids_of_replica(&replica)), ("simple client", ids_of_simple(&simple))];
        shown.extend(with_saved.map(|saved| ("local snapshot", ids_of_replica(saved))));
        for kind in ["running", "restarted"] {
            shown.push((kind, ids_of_archive(&archive(kind).join("p/")).await));
        }
        shown
    };
    let all_have = async |id: i64, saved: &Replica| {
        let have = async || shown(Some(saved)).await.iter().all(|(_, ids)| ids.contains(&id));
        if eventually(PATIENCE, have).await.is_err() {
            panic!("{id} is not there: {:?}", shown(Some(saved)).await);
        }
    };
    replica.ready(PATIENCE).await.unwrap();
    all_have(199, &saved).await;
    // Write before the change, so that no announcement wakes the server's look at the catalog
    // later.
    sql.batch_execute("UPDATE p SET v = 1 WHERE id = 1; INSERT INTO p VALUES (999, 0)").await.unwrap();
    all_have(999, &saved).await;
    let blind = BlindServer::new(&sql).await;
    sql.batch_execute("DROP TABLE p2; INSERT INTO p VALUES (1000, 0)").await.unwrap();
    all_have(1000, &saved).await;
    let mut new = config.slot("laredo_new").start().await;
    sql.batch_execute("INSERT INTO p VALUES (1001, 0)").await.unwrap();
    all_have(1001, &saved).await;
    assert!(ids_of_replica(&replica).contains(&150), "the old server has noticed nothing");
    // Some clients are stopped while the servers change places.
    saved.stop().await;
    restarted.stop().await;
    way.retarget(format!("127.0.0.1:{}", new.ports.fanout));
    // The server is blind, and would not notice that it could be verified.
    old.ends_unverified();
    drop((old, blind));
    way.cut_all();
    let (saved, _restarted) = (local(), snapshotter("restarted"));
    sql.batch_execute("INSERT INTO p VALUES (2000, 0)").await.unwrap();
    all_have(2000, &saved).await;
    let expected = ids_of_database(&sql).await;
    let equal = async || shown(Some(&saved)).await.iter().all(|(_, ids)| *ids == expected);
    let _ = eventually(PATIENCE, equal).await;
    for (who, ids) in shown(Some(&saved)).await {
        assert_eq!(ids, expected, "{who}");
    }
    let metrics = new.metrics().await;
    let is_reported = |line: &str| line.contains("laredo_snapshots_total") && line.contains("definition differs");
    assert!(metrics.lines().any(is_reported), "{metrics}");
    drop(running);
    new.has_archive(&name, &archive("running").join("p"));
}
