//! The rows and the schema of a copy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use laredo_core::{TableName, TupleRef, TypeKind};
use laredo_engine::source::{SnapshotCheck, TableRequest};
use tokio::sync::watch;

use crate::copy::harness::{cluster, follow, limited, options, requests, some};

#[tokio::test]
async fn only_what_is_published_is_copied() {
    let cluster = cluster(
        r#"CREATE TABLE "Tä""b.le" ("Ké" text PRIMARY KEY, "droppeD" int, v text, g text GENERATED ALWAYS AS (v || '!') STORED);
           ALTER TABLE "Tä""b.le" DROP COLUMN "droppeD";
           INSERT INTO "Tä""b.le" VALUES ('𝄞', NULL), ('ß', '');
           CREATE TABLE parent (id text PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
           INSERT INTO parent VALUES ('parent'); INSERT INTO child VALUES ('child');
           CREATE TABLE root (id text PRIMARY KEY, v text) PARTITION BY LIST (id);
           CREATE TABLE leaf_a PARTITION OF root FOR VALUES IN ('a');
           CREATE TABLE middle PARTITION OF root FOR VALUES IN ('b', 'c') PARTITION BY LIST (id);
           CREATE TABLE leaf_c (v text, id text NOT NULL); ALTER TABLE leaf_c ADD PRIMARY KEY (id);
           ALTER TABLE middle ATTACH PARTITION leaf_c FOR VALUES IN ('c');
           INSERT INTO root VALUES ('a', '1'), ('c', '2');
           CREATE TABLE acl (id text PRIMARY KEY, who aclitem);
           INSERT INTO acl VALUES ('x', 'postgres=r/postgres'), ('y', NULL);
           CREATE TABLE partial (id text, secret text, shown text, PRIMARY KEY (id));
           INSERT INTO partial VALUES ('1', 's', 'a'), ('2', 's', 'b');
           CREATE TABLE rls (id text PRIMARY KEY); ALTER TABLE rls ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
           INSERT INTO rls VALUES ('hidden')"#,
    );
    // PostgreSQL 14 publishes whole tables only.
    let (published, columns, rows) = match cluster.major_version() {
        14 => ("partial", vec!["id", "secret", "shown"], vec![some(&["1", "s", "a"]), some(&["2", "s", "b"])]),
        _ => ("partial (id, shown) WHERE (id <> '2')", vec!["id", "shown"], vec![some(&["1", "a"])]),
    };
    let publish = "WITH (publish_via_partition_root = true)";
    cluster.psql(&format!("CREATE PUBLICATION laredo_pub FOR TABLE {published} {publish}")).unwrap();
    let mut tables = requests(&["public.parent", "public.root", "public.acl", "public.partial", "public.rls"]);
    tables.push(TableRequest { name: TableName::new("public", "Tä\"b.le"), key_fields: Vec::new() });
    let following = follow(options(&cluster), &tables).await;

    assert_eq!(following.copy(0).await.texts(), [some(&["parent"])]);
    let root = following.copy(1).await;
    assert_eq!(root.texts(), [some(&["a", "1"]), some(&["c", "2"])], "a partition's columns may have another order");
    let acl = following.copy(2).await;
    assert_eq!(acl.texts(), [some(&["x", "postgres=r/postgres"]), vec![Some("y".to_owned()), None]]);
    let is_text: Vec<bool> = acl.schema.columns().iter().map(|column| column.is_text).collect();
    assert_eq!(is_text, [false, true]);
    let partial = following.copy(3).await;
    assert_eq!((partial.names(), partial.texts()), (columns, rows));
    assert_eq!(following.copy(4).await.texts(), [some(&["hidden"])]);
    let odd = following.copy(5).await;
    assert_eq!(odd.names(), ["Ké", "v"], "neither the dropped column nor the generated one");
    assert_eq!(odd.texts(), [some(&["ß", ""]), vec![Some("𝄞".to_owned()), None]]);
    assert!(odd.schema.columns()[0].not_null && !odd.schema.columns()[1].not_null);
}

#[tokio::test]
async fn a_schema_knows_its_key_and_every_type() {
    let cluster = cluster(
        r"CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TYPE mood ADD VALUE 'meh' BEFORE 'ok';
          CREATE DOMAIN score AS numeric(10, 2) CHECK (VALUE > 0);
          CREATE TYPE pair AS (a score, b mood[]); CREATE TYPE span AS RANGE (subtype = score, multirange_type_name = spanmultirange);
          CREATE TABLE t (z int, a int, p pair, m spanmultirange, n varchar(7)[], PRIMARY KEY (a, z));
          CREATE TABLE i (k int NOT NULL, id int PRIMARY KEY); CREATE UNIQUE INDEX u ON i (k) INCLUDE (id);
          ALTER TABLE i REPLICA IDENTITY USING INDEX u",
    );
    let following = follow(options(&cluster), &requests(&["public.t", "public.i"])).await;
    let schema = following.copy(0).await.schema;
    assert_eq!(schema.key().columns(), [1, 0], "in the order of the key");
    let types: BTreeMap<&str, &TypeKind> = schema.types().values().map(|def| (def.name.as_str(), &def.kind)).collect();
    let oid = |name: &str| *schema.types().iter().find(|(_, def)| def.name == name).unwrap().0;
    assert_eq!(types["mood"], &TypeKind::Enum(vec!["sad".into(), "meh".into(), "ok".into()]));
    assert_eq!(types["score"], &TypeKind::Domain(oid("numeric")));
    assert_eq!(types["pair"], &TypeKind::Composite(vec![("a".into(), oid("score")), ("b".into(), oid("_mood"))]));
    assert_eq!(types["_mood"], &TypeKind::Array(oid("mood")));
    assert_eq!(types["spanmultirange"], &TypeKind::Multirange(oid("span")));
    assert_eq!(types["span"], &TypeKind::Range(oid("score")));
    assert_eq!(types["_varchar"], &TypeKind::Array(oid("varchar")));
    assert_eq!(types["int4"], &TypeKind::Base);
    assert_eq!(schema.columns()[4].type_name, "character varying(7)[]");
    assert_eq!(following.copy(1).await.schema.key().columns(), [0], "the index's columns, not the primary key");
}

#[tokio::test]
async fn a_snapshot_is_taken_again_until_it_is_admitted() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let following = follow(options(&cluster), &requests(&["public.t"])).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let third: SnapshotCheck = Arc::new(move |_| counter.fetch_add(1, Ordering::Relaxed) == 2);
    let copied = following.try_copy(0, third).await.unwrap();
    assert_eq!((asked.load(Ordering::Relaxed), copied.rows.len(), copied.begun), (3, 1, 1));
}

