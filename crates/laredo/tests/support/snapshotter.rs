//! A `laredo-snapshotter` process with a configuration file and a port of its own.

use std::path::{Path, PathBuf};

use laredo_core::TableName;
use laredo_testkit::{ChildProcess, clean_command, eventually, free_port};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::server::{PATIENCE, http};

/// A running snapshotter. It is killed when it is dropped, and prints its log when the test panics.
#[derive(Debug)]
pub struct SnapshotterProcess {
    /// The process of the snapshotter.
    pub process: ChildProcess,
    /// The port of its HTTP API.
    pub port: u16,
    file: PathBuf,
    environment: Vec<(String, String)>,
    _dir: TempDir,
}

/// Returns the block of a table whose archive is in a folder, with more keys.
pub fn table(server: &str, name: &TableName, folder: &Path, keys: &Value) -> Value {
    let mut table = json!({
        "source": { "server": server, "schema": name.schema, "table": name.table },
        "destinations": [{ "type": "local", "path": folder }],
    });
    let more = keys.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    table.as_object_mut().unwrap().extend(more);
    table
}

impl SnapshotterProcess {
    /// Starts a snapshotter that writes these tables, with more top-level keys.
    pub fn launch(tables: &[Value], keys: &Value, environment: &[(&str, &str)]) -> SnapshotterProcess {
        let port = free_port().unwrap();
        let mut config = json!({ "tables": tables, "http": { "port": port } });
        let more = keys.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
        config.as_object_mut().unwrap().extend(more);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("snapshotter.conf");
        // Every JSON text is also HOCON.
        std::fs::write(&file, json!({ "snapshotter": config }).to_string()).unwrap();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<(String, String)> = environment.iter().map(owned).collect();
        SnapshotterProcess { process: spawn(&file, &environment), port, file, environment, _dir: dir }
    }

    /// Kills the snapshotter and starts it again.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.process.wait(PATIENCE).await.unwrap();
        self.process = spawn(&self.file, &self.environment);
    }

    /// Waits until every table has its base.
    pub async fn ready(&self) {
        let ready = async || matches!(http(self.port, "GET", "/health/ready").await, Some((200, _)));
        if eventually(PATIENCE, ready).await.is_err() {
            panic!("it does not become ready: {:?}", http(self.port, "GET", "/health/ready").await);
        }
    }

    /// Returns the status of each table.
    pub async fn status(&self) -> Vec<Value> {
        let answers = async || http(self.port, "GET", "/status").await.is_some();
        eventually(PATIENCE, answers).await.expect("it answers");
        let (_, body) = http(self.port, "GET", "/status").await.expect("it answers");
        let status: Value = serde_json::from_str(&body).unwrap();
        status["tables"].as_array().unwrap().clone()
    }

    /// Requests bases. Returns the status code and the JSON of the answer.
    pub async fn snapshot(&self, query: &str) -> (u16, Value) {
        let (code, body) = http(self.port, "POST", &format!("/snapshot{query}")).await.expect("it answers");
        (code, serde_json::from_str(&body).unwrap())
    }

    /// Asks the snapshotter to stop, and waits until it has.
    pub async fn stop(&self) {
        self.process.terminate();
        assert!(self.process.wait(PATIENCE).await.unwrap().success());
    }
}

fn spawn(file: &Path, environment: &[(String, String)]) -> ChildProcess {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo-snapshotter"));
    command.arg("--config").arg(file).env("NO_COLOR", "1");
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    ChildProcess::spawn(command).unwrap()
}
