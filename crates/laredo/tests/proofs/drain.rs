//! Servers that replace each other under load. Clients are asked to leave, move to the next server,
//! and notice nothing.

use std::time::Duration;

use laredo_client::{Replica, StreamMode};
use laredo_testkit::FaultProxy;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::workload::{TABLES, Workload, WorkloadOptions};
use laredo_testkit::{eventually, is_full};

use crate::support::compare::view_differences;
use crate::support::fleet::{await_transactions, cluster, compare_all, fleet, serve_all};
use crate::support::server::PATIENCE;

/// A grace that never runs out, because it ends when all clients have left.
const GRACE: [&str; 2] = ["--drain-grace", "600s"];

#[tokio::test(flavor = "multi_thread")]
async fn a_server_replaced_by_another_sends_its_clients_there_without_a_snapshot() {
    let rounds = if is_full() { 10 } else { 2 };
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    // A truncate inside a subtransaction causes a copy. A client that changes servers inside the
    // copy's span needs a snapshot.
    let options = WorkloadOptions { truncates: false, ..WorkloadOptions::default() };
    let workload = Workload::start(&cluster.url("postgres"), 11, options);
    await_transactions(&workload, 100).await;
    let mut config = serve_all(cluster.url("postgres"));
    config.arguments = GRACE.map(str::to_owned).to_vec();
    let instance = |round: i32| config.clone().slot(&format!("laredo_drain_{round}"));
    let mut server = instance(0).start().await;
    let balancer = FaultProxy::start(format!("127.0.0.1:{}", server.ports.fanout)).await.unwrap();
    let pairs = fleet(&format!("http://{}", balancer.addr()));
    let paused = compare_all(&sql, &workload, &pairs, -10_000).await;
    workload.resume(paused);
    for round in 1..=rounds {
        let next = instance(round).start().await;
        // A client's position must not be older than the new server's first copy, which knows
        // nothing of earlier changes.
        let paused = compare_all(&sql, &workload, &pairs, -20_000 - round).await;
        workload.resume(paused);
        server.process.terminate();
        let unready =
            async || server.get(server.ports.health, "/health/ready").await.is_none_or(|(code, _)| code == 503);
        eventually(PATIENCE, unready).await.unwrap();
        // The old server refuses returning clients, but still sends commits to connected replicas.
        await_transactions(&workload, 50).await;
        balancer.retarget(format!("127.0.0.1:{}", next.ports.fanout));
        let ended = server.process.wait(Duration::from_secs(120)).await.unwrap();
        assert!(ended.success(), "{ended:?}");
        server = next;
        let paused = compare_all(&sql, &workload, &pairs, -10_000 - round).await;
        for pair in &pairs {
            let status = pair.replica.status();
            let expected = (1 + u64::try_from(round).unwrap(), 0, None);
            assert_eq!(
                (status.connects, status.resyncs, status.error),
                expected,
                "{}: {:?}",
                pair.table,
                status.last_error
            );
            assert_eq!(pair.simple.state().snapshots, 1, "{}", pair.table);
        }
        workload.resume(paused);
    }
    workload.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_again_continues_from_its_local_snapshot_on_another_server() {
    let rounds = if is_full() { 10 } else { 2 };
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    let options = WorkloadOptions { truncates: false, ..WorkloadOptions::default() };
    let workload = Workload::start(&cluster.url("postgres"), 12, options);
    await_transactions(&workload, 100).await;
    let config = serve_all(cluster.url("postgres"));
    let servers = [config.clone().slot("laredo_here").start().await, config.slot("laredo_there").start().await];
    let folder = tempfile::tempdir().unwrap();
    let start = |table: usize, server: usize| {
        let builder = Replica::builder(servers[server].url(), TABLES[table].name());
        builder.local_snapshot_path(folder.path().join(table.to_string())).start().unwrap()
    };
    for round in 0..=rounds {
        let replicas: Vec<Replica> = (0..TABLES.len()).map(|table| start(table, round % 2)).collect();
        for replica in &replicas {
            replica.ready(PATIENCE).await.unwrap();
            let mode = if round == 0 { StreamMode::FullSnapshot } else { StreamMode::Delta };
            assert_eq!(replica.status().mode, Some(mode), "round {round}: {:?}", replica.status());
        }
        let paused = workload.pause().await;
        let position = flushed(&sql).await.unwrap();
        for (table, replica) in TABLES.iter().zip(&replicas) {
            eventually(PATIENCE, async || replica.view().position() >= position).await.unwrap();
            let rows = rows_at_rest(&sql, &table.name(), table.key, "true").await.unwrap();
            assert_eq!(view_differences(&replica.view(), &rows, table.key), "", "round {round}: {}", table.name());
            replica.stop().await;
        }
        workload.resume(paused);
        await_transactions(&workload, 50).await;
    }
    workload.stop().await.unwrap();
}