#[tokio::test]
async fn a_copy_under_load_is_one_state() {
    let cluster = cluster(
        "CREATE TABLE accounts (id int PRIMARY KEY, amount int NOT NULL, pad text);
         INSERT INTO accounts SELECT i, 100, repeat('x', 500) FROM generate_series(1, 5000) i",
    );
    let following = follow(options(&cluster), &requests(&["public.accounts"])).await;
    let stop = watch::Sender::new(false);
    let mut writers = Vec::new();
    for n in 0..4_i32 {
        let client = cluster.connect().await.unwrap();
        let stopped = stop.subscribe();
        writers.push(tokio::spawn(async move {
            let mut at = n;
            while !*stopped.borrow() {
                at = (at * 31 + 17) % 4999;
                // The updates are in the order of IDs, so that no two writers deadlock.
                let sql = format!(
                    "BEGIN; UPDATE accounts SET amount = amount - 7 WHERE id = {}; UPDATE accounts SET amount = amount + 7 WHERE id = {}; COMMIT",
                    at + 1, at + 2
                );
                client.batch_execute(&sql).await.unwrap();
            }
        }));
    }
    for _ in 0..10 {
        let copied = following.copy(0).await;
        let amount = |row: &Vec<u8>| {
            let cell = TupleRef::trusted(row).cell(1).value().unwrap().try_into().unwrap();
            i64::from(i32::from_be_bytes(cell))
        };
        assert_eq!(copied.rows.len(), 5000);
        assert_eq!(copied.rows.iter().map(amount).sum::<i64>(), 500_000);
    }
    stop.send_replace(true);
    for writer in writers {
        writer.await.unwrap();
    }
    // The source did not lose a row either.
    assert_eq!(cluster.psql("SELECT count(*), sum(amount) FROM accounts").unwrap(), "5000|500000");
}

#[tokio::test]
async fn a_copy_ends_behind_every_position_reported_before_also_on_an_idle_database() {
    let cluster = cluster(
        "CREATE TABLE t (id int PRIMARY KEY);
         CREATE PUBLICATION laredo_pub FOR TABLE t WITH (publish_via_partition_root = true)",
    );
    // A plain role is sufficient.
    let mut following = follow(limited(&cluster), &requests(&["public.t"])).await;
    cluster.psql("CREATE TABLE idle_from_here_on ()").unwrap();
    let end = cluster.psql("SELECT pg_current_wal_flush_lsn()").unwrap().parse().unwrap();
    let mut position = following.progress(end).await;
    for _ in 0..3 {
        let copied = following.copy(0).await;
        assert!(copied.inserted > position, "{} {position}", copied.inserted);
        position = following.progress(copied.inserted).await;
    }
}

#[tokio::test]
async fn row_level_security_that_is_enabled_later_fails_the_copy() {
    let cluster = cluster(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
         CREATE PUBLICATION laredo_pub FOR TABLE t WITH (publish_via_partition_root = true)",
    );
    let mut following = follow(limited(&cluster), &requests(&["public.t"])).await;
    assert_eq!(following.copy(0).await.rows.len(), 1);
    cluster.psql("ALTER TABLE t ENABLE ROW LEVEL SECURITY").unwrap();
    let problem = following.refused(0).await;
    assert!(problem.contains("row-level security would hide rows from this role; as a superuser run"), "{problem}");
    // After the fix, the table can be copied again.
    cluster.psql("ALTER ROLE follower BYPASSRLS").unwrap();
    assert_eq!(following.moved(0).await, "it can be followed again");
    assert_eq!(following.copy(0).await.rows.len(), 1);
}
