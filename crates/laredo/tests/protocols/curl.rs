//! A client made of curl and JSON alone.

use std::collections::BTreeMap;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout, Command};

use super::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use super::{CHANGES, cluster, item, plain, rows_in};

const ITEM: &str = r#"{"schema":"public","table":"item"}"#;

fn curl(port: u16, method: &str, content_type: &str, arguments: &[&str]) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--no-buffer", "--header", &format!("Content-Type: {content_type}")]);
    curl.args(arguments);
    curl.arg(format!("http://127.0.0.1:{port}/laredo.replication.v1.LaredoReplicationService/{method}"));
    curl
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_asks_on_either_port_and_in_either_http() {
    let cluster = cluster();
    let server = ServerProcessConfig::new(cluster.url("postgres"), [item()]).start().await;
    for port in [server.ports.grpc, server.ports.fanout] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let output = curl(port, "GetReplicationStatus", "application/json", &[version, "--data", ITEM]).output();
            let output = output.await.expect("curl is installed");
            let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
            assert_eq!(status["rowCount"], "500", "{status}");
            assert_eq!(status["latestSnapshot"]["rowCount"], "500", "{status}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_follows_a_table_in_json_and_has_what_postgresql_has() {
    let cluster = cluster();
    let server = ServerProcessConfig::new(cluster.url("postgres"), [item()]).start().await;
    let mut follower = CurlFollower::start(&server);
    let expected = rows_in(&cluster);
    follower.read_until(&expected).await;
    for change in CHANGES {
        cluster.psql(change).unwrap();
        let expected = rows_in(&cluster);
        follower.read_until(&expected).await;
    }
    server.process.terminate();
    let end = follower.end().await;
    assert_eq!(end["error"]["code"], "unavailable", "{end}");
    server.process.wait(PATIENCE).await.unwrap();
}

/// A follower that applies the stream that curl reads, as a reader of the contract would write it.
struct CurlFollower {
    rows: BTreeMap<i64, Value>,
    output: ChildStdout,
    _curl: Child,
    _folder: tempfile::TempDir,
}

impl CurlFollower {
    fn start(server: &ServerProcess) -> CurlFollower {
        let folder = tempfile::tempdir().unwrap();
        let ask = folder.path().join("ask");
        let length = u32::try_from(ITEM.len()).unwrap().to_be_bytes();
        std::fs::write(&ask, [&[0], length.as_slice(), ITEM.as_bytes()].concat()).unwrap();
        let data = format!("@{}", ask.display());
        let arguments = ["--http1.1", "--data-binary", data.as_str()];
        let mut curl = curl(server.ports.fanout, "Sync", "application/connect+json", &arguments);
        let mut curl = curl.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("curl is installed");
        CurlFollower { rows: BTreeMap::new(), output: curl.stdout.take().unwrap(), _curl: curl, _folder: folder }
    }

    /// Returns the flags and the JSON of the next frame.
    async fn frame(&mut self) -> (u8, Value) {
        let read = async {
            let mut prefix = [0; 5];
            self.output.read_exact(&mut prefix).await.expect("the stream goes on");
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
            let mut json = vec![0; length as usize];
            self.output.read_exact(&mut json).await.expect("a frame is whole");
            (prefix[0], serde_json::from_slice(&json).unwrap())
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a heartbeat comes at least")
    }

    async fn read_until(&mut self, expected: &Value) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while &self.rows.values().cloned().collect::<Value>() != expected {
            assert!(tokio::time::Instant::now() < deadline, "other rows than {expected}: {:?}", self.rows);
            let (flags, message) = self.frame().await;
            assert_eq!(flags, 0, "{message}");
            self.apply(plain(message));
        }
    }

    fn apply(&mut self, message: Value) {
        let entry = &message["journalEntry"];
        let (old, new) = (&entry["oldValues"], &entry["newValues"]);
        match entry["action"].as_str() {
            Some("INSERT" | "UPDATE") => self.put(new.clone()),
            Some("DELETE") => drop(self.rows.remove(&id(old)).expect("a row that is there")),
            Some(action) => panic!("{action} did not happen"),
            None if message["snapshotRow"].is_object() => self.put(message["snapshotRow"]["row"].clone()),
            None => {}
        }
    }

    fn put(&mut self, row: Value) {
        self.rows.insert(id(&row), row);
    }

    /// Returns the JSON of the stream's last frame.
    async fn end(mut self) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            assert!(tokio::time::Instant::now() < deadline, "it never ends");
            let (flags, message) = self.frame().await;
            if flags == 2 {
                return message;
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "ids are small whole numbers")]
fn id(row: &Value) -> i64 {
    row["id"].as_f64().expect("an id") as i64
}
