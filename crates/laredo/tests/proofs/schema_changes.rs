//! Tables that change their shape while sessions write. Clients follow, and see old rows in the new
//! shape. A table that can no longer be followed stops, reports the reason, and stops alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, PATIENT, ServerProcessConfig};

const KEY: &[&str] = &["id"];

/// Changes that the stream announces before any row of the new shape.
const ANNOUNCED: &[&str] = &[
    "ALTER TABLE items ADD a int",
    "UPDATE items SET a = id WHERE id % 3 = 0",
    "ALTER TABLE items ADD b text DEFAULT 'for all'",
    "ALTER TABLE items ADD c int DEFAULT (random() * 1000)::int",
    "ALTER TABLE items ADD d numeric(10, 2) NOT NULL DEFAULT 1.10, DROP a",
    "ALTER TABLE items RENAME b TO \"b, \"\"renamed\"\" 🌍\"",
    "ALTER TABLE items ALTER m TYPE bigint",
    "ALTER TABLE items ALTER m TYPE text USING 'm' || m",
    "ALTER TABLE items DROP large",
    "BEGIN; UPDATE items SET t = 'before' WHERE id % 5 = 1; ALTER TABLE items ADD e text; \
     UPDATE items SET e = 'between' WHERE id % 5 = 1; ALTER TABLE items ADD f int DEFAULT 6; \
     UPDATE items SET e = 'after', f = 7 WHERE id % 5 = 2; COMMIT",
    "BEGIN; ALTER TABLE items ADD g int; UPDATE items SET g = 1 WHERE id < 50; ROLLBACK",
    "BEGIN; ALTER TABLE items DROP f; ALTER TABLE items ADD f text DEFAULT 'another f'; DELETE FROM items WHERE id = 7; COMMIT",
    "ALTER TABLE items DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (id)",
    "ALTER TABLE items REPLICA IDENTITY FULL",
    "ALTER TABLE items REPLICA IDENTITY DEFAULT",
];

/// Changes that only the catalog shows, so that clients have them after some seconds.
const UNANNOUNCED: &[&str] = &[
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
    "ALTER TABLE items ALTER t TYPE text USING upper(t)",
    "ALTER TYPE mood ADD VALUE 'new'",
    "UPDATE items SET kind = 'new' WHERE id % 4 = 1",
];

#[tokio::test(flavor = "multi_thread")]
async fn tables_change_their_shape_under_load() {
    let cluster = start();
    let table = TableName::new("public", "items");
    let config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).slot("laredo_shapes");
    let server = config.target(PATIENT).target("journal { max_entries = 5000 }").start().await;
    let sql = cluster.connect().await.unwrap();
    let early = ClientPair::start(&server.url(), &table, KEY, CategoryFilter::All);
    let some = ClientPair::start(&server.url(), &table, KEY, CategoryFilter::Category);
    let writers = StableColumnWriters::start(&cluster, "items").await;
    for (mark, statement) in (1..).zip(ANNOUNCED.iter().chain(UNANNOUNCED)) {
        change(&sql, statement).await;
        let late = ClientPair::start(&server.url(), &table, KEY, CategoryFilter::All);
        let at_rest = writers.gate.write().await;
        let insert = format!(
            "INSERT INTO items (id, n, category) VALUES (0, {mark}, 'a') ON CONFLICT (id) DO UPDATE SET n = {mark}"
        );
        sql.batch_execute(&insert).await.unwrap();
        let position = flushed(&sql).await.unwrap();
        for pair in [&early, &some, &late] {
            pair.reach(position, mark).await;
            let filter = if pair.only == CategoryFilter::All { "true" } else { "category = 'a'" };
            let rows = rows_at_rest(&sql, &table, KEY, filter).await.unwrap();
            if UNANNOUNCED.contains(statement) {
                // The catalog shows the change after a while. The assertion below reports missing
                // changes.
                let seen = async || pair.differences(&rows).is_empty();
                let _ = eventually(PATIENCE, seen).await;
            }
            pair.settle(&rows).await;
            let differences = pair.differences(&rows);
            assert!(differences.is_empty(), "after {statement}:\n{differences}");
        }
        drop(at_rest);
    }
    assert_eq!(early.replica.status().connects, 1, "{:?}", early.replica.status());
    writers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_its_key_stops_and_stops_alone() {
    let cluster = start();
    let [doomed, items] = ["doomed", "items"].map(|name| TableName::new("public", name));
    cluster.psql("CREATE TABLE doomed (id int PRIMARY KEY, n int); INSERT INTO doomed VALUES (1, 1)").unwrap();
    let tables = [doomed.clone(), items.clone()];
    let config = ServerProcessConfig::new(cluster.url("postgres"), tables).slot("laredo_doomed");
    let server = config.target(PATIENT).start().await;
    let sql = cluster.connect().await.unwrap();
    let victim = ClientPair::start(&server.url(), &doomed, KEY, CategoryFilter::All);
    let neighbor = ClientPair::start(&server.url(), &items, KEY, CategoryFilter::All);
    victim.replica.ready(PATIENCE).await.unwrap();
    let writers = StableColumnWriters::start(&cluster, "items").await;

    sql.batch_execute("ALTER TABLE doomed DROP CONSTRAINT doomed_pkey; INSERT INTO doomed VALUES (2, 2)")
        .await
        .unwrap();
    let state = async |table: &TableName| {
        let (_, health) = server.health().await;
        let tables = health["tables"].as_array().unwrap().clone();
        tables.into_iter().find(|found| found["table"] == table.table.as_str()).unwrap()
    };
    let failed = async || state(&doomed).await["state"] == "failed";
    eventually(PATIENCE, failed).await.unwrap();
    let health = state(&doomed).await;
    let error = health["error"].as_str().unwrap();
    assert!(error.contains("key") && error.contains("doomed"), "an error that tells what is wrong, not: {error}");
    assert_eq!(server.health().await.0, 200, "the server serves what can be served");
    let ready = async |table: &TableName| {
        server.get(server.ports.health, &format!("/health/ready?table={table}")).await.map(|(code, _)| code)
    };
    assert_eq!((ready(&doomed).await, ready(&items).await), (Some(503), Some(200)));
    assert_eq!(state(&items).await["state"], "live");

    // Existing clients keep their rows and receive the error. A new client is refused with the
    // reason.
    assert_eq!(victim.replica.view().len(), 1);
    let late = ClientPair::start(&server.url(), &doomed, KEY, CategoryFilter::All);
    let refused = late.replica.ready(PATIENCE).await.unwrap_err().to_string();
    assert!(refused.contains("key"), "a refusal that tells why, not: {refused}");

    let at_rest = writers.gate.write().await;
    sql.batch_execute("INSERT INTO items (id, n) VALUES (0, 77)").await.unwrap();
    neighbor.reach(flushed(&sql).await.unwrap(), 77).await;
    let rows = rows_at_rest(&sql, &items, KEY, "true").await.unwrap();
    assert_eq!(neighbor.differences(&rows), "");
    assert_eq!(neighbor.replica.status().connects, 1);
    drop(at_rest);
    writers.stop().await;

    // With a key the table is followed again.
    sql.batch_execute("ALTER TABLE doomed ADD PRIMARY KEY (id); INSERT INTO doomed VALUES (3, 99)").await.unwrap();
    victim.reach(flushed(&sql).await.unwrap(), 99).await;
    let rows = rows_at_rest(&sql, &doomed, KEY, "true").await.unwrap();
    assert_eq!(victim.differences(&rows), "");
}

