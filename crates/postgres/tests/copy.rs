//! Copies of real tables, and what they have to do with the stream.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use laredo_core::{Cell, Lsn, Schema, TableName, TupleRef, TypeKind};
use laredo_engine::source::{
    Admission, CopyEvent, Snapshot, Source, SourceError, SourceEvent, TableIndex, TableRequest,
};
use laredo_engine::spool::{RawChange, SpoolEntry, SpoolOptions};
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::{ConnectionOptions, PostgresOptions, PostgresSource, PublicationOptions};
use laredo_testkit::{Cluster, ClusterOptions};
use tokio::sync::{mpsc, watch};

/// A source that streams, so that copies may begin.
struct Following {
    source: Arc<PostgresSource>,
    events: mpsc::Receiver<SourceEvent>,
    _acknowledged: watch::Sender<Lsn>,
}

struct Copied {
    schema: Arc<Schema>,
    rows: Vec<Vec<u8>>,
    snapshot: Snapshot,
    begun: usize,
}

impl Copied {
    /// The cells of each row as text, in order; only for columns whose cells are text.
    fn texts(&self) -> Vec<Vec<Option<String>>> {
        let mut rows: Vec<Vec<_>> = self
            .rows
            .iter()
            .map(|row| {
                let row = TupleRef::parse(row, self.schema.columns().len()).unwrap();
                row.cells().map(text).collect()
            })
            .collect();
        rows.sort();
        rows
    }

    fn names(&self) -> Vec<&str> {
        self.schema.columns().iter().map(|column| column.name.as_str()).collect()
    }
}

fn text(cell: Cell<'_>) -> Option<String> {
    cell.value().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn requests(names: &[&str]) -> Vec<TableRequest> {
    let request = |name: &&str| TableRequest { name: name.parse::<TableName>().unwrap(), key_fields: Vec::new() };
    names.iter().map(request).collect()
}

fn options(cluster: &Cluster) -> PostgresOptions {
    PostgresOptions {
        connection: ConnectionOptions::parse(&cluster.url("postgres")).unwrap(),
        slot: SlotMode::Ephemeral { name_prefix: "laredo".to_owned() },
        publication: PublicationOptions { name: "laredo_pub".to_owned(), create: true },
        reconnect: ReconnectOptions::default(),
        spool: Arc::new(SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() }),
        seed: 1,
    }
}

async fn follow(options: PostgresOptions, tables: &[TableRequest]) -> Following {
    let source = Arc::new(PostgresSource::new(options));
    source.prepare(tables).await.unwrap();
    let (sender, events) = mpsc::channel(1000);
    let (acknowledged, reader) = watch::channel(Lsn::ZERO);
    let streaming = source.clone();
    tokio::spawn(async move { streaming.stream(sender, reader).await });
    Following { source, events, _acknowledged: acknowledged }
}

fn everything() -> Admission {
    Arc::new(|_| true)
}

impl Following {
    async fn copy(&self, table: usize) -> Copied {
        self.try_copy(table, everything()).await.unwrap()
    }

    async fn try_copy(&self, table: usize, admits: Admission) -> Result<Copied, SourceError> {
        copy(self.source.clone(), table, admits).await
    }

    /// The next thing said that is not a mere position.
    async fn event(&mut self) -> SourceEvent {
        loop {
            match self.events.recv().await.unwrap() {
                SourceEvent::Progress(_) => {}
                event => return event,
            }
        }
    }
}

async fn copy(source: Arc<PostgresSource>, table: usize, admits: Admission) -> Result<Copied, SourceError> {
    let (sender, mut receiver) = mpsc::channel(4);
    let copy = tokio::spawn(async move { source.copy(TableIndex(table), admits, sender).await });
    let (mut schema, mut rows, mut begun, mut seen) = (None, Vec::new(), 0, None);
    while let Some(event) = receiver.recv().await {
        match event {
            CopyEvent::Begin { schema: new, snapshot, .. } => {
                schema = Some(new);
                seen = Some(snapshot);
                rows.clear();
                begun += 1;
            }
            CopyEvent::Rows(chunk) => rows.extend(split(&chunk)),
            CopyEvent::End { inserted } => assert!(inserted > Lsn::ZERO),
        }
    }
    copy.await.unwrap()?;
    Ok(Copied { schema: schema.unwrap(), rows, snapshot: seen.unwrap(), begun })
}

fn split(chunk: &[u8]) -> Vec<Vec<u8>> {
    let (mut rows, mut rest) = (Vec::new(), chunk);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (row, after) = after.split_at(u32::from_ne_bytes(*length) as usize);
        rows.push(row.to_vec());
        rest = after;
    }
    assert!(rest.is_empty());
    rows
}

