//! Types that change while transactions are open that have written the table before. PostgreSQL
//! sends their rows in the form that the types had then, and stores them in the new one.

use std::time::{Duration, Instant};

use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};

use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, PATIENT, ServerProcess, ServerProcessConfig};

const KEY: &[&str] = &["id"];

/// A table whose type changes, with the statements of the change.
struct TypeChange {
    table: &'static str,
    setup: &'static str,
    /// The row that a transaction writes before the change, and commits after it.
    row: &'static str,
    /// The statements before that row is written.
    before: &'static [&'static str],
    /// The statements after it.
    after: &'static [&'static str],
}

const CHANGES: &[TypeChange] = &[
    TypeChange {
        table: "renamed",
        setup: "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE renamed (id int PRIMARY KEY, m mood)",
        row: "'sad'",
        before: &[],
        after: &["ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"],
    },
    TypeChange {
        table: "listed",
        setup: "CREATE TYPE tag AS ENUM ('sad', 'ok'); CREATE TABLE listed (id int PRIMARY KEY, m tag[])",
        row: "'{ok,sad}'",
        before: &[],
        after: &["ALTER TYPE tag RENAME VALUE 'sad' TO 'blue'"],
    },
    TypeChange {
        table: "grown",
        setup: "CREATE TYPE size AS ENUM ('small'); CREATE TABLE grown (id int PRIMARY KEY, m size)",
        row: "'wide'",
        before: &["ALTER TYPE size ADD VALUE 'wide'"],
        after: &["ALTER TYPE size RENAME VALUE 'wide' TO 'large'"],
    },
    TypeChange {
        table: "paired",
        setup: "CREATE TYPE pair AS (a int, b text); CREATE TABLE paired (id int PRIMARY KEY, p pair)",
        row: "ROW(1, 'x')::pair",
        before: &[],
        after: &["ALTER TYPE pair DROP ATTRIBUTE b", "ALTER TYPE pair ADD ATTRIBUTE b text"],
    },
    TypeChange {
        table: "nested",
        setup: "CREATE TABLE inner_row (a int, b text); CREATE TABLE nested (id int PRIMARY KEY, p inner_row)",
        row: "ROW(1, 'x')::inner_row",
        before: &[],
        after: &["ALTER TABLE inner_row DROP COLUMN b", "ALTER TABLE inner_row ADD COLUMN b text"],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_writers_that_were_open_when_a_type_changed_are_the_databases() {
    follow("laredo_open", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_such_writers_are_the_databases_with_an_event_trigger() {
    follow("laredo_open_trigger", "\nddl.watch = trigger").await;
}

async fn follow(slot: &str, source: &str) {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    if !source.is_empty() {
        cluster.psql(laredo_postgres::ddl::INSTALL).unwrap();
    }
    CHANGES.iter().for_each(|change| drop(cluster.psql(change.setup).unwrap()));
    let tables: Vec<TableName> = CHANGES.iter().map(|change| TableName::new("public", change.table)).collect();
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), tables.clone()).slot(slot).target(PATIENT);
    config.source += source;
    let server = config.start().await;
    server.ready().await;
    let pairs: Vec<ClientPair> =
        tables.iter().map(|table| ClientPair::start(&server.url(), table, KEY, CategoryFilter::All)).collect();

    let run = |statements: &[&str]| statements.iter().for_each(|sql| drop(cluster.psql(sql).unwrap()));
    CHANGES.iter().for_each(|change| run(change.before));
    let mut writers = Vec::new();
    for TypeChange { table, row, .. } in CHANGES {
        let writer = cluster.connect().await.unwrap();
        writer.batch_execute(&format!("BEGIN; INSERT INTO {table} VALUES (1, {row})")).await.unwrap();
        writers.push(writer);
    }
    CHANGES.iter().for_each(|change| run(change.after));
    have_looked(&server, &tables).await;
    for writer in &writers {
        writer.batch_execute("COMMIT").await.unwrap();
    }
    let sql = cluster.connect().await.unwrap();
    let position = flushed(&sql).await.unwrap();
    let live = async || server.is_live_at(position).await;
    assert!(eventually(PATIENCE, live).await.is_ok(), "{:?}", server.health().await);
    for pair in &pairs {
        let rows = rows_at_rest(&sql, &pair.table, KEY, "true").await.unwrap();
        assert_eq!(rows.rows.len(), 1);
        let equal = async || pair.differences(&rows).is_empty();
        assert!(eventually(PATIENCE, equal).await.is_ok(), "{}:\n{}", pair.table, pair.differences(&rows));
    }
}

/// Waits until each definition was read in the catalog after this moment, and until the copies that
/// do not wait for a writer are made.
async fn have_looked(server: &ServerProcess, tables: &[TableName]) {
    let since = Instant::now();
    let is_read = async || {
        let (_, health) = server.health().await;
        let read = health["tables"].as_array().into_iter().flatten().filter(|table| {
            let age = table["definition_verified_age_ms"].as_u64();
            age.is_some_and(|ms| Duration::from_millis(ms) < since.elapsed())
        });
        read.count() == tables.len()
    };
    assert!(eventually(PATIENCE, is_read).await.is_ok(), "{:?}", server.health().await);
    // A copy that waited for no writer would be made by now.
    let are_copied = async || {
        let mut copied = 0;
        for table in tables {
            copied += usize::from(server.metric("laredo_copies_total", table).await > Some(1));
        }
        copied == tables.len()
    };
    let _ = eventually(Duration::from_secs(2), are_copied).await;
}