/// Changes a table. Repeats the change if it was the victim of a deadlock.
async fn change(sql: &Client, statement: &str) {
    while let Err(error) = sql.batch_execute(statement).await {
        assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{statement}: {error}");
        sql.batch_execute("ROLLBACK").await.unwrap();
    }
}

fn start() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default().set("logical_decoding_work_mem", "64kB")).unwrap();
    let create = "CREATE TYPE mood AS ENUM ('sad', 'happy');
        CREATE TABLE items (id int PRIMARY KEY, m int, kind mood, large text, t text, n int, category text);
        INSERT INTO items SELECT i, i, 'sad', (SELECT string_agg(md5(i || ' ' || j), '') FROM generate_series(1, 200) j), 't' || i, 0,
            CASE i % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' END FROM generate_series(1, 300) i";
    cluster.psql(create).unwrap();
    cluster
}

/// Sessions that write columns which never change.
struct StableColumnWriters {
    gate: Arc<RwLock<()>>,
    stopped: Arc<AtomicBool>,
    sessions: JoinSet<()>,
}

impl StableColumnWriters {
    async fn start(cluster: &Cluster, table: &'static str) -> StableColumnWriters {
        let mut writers =
            StableColumnWriters { gate: Arc::default(), stopped: Arc::default(), sessions: JoinSet::new() };
        for writer in 0..4 {
            let sql = cluster.connect().await.unwrap();
            let (gate, stopped) = (writers.gate.clone(), writers.stopped.clone());
            writers.sessions.spawn(async move {
                let mut rng = StdRng::seed_from_u64(writer);
                while !stopped.load(Ordering::SeqCst) {
                    let turn = gate.read().await;
                    write(&sql, table, &mut rng).await;
                    drop(turn);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
        writers
    }

    async fn stop(mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        while let Some(ended) = self.sessions.join_next().await {
            ended.unwrap();
        }
    }
}

/// Runs a transaction. Gives it up if it loses a race against another transaction or a change of
/// the table.
async fn write(sql: &Client, table: &str, rng: &mut StdRng) {
    let mut statements = vec!["BEGIN".to_owned()];
    for _ in 0..rng.random_range(1..4) {
        let (id, n) = (rng.random_range(1..400), rng.random_range(100_000..200_000));
        let category = ["'a'", "'b'", "NULL"][rng.random_range(0..3)];
        statements.push(match rng.random_range(0..10) {
            0..2 => format!("DELETE FROM {table} WHERE id = {id}"),
            2..6 => format!("UPDATE {table} SET n = {n}, category = {category} WHERE id = {id}"),
            6 => format!("UPDATE {table} SET id = {} WHERE id = {id}", id + 1000),
            _ => format!("INSERT INTO {table} (id, n, category) VALUES ({id}, {n}, {category}) ON CONFLICT (id) DO UPDATE SET n = {n}"),
        });
    }
    for statement in statements.iter().map(String::as_str).chain(["COMMIT"]) {
        if sql.batch_execute(statement).await.is_err() {
            sql.batch_execute("ROLLBACK").await.unwrap();
            return;
        }
    }
}
