//! Definitions that look unchanged but are different. A change that is undone is noticed, and a
//! change that concerns no row causes no copy.

use laredo_engine::source::{SourceEvent, TableIndex};
use laredo_testkit::Cluster;

use crate::copy::harness::{StreamingSource, announce, cluster, follow, options, requests};

/// The source's report on a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceNotice {
    /// The table needs a copy.
    Moved,
    /// The definition changed, and the streamed rows are still right.
    Redefined,
}

use SourceNotice::{Moved, Redefined};

const TABLES: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN feeling AS mood;
    CREATE TABLE other (x int, y text);
    CREATE TABLE t (id int PRIMARY KEY, m mood, f feeling, ms mood[], p pair, ps pair[], o other, u int NOT NULL, w int);
    CREATE UNIQUE INDEX t_u ON t (u);
    INSERT INTO t (id, m, f, u) VALUES (1, 'sad', 'sad', 1);
    CREATE TABLE r (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
    CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10);
    CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (10) TO (100) PARTITION BY RANGE (id);
    CREATE TABLE r21 PARTITION OF r2 FOR VALUES FROM (10) TO (20);
    INSERT INTO r VALUES (1, 0), (11, 0);
    CREATE TABLE trigger (id int PRIMARY KEY, note int)";

/// Returns the reports on the first two tables after a change, in order.
async fn words(
    cluster: &Cluster,
    following: &mut StreamingSource,
    number: usize,
    sql: &str,
) -> Vec<(usize, SourceNotice)> {
    cluster.psql(sql).unwrap();
    // A reader of this announcement has read everything before it.
    cluster.psql(&format!("ALTER TABLE trigger ADD COLUMN c{number} int")).unwrap();
    announce(cluster);
    let mut words = Vec::new();
    loop {
        match following.event().await {
            SourceEvent::Moved { table: TableIndex(2), .. } => return words,
            SourceEvent::Moved { table, .. } => words.push((table.0, Moved)),
            SourceEvent::Redefined { table: TableIndex(2), .. } => {}
            SourceEvent::Redefined { table, .. } => words.push((table.0, Redefined)),
            SourceEvent::Commit(_) => {}
            event => panic!("{sql}: {event:?}"),
        }
    }
}

async fn check(cases: &[(&str, &[(usize, SourceNotice)])]) {
    check_tables(TABLES, ["public.t", "public.r"], cases).await;
}

/// Checks the reports on two tables. The setup also creates a table `trigger`, and may create the
/// publication.
async fn check_tables(setup: &str, tables: [&str; 2], cases: &[(&str, &[(usize, SourceNotice)])]) {
    let cluster = cluster(setup);
    let mut following = follow(options(&cluster), &requests(&[tables[0], tables[1], "public.trigger"])).await;
    for table in 0..3 {
        following.copy(table).await;
    }
    for (number, (sql, expected)) in cases.iter().enumerate() {
        let words = words(&cluster, &mut following, number, sql).await;
        assert_eq!(words, *expected, "{sql}");
        following.copy(2).await;
        for (table, word) in words {
            if word == Moved {
                following.copy(table).await;
            }
        }
    }
}

