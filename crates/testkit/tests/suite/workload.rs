//! The database accepts all statements of the workload, and the workload stops when it is paused.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use laredo_core::Cell;
use laredo_testkit::workload::{SessionScript, TABLES, Workload, WorkloadOptions, schema_sql};
use laredo_testkit::{Cluster, ClusterOptions, eventually, oracle};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_seed_decides_what_a_session_does() {
    let options = WorkloadOptions::default();
    let script = |seed, session| {
        let mut script = SessionScript::new(seed, session, &options);
        (0..50).map(|_| script.next_transaction()).collect::<Vec<_>>()
    };
    assert_eq!(script(1, 0), script(1, 0));
    assert_ne!(script(1, 0), script(1, 1));
    assert_ne!(script(1, 0), script(2, 0));
}

#[tokio::test]
async fn a_mark_is_set_whole_and_left_alone() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(&schema_sql()).unwrap();
    let client = cluster.connect().await.unwrap();
    for table in TABLES {
        client.batch_execute(&table.mark(1)).await.unwrap();
        client.batch_execute(&format!("UPDATE {} SET category = 'b'", table.name().quoted())).await.unwrap();
        // The number is divisible by every modulus that picks rows.
        client.batch_execute(&table.mark(-21_000)).await.unwrap();
    }
    let mut script = SessionScript::new(1, 0, &WorkloadOptions::default());
    let statements = std::iter::repeat_with(|| script.next_transaction().statements).flatten();
    for statement in statements.filter(|statement| statement.contains(" WHERE n % ")).take(500) {
        client.batch_execute(&statement).await.unwrap();
    }
    for table in TABLES {
        let marked = "n = -21000 AND category = 'a'";
        let rows = oracle::rows_at_rest(&client, &table.name(), table.key, marked).await.unwrap();
        assert_eq!(rows.rows.len(), 1, "{}", table.name());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_writes_every_type_and_stands_still_when_paused() {
    let cluster = Cluster::start(ClusterOptions::default().set("deadlock_timeout", "20ms")).unwrap();
    cluster.psql(&schema_sql()).unwrap();
    let client = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 1, WorkloadOptions::default());
    let mut missing = everything(&client).await;
    let deadline = Instant::now() + PATIENCE;
    // A table may just have been truncated, so counts of earlier reads count too.
    while !missing.is_empty() {
        assert!(Instant::now() < deadline, "never seen: {missing:?}");
        let counts = workload.counts();
        let more = async || workload.counts().committed > counts.committed + 100;
        eventually(PATIENCE, more).await.unwrap();
        let paused = workload.pause().await;
        for table in TABLES {
            let rows = oracle::rows_at_rest(&client, &table.name(), table.key, "true").await.unwrap();
            let again = oracle::rows_at_rest(&client, &table.name(), table.key, "true").await.unwrap();
            assert_eq!(rows, again);
            for (place, column) in rows.columns.iter().enumerate() {
                let filled = rows.rows.values().filter(|row| matches!(row.as_ref().cell(place), Cell::Value(_)));
                if filled.count() > 5 {
                    missing.remove(&(table.name().to_string(), column.clone()));
                }
            }
        }
        workload.resume(paused);
    }

    let paused = workload.pause().await;
    let before = oracle::flushed(&client).await.unwrap();
    for table in TABLES {
        client.batch_execute(&table.mark(7)).await.unwrap();
        client.batch_execute(&table.mark(8)).await.unwrap();
        let marks = oracle::rows_at_rest(&client, &table.name(), table.key, "n = 8 AND category = 'a'").await.unwrap();
        assert!(!marks.rows.is_empty());
    }
    assert!(oracle::flushed(&client).await.unwrap() > before);
    workload.resume(paused);

    let counts = workload.counts();
    let continues = async || workload.counts().committed > counts.committed;
    eventually(PATIENCE, continues).await.unwrap();
    let errors = workload.errors();
    let counts = workload.stop().await.unwrap();
    assert!(counts.failed * 3 < counts.committed, "{counts:?} {errors:?}");
}

/// Returns the columns of each table.
async fn everything(client: &tokio_postgres::Client) -> BTreeSet<(String, String)> {
    let mut columns = BTreeSet::new();
    for table in TABLES {
        let rows = oracle::rows_at_rest(client, &table.name(), table.key, "false").await.unwrap();
        columns.extend(rows.columns.into_iter().map(|column| (table.name().to_string(), column)));
    }
    columns
}
