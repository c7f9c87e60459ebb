//! Definitions that go away and come back, with rows written in between: clients have what the database has, with a kept journal,
//! with snapshots alone and with neither, while the server runs, while it is down, and after it has resumed.

use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, eventually};
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::support::compare::view_differences;
use crate::support::fleet::{Only, Pair};
use crate::support::server::{PATIENCE, PATIENT, Server, ServerConfig};

const KEY: &[&str] = &["id"];

/// A kind of change: the tables that it concerns, how they are made, and what happens to them, as often as it is run.
struct Kind {
    tables: &'static [&'static str],
    setup: &'static str,
    change: &'static str,
}

const KINDS: &[Kind] = &[
    Kind {
        tables: &["public.detached"],
        setup: "CREATE TABLE detached (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
            CREATE TABLE detached_1 PARTITION OF detached FOR VALUES FROM (0) TO (100);
            CREATE TABLE detached_2 PARTITION OF detached DEFAULT",
        change: "BEGIN; ALTER TABLE detached DETACH PARTITION detached_1; UPDATE detached_1 SET v = v + 1 WHERE id < 20;
            DELETE FROM detached_1 WHERE id = 20 + (SELECT max(v) FROM detached_1);
            ALTER TABLE detached ATTACH PARTITION detached_1 FOR VALUES FROM (0) TO (100); COMMIT",
    },
    Kind {
        tables: &["public.nested"],
        setup: "CREATE TABLE nested (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
            CREATE TABLE nested_1 PARTITION OF nested FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
            CREATE TABLE nested_11 PARTITION OF nested_1 DEFAULT",
        change: "ALTER TABLE nested DETACH PARTITION nested_1; UPDATE nested_1 SET v = v + 1;
            ALTER TABLE nested ATTACH PARTITION nested_1 FOR VALUES FROM (0) TO (100);
            BEGIN; ALTER TABLE nested_1 DETACH PARTITION nested_11; UPDATE nested_11 SET v = v + 10 WHERE id = 5;
            ALTER TABLE nested_1 ATTACH PARTITION nested_11 DEFAULT; COMMIT",
    },
    Kind {
        tables: &["public.renamed"],
        setup: "CREATE TABLE renamed (id int PRIMARY KEY, v int)",
        change: "BEGIN; ALTER TABLE renamed RENAME TO elsewhere; UPDATE elsewhere SET v = v + 1 WHERE id < 30;
            ALTER TABLE elsewhere RENAME TO renamed; COMMIT;
            ALTER TABLE renamed RENAME TO elsewhere; DELETE FROM elsewhere WHERE id = (SELECT max(id) FROM elsewhere);
            ALTER TABLE elsewhere RENAME TO renamed",
    },
    Kind {
        tables: &["public.moved"],
        setup: "CREATE SCHEMA aside; CREATE TABLE moved (id int PRIMARY KEY, v int)",
        change: "ALTER TABLE moved SET SCHEMA aside; UPDATE aside.moved SET v = v + 1; ALTER TABLE aside.moved SET SCHEMA public",
    },
    Kind {
        tables: &["public.left", "public.right"],
        setup: "CREATE TABLE \"left\" (id int PRIMARY KEY, v int); CREATE TABLE \"right\" (id int PRIMARY KEY, v int)",
        change: "ALTER TABLE \"left\" RENAME TO middle; ALTER TABLE \"right\" RENAME TO \"left\"; ALTER TABLE middle RENAME TO \"right\";
            UPDATE \"left\" SET v = v + 1; DELETE FROM \"right\" WHERE id = (SELECT max(id) FROM \"right\");
            ALTER TABLE \"left\" RENAME TO middle; ALTER TABLE \"right\" RENAME TO \"left\"; ALTER TABLE middle RENAME TO \"right\"",
    },
    Kind {
        tables: &["public.this", "public.that"],
        setup: "CREATE TABLE this (id int PRIMARY KEY, v int); CREATE TABLE that (id int PRIMARY KEY, v int)",
        change: "INSERT INTO that VALUES (1000 + (SELECT max(id) FROM that), 7);
            BEGIN; ALTER TABLE this RENAME TO middle; ALTER TABLE that RENAME TO this; ALTER TABLE middle RENAME TO that; COMMIT;
            UPDATE this SET v = v + 1; DELETE FROM that WHERE id = (SELECT max(id) FROM that)",
    },
    Kind {
        tables: &["app.served"],
        setup: "CREATE SCHEMA app; CREATE TABLE app.served (id int PRIMARY KEY, v int)",
        change: "CREATE SCHEMA app_new; CREATE TABLE app_new.served (LIKE app.served INCLUDING ALL);
            ALTER PUBLICATION laredo_test_pub ADD TABLE app_new.served;
            INSERT INTO app_new.served SELECT id, v + 100 FROM app.served WHERE id < 40 + 3;
            BEGIN; ALTER SCHEMA app RENAME TO app_old; ALTER SCHEMA app_new RENAME TO app; COMMIT;
            INSERT INTO app.served SELECT max(id) + 1, 5 FROM app.served; UPDATE app_old.served SET v = -1;
            DROP SCHEMA app_old CASCADE",
    },
    Kind {
        tables: &["public.labelled"],
        setup: "CREATE TYPE color AS ENUM ('red', 'blue'); CREATE TABLE labelled (id int PRIMARY KEY, v int, c color DEFAULT 'red')",
        change: "ALTER TYPE color RENAME VALUE 'red' TO 'RED'; UPDATE labelled SET v = v + 1 WHERE id % 2 = 0;
            ALTER TYPE color RENAME VALUE 'RED' TO 'red'",
    },
    Kind {
        tables: &["public.composed"],
        setup: "CREATE TYPE pair AS (a int, b text); CREATE TABLE composed (id int PRIMARY KEY, v int, p pair DEFAULT (1, 'b'))",
        change: "ALTER TYPE pair DROP ATTRIBUTE b; ALTER TYPE pair ADD ATTRIBUTE b text; UPDATE composed SET p = (2, 'c') WHERE id = 3",
    },
    Kind {
        tables: &["public.computed"],
        setup: "CREATE TABLE computed (id int PRIMARY KEY, v int)",
        change: "ALTER TABLE computed ALTER v TYPE int USING v + 1; ALTER TABLE computed ALTER v TYPE int USING v * 2 % 1000",
    },
    Kind {
        tables: &["public.emptied"],
        setup: "CREATE TABLE emptied (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
            CREATE TABLE emptied_1 PARTITION OF emptied FOR VALUES FROM (0) TO (10);
            CREATE TABLE emptied_2 PARTITION OF emptied DEFAULT",
        change: "UPDATE emptied SET v = v + 1; TRUNCATE emptied_1; INSERT INTO emptied VALUES (3, 3);
            DROP TABLE IF EXISTS emptied_3; CREATE TABLE emptied_3 (LIKE emptied INCLUDING ALL); INSERT INTO emptied_3 VALUES (-5, 1);
            ALTER TABLE emptied ATTACH PARTITION emptied_3 FOR VALUES FROM (-10) TO (0)",
    },
    Kind {
        tables: &["public.unpublished"],
        setup: "CREATE TABLE unpublished (id int PRIMARY KEY, v int)",
        change: "ALTER PUBLICATION laredo_test_pub DROP TABLE unpublished; UPDATE unpublished SET v = v + 1;
            ALTER PUBLICATION laredo_test_pub ADD TABLE unpublished",
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn with_a_kept_journal() {
    every_kind("laredo_kept", |folder| format!("journal {{ store = local, store_config {{ path = {folder} }} }}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_snapshots_alone() {
    every_kind("laredo_snapshots", |folder| {
        format!("snapshot {{ store = local, interval = 1s, store_config {{ path = {folder} }} }}")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_neither() {
    every_kind("laredo_neither", |_| String::new()).await;
}

/// With the event trigger no client sees a position behind a change before the rows are right.
#[tokio::test(flavor = "multi_thread")]
async fn with_an_event_trigger() {
    let cluster = start();
    cluster.psql(laredo_postgres::ddl::INSTALL).unwrap();
    let tables = tables();
    let mut config =
        ServerConfig::new(cluster.url("postgres"), tables.clone()).slot("laredo_triggered").target(PATIENT);
    config.source += "\nddl.watch = trigger";
    let server = config.start().await;
    let sql = cluster.connect().await.unwrap();
    let pairs: Vec<Pair> = tables.iter().map(|table| Pair::start(&server.url(), table, KEY, Only::All)).collect();
    compare(&sql, &server, &pairs, "at the start").await;
    for round in 0..3 {
        change_all(&cluster);
        let position = flushed(&sql).await.unwrap();
        for pair in &pairs {
            let rows = rows_at_rest(&sql, &pair.table, KEY, "true").await.unwrap();
            let reached = async || pair.replica.view().position() >= position;
            eventually(PATIENCE, reached).await.unwrap();
            let differences = view_differences(&pair.replica.view(), &rows, KEY);
            // A TRUNCATE of a single partition fires no event trigger.
            if pair.table.table != "emptied" {
                assert!(differences.is_empty(), "round {round}, {}:\n{differences}", pair.table);
            }
        }
    }
    compare(&sql, &server, &pairs, "in the end").await;
}

fn tables() -> Vec<TableName> {
    KINDS.iter().flat_map(|kind| kind.tables).map(|name| name.parse().unwrap()).collect()
}

/// A cluster with all tables, each with fifty rows.
fn start() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    for kind in KINDS {
        cluster.psql(kind.setup).unwrap();
    }
    for table in tables() {
        let fill = format!("INSERT INTO {} (id, v) SELECT g, 0 FROM generate_series(1, 50) g", table.quoted());
        cluster.psql(&fill).unwrap();
    }
    cluster
}

async fn every_kind(slot: &str, store: impl Fn(serde_json::Value) -> String) {
    let (cluster, folder, tables) = (start(), TempDir::new().unwrap(), tables());
    let sql = cluster.connect().await.unwrap();
    let path = serde_json::Value::from(folder.path().to_string_lossy());
    let config = ServerConfig::new(cluster.url("postgres"), tables.clone()).slot(slot).target(PATIENT);
    let mut server = config.target(&store(path)).start().await;
    let pairs: Vec<Pair> = tables.iter().map(|table| Pair::start(&server.url(), table, KEY, Only::All)).collect();
    compare(&sql, &server, &pairs, "at the start").await;

    change_all(&cluster);
    compare(&sql, &server, &pairs, "while the server runs").await;

    server.process.terminate();
    server.process.wait(PATIENCE).await.unwrap();
    change_all(&cluster);
    server.restart().await;
    compare(&sql, &server, &pairs, "while the server is down").await;

    // This run may have copied nothing.
    server.restart().await;
    compare(&sql, &server, &pairs, "after a restart").await;
    change_all(&cluster);
    compare(&sql, &server, &pairs, "after the server has resumed").await;
}

/// Runs all changes. Each statement that is not in a block is a transaction of its own.
fn change_all(cluster: &Cluster) {
    for kind in KINDS {
        let mut block = String::new();
        for statement in kind.change.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
            block += &format!("{statement};");
            if !block.starts_with("BEGIN") || statement == "COMMIT" {
                cluster.psql(&std::mem::take(&mut block)).unwrap();
            }
        }
    }
}

/// Compares every client with the database, now, and once more after a row of each table was written.
async fn compare(sql: &Client, server: &Server, pairs: &[Pair], when: &str) {
    for write in ["SELECT", "UPDATE {} SET v = v + 1 WHERE id = (SELECT min(id) FROM {})"] {
        if write != "SELECT" {
            for pair in pairs {
                sql.batch_execute(&write.replace("{}", &pair.table.quoted())).await.unwrap();
            }
        }
        let position = flushed(sql).await.unwrap();
        let live = async || server.is_live_at(position).await;
        assert!(eventually(PATIENCE, live).await.is_ok(), "{when}: {:?}", server.health().await);
        for pair in pairs {
            let rows = rows_at_rest(sql, &pair.table, KEY, "true").await.unwrap();
            let equal = async || pair.differences(&rows).is_empty();
            if eventually(PATIENCE, equal).await.is_err() {
                panic!("{when}, {write}, {}:\n{}", pair.table, pair.differences(&rows));
            }
        }
    }
}