#[tokio::test]
async fn what_goes_away_and_comes_back_is_seen() {
    let (t, r): (&[_], &[_]) = (&[(0, Moved)], &[(1, Moved)]);
    check(&[
        ("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; ALTER TYPE mood RENAME VALUE 'blue' TO 'sad'", t),
        (
            "BEGIN; ALTER TYPE mood RENAME VALUE 'ok' TO 'x'; ALTER TYPE mood RENAME VALUE 'sad' TO 'ok'; ALTER TYPE mood \
             RENAME VALUE 'x' TO 'sad'; COMMIT",
            t,
        ),
        ("ALTER TYPE pair DROP ATTRIBUTE b; ALTER TYPE pair ADD ATTRIBUTE b text", t),
        ("BEGIN; ALTER TABLE other DROP y; ALTER TABLE other ADD y text; COMMIT", t),
        ("ALTER TABLE t DROP w; ALTER TABLE t ADD w int", t),
        ("ALTER TABLE t ALTER w TYPE bigint; ALTER TABLE t ALTER w TYPE int", t),
        ("ALTER TABLE t ALTER w TYPE int USING w + 1; ALTER TABLE t ALTER w TYPE int USING w - 1", t),
        ("ALTER PUBLICATION laredo_pub DROP TABLE t; ALTER PUBLICATION laredo_pub ADD TABLE t", t),
        ("ALTER PUBLICATION laredo_pub SET TABLE t (id, u), r, trigger; ALTER PUBLICATION laredo_pub SET TABLE t, r, trigger", t),
        ("BEGIN; ALTER TABLE r DETACH PARTITION r1; UPDATE r1 SET v = 1; ALTER TABLE r ATTACH PARTITION r1 FOR VALUES FROM (0) TO (10); COMMIT", r),
        ("ALTER TABLE r DETACH PARTITION r2; INSERT INTO r2 VALUES (12); ALTER TABLE r ATTACH PARTITION r2 FOR VALUES FROM (10) TO (100)", r),
        ("ALTER TABLE r2 DETACH PARTITION r21; ALTER TABLE r2 ATTACH PARTITION r21 FOR VALUES FROM (10) TO (20)", r),
        ("BEGIN; DROP TABLE r1; CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10); COMMIT", r),
        ("TRUNCATE r21", r),
        ("ALTER TABLE r1 REPLICA IDENTITY FULL; ALTER TABLE r1 REPLICA IDENTITY USING INDEX r1_pkey", r),
        ("ALTER TABLE r1 REPLICA IDENTITY FULL; ALTER TABLE r1 REPLICA IDENTITY USING INDEX r1_pkey", r),
    ])
    .await;
}

