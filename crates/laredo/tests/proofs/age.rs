//! The age of a copy. It counts from the database, whatever is away between the two.

use std::time::Duration;

use laredo_client::Replica;
use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, FaultProxy, StopMode, eventually};

use crate::command::answer;
use crate::support::server::{PATIENCE, ServerProcessConfig};

/// The highest age of a copy that follows: the interval of heartbeats, the interval of questions to
/// the database, and time for a busy machine.
const FOLLOWING: Duration = Duration::from_secs(5);
/// An age that only a copy of old rows has.
const OLD: Duration = Duration::from_secs(8);

/// Waits until the replica is as young as its database.
async fn is_young(replica: &Replica, when: &str) {
    let is_young = async || replica.view().age() < FOLLOWING;
    assert!(eventually(PATIENCE, is_young).await.is_ok(), "{when}: {:?}, {:?}", replica.view().age(), replica.status());
}

/// Waits until the replica is old, although its server is connected.
async fn grows_old(replica: &Replica, when: &str) {
    let is_old = async || replica.view().age() > OLD;
    assert!(eventually(PATIENCE, is_old).await.is_ok(), "{when}: {:?}, {:?}", replica.view().age(), replica.status());
    assert!(replica.status().connected, "{when}: {:?}", replica.status());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_age_grows_while_the_database_is_away_or_paused() {
    let mut cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").unwrap();
    let route = FaultProxy::start(&format!("127.0.0.1:{}", cluster.port())).await.unwrap();
    let url = cluster.url("postgres").replace(&format!(":{}/", cluster.port()), &format!(":{}/", route.addr().port()));
    let table = TableName::new("public", "t");
    let config = ServerProcessConfig::new(url, [table.clone()]).slot("laredo_age");
    let server = config.target("heartbeat_interval = 1s").start().await;
    let replica = Replica::builder(server.url(), table).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    is_young(&replica, "at first").await;

    cluster.stop(StopMode::Fast).unwrap();
    grows_old(&replica, "without a database").await;
    cluster.restart().unwrap();
    is_young(&replica, "with a database").await;

    route.stall(true);
    grows_old(&replica, "on a mute route").await;
    route.stall(false);
    is_young(&replica, "on a route").await;

    answer(&["pause", "--oam", &server.oam_url()]);
    grows_old(&replica, "while paused").await;
    answer(&["resume", "--oam", &server.oam_url()]);
    is_young(&replica, "resumed").await;

    // The table is copied again once the lock is released.
    let session = cluster.connect().await.unwrap();
    session.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    answer(&["reload", "public.t", "--oam", &server.oam_url()]);
    grows_old(&replica, "while the copy waits").await;
    session.batch_execute("COMMIT").await.unwrap();
    is_young(&replica, "copied").await;
}
