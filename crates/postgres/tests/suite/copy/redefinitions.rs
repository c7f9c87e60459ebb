//! Definitions that change while a table is copied or followed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use laredo_core::TupleRef;
use laredo_engine::source::{SnapshotCheck, Source as _, SourceEvent, TableIndex};

use crate::copy::harness::{PATIENCE, announce, cluster, follow, options, requests};

#[tokio::test]
async fn a_definition_that_moves_during_the_copy_starts_it_again() {
    let cluster = cluster(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood);
         INSERT INTO t VALUES (1, 'sad')",
    );
    let following = follow(options(&cluster), &requests(&["public.t"])).await;
    let url = cluster.socket_dir().to_owned();
    let (port, asked) = (cluster.port(), AtomicUsize::new(0));
    let psql = cluster.bin("psql");
    // The label changes while the copy's snapshot exists, because laredo holds no lock that forbids
    // it.
    let admits: SnapshotCheck = Arc::new(move |_| {
        if asked.fetch_add(1, Ordering::Relaxed) == 0 {
            let done = std::process::Command::new(&psql)
                .args(["-U", "postgres", "-p", &port.to_string(), "-h"])
                .arg(&url)
                .args(["-c", "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"])
                .output()
                .unwrap();
            assert!(done.status.success());
        }
        true
    });
    let copied = following.try_copy(0, admits).await.unwrap();
    assert_eq!(copied.begun, 2);
    let label = TupleRef::trusted(&copied.rows[0]).cell(1).value().unwrap().to_vec();
    assert_eq!(label, b"blue");
}

#[tokio::test]
async fn the_fingerprint_moves_with_everything_that_the_stream_omits() {
    let cluster = cluster(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood, w int);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE spare (id int PRIMARY KEY); INSERT INTO spare VALUES (11);
         CREATE TABLE trigger (id int PRIMARY KEY, note int)",
    );
    let names = ["public.t", "public.p", "public.trigger"];
    let mut following = follow(options(&cluster), &requests(&names)).await;
    for table in 0..3 {
        following.copy(table).await;
    }
    // Each change affects one table only, so that only another table's announcement reveals it.
    for (table, sql, expected) in [
        (0, "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'", "a type that it uses changed"),
        (0, "ALTER TABLE t ADD COLUMN x int DEFAULT 5", "its columns changed"),
        (0, "ALTER TABLE t ALTER COLUMN w TYPE bigint USING w + 1", "its rows were rewritten"),
        (0, "ALTER TABLE t REPLICA IDENTITY FULL", "its replica identity changed"),
        (0, "ALTER PUBLICATION laredo_pub SET TABLE t WHERE (id > 0), p, trigger", "its publication changed"),
        (1, "ALTER TABLE p ATTACH PARTITION spare FOR VALUES FROM (10) TO (20)", "its partitions changed"),
        (1, "TRUNCATE spare", "its partitions changed"),
        (1, "ALTER TABLE p DETACH PARTITION spare", "its partitions changed"),
    ] {
        if sql.contains("WHERE") && cluster.major_version() < 15 {
            // PostgreSQL 14 has no filters of rows.
            continue;
        }
        cluster.psql(sql).unwrap();
        announce(&cluster);
        loop {
            match following.event().await {
                SourceEvent::Moved { table: moved, reason, .. } => {
                    assert_eq!(moved, TableIndex(table), "{sql}: {reason}");
                    assert!(reason.contains(expected), "{sql}: {reason}");
                    break;
                }
                SourceEvent::Redefined { table: TableIndex(2), .. } | SourceEvent::Commit(_) => {}
                event => panic!("{sql}: {event:?}"),
            }
        }
        following.copy(table).await;
    }
    for (table, sql, expected) in [
        (0, "ALTER TABLE t REPLICA IDENTITY NOTHING", "REPLICA IDENTITY NOTHING"),
        (1, "DROP TABLE p", "was dropped or renamed"),
    ] {
        cluster.psql(sql).unwrap();
        announce(&cluster);
        loop {
            match following.event().await {
                SourceEvent::Broken { table: broken, error } => {
                    assert_eq!(broken, TableIndex(table));
                    assert!(error.contains(expected), "{error}");
                    break;
                }
                SourceEvent::Redefined { table: TableIndex(2), .. } | SourceEvent::Commit(_) => {}
                event => panic!("{sql}: {event:?}"),
            }
        }
    }
}

