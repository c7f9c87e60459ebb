//! Subscriptions: the rows that exist, and every change after them.

use std::collections::BTreeMap;
use std::time::Duration;

use laredo_core::TableName;
use laredo_proto::oam::{SubscribeRequest, SubscribeResponse};
use laredo_testkit::Cluster;
use prost_types::Struct;
use tonic::{Code, Streaming};

use super::support::server::{PATIENCE, ServerProcessConfig};
use super::{client, cluster, item, start, whole, word};

fn request(replay_existing: bool) -> SubscribeRequest {
    SubscribeRequest { schema: "public".to_owned(), table: "item".to_owned(), replay_existing }
}

/// The rows that a subscriber has after its events.
#[derive(Default)]
struct Subscriber {
    rows: BTreeMap<i64, Struct>,
    events: usize,
}

impl Subscriber {
    fn apply(&mut self, event: SubscribeResponse) {
        self.events += 1;
        let SubscribeResponse { action, old_values: old, new_values: new, .. } = event;
        match action.as_str() {
            "INSERT" => {
                let new = new.unwrap();
                assert_eq!(self.rows.insert(whole(&new, "id"), new), None, "an inserted row exists");
            }
            "UPDATE" => {
                let (old, new) = (old.unwrap(), new.unwrap());
                assert_eq!(self.rows.insert(whole(&new, "id"), new), Some(old));
            }
            "DELETE" => {
                let old = old.unwrap();
                assert_eq!(self.rows.remove(&whole(&old, "id")), Some(old));
            }
            "TRUNCATE" => self.rows.clear(),
            other => panic!("{other}"),
        }
    }

    /// Applies events until the rows are those of the database.
    async fn follow(&mut self, stream: &mut Streaming<SubscribeResponse>, cluster: &Cluster) {
        let sql = "SELECT coalesce(string_agg(id || '=' || name, ',' ORDER BY id), '') FROM item";
        let expected = cluster.psql(sql).unwrap().trim().to_owned();
        let found = |rows: &BTreeMap<i64, Struct>| {
            rows.iter().map(|(id, row)| format!("{id}={}", word(row, "name"))).collect::<Vec<_>>().join(",")
        };
        while found(&self.rows) != expected {
            let next = tokio::time::timeout(PATIENCE, stream.message()).await.expect("an event is missing");
            self.apply(next.unwrap().unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_has_the_rows_of_the_database_after_each_change() {
    let cluster = cluster();
    let mut server = start(&cluster).await;
    let mut queries = client(&server).await;
    let mut stream = queries.subscribe(request(true)).await.unwrap().into_inner();
    let mut subscriber = Subscriber::default();
    subscriber.follow(&mut stream, &cluster).await;
    assert_eq!(subscriber.events, 500);
    for change in [
        "UPDATE item SET name = name || '!' WHERE id % 7 = 0",
        "BEGIN; DELETE FROM item WHERE id = 5; INSERT INTO item VALUES (5, 'again'); UPDATE item SET id = 1000 WHERE id = 6; COMMIT",
        "TRUNCATE item; INSERT INTO item VALUES (1, 'alone')",
    ] {
        cluster.psql(change).unwrap();
        subscriber.follow(&mut stream, &cluster).await;
    }
    server.reload(&item()).await;
    cluster.psql("INSERT INTO item VALUES (2, 'two')").unwrap();
    subscriber.follow(&mut stream, &cluster).await;
    server.process.terminate();
    let end = stream.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    server.process.wait(PATIENCE).await.unwrap();
    server.ends_unverified();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_existing_rows_each_event_is_a_change_with_its_commit() {
    let cluster = cluster();
    let server = start(&cluster).await;
    let mut queries = client(&server).await;
    let mut stream = queries.subscribe(request(false)).await.unwrap().into_inner();
    // The stream has begun once the server counts it.
    let counted = async || server.metric("laredo_clients", &item()).await == Some(1);
    laredo_testkit::eventually(PATIENCE, counted).await.unwrap();
    let silence = tokio::time::timeout(Duration::from_secs(2), stream.message()).await;
    assert!(silence.is_err(), "neither rows nor heartbeats: {silence:?}");
    let sql = "WITH changed AS (UPDATE item SET name = 'new' WHERE id = 3 RETURNING 1) SELECT pg_current_xact_id() FROM changed";
    let xid: i64 = cluster.psql(sql).unwrap().trim().parse().unwrap();
    let event = stream.message().await.unwrap().unwrap();
    assert_eq!((event.action.as_str(), event.xid), ("UPDATE", xid));
    assert_eq!(word(&event.old_values.unwrap(), "name"), "item 3");
    assert_eq!(word(&event.new_values.unwrap(), "name"), "new");
    let now: i64 = cluster.psql("SELECT extract(epoch FROM now())::bigint").unwrap().trim().parse().unwrap();
    assert!((now - event.timestamp.unwrap().seconds).abs() < 60);
    let end = event.position.parse::<laredo_core::Lsn>().unwrap();
    let wal = cluster.psql("SELECT pg_current_wal_lsn()").unwrap().trim().parse::<laredo_core::Lsn>().unwrap();
    assert!(end <= wal && end.0 > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_count_as_clients_of_the_table() {
    let cluster = cluster();
    let target = format!("{}\nmax_clients = 1", super::TARGET);
    let tables = [TableName::new("public", "item")];
    let mut server = ServerProcessConfig::new(cluster.url("postgres"), tables).target(&target).start().await;
    let mut queries = client(&server).await;
    let mut first = queries.subscribe(request(true)).await.unwrap().into_inner();
    assert!(first.message().await.unwrap().is_some());
    let refused = match queries.subscribe(request(true)).await {
        Ok(stream) => stream.into_inner().message().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("max_clients"), "{refused}");
    // The verification would be one client too many.
    server.ends_unverified();
}
