//! PostgreSQL is stopped and started under load, and its connections are cut repeatedly. Nothing is
//! lost, and nothing is doubled.

use std::time::Duration;

use laredo_testkit::workload::{Workload, WorkloadOptions};
use laredo_testkit::{FaultProxy, ProxyDirection, StopMode, eventually, is_full};

use crate::support::fleet::{ClientPair, await_transactions, cluster, compare_all, fleet, serve_all};
use crate::support::server::PATIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_restarted_under_load_loses_nothing() {
    let rounds = if is_full() { 20 } else { 2 };
    let mut cluster = cluster();
    let workload = Workload::start(&cluster.url("postgres"), 7, WorkloadOptions::default());
    await_transactions(&workload, 100).await;
    let server = serve_all(cluster.url("postgres")).slot("laredo_restarts").start().await;
    let pairs = fleet(&server.url());
    for round in 1..=rounds {
        for mode in [StopMode::Fast, StopMode::Immediate] {
            await_transactions(&workload, 50).await;
            cluster.stop(mode).unwrap();
            cluster.restart().unwrap();
        }
        await_transactions(&workload, 50).await;
        let sql = cluster.connect().await.unwrap();
        let paused = compare_all(&sql, &workload, &pairs, -10_000 - round).await;
        workload.resume(paused);
    }
    assert_undisturbed(&pairs);
    workload.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_cut_from_postgres_again_and_again_loses_nothing() {
    let (rounds, cuts) = if is_full() { (8, 20) } else { (2, 10) };
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    let proxy = FaultProxy::start(format!("127.0.0.1:{}", cluster.port())).await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 8, WorkloadOptions::default());
    await_transactions(&workload, 100).await;
    let url = cluster.url("postgres").replace(&cluster.port().to_string(), &proxy.addr().port().to_string());
    let server = serve_all(url).slot("laredo_cuts").start().await;
    let pairs = fleet(&server.url());
    for round in 1..=rounds {
        for cut in 0..cuts {
            let before = proxy.bytes(ProxyDirection::ToClient);
            if cut % 2 == 0 {
                // The cut is mostly inside a message.
                proxy.cut_after_bytes(ProxyDirection::ToClient, 5000 + 7919 * cut);
            }
            proxy.cut_all();
            let flows = async || proxy.bytes(ProxyDirection::ToClient) > before + 4000;
            eventually(PATIENCE, flows).await.unwrap();
        }
        let paused = compare_all(&sql, &workload, &pairs, -10_000 - round).await;
        workload.resume(paused);
    }
    assert_undisturbed(&pairs);
    workload.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_comes_back_equal() {
    let rounds = if is_full() { 10 } else { 2 };
    let cluster = cluster();
    let sql = cluster.connect().await.unwrap();
    let workload = Workload::start(&cluster.url("postgres"), 9, WorkloadOptions::default());
    await_transactions(&workload, 100).await;
    let mut server = serve_all(cluster.url("postgres")).slot("laredo_kills").start().await;
    let pairs = fleet(&server.url());
    for round in 1..=rounds {
        await_transactions(&workload, 100).await;
        server.restart().await;
        let paused = compare_all(&sql, &workload, &pairs, -10_000 - round).await;
        workload.resume(paused);
    }
    tokio::time::timeout(Duration::from_secs(60), workload.stop()).await.unwrap().unwrap();
}

/// Checks that clients were not affected, because their server resumed from the slot.
pub(super) fn assert_undisturbed(pairs: &[ClientPair]) {
    for pair in pairs {
        let status = pair.replica.status();
        assert_eq!((status.connects, status.resyncs), (1, 0), "{status:?}");
    }
}
