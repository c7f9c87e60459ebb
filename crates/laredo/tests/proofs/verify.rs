//! `laredo verify` against a real server and a real database. Differences are reported and healed,
//! in clients too.

use std::process::Output;

use laredo_client::Replica;
#[cfg(debug_assertions)]
use laredo_client::{ColumnPredicate, ReplicaError};
#[cfg(debug_assertions)]
use laredo_core::Lsn;
use laredo_core::TableName;
use laredo_testkit::oracle::{flushed, rows_at_rest};
use laredo_testkit::{Cluster, ClusterOptions, clean_command, eventually};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::support::compare::view_differences;
use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
#[cfg(debug_assertions)]
use crate::support::snapshotter::{self, SnapshotterProcess};

struct CorruptibleServer {
    // Before the cluster: when the server is dropped, it is verified.
    server: ServerProcess,
    cluster: Cluster,
    sql: Client,
    table: TableName,
}

impl CorruptibleServer {
    async fn start(arguments: &[&str]) -> CorruptibleServer {
        let cluster = Cluster::start(ClusterOptions::default().set("autovacuum", "off")).unwrap();
        let schema = "CREATE EXTENSION pg_surgery; CREATE TABLE t (id int PRIMARY KEY, n int, secret text);
            INSERT INTO t SELECT i, 0, 'secret ' || i FROM generate_series(1, 3000) i";
        cluster.psql(schema).unwrap();
        let table = TableName::new("public", "t");
        let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]);
        config.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let server = config.start().await;
        let sql = cluster.connect().await.unwrap();
        CorruptibleServer { cluster, sql, server, table }
    }

    /// Undoes an update, a delete and an insert in the table's file, without WAL.
    async fn plant(&self) {
        let place = async |id: i32| -> String {
            let row = self.sql.query_one("SELECT ctid::text FROM t WHERE id = $1", &[&id]).await;
            row.unwrap().get(0)
        };
        // PostgreSQL keeps old row versions while this snapshot exists.
        let keeper = self.cluster.connect().await.unwrap();
        keeper.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM pg_class LIMIT 1").await.unwrap();
        let (updated, deleted) = (place(7).await, place(8).await);
        self.sql.batch_execute("UPDATE t SET n = 1 WHERE id = 7; DELETE FROM t WHERE id = 8").await.unwrap();
        let position = flushed(&self.sql).await.unwrap();
        eventually(PATIENCE, async || self.server.is_live_at(position).await).await.unwrap();
        let (newer, inserted) = (place(7).await, place(9).await);
        let surgery = [("freeze", updated), ("kill", newer), ("freeze", deleted), ("kill", inserted)];
        let surgery = surgery.map(|(what, at)| format!("SELECT heap_force_{what}('t'::regclass, ARRAY['{at}'::tid]);"));
        // A verification in the background sees all of the changes or none.
        let statements = format!("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; {} COMMIT", surgery.concat());
        self.sql.batch_execute(&statements).await.unwrap();
    }

    fn verify(&self, arguments: &[&str]) -> Output {
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.args(["verify", "public.t", "--oam", &self.server.oam_url()]).args(arguments);
        command.output().unwrap()
    }

    fn verify_json(&self, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = self.verify(&[arguments, &["--json"]].concat());
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (output.status.code(), json)
    }

    async fn differences(&self, replica: &Replica) -> String {
        let oracle = rows_at_rest(&self.sql, &self.table, &["id"], "true").await.unwrap();
        view_differences(&replica.view(), &oracle, &["id"])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_planted_is_named_and_healed() {
    let setting = CorruptibleServer::start(&[]).await;
    let replica = Replica::builder(setting.server.url(), setting.table.clone()).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    let (code, equal) = setting.verify_json(&[]);
    assert_eq!((code, &equal["equal"], &equal["rows"]), (Some(0), &json!(true), &json!(3000)), "{equal}");
    setting.plant().await;

    let (code, found) = setting.verify_json(&["--no-heal"]);
    assert_eq!(
        (code, &found["equal"], &found["differing"], &found["heals"]),
        (Some(1), &json!(false), &json!(3), &json!(false))
    );
    let mut rows: Vec<Value> = found["differences"].as_array().unwrap().clone();
    rows.sort_by_key(|row| row["key"]["id"].as_i64());
    let row = |kind: &str, id: i32, columns: &[&str]| json!({ "kind": kind, "key": { "id": id }, "columns": columns, "held": null, "stored": null });
    assert_eq!(rows, [row("different", 7, &["n"]), row("missing", 8, &[]), row("extra", 9, &[])]);
    let text = String::from_utf8(setting.verify(&["--no-heal"]).stdout).unwrap();
    assert!(text.starts_with("public.t differs in 3 of ") && text.contains("different  id=7  n"), "{text}");
    assert!(!text.contains("secret"), "values are told on request only: {text}");
    let (_, found) = setting.verify_json(&["--no-heal", "--values"]);
    let stored = |id: i32| found["differences"].as_array().unwrap().iter().find(|row| row["key"]["id"] == id).unwrap();
    assert_eq!(stored(7)["stored"], json!({ "id": 7, "n": 0, "secret": "secret 7" }));
    assert_eq!(
        (&stored(7)["held"]["n"], &stored(8)["held"], &stored(9)["stored"]),
        (&json!(1), &Value::Null, &Value::Null)
    );

    let (_, health) = setting.server.health().await;
    assert_eq!(health["tables"][0]["verify"]["differing"], 3, "{health}");
    assert!(setting.differences(&replica).await.contains("still has"), "nothing is healed yet");
    assert_eq!(setting.verify(&[]).status.code(), Some(1));
    eventually(PATIENCE, async || setting.differences(&replica).await.is_empty()).await.unwrap();
    assert_eq!(setting.verify(&[]).status.code(), Some(0));
    assert_eq!(setting.server.metric("laredo_verify_differences_total", &setting.table).await, Some(12));
    assert_eq!(setting.server.metric("laredo_verifications_total", &setting.table).await, Some(6));
    let log = setting.server.process.output();
    let named = |line: &&String| line.contains("verification found a row that differs") && line.contains("id=7");
    assert!(log.iter().any(|line| named(&line)), "the log names each row");
    assert!(!log.iter().any(|line| line.contains("secret 7")), "and no values");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_heals_itself_in_the_background() {
    let setting = CorruptibleServer::start(&["--set", "tables.0.verify.interval=1s"]).await;
    let replica = Replica::builder(setting.server.url(), setting.table.clone()).start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    setting.plant().await;
    eventually(PATIENCE, async || setting.differences(&replica).await.is_empty()).await.unwrap();
    assert_eq!(setting.server.metric("laredo_verify_differences_total", &setting.table).await, Some(3));
    let is_equal = async || {
        let (_, health) = setting.server.health().await;
        let verify = &health["tables"][0]["verify"];
        verify["differing"] == 0 && verify["age_ms"].is_u64()
    };
    eventually(PATIENCE, is_equal).await.unwrap();
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_verified_is_no_answer() {
    let setting = CorruptibleServer::start(&[]).await;
    let command = |table: &str, oam: &str| {
        let output =
            clean_command(env!("CARGO_BIN_EXE_laredo")).args(["verify", table, "--oam", oam]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = command("public.other", &setting.server.oam_url());
    assert!(code == Some(2) && told.contains("public.other"), "{told}");
    let (code, told) = command("public.t", "http://127.0.0.1:1");
    assert!(code == Some(2) && told.contains("cannot be reached"), "{told}");
    let (code, told) = command("public.t", &setting.server.url());
    assert!(code == Some(2) && told.contains("has no OAM service"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_compared_with_the_server_at_one_position() {
    let setting = CorruptibleServer::start(&[]).await;
    let schema = "CREATE TABLE other (LIKE t INCLUDING ALL); INSERT INTO other SELECT * FROM t WHERE id > 1;
        UPDATE other SET n = 5 WHERE id = 2";
    setting.sql.batch_execute(schema).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let export = |table: &str| {
        let archive = folder.path().join(table).display().to_string();
        let name = format!("public.{table}");
        let url = setting.cluster.url("postgres");
        super::command::answer(&["archive", "export", &archive, "--postgres", &url, "--table", &name]);
        archive
    };
    let (own, other) = (export("t"), export("other"));
    let server = setting.server.url();
    let compare = |archive: &str| setting.verify_json(&["--archive", archive, "--server", &server]);
    let (code, equal) = compare(&own);
    assert_eq!((code, &equal["archive"]["equal"], &equal["archive"]["rows"]), (Some(0), &json!(true), &json!(3000)));
    // Changes after the archive's head come from the server.
    setting.sql.batch_execute("UPDATE t SET n = n + 1 WHERE id > 2990; DELETE FROM t WHERE id = 3000").await.unwrap();
    let (code, equal) = compare(&own);
    assert_eq!((code, &equal["archive"]["equal"], &equal["archive"]["rows"]), (Some(0), &json!(true), &json!(2999)));
    let (code, found) = compare(&other);
    assert_eq!((code, &found["equal"], &found["archive"]["differing"]), (Some(1), &json!(true), &json!(2)), "{found}");
    let missing = folder.path().join("missing").display().to_string();
    let output = setting.verify(&["--archive", &missing, "--server", &server]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// A server whose rows of one table go wrong in its memory alone: its journal, its base and its
/// readers have the right ones.
#[cfg(debug_assertions)]
struct FaultyMemory {
    // Before the cluster: when the server is dropped, it is verified.
    server: ServerProcess,
    _cluster: Cluster,
    sql: Client,
    table: TableName,
    canary: std::path::PathBuf,
    folder: tempfile::TempDir,
}

#[cfg(debug_assertions)]
impl FaultyMemory {
    async fn start() -> FaultyMemory {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        let sql = cluster.connect().await.unwrap();
        let schema = "CREATE TABLE t (id int PRIMARY KEY, n int, body text); CREATE TABLE ticks (id int PRIMARY KEY);
            INSERT INTO t SELECT i, 0, 'row ' || i FROM generate_series(1, 500) i";
        sql.batch_execute(schema).await.unwrap();
        let (table, folder) = (TableName::new("public", "t"), tempfile::tempdir().unwrap());
        let canary = folder.path().join("canary");
        let tables = [table.clone(), TableName::new("public", "ticks")];
        let mut config = ServerProcessConfig::new(cluster.url("postgres"), tables);
        config.environment.push(("LAREDO_TEST_CANARY", canary.to_string_lossy().into_owned()));
        let mut server = config.start().await;
        server.has_archive(&table, &folder.path().join("archive/t"));
        FaultyMemory { server, _cluster: cluster, sql, table, canary, folder }
    }

    /// Starts a replica. Only a stream without filters has checksums.
    async fn replica(&self, is_filtered: bool) -> Replica {
        let builder = Replica::builder(self.server.url(), self.table.clone());
        let builder = if is_filtered { builder.filter(ColumnPredicate::prefix("body", "row ")) } else { builder };
        let replica = builder.start().unwrap();
        replica.ready(PATIENCE).await.unwrap();
        replica
    }

    /// Makes a row wrong in the server's memory. A commit to another table is the occasion.
    async fn plant(&self, fault: &str, tick: i32) {
        std::fs::write(&self.canary, format!("public.t {fault}\n")).unwrap();
        self.sql.execute("INSERT INTO ticks VALUES ($1)", &[&tick]).await.unwrap();
        eventually(PATIENCE, async || !self.canary.exists()).await.expect("the fault is planted");
    }

    async fn is_right(&self, replica: &Replica) {
        let equal = async || {
            let oracle = rows_at_rest(&self.sql, &self.table, &["id"], "true").await.unwrap();
            view_differences(&replica.view(), &oracle, &["id"]).is_empty()
        };
        eventually(PATIENCE, equal).await.expect("the replica has the rows of the table");
    }
}

/// The rows of a filtered replica are never compared, so it keeps the right ones and its stream.
/// The others may load the table again, but only because their checksum differed from the server's.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread")]
async fn a_healed_server_refuses_no_reader_whose_rows_were_right() {
    let setting = FaultyMemory::start().await;
    let archive = setting.folder.path().join("archive");
    let keys = json!({ "key_prefix": "t/", "diff": { "interval": "200ms" } });
    let archived = snapshotter::table(&setting.server.url(), &setting.table, &archive, &keys);
    let snapshotter = SnapshotterProcess::launch(&[archived], &json!({}), &[]);
    snapshotter.ready().await;
    let (filtered, full) = (setting.replica(true).await, setting.replica(false).await);
    for (tick, (fault, kind)) in
        (1..).zip([("changed-cell", "different"), ("missing-row", "missing"), ("extra-row", "extra")])
    {
        setting.plant(fault, tick).await;
        let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
        command.args(["verify", "public.t", "--json", "--oam", &setting.server.oam_url()]);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        let expected = (&json!(1), &json!(true), &json!(kind));
        assert_eq!((&found["differing"], &found["heals"], &found["differences"][0]["kind"]), expected, "{found}");
        // Every row changes, and some come and go: each of them must be there once.
        let changes = format!(
            "UPDATE t SET n = {tick}; DELETE FROM t WHERE id % 10 = {tick};
             INSERT INTO t SELECT {tick} * 1000 + i, 0, 'row of ' || i FROM generate_series(1, 20) i"
        );
        setting.sql.batch_execute(&changes).await.unwrap();
        setting.is_right(&filtered).await;
        setting.is_right(&full).await;
        let status = filtered.status();
        assert_eq!((status.connects, status.full_snapshots, status.last_error), (1, 1, None), "{fault}");
        let status = full.status();
        assert!(
            status.resyncs <= status.checksum_mismatches
                && matches!(status.last_error, None | Some(ReplicaError::Contents { .. })),
            "{fault}: {status:?}"
        );
        let position = flushed(&setting.sql).await.unwrap();
        let is_archived = async || {
            let reached = snapshotter.status().await[0]["position"].as_str().and_then(|text| text.parse::<Lsn>().ok());
            reached.is_some_and(|reached| reached >= position)
        };
        eventually(PATIENCE, is_archived).await.expect(fault);
    }
    let log = snapshotter.process.output();
    for refusal in ["already exists", "does not exist"] {
        assert!(!log.iter().any(|line| line.contains(refusal)), "{}", log.join("\n"));
    }
    // The archive is compared with the server when the server is dropped.
    snapshotter.stop().await;
    filtered.stop().await;
    full.stop().await;
}
