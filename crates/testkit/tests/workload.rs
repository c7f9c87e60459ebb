//! The workload does what it is for: all its statements are accepted, and it stands still when it is told to.

use std::time::Duration;

use laredo_core::Cell;
use laredo_testkit::workload::{Script, TABLES, Workload, WorkloadOptions, schema_sql};
use laredo_testkit::{Cluster, ClusterOptions, eventually, oracle};

#[test]
fn a_seed_decides_what_a_session_does() {
    let options = WorkloadOptions::default();
    let script = |seed, session| {
        let mut script = Script::new(seed, session, &options);
        (0..50).map(|_| script.next_transaction()).collect::<Vec<_>>()
    };
    assert_eq!(script(1, 0), script(1, 0));
    assert_ne!(script(1, 0), script(1, 1));
    assert_ne!(script(1, 0), script(2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_writes_every_type_and_stands_still_when_paused() {
    let cluster = Cluster::start(ClusterOptions::default().set("deadlock_timeout", "20ms")).unwrap();
    cluster.psql(&schema_sql()).unwrap();
    let client = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 1, WorkloadOptions::default());
    let enough = async || workload.counts().committed > 1000;
    eventually(Duration::from_secs(60), enough).await.unwrap();

    let paused = workload.pause().await;
    let before = oracle::flushed(&client).await.unwrap();
    for table in TABLES {
        let rows = oracle::rows_at_rest(&client, &table.name(), table.key, "true").await.unwrap();
        let again = oracle::rows_at_rest(&client, &table.name(), table.key, "true").await.unwrap();
        assert_eq!(rows, again);
        assert!(rows.rows.len() > 5, "{}: {} rows", table.name(), rows.rows.len());
        for (place, column) in rows.columns.iter().enumerate() {
            let filled = rows.rows.values().any(|row| matches!(row.as_ref().cell(place), Cell::Value(_)));
            assert!(filled, "{}: no row has a value in {column}", table.name());
        }
        client.batch_execute(&table.mark(7)).await.unwrap();
        client.batch_execute(&table.mark(8)).await.unwrap();
        let marks = oracle::rows_at_rest(&client, &table.name(), table.key, "n = 8 AND category = 'a'").await.unwrap();
        assert!(!marks.rows.is_empty());
    }
    assert!(oracle::flushed(&client).await.unwrap() > before);
    workload.resume(paused);

    let counts = workload.counts();
    let goes_on = async || workload.counts().committed > counts.committed;
    eventually(Duration::from_secs(10), goes_on).await.unwrap();
    let errors = workload.errors();
    let counts = workload.stop().await.unwrap();
    assert!(counts.failed * 3 < counts.committed, "{counts:?} {errors:?}");
}
