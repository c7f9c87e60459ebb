//! Keys that are checked at commit, so that two rows may share one within a transaction. After it,
//! clients have the database's rows, without a copy.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use tokio_postgres::Client;

use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig};

const ONE: &[&str] = &["id"];
const TWO: &[&str] = &["part", "id"];

/// Large values stay out of line, so an update that does not change them is streamed without them.
const CREATE: &str = "
    CREATE TABLE one (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n int, category text, big text);
    CREATE TABLE two (n int, id int, part int, category text, big text, PRIMARY KEY (part, id) DEFERRABLE INITIALLY IMMEDIATE);
    ALTER TABLE one ALTER big SET STORAGE EXTERNAL; ALTER TABLE two ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE one REPLICA IDENTITY FULL; ALTER TABLE two REPLICA IDENTITY FULL;
    INSERT INTO one SELECT g, g, CASE g % 3 WHEN 0 THEN 'b' ELSE 'a' END, repeat(g::text, 3000) FROM generate_series(1, 500) g;
    INSERT INTO two SELECT g, g % 100, g / 100, CASE g % 3 WHEN 0 THEN 'b' ELSE 'a' END, repeat(g::text, 3000)
        FROM generate_series(1, 500) g";

/// Transactions after which the keys are unique again.
const TRANSACTIONS: [&str; 12] = [
    // A cycle of two rows, and one of three.
    "UPDATE one SET id = CASE id WHEN 1 THEN 2 ELSE 1 END WHERE id IN (1, 2)",
    "UPDATE one SET id = CASE id WHEN 1 THEN 2 WHEN 2 THEN 3 ELSE 1 END WHERE id IN (1, 2, 3)",
    // Every key moves to the next one, and back.
    "UPDATE one SET id = id + 1",
    "UPDATE one SET id = id - 1, n = n + 1",
    // A cycle of several statements, in which values and the filter's column change too.
    "UPDATE one SET id = 8, category = 'b' WHERE id = 7; UPDATE one SET id = 9, big = 'small' WHERE id = 8 AND category = 'a';
     UPDATE one SET id = 7 WHERE id = 9 AND big <> 'small'; DELETE FROM one WHERE id = 9; INSERT INTO one VALUES (9, 1, 'a', 'new')",
    // One row is inserted before the row with its key is deleted. Another is inserted and deleted
    // while an existing row has its key.
    "INSERT INTO one VALUES (20, -1, 'a', repeat('n', 4000)); DELETE FROM one WHERE id = 20 AND n <> -1",
    "INSERT INTO one VALUES (21, -1, 'a', 'gone'); DELETE FROM one WHERE id = 21 AND n = -1",
    // Two equal rows, one of which is deleted.
    "INSERT INTO one SELECT * FROM one WHERE id = 22; DELETE FROM one WHERE ctid = (SELECT min(ctid) FROM one WHERE id = 22)",
    "SAVEPOINT a; UPDATE one SET id = id + 1 WHERE id < 50; ROLLBACK TO a; UPDATE one SET id = 51 - id WHERE id BETWEEN 1 AND 50",
    "UPDATE two SET id = 99 - id",
    "UPDATE two SET part = 5 - part, category = CASE category WHEN 'a' THEN 'b' ELSE 'a' END",
    "SET CONSTRAINTS ALL DEFERRED; UPDATE two SET part = 1, id = 5 WHERE part = 2 AND id = 5; 
     DELETE FROM two WHERE ctid = (SELECT min(ctid) FROM two WHERE part = 1 AND id = 5); UPDATE two SET id = id + 1 WHERE part = 3; UPDATE two SET part = 4 - part WHERE part IN (1, 3)",
];

fn start() -> (Cluster, [TableName; 2]) {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(CREATE).unwrap();
    (cluster, ["one", "two"].map(|table| TableName::new("public", table)))
}

fn config(cluster: &Cluster, tables: &[TableName; 2]) -> ServerProcessConfig {
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), []).target(PATIENT);
    let owned = |key: &[&str]| key.iter().map(|name| (*name).to_owned()).collect();
    config.tables = vec![(tables[0].clone(), owned(ONE)), (tables[1].clone(), owned(TWO))];
    config
}

