//! The program `laredo` against a real server and a real database.

use laredo_core::TableName;
use laredo_testkit::{ChildProcess, Cluster, ClusterOptions, clean_command, eventually};
use serde_json::{Value, json};

use crate::support::server::{PATIENCE, ServerProcessConfig};

fn laredo(arguments: &[&str]) -> ChildProcess {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.args(arguments);
    ChildProcess::spawn(command).unwrap()
}

/// Returns the output of a successful command.
pub(super) fn answer(arguments: &[&str]) -> String {
    let output = clean_command(env!("CARGO_BIN_EXE_laredo")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_status_and_fanout_show_a_real_server() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").unwrap();
    let server = ServerProcessConfig::new(cluster.url("postgres"), [TableName::new("public", "t")]).start().await;
    let url = server.url();

    let tail = laredo(&["tail", "public.t", "--server", &url]);
    tail.wait_for_line("following public.t from .*, 1 rows").await.unwrap();
    cluster
        .psql("INSERT INTO t VALUES (2, 'b'); UPDATE t SET v = 'c' WHERE id = 2; DELETE FROM t WHERE id = 1")
        .unwrap();
    tail.wait_for_line("DELETE").await.unwrap();
    let lines = tail.output().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let told: Vec<_> = lines.map(|line| json!([line["action"], line["key"], line["old"], line["new"]])).collect();
    let row = |id: i32, v: &str| json!({ "id": id, "v": v });
    let expected = [
        json!(["INSERT", { "id": 2 }, null, row(2, "b")]),
        json!(["UPDATE", { "id": 2 }, row(2, "b"), row(2, "c")]),
        json!(["DELETE", { "id": 1 }, row(1, "a"), null]),
    ];
    assert_eq!(told, expected);

    let status = answer(&["status", "--health", &format!("http://127.0.0.1:{}", server.ports.health)]);
    assert!(status.starts_with("ready\n") && status.contains("public.t  live"), "{status}");
    let fanout = answer(&["fanout", "status", "public.t", "--server", &url, "--json"]);
    let fanout: Value = serde_json::from_str(&fanout).unwrap();
    assert_eq!((&fanout["table"], &fanout["row_count"]), (&json!("t"), &json!(1)), "{fanout}");
    let live = async || {
        let clients = answer(&["fanout", "clients", "public.t", "--server", &url]);
        clients.lines().any(|line| line.contains("laredo-tail") && line.contains("live"))
    };
    eventually(PATIENCE, live).await.unwrap();

    tail.interrupt();
    assert!(tail.wait(PATIENCE).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_orders() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL); INSERT INTO t VALUES (1, 'a')").unwrap();
    let table = TableName::new("public", "t");
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [table.clone()]).slot("laredo_orders");
    config.arguments = ["--drain-grace", "60s"].map(str::to_owned).to_vec();
    let server = config.start().await;
    let url = server.oam_url();
    let oam = |arguments: &[&str]| answer(&[arguments, &["--oam", &url]].concat());
    let value =
        |arguments: &[&str]| -> Value { serde_json::from_str(&oam(&[arguments, &["--json"]].concat())).unwrap() };

    assert_eq!(oam(&["ready"]), "ready\n");
    let schema = oam(&["schema", "public.t"]);
    let words: Vec<Vec<&str>> = schema.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[1..], [vec!["id", "integer", "not", "null", "1"], vec!["v", "text", "not", "null"]], "{schema}");
    let tables = oam(&["tables"]);
    let words: Vec<&str> = tables.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(words, ["public.t", "id", "db", "replication-fanout"], "{tables}");
    assert_eq!(value(&["tables"])[0]["primary_key"], "id");
    let source = value(&["source", "db"]);
    assert_eq!((&source[0]["source_type"], &source[0]["supports_resume"]), (&json!("postgresql"), &json!(true)));

    let watch = laredo(&["watch", "public.t", "--oam", &url]);
    watch.wait_for_line("db/public.t streaming").await.unwrap();
    assert_eq!(oam(&["pause"]), "paused\n");
    watch.wait_for_line("db/public.t paused").await.unwrap();
    cluster.psql("INSERT INTO t VALUES (2, 'b')").unwrap();
    let rows = || async { server.metric("laredo_rows", &table).await };
    assert_eq!(
        (oam(&["resume", "db"]), watch.wait_for_nth_line("db/public.t streaming", 2).await.is_ok()),
        ("streaming\n".to_owned(), true)
    );
    eventually(PATIENCE, async || rows().await == Some(2)).await.unwrap();

    let pipelines = oam(&["pipelines"]);
    let words: Vec<&str> = pipelines.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    assert_eq!(words, ["db/public.t", "streaming", "2", "1", "0", "0", "0"], "{pipelines}");
    assert_eq!(value(&["pipelines"])[0]["inserts_applied"], 1);

    let source = async || oam(&["source", "db"]);
    let is_reported = async || source().await.contains("reserved");
    eventually(PATIENCE, is_reported).await.expect("how the slot stands is told");

    let copies = async || server.metric("laredo_copies_total", &table).await;
    assert_eq!(copies().await, Some(1));
    assert!(oam(&["reload", "public.t"]).starts_with("1 tables are being copied again"));
    eventually(PATIENCE, async || copies().await == Some(2)).await.unwrap();

    let tail = laredo(&["tail", "public.t", "--server", &server.url()]);
    tail.wait_for_line("following public.t").await.unwrap();
    let drained = value(&["drain", "--deadline", "60"]);
    assert_eq!(drained["accepted"], json!(true));
    let refused =
        clean_command(env!("CARGO_BIN_EXE_laredo")).args(["ready", "public.t", "--oam", &url]).output().unwrap();
    let told = String::from_utf8(refused.stdout).unwrap();
    assert_eq!((refused.status.code(), told.as_str()), (Some(1), "not ready\npublic.t: draining\n"));

    for (arguments, words) in [
        (vec!["reload", "public.none"], "this server has no table public.none"),
        (vec!["pause", "other"], "this server has no source `other`"),
    ] {
        let refused =
            clean_command(env!("CARGO_BIN_EXE_laredo")).args(&arguments).args(["--oam", &url]).output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(2) && said.contains(words), "{arguments:?}: {said}");
    }
    let fanout = clean_command(env!("CARGO_BIN_EXE_laredo")).args(["ready", "--oam", &server.url()]).output().unwrap();
    assert!(String::from_utf8(fanout.stderr).unwrap().contains("has no OAM service"));
}