/// Repeated truncates of a table need not cause a copy each time.
#[tokio::test]
async fn a_truncate_in_the_stream_does_not_move_the_fingerprint() {
    let cluster = cluster(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood, w int);
         CREATE TABLE trigger (id int PRIMARY KEY, note int)",
    );
    let mut following = follow(options(&cluster), &requests(&["public.t", "public.trigger"])).await;
    for table in 0..2 {
        following.copy(table).await;
    }
    let rewrite = "ALTER TABLE t ALTER COLUMN w TYPE int USING w + 1";
    let mut named = None;
    let cases = [
        ("TRUNCATE t".to_owned(), false),
        (
            "BEGIN; INSERT INTO t VALUES (1, 'ok', 1); TRUNCATE t; INSERT INTO t VALUES (2, 'ok', 1); COMMIT"
                .to_owned(),
            false,
        ),
        // The stream does not send the existing row again.
        (format!("BEGIN; TRUNCATE t; INSERT INTO t VALUES (3, 'ok', 1); {rewrite}; COMMIT"), true),
        (format!("TRUNCATE t; BEGIN; INSERT INTO t VALUES (4, 'ok', 1); {rewrite}; COMMIT"), true),
    ];
    for (number, (sql, moves)) in cases.into_iter().enumerate() {
        cluster.psql(&sql).unwrap();
        // A reader of this announcement has read everything before it.
        cluster.psql(&format!("ALTER TABLE trigger ADD COLUMN c{number} int")).unwrap();
        announce(&cluster);
        let mut moved = Vec::new();
        while moved.last() != Some(&TableIndex(1)) {
            match following.event().await {
                // Two servers see different files of the table. So the version that clients receive
                // must not depend on them.
                SourceEvent::Redefined { table: TableIndex(0), definition, .. } if !moves => {
                    let name = definition.lines().next().unwrap().to_owned();
                    assert_eq!(*named.get_or_insert_with(|| name.clone()), name, "{sql}");
                }
                SourceEvent::Moved { table, reason, .. } => {
                    assert!(
                        table == TableIndex(1) || reason.contains("its rows were rewritten or truncated"),
                        "{sql}: {reason}"
                    );
                    moved.push(table);
                }
                SourceEvent::Commit(_) | SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                event => panic!("{sql}: {event:?}"),
            }
        }
        let expected = [(moves, TableIndex(0)), (true, TableIndex(1))];
        let expected: Vec<_> = expected.into_iter().filter_map(|(is, table)| is.then_some(table)).collect();
        assert_eq!(moved, expected, "{sql}");
        for table in moved {
            following.copy(table.0).await;
        }
    }
}

/// A copy that waited may be made under a definition that is undone by then. If the definition
/// returns, the source reports it again.
#[tokio::test]
async fn a_definition_that_was_undone_for_the_copy_and_came_again_is_said_again() {
    let cluster = cluster(
        "CREATE TYPE pair AS (a int, b text); CREATE TABLE t (id int PRIMARY KEY, p pair);
         CREATE TABLE trigger (id int PRIMARY KEY, note int)",
    );
    let mut following = follow(options(&cluster), &requests(&["public.t", "public.trigger"])).await;
    for table in 0..2 {
        following.copy(table).await;
    }
    for _ in 0..3 {
        cluster.psql("ALTER TYPE pair RENAME ATTRIBUTE b TO c").unwrap();
        announce(&cluster);
        following.moved(0).await;
        cluster.psql("ALTER TYPE pair RENAME ATTRIBUTE c TO b").unwrap();
        following.copy(0).await;
    }
}

/// A TRUNCATE does not explain the later changes of its transaction, because changes to an unlogged
/// table are not streamed.
#[tokio::test]
async fn a_truncate_explains_no_rows_that_came_unlogged() {
    let cluster = cluster(
        "CREATE TABLE bare (id int PRIMARY KEY, v int); CREATE TABLE wide (id int PRIMARY KEY, v text);
         CREATE TABLE trigger (id int PRIMARY KEY, note int); CREATE PUBLICATION laredo_pub FOR ALL TABLES;
         CREATE TABLE bald (id int PRIMARY KEY, v int); ALTER TABLE bald REPLICA IDENTITY FULL, DROP CONSTRAINT bald_pkey;
         CREATE TABLE uncounted (id int PRIMARY KEY, v int) WITH (autovacuum_enabled = false)",
    );
    let mut tables = requests(&["public.bare", "public.wide", "public.bald", "public.uncounted", "public.trigger"]);
    tables[2].key_fields = vec!["id".to_owned()];
    let mut following = follow(options(&cluster), &tables).await;
    for table in 0..5 {
        following.copy(table).await;
    }
    let load = |table: &str, rows: &str| {
        format!(
            "BEGIN; TRUNCATE {table}; ALTER TABLE {table} SET UNLOGGED; INSERT INTO {table} SELECT {rows}; \
             ALTER TABLE {table} SET LOGGED; COMMIT"
        )
    };
    let cases = [
        (0, "TRUNCATE bare; INSERT INTO bare VALUES (1, 1)".to_owned(), false),
        (0, load("bare", "1, 1"), true),
        (1, "BEGIN; TRUNCATE wide; INSERT INTO wide VALUES (1, 'x'); COMMIT".to_owned(), false),
        (1, load("wide", "g, 'y' FROM generate_series(1, 60) g"), true),
        (1, load("wide", "1, repeat('x', 3000)"), true),
        (0, load("bare", "g, g FROM generate_series(1, 2000) g"), true),
        (2, load("bald", "1, 1"), true),
        (3, load("uncounted", "1, 1"), true),
    ];
    for (number, (table, sql, moves)) in cases.into_iter().enumerate() {
        cluster.psql(&sql).unwrap();
        cluster.psql(&format!("ALTER TABLE trigger ADD COLUMN c{number} int")).unwrap();
        announce(&cluster);
        let mut moved = Vec::new();
        while moved.last() != Some(&TableIndex(4)) {
            if let SourceEvent::Moved { table, .. } = following.event().await {
                moved.push(table);
            }
        }
        assert_eq!(moved.contains(&TableIndex(table)), moves, "{sql}");
        for table in moved {
            following.copy(table.0).await;
        }
    }
}

