//! Types inside columns that change without an announcement: composites, and types that contain
//! one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use laredo_archive::{Archive, ArchivePoint, FolderDestination, ReadProgress};
use laredo_core::{TableName, Tuple};
use laredo_testkit::oracle::{OracleRows, flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use laredo_values::project_row;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_postgres::Client;

use super::restarts::with_durable_journal;
use crate::support::compare::struct_differences;
use crate::support::fleet::{CategoryFilter, ClientPair};
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig, numbers};
use crate::support::simple::{JsonRow, key_of};
use crate::support::snapshotter::{SnapshotterProcess, table};

const KEY: &[&str] = &["id"];

/// A table with a column that contains a composite.
struct NestedTable {
    name: &'static str,
    types: &'static str,
    column: &'static str,
    value: &'static str,
    /// The changes while the server follows, and while it is down.
    changes: [&'static str; 2],
}

const TABLES: &[NestedTable] = &[
    NestedTable {
        name: "idle",
        types: "CREATE TYPE idle_pair AS (a int, b text)",
        column: "idle_pair",
        value: "ROW(g, 'x')::idle_pair",
        changes: ["ALTER TYPE idle_pair ADD ATTRIBUTE c int", "ALTER TYPE idle_pair ADD ATTRIBUTE d int"],
    },
    NestedTable {
        name: "written",
        types: "CREATE TYPE written_pair AS (a int, b text)",
        column: "written_pair",
        value: "ROW(g, 'x')::written_pair",
        changes: [
            "BEGIN; UPDATE written SET n = n + 1 WHERE id = 1; ALTER TYPE written_pair ADD ATTRIBUTE c int; \
             UPDATE written SET p.c = id WHERE id % 2 = 0; COMMIT",
            "ALTER TYPE written_pair ADD ATTRIBUTE d int; UPDATE written SET n = n + 1; DELETE FROM written WHERE id = 3",
        ],
    },
    NestedTable {
        name: "dropped",
        types: "CREATE TYPE dropped_pair AS (a int, b text, c int)",
        column: "dropped_pair",
        value: "ROW(g, 'x', 1)::dropped_pair",
        changes: [
            "ALTER TYPE dropped_pair DROP ATTRIBUTE b; UPDATE dropped SET n = n + 1 WHERE id < 5",
            "ALTER TYPE dropped_pair DROP ATTRIBUTE c",
        ],
    },
    NestedTable {
        name: "renamed",
        types: "CREATE TYPE renamed_pair AS (a int, b text)",
        column: "renamed_pair",
        value: "ROW(g, 'x')::renamed_pair",
        changes: [
            "ALTER TYPE renamed_pair RENAME ATTRIBUTE b TO other",
            "ALTER TYPE renamed_pair RENAME ATTRIBUTE a TO another",
        ],
    },
    NestedTable {
        name: "by_table",
        types: "CREATE TABLE other (a int, b text)",
        column: "other",
        value: "ROW(g, 'x')::other",
        changes: [
            "ALTER TABLE other ADD COLUMN z int; UPDATE by_table SET n = n + 1",
            "ALTER TABLE other DROP COLUMN b; UPDATE by_table SET n = n + 1 WHERE id = 2",
        ],
    },
    NestedTable {
        name: "listed",
        types: "CREATE TYPE listed_pair AS (a int, b text)",
        column: "listed_pair[]",
        value: "ARRAY[ROW(g, 'x')::listed_pair, NULL, ROW(0, 'y')::listed_pair]",
        changes: [
            "ALTER TYPE listed_pair ADD ATTRIBUTE c int; UPDATE listed SET n = n + 1 WHERE id = 1",
            "ALTER TYPE listed_pair DROP ATTRIBUTE a; UPDATE listed SET n = n + 1 WHERE id = 1",
        ],
    },
    NestedTable {
        name: "nested",
        types: "CREATE TYPE innermost AS (a int, b text); CREATE TYPE outermost AS (i innermost, t text)",
        column: "outermost",
        value: "ROW(ROW(g, 'x')::innermost, 't')::outermost",
        changes: [
            "ALTER TYPE innermost ADD ATTRIBUTE c int; UPDATE nested SET n = n + 1 WHERE id = 1",
            "ALTER TYPE innermost DROP ATTRIBUTE b",
        ],
    },
    NestedTable {
        name: "domained",
        types: "CREATE TYPE domained_pair AS (a int, b text); CREATE DOMAIN over_pair AS domained_pair",
        column: "over_pair",
        value: "ROW(g, 'x')::domained_pair::over_pair",
        changes: [
            "ALTER TYPE domained_pair ADD ATTRIBUTE c int; UPDATE domained SET n = n + 1 WHERE id = 1",
            "ALTER TYPE domained_pair ADD ATTRIBUTE d int; UPDATE domained SET n = n + 1 WHERE id = 1",
        ],
    },
    NestedTable {
        name: "ranged",
        types: "CREATE TYPE bound AS (a int, b int); CREATE TYPE bounds AS RANGE (subtype = bound)",
        column: "bounds",
        value: "bounds(ROW(g, 1)::bound, ROW(g + 1, 1)::bound)",
        changes: [
            "ALTER TYPE bound ADD ATTRIBUTE c int; UPDATE ranged SET n = n + 1 WHERE id = 1",
            "ALTER TYPE bound ADD ATTRIBUTE d int",
        ],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn composites_change_while_the_server_follows_and_while_it_is_down() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    for NestedTable { name, types, column, value, .. } in TABLES {
        let create = format!(
            "{types}; CREATE TABLE {name} (id int PRIMARY KEY, p {column}, n int);
             INSERT INTO {name} SELECT g, {value}, 0 FROM generate_series(1, 20) g"
        );
        cluster.psql(&create).unwrap();
    }
    let (sql, journals, archives) = (cluster.connect().await.unwrap(), folder(), folder());
    let names: Vec<TableName> = TABLES.iter().map(|table| TableName::new("public", table.name)).collect();
    let config = ServerProcessConfig::new(cluster.url("postgres"), names.clone()).slot("laredo_nested");
    let mut server = with_durable_journal(config, &journals).start().await;
    let pairs = || -> Vec<ClientPair> {
        names.iter().map(|name| ClientPair::start(&server.url(), name, KEY, CategoryFilter::All)).collect()
    };
    let early = pairs();
    let keys = json!({ "diff": { "interval": "200ms" }, "formats": { "snapshot": ["jsonl"], "diff": ["protobuf"] } });
    let tables: Vec<Value> = names.iter().map(|name| table(&server.url(), name, archives.path(), &keys)).collect();
    let snapshotter = SnapshotterProcess::launch(&tables, &Value::Null, &[]);
    snapshotter.ready().await;
    for (mark, is_down) in [(100, false), (200, true)] {
        let insert = |table: &NestedTable| format!("INSERT INTO {} (id, n) VALUES ({mark}, {mark})", table.name);
        if is_down {
            server.process.kill9();
            server.process.wait(PATIENCE).await.unwrap();
        }
        for table in TABLES {
            sql.batch_execute(table.changes[usize::from(is_down)]).await.unwrap();
        }
        for table in TABLES {
            sql.batch_execute(&insert(table)).await.unwrap();
        }
        if is_down {
            server.restart().await;
        }
        assert_clients_equal(&sql, &server, &early, mark).await;
        assert_archives_equal(&sql, archives.path(), &snapshotter).await;
        let late: Vec<ClientPair> =
            names.iter().map(|name| ClientPair::start(&server.url(), name, KEY, CategoryFilter::All)).collect();
        assert_clients_equal(&sql, &server, &late, mark).await;
    }
    snapshotter.stop().await;
    for name in &names {
        server.has_archive(name, &archives.path().join(&name.table));
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Checks that all clients have the database's rows, and that no value was sent as hex.
async fn assert_clients_equal(sql: &Client, server: &ServerProcess, pairs: &[ClientPair], mark: i32) {
    let position = flushed(sql).await.unwrap();
    for pair in pairs {
        pair.reach(position, mark).await;
        let rows = rows_at_rest(sql, &pair.table, KEY, "true").await.unwrap();
        // The catalog shows the change after a while. The assertion below reports missing changes.
        let _ = eventually(PATIENCE, async || pair.differences(&rows).is_empty()).await;
        assert_eq!(pair.differences(&rows), "");
    }
    let metrics = server.metrics().await;
    assert!(numbers(&metrics, "laredo_hex_cells_total").iter().all(|count| *count == "0"), "{metrics}");
}

/// Checks that every archive has the database's rows, and that its writer continues.
async fn assert_archives_equal(sql: &Client, archives: &Path, snapshotter: &SnapshotterProcess) {
    for NestedTable { name, .. } in TABLES {
        let rows = rows_at_rest(sql, &TableName::new("public", *name), KEY, "true").await.unwrap();
        let folder = archives.join(format!("{name}/"));
        let same = async || archive_differences(&folder, &rows).await.is_empty();
        let _ = eventually(PATIENCE, same).await;
        let status = snapshotter.status().await;
        assert_eq!(archive_differences(&folder, &rows).await, "", "{name}: {status:?}");
    }
}

async fn archive_differences(folder: &Path, oracle: &OracleRows) -> String {
    let archive = match Archive::open(Arc::new(FolderDestination::new(folder)), None).await {
        Ok(archive) => archive,
        Err(error) => return error.to_string(),
    };
    let rebuilt = match archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await {
        Ok(rebuilt) => rebuilt.table,
        Err(error) => return error.to_string(),
    };
    let schema = rebuilt.schema();
    let row = |row: &Tuple| -> JsonRow {
        let Ok(values) = project_row(schema, row.as_ref()) else { return JsonRow::new() };
        values.into_iter().map(|(name, value)| (name.to_owned(), value.to_json())).collect()
    };
    let keyed = |row: JsonRow| (key_of(KEY, &row), row);
    let ours: BTreeMap<String, JsonRow> = rebuilt.rows().map(row).map(keyed).collect();
    match oracle.rows.values().all(|row| project_row(schema, row.as_ref()).is_ok()) {
        true => struct_differences(&ours, oracle, schema, KEY),
        false => "the archive's types are older".to_owned(),
    }
}