/// While a table is a partition of another published table, its changes are sent as that table's.
#[tokio::test]
async fn a_table_that_was_a_partition_of_another_for_a_while_is_copied() {
    let setup = "
        CREATE TABLE a (id int PRIMARY KEY, v int); INSERT INTO a VALUES (1, 0);
        CREATE TABLE b (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE b1 PARTITION OF b FOR VALUES FROM (0) TO (10); INSERT INTO b VALUES (1, 0);
        CREATE TABLE above (id int, v int) PARTITION BY RANGE (id);
        CREATE TABLE keyed (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
        CREATE TABLE trigger (id int PRIMARY KEY, note int);
        CREATE PUBLICATION laredo_pub FOR ALL TABLES WITH (publish_via_partition_root = true)";
    let (a, b): (&[_], &[_]) = (&[(0, Moved)], &[(1, Moved)]);
    check_tables(setup, ["public.a", "public.b"], &[
        ("ALTER TABLE above ATTACH PARTITION a DEFAULT; UPDATE a SET v = 1; ALTER TABLE above DETACH PARTITION a", a),
        ("BEGIN; ALTER TABLE keyed ATTACH PARTITION a DEFAULT; UPDATE a SET v = 2; ALTER TABLE keyed DETACH PARTITION a; COMMIT", a),
        ("ALTER TABLE above ATTACH PARTITION a FOR VALUES FROM (0) TO (9); DELETE FROM a; ALTER TABLE above DETACH PARTITION a CONCURRENTLY", a),
        ("ALTER TABLE above ATTACH PARTITION b DEFAULT; UPDATE b1 SET v = 1; ALTER TABLE above DETACH PARTITION b", b),
        ("BEGIN; ALTER TABLE above ATTACH PARTITION b DEFAULT; COMMIT; BEGIN; INSERT INTO above VALUES (2, 2); ALTER TABLE above DETACH PARTITION b; \
          ALTER TABLE b ALTER v SET STATISTICS 10; COMMIT", b),
    ])
    .await;
}

/// The changes of a leaf that is followed directly are sent as its own only below a published root.
#[tokio::test]
async fn a_leaf_whose_root_was_another_for_a_while_is_copied() {
    let setup = "
        CREATE SCHEMA y; CREATE SCHEMA aside;
        CREATE TABLE m (id int, v int) PARTITION BY RANGE (id);
        CREATE TABLE m1 PARTITION OF m FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
        CREATE TABLE m11 PARTITION OF m1 FOR VALUES FROM (0) TO (5); ALTER TABLE m11 ADD PRIMARY KEY (id); INSERT INTO m VALUES (1, 0);
        CREATE TABLE y.s (id int, v int) PARTITION BY RANGE (id);
        CREATE TABLE s1 PARTITION OF y.s DEFAULT; ALTER TABLE s1 ADD PRIMARY KEY (id); INSERT INTO s1 VALUES (1, 0);
        CREATE TABLE elsewhere (id int, v int) PARTITION BY RANGE (id);
        CREATE TABLE trigger (id int PRIMARY KEY, note int);
        CREATE PUBLICATION laredo_pub FOR TABLE m, trigger, TABLES IN SCHEMA y";
    let (m, s): (&[_], &[_]) = (&[(0, Moved)], &[(1, Moved)]);
    check_tables(setup, ["public.m11", "public.s1"], &[
        ("ALTER TABLE m1 DETACH PARTITION m11; UPDATE m11 SET v = 1; ALTER TABLE m1 ATTACH PARTITION m11 FOR VALUES FROM (0) TO (5)", m),
        ("BEGIN; ALTER TABLE m DETACH PARTITION m1; UPDATE m11 SET v = 2; ALTER TABLE m ATTACH PARTITION m1 FOR VALUES FROM (0) TO (10); COMMIT", m),
        ("ALTER TABLE m1 DETACH PARTITION m11 CONCURRENTLY; UPDATE m11 SET v = 3; ALTER TABLE m1 ATTACH PARTITION m11 FOR VALUES FROM (0) TO (5)", m),
        ("ALTER PUBLICATION laredo_pub DROP TABLE m; UPDATE m11 SET v = 4; ALTER PUBLICATION laredo_pub ADD TABLE m", m),
        ("ALTER TABLE elsewhere ATTACH PARTITION m DEFAULT; UPDATE m11 SET v = 5; ALTER TABLE elsewhere DETACH PARTITION m", m),
        ("ALTER TABLE y.s SET SCHEMA aside; UPDATE s1 SET v = 1; ALTER TABLE aside.s SET SCHEMA y", s),
        ("ALTER PUBLICATION laredo_pub DROP TABLES IN SCHEMA y; UPDATE s1 SET v = 2; ALTER PUBLICATION laredo_pub ADD TABLES IN SCHEMA y", s),
    ])
    .await;
}

#[tokio::test]
async fn what_concerns_no_row_costs_no_copy() {
    let (t, r): (&[_], &[_]) = (&[(0, Redefined)], &[(1, Redefined)]);
    check(&[
        ("ALTER TABLE t RENAME TO x; ALTER TABLE x RENAME TO t", &[]),
        ("CREATE SCHEMA aside; ALTER TABLE t SET SCHEMA aside; ALTER TABLE aside.t SET SCHEMA public", &[]),
        ("ALTER SCHEMA public RENAME TO away; ALTER SCHEMA away RENAME TO public", &[]),
        ("ANALYZE; VACUUM", &[]),
        ("CREATE ROLE reader; GRANT SELECT ON t, r, r1 TO reader; COMMENT ON TABLE t IS 'a table'", &[]),
        ("ALTER TABLE t OWNER TO reader; ALTER TABLE r1 OWNER TO reader", &[]),
        ("CREATE INDEX ON t (w); CREATE INDEX ON r (v); REINDEX TABLE CONCURRENTLY t", &[]),
        ("ALTER TABLE t SET (fillfactor = 50); ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t ADD CHECK (w < 1000)", &[]),
        ("CREATE TABLE child (ref int REFERENCES t); CREATE TABLE heir () INHERITS (t)", &[]),
        ("CREATE STATISTICS s ON u, w FROM t; ALTER TABLE t ALTER w SET STATISTICS 10", t),
        ("ALTER TABLE t ALTER w SET DEFAULT 4", t),
        ("GRANT SELECT (w) ON t TO reader", t),
        ("CREATE TABLE r3 PARTITION OF r FOR VALUES FROM (100) TO (200); INSERT INTO r VALUES (100, 1)", r),
        ("CREATE TABLE r4 PARTITION OF r (v DEFAULT 7) FOR VALUES FROM (200) TO (300) PARTITION BY RANGE (id); \
          CREATE TABLE r41 PARTITION OF r4 DEFAULT; INSERT INTO r VALUES (200, 1)", r),
        ("CREATE TABLE r5 (LIKE r INCLUDING ALL); ALTER TABLE r ATTACH PARTITION r5 FOR VALUES FROM (300) TO (400)", r),
        ("DROP TABLE heir; ALTER TYPE pair RENAME TO couple; ALTER TYPE couple RENAME TO pair", &[]),
    ])
    .await;
}

#[tokio::test]
async fn a_partition_that_brought_rows_is_copied() {
    let r: &[_] = &[(1, Moved)];
    check(&[
        ("CREATE TABLE r3 (LIKE r INCLUDING ALL); INSERT INTO r3 VALUES (100, 1); ALTER TABLE r ATTACH PARTITION r3 FOR VALUES FROM (100) TO (200)", r),
        ("BEGIN; CREATE TABLE r4 (LIKE r INCLUDING ALL); INSERT INTO r4 VALUES (200, 1); ALTER TABLE r ATTACH PARTITION r4 FOR VALUES FROM (200) TO (300); COMMIT", r),
        ("BEGIN; CREATE TABLE r5 PARTITION OF r FOR VALUES FROM (300) TO (400); ALTER TABLE r DETACH PARTITION r5; INSERT INTO r5 VALUES (300, 1); ALTER TABLE r ATTACH PARTITION r5 FOR VALUES FROM (300) TO (400); COMMIT", r),
        ("BEGIN; CREATE TABLE r6 (LIKE r INCLUDING ALL) PARTITION BY RANGE (id); CREATE TABLE r61 PARTITION OF r6 DEFAULT; INSERT INTO r6 VALUES (400, 1); ALTER TABLE r ATTACH PARTITION r6 FOR VALUES FROM (400) TO (500); COMMIT", r),
        ("CREATE TABLE r7 PARTITION OF r FOR VALUES FROM (500) TO (600); INSERT INTO r VALUES (500, 1); TRUNCATE r7", r),
        ("CREATE TABLE r8 (LIKE r INCLUDING ALL); ALTER TABLE r ATTACH PARTITION r8 FOR VALUES FROM (600) TO (700); INSERT INTO r VALUES (600, 1); TRUNCATE r8", r),
        ("DROP TABLE r3", r),
    ])
    .await;
}

/// Labels inside other values cause a copy. Labels of a column are looked up in its rows.
#[tokio::test]
async fn labels_that_were_added_are_asked_of_rows() {
    let cluster = cluster(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN feeling AS mood;
         CREATE TABLE t (id int PRIMARY KEY, m mood, f feeling); CREATE TABLE trigger (id int PRIMARY KEY, note int);
         CREATE TABLE many (id int PRIMARY KEY, ms mood[])",
    );
    let mut following = follow(options(&cluster), &requests(&["public.t", "public.many", "public.trigger"])).await;
    for table in 0..3 {
        following.copy(table).await;
    }
    for (sql, labels) in [
        ("ALTER TYPE mood ADD VALUE 'new' BEFORE 'ok'", vec!["new", "ok", "sad"]),
        // With two new labels, one may once have had the name of the other, so neither is looked
        // up.
        ("BEGIN; ALTER TYPE mood ADD VALUE 'a'; ALTER TYPE mood ADD VALUE 'b'; COMMIT", vec!["new", "ok", "sad"]),
        (
            "BEGIN; ALTER TYPE mood ADD VALUE 'c'; ALTER TYPE mood RENAME VALUE 'c' TO 'd'; COMMIT",
            vec!["a", "b", "d", "new", "ok", "sad"],
        ),
    ] {
        cluster.psql(sql).unwrap();
        announce(&cluster);
        let (mut asked, mut moved) = (None, false);
        while asked.is_none() || !moved {
            match following.event().await {
                SourceEvent::Redefined { table: TableIndex(0), values, .. } => asked = Some(values),
                SourceEvent::Moved { table: TableIndex(1), .. } => moved = true,
                SourceEvent::Redefined { table: TableIndex(2), .. } | SourceEvent::Commit(_) => {}
                event => panic!("{sql}: {event:?}"),
            }
        }
        let asked = asked.unwrap();
        assert_eq!(asked.iter().map(|values| values.column.as_str()).collect::<Vec<_>>(), ["m", "f"]);
        for values in asked {
            assert_eq!(values.values, labels.iter().map(|label| label.as_bytes().to_vec()).collect(), "{sql}");
        }
        following.copy(1).await;
    }
}