#[tokio::test]
async fn a_publication_that_no_longer_sends_every_change_breaks_its_tables() {
    let cluster = cluster(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE trigger (id int PRIMARY KEY, note int);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
    );
    let mut following = follow(options(&cluster), &requests(&["public.t", "public.p", "public.trigger"])).await;
    for table in 0..3 {
        following.copy(table).await;
    }
    for (table, harm, remedy) in [
        (
            0,
            "ALTER PUBLICATION laredo_pub SET (publish = 'insert')",
            "ALTER PUBLICATION \"laredo_pub\" SET (publish = 'insert, update, delete, truncate')",
        ),
        (
            1,
            "ALTER PUBLICATION laredo_pub SET (publish_via_partition_root = false)",
            "ALTER PUBLICATION \"laredo_pub\" SET (publish_via_partition_root = true)",
        ),
        (0, "ALTER PUBLICATION laredo_pub DROP TABLE t", "ALTER PUBLICATION \"laredo_pub\" ADD TABLE \"public\".\"t\""),
    ] {
        cluster.psql(harm).unwrap();
        announce(&cluster);
        let error = following.broken(table).await;
        assert!(error.contains(&format!("run {remedy}")), "{error}");
        assert_eq!(following.refused(table).await, error);
        // The SQL in the message is sufficient.
        cluster.psql(remedy).unwrap();
        announce(&cluster);
        following.moved(table).await;
        for table in 0..3 {
            following.copy(table).await;
        }
    }
}

#[tokio::test]
async fn a_partition_outside_the_wal_breaks_its_root() {
    let cluster = cluster(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE trigger (id int PRIMARY KEY, note int);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
    );
    let mut following = follow(options(&cluster), &requests(&["public.p", "public.trigger"])).await;
    following.copy(0).await;
    cluster
        .psql("CREATE UNLOGGED TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p2 VALUES (11)")
        .unwrap();
    announce(&cluster);
    let error = following.broken(0).await;
    assert!(error.contains("its partition public.p2 is a foreign or unlogged table"), "{error}");
    assert_eq!(following.refused(0).await, error);
    cluster.psql("ALTER TABLE p2 SET LOGGED").unwrap();
    announce(&cluster);
    following.moved(0).await;
    assert_eq!(following.copy(0).await.rows.len(), 1);
}

#[tokio::test]
async fn a_table_whose_copy_failed_is_copied_once_it_is_back() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE trigger (id int PRIMARY KEY, note int)");
    let mut following = follow(options(&cluster), &requests(&["public.t", "public.trigger"])).await;
    following.copy(0).await;
    cluster.psql("ALTER TABLE t RENAME TO x").unwrap();
    let problem = following.refused(0).await;
    assert!(problem.contains("table public.t does not exist;"), "{problem}");
    // The table is as it was copied. Nothing has moved, but the failed copy is still due.
    cluster.psql("ALTER TABLE x RENAME TO t").unwrap();
    announce(&cluster);
    assert_eq!(following.moved(0).await, "it can be followed again");
}

/// Tables are looked up in the catalog one by one. A migration's lock or an unreadable table
/// affects no other table.
#[tokio::test]
async fn one_odd_or_locked_table_hides_no_other() {
    for (harm, is_lock) in [
        ("BEGIN; LOCK TABLE odd IN ACCESS EXCLUSIVE MODE", true),
        ("BEGIN; LOCK TABLE r1 IN ACCESS EXCLUSIVE MODE", true),
        ("BEGIN; ALTER TABLE odd ADD COLUMN y int; TRUNCATE r", true),
        ("ALTER TABLE odd DROP id, DROP v", false),
        ("DROP TABLE odd", false),
    ] {
        let cluster = cluster(
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood);
             CREATE TABLE odd (id int PRIMARY KEY, v int); CREATE TABLE trigger (id int PRIMARY KEY, note int);
             CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10)",
        );
        let tables = requests(&["public.odd", "public.r", "public.t", "public.trigger"]);
        let mut following = follow(options(&cluster), &tables).await;
        for table in 0..4 {
            following.copy(table).await;
        }
        let session = cluster.connect().await.unwrap();
        session.batch_execute(harm).await.unwrap();
        cluster.psql("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'").unwrap();
        announce(&cluster);
        assert_eq!(following.moved(2).await, "a type that it uses changed", "{harm}");
        if is_lock {
            // Each look has succeeded, and the next start can look as well.
            assert!(following.source.looks().borrow().errors.is_empty(), "{harm}");
            let starts = follow(options(&cluster), &tables);
            tokio::time::timeout(PATIENCE, starts).await.expect("a start that waits for no lock");
        }
    }
}