fn cluster(sql: &str) -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(sql).unwrap();
    cluster
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

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
           INSERT INTO rls VALUES ('hidden');
           CREATE PUBLICATION laredo_pub FOR TABLE partial (id, shown) WHERE (id <> '2')
               WITH (publish_via_partition_root = true)"#,
    );
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
    assert_eq!((partial.names(), partial.texts()), (vec!["id", "shown"], vec![some(&["1", "a"])]));
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
    let third: Admission = Arc::new(move |_| counter.fetch_add(1, Ordering::Relaxed) == 2);
    let copied = following.try_copy(0, third).await.unwrap();
    assert_eq!((asked.load(Ordering::Relaxed), copied.rows.len(), copied.begun), (3, 1, 1));
}

#[tokio::test]
async fn writers_from_before_the_slot_are_waited_for() {
    let cluster = cluster("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    let mut before = options(&cluster);
    before.slot = SlotMode::Stateful { name: "s".to_owned() };
    // The slot is there before the publication has the table: what was written until then is never streamed.
    cluster.psql("CREATE PUBLICATION laredo_pub FOR TABLE u WITH (publish_via_partition_root = true)").unwrap();
    cluster.psql("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").unwrap();
    let mut writer = cluster.connect().await.unwrap();
    let writing = writer.transaction().await.unwrap();
    writing.execute("INSERT INTO t VALUES (1)", &[]).await.unwrap();
    // One that only reads is not waited for, nor is a writer of another table.
    let mut other = cluster.connect().await.unwrap();
    let reading = other.transaction().await.unwrap();
    reading.batch_execute("SELECT * FROM t; INSERT INTO u VALUES (9)").await.unwrap();

    let mut following = follow(before, &requests(&["public.t"])).await;
    let copying = copy(following.source.clone(), 0, everything());
    tokio::pin!(copying);
    let watcher = cluster.connect().await.unwrap();
    tokio::select! {
        _ = &mut copying => panic!("the copy did not wait for a transaction that will never be streamed"),
        () = asked_again(&watcher) => {}
    }
    // Prepared, it changes hands and keeps its locks.
    writing.batch_execute("PREPARE TRANSACTION 'two'").await.unwrap();
    tokio::select! {
        _ = &mut copying => panic!("the copy did not wait for the prepared transaction"),
        () = asked_again(&watcher) => {}
    }
    cluster.psql("COMMIT PREPARED 'two'").unwrap();
    let copied = copying.await.unwrap();
    assert_eq!(copied.rows.len(), 1, "it is in the copy");

    cluster.psql("INSERT INTO t VALUES (2)").unwrap();
    let SourceEvent::Commit(mut commit) = following.event().await else { panic!("not a commit") };
    assert!(!copied.snapshot.sees(commit.xid), "only what came after the copy is streamed");
    let mut seen = Vec::new();
    commit.tables[0]
        .1
        .read::<std::io::Error>(|entry| {
            if let SpoolEntry::Change(RawChange::Insert { new }) = entry {
                seen.push(new.cell(0).value().unwrap().to_vec());
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, [2_i32.to_be_bytes()]);
}

/// Returns when a waiting copy has asked three more times whether its writers are still there.
async fn asked_again(watcher: &tokio_postgres::Client) {
    let sql = "SELECT extract(epoch FROM query_start)::float8 FROM pg_stat_activity
               WHERE application_name = 'laredo' AND query LIKE '%transactionid%IN (%'";
    let mut times = BTreeSet::new();
    while times.len() < 4 {
        for row in watcher.query(sql, &[]).await.unwrap() {
            times.insert(row.get::<_, f64>(0).to_bits());
        }
    }
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
                // In the order of ids, so that no two writers wait for one another.
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
    // Nothing was lost in the source either.
    assert_eq!(cluster.psql("SELECT count(*), sum(amount) FROM accounts").unwrap(), "5000|500000");
}

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
    // The label changes while the copy's snapshot stands: no lock of ours forbids that.
    let admits: Admission = Arc::new(move |_| {
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
async fn the_fingerprint_moves_with_everything_the_stream_does_not_tell() {
    let cluster = cluster(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE t (id int PRIMARY KEY, m mood, w int);
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE spare (id int PRIMARY KEY); INSERT INTO spare VALUES (11);
         CREATE TABLE trigger (id int PRIMARY KEY)",
    );
    let names = ["public.t", "public.p", "public.trigger"];
    let mut following = follow(options(&cluster), &requests(&names)).await;
    for table in 0..3 {
        following.copy(table).await;
    }
    // In one table each, so that only the announcement of another one leads to it.
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
        cluster.psql(sql).unwrap();
        announce(&cluster);
        loop {
            match following.event().await {
                SourceEvent::Moved { table: moved, reason } => {
                    assert_eq!(moved, TableIndex(table), "{sql}: {reason}");
                    assert!(reason.contains(expected), "{sql}: {reason}");
                    break;
                }
                SourceEvent::Commit(_) => {}
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
                SourceEvent::Commit(_) => {}
                event => panic!("{sql}: {event:?}"),
            }
        }
    }
}

/// Has a table announced on the stream: its relation is sent anew after every change of its definition.
fn announce(cluster: &Cluster) {
    cluster
        .psql(
            "ALTER TABLE trigger ALTER COLUMN id SET STATISTICS 100; INSERT INTO trigger SELECT count(*) FROM trigger",
        )
        .unwrap();
}