/// Marks both tables, and compares every client with the rows that also match `filter`.
async fn compare(sql: &Client, pairs: &[ClientPair], filter: &str, mark: i32, after: &str) {
    let marks =
        format!("UPDATE one SET n = {mark} WHERE id = 100; UPDATE two SET n = {mark} WHERE part = 2 AND id = 50");
    let set = format!(
        "BEGIN; {marks}; UPDATE one SET category = 'a' WHERE id = 100; UPDATE two SET category = 'a' WHERE part = 2 AND id = 50; COMMIT"
    );
    sql.batch_execute(&set).await.unwrap();
    let position = flushed(sql).await.unwrap();
    for pair in pairs {
        pair.reach(position, mark).await;
        let filter = format!("{filter} AND {}", pair.only.sql());
        let rows = rows_at_rest(sql, &pair.table, pair.key, &filter).await.unwrap();
        pair.settle(&rows).await;
        let differences = pair.differences(&rows);
        assert!(differences.is_empty(), "after {after}:\n{differences}");
    }
}

async fn copies(server: &ServerProcess, tables: &[TableName; 2]) -> Vec<Option<u64>> {
    let mut copies = Vec::new();
    for table in tables {
        copies.push(server.metric("laredo_copies_total", table).await);
    }
    copies
}

/// Compares after each of [`TRANSACTIONS`]. None of them may cause a copy.
async fn compare_after_each(
    cluster: &Cluster,
    (server, tables): (&ServerProcess, &[TableName; 2]),
    pairs: &[ClientPair],
    filter: &str,
) {
    let sql = cluster.connect().await.unwrap();
    for (mark, transaction) in (1..).zip(TRANSACTIONS) {
        sql.batch_execute(&format!("BEGIN; {transaction}; COMMIT")).await.unwrap();
        compare(&sql, pairs, filter, -mark, transaction).await;
        assert_eq!(copies(server, tables).await, [Some(1); 2], "copied again after {transaction}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_shared_until_the_commit_need_no_copy() {
    let (cluster, tables) = start();
    let server = config(&cluster, &tables).start().await;
    let clients = |table: &TableName, key| {
        [
            ClientPair::start(&server.url(), table, key, CategoryFilter::All),
            ClientPair::start(&server.url(), table, key, CategoryFilter::Category),
        ]
    };
    let pairs: Vec<ClientPair> = clients(&tables[0], ONE).into_iter().chain(clients(&tables[1], TWO)).collect();
    compare_after_each(&cluster, (&server, &tables), &pairs, "true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_of_the_target_sees_what_the_commit_leaves() {
    let (cluster, tables) = start();
    let filtered = config(&cluster, &tables).target("filters = [{ type = field-equals, field = category, value = a }]");
    let server = filtered.start().await;
    let pairs = [
        ClientPair::start(&server.url(), &tables[0], ONE, CategoryFilter::All),
        ClientPair::start(&server.url(), &tables[1], TWO, CategoryFilter::All),
    ];
    compare_after_each(&cluster, (&server, &tables), &pairs, "category = 'a'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_copy_ends_while_keys_are_swapped() {
    let (cluster, tables) = start();
    let (swapping, sql) = (cluster.connect().await.unwrap(), cluster.connect().await.unwrap());
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = is_over.clone();
    let swaps = tokio::spawn(async move {
        while !ends.load(Ordering::SeqCst) {
            for swap in &TRANSACTIONS[..4] {
                swapping.batch_execute(swap).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let server = config(&cluster, &tables).start().await;
    let pair = ClientPair::start(&server.url(), &tables[0], ONE, CategoryFilter::All);
    for copy in 2..5 {
        let redefine = if copy % 2 == 0 { "ALTER TABLE one ADD extra int" } else { "ALTER TABLE one DROP extra" };
        sql.batch_execute(redefine).await.unwrap();
        let copied = async || server.metric("laredo_copies_total", &tables[0]).await >= Some(copy);
        assert!(eventually(PATIENCE, copied).await.is_ok(), "copy {copy} does not end: {:#?}", server.health().await);
    }
    // Stop at the end of a round. A canceled statement would still run, and change the marked row.
    is_over.store(true, Ordering::SeqCst);
    swaps.await.unwrap();
    compare(&sql, &[pair], "true", -100, "all swaps").await;
}
