//! `laredo` against a server and a database that are real.

use laredo_core::TableName;
use laredo_testkit::{Cluster, ClusterOptions, Process, clean_command, eventually};
use serde_json::{Value, json};

use crate::support::server::{PATIENCE, ServerConfig};

fn laredo(arguments: &[&str]) -> Process {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.args(arguments);
    Process::spawn(command).unwrap()
}

/// What it has said once it has ended well.
fn answer(arguments: &[&str]) -> String {
    let output = clean_command(env!("CARGO_BIN_EXE_laredo")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_status_and_fanout_tell_of_a_real_server() {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')").unwrap();
    let server = ServerConfig::new(cluster.url("postgres"), [TableName::new("public", "t")]).start().await;
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
