//! A `laredo-server` process with a configuration file and ports of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use laredo_core::{Lsn, TableName};
use laredo_testkit::{Process, clean_command, eventually, free_port};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::verify::{ArchiveOf, Verified, verify_server};

/// How long a server may take to become ready, and whatever else is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Keys of a target whose clients are never cut for being slow: one that connected again had another reason.
pub const PATIENT: &str = "client_buffer { max_size = 100000000 }";

/// What a server is to serve. Fields that are HOCON text are put where they belong as they are.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// A connection string.
    pub connection: String,
    /// The name of a permanent slot; without one the slot is temporary.
    pub slot: Option<String>,
    /// The publication. Each server makes its own unless they are told to share.
    pub publication: String,
    /// The tables, with their `key_fields` (mostly none).
    pub tables: Vec<(TableName, Vec<String>)>,
    /// More keys of every target, such as `journal { max_entries = 10 }`.
    pub target: String,
    /// More keys of the source.
    pub source: String,
    /// More top-level keys.
    pub extra: String,
    /// More of the command line.
    pub arguments: Vec<String>,
    /// More of the environment, for the first process.
    pub environment: Vec<(&'static str, String)>,
}

impl ServerConfig {
    /// Serves `tables`, with heartbeats five times a second and reconnects that do not keep a test waiting.
    pub fn new(connection: impl Into<String>, tables: impl IntoIterator<Item = TableName>) -> ServerConfig {
        ServerConfig {
            connection: connection.into(),
            slot: None,
            publication: "laredo_test_pub".to_owned(),
            tables: tables.into_iter().map(|table| (table, Vec::new())).collect(),
            target: "heartbeat_interval = 200ms".to_owned(),
            source: "reconnect { initial_backoff = 20ms, max_backoff = 500ms }".to_owned(),
            extra: String::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// With a permanent slot of this name.
    #[must_use]
    pub fn slot(mut self, slot: &str) -> ServerConfig {
        self.slot = Some(slot.to_owned());
        self
    }

    /// With more keys in every target.
    #[must_use]
    pub fn target(mut self, keys: &str) -> ServerConfig {
        self.target = format!("{}\n{keys}", self.target);
        self
    }

    /// The file's text.
    pub fn to_hocon(&self, ports: &Ports) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let slot = match &self.slot {
            Some(slot) => format!("slot_mode = stateful, slot_name = {}", quoted(slot)),
            None => "slot_mode = ephemeral".to_owned(),
        };
        let table = |(name, key): &(TableName, Vec<String>)| {
            let key_fields = match key.as_slice() {
                [] => String::new(),
                _ => format!("key_fields = {}", Value::from(key.clone())),
            };
            format!(
                "{{ source = db, schema = {}, table = {}, {key_fields}\n targets = [{{ type = replication-fanout\n\
                 grpc {{ port = {} }}\n{} }}] }}",
                quoted(&name.schema),
                quoted(&name.table),
                ports.fanout,
                self.target
            )
        };
        format!(
            "sources {{ db {{ type = postgresql, connection = {}, {slot}\n\
             publication {{ name = {}, create = true }}\n{} }} }}\ntables = [{}]\n\
             grpc {{ port = {} }}\nhealth {{ http_port = {} }}\n\
             observability {{ metrics {{ type = prometheus, port = {} }}, logging {{ level = info }} }}\n{}\n",
            quoted(&self.connection),
            quoted(&self.publication),
            self.source,
            self.tables.iter().map(table).collect::<Vec<_>>().join(",\n"),
            ports.grpc,
            ports.health,
            ports.metrics,
            self.extra,
        )
    }

    /// Starts a server with it, and waits until all its tables are ready.
    pub async fn start(&self) -> Server {
        let server = self.launch();
        server.ready().await;
        server
    }

    /// Starts a server with it.
    pub fn launch(&self) -> Server {
        let port = || free_port().unwrap();
        let ports = Ports { grpc: port(), fanout: port(), health: port(), metrics: port() };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("laredo.conf");
        std::fs::write(&file, self.to_hocon(&ports)).unwrap();
        let arguments = self.arguments.clone();
        let mut command = command(&file, &arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let process = Process::spawn(command).unwrap();
        Server { process, ports, archives: Vec::new(), ends_verified: true, file, arguments, _dir: dir }
    }
}

fn command(file: &PathBuf, arguments: &[String]) -> Command {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo-server"));
    command.arg("--config").arg(file).args(arguments).env("NO_COLOR", "1");
    command
}

/// The ports of a server, on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// All services.
    pub grpc: u16,
    /// The fan-out.
    pub fanout: u16,
    /// Health.
    pub health: u16,
    /// Metrics.
    pub metrics: u16,
}

/// A running server. When this is dropped, `laredo verify` compares its tables with the database, and their archives with them;
/// then it is killed. It shows its log when the test panics.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub ports: Ports,
    /// The archives of its tables.
    pub archives: Vec<ArchiveOf>,
    ends_verified: bool,
    file: PathBuf,
    arguments: Vec<String>,
    _dir: TempDir,
}

impl Server {
    /// Where clients go.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.fanout)
    }

    /// Where operators go.
    pub fn oam_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.grpc)
    }

    /// Has an archive of a table compared with the server when the test ends. The folder must exist until then.
    pub fn has_archive(&mut self, table: &TableName, folder: &Path) {
        self.archives.push(ArchiveOf { table: table.clone(), folder: folder.to_owned() });
    }

    /// Leaves out the verification when the test ends; for a test that ends with tables that cannot equal the database's.
    pub fn ends_unverified(&mut self) {
        self.ends_verified = false;
    }

    /// Verifies every table now instead of when this is dropped.
    pub fn verify(&mut self) -> Verified {
        self.ends_verified = false;
        verify_server(self)
    }

    /// Starts it again with the same configuration and ports, after killing it if it runs.
    pub async fn restart(&mut self) {
        self.relaunch().await;
        self.ready().await;
    }

    /// The same without waiting until it is ready. Returns the process that was.
    pub async fn relaunch(&mut self) -> Process {
        self.process.kill9();
        self.process.wait(PATIENCE).await.unwrap();
        std::mem::replace(&mut self.process, Process::spawn(command(&self.file, &self.arguments)).unwrap())
    }

    /// Waits until every table is ready.
    pub async fn ready(&self) {
        let ready = async || matches!(self.get(self.ports.health, "/health/ready").await, Some((200, _)));
        if eventually(PATIENCE, ready).await.is_err() {
            let (health, output) = (self.health().await, self.process.output());
            panic!("not ready: {health:#?}\n{}", output[output.len().saturating_sub(40)..].join("\n"));
        }
    }

    /// What the health endpoint says of the tables: status code and JSON.
    pub async fn health(&self) -> (u16, Value) {
        let (code, body) = self.get(self.ports.health, "/health/ready").await.expect("health answers");
        (code, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// Whether no table is being copied, and each has every commit up to a position.
    pub async fn is_live_at(&self, position: Lsn) -> bool {
        let (_, health) = self.health().await;
        let is_there = |table: &Value| {
            let reached = table["position"].as_str().and_then(|text| text.parse::<Lsn>().ok());
            table["state"] == "live" && reached.is_some_and(|reached| reached >= position)
        };
        health["tables"].as_array().is_some_and(|tables| tables.iter().all(is_there))
    }

    /// How often a base was merged from an older one and the journal.
    pub fn bases(&self) -> usize {
        self.process.output().iter().filter(|line| line.contains("new base snapshot")).count()
    }

    /// The metrics as Prometheus reads them.
    pub async fn metrics(&self) -> String {
        self.get(self.ports.metrics, "/metrics").await.expect("metrics answer").1
    }

    /// A number of a table's metrics; `None` before there is one.
    pub async fn metric(&self, name: &str, table: &TableName) -> Option<u64> {
        let start = format!("{name}{{table=\"{table}\"}} ");
        let metrics = self.get(self.ports.metrics, "/metrics").await?.1;
        metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
    }

    /// A number of the source's metrics; `None` before there is one.
    pub async fn source_metric(&self, name: &str) -> Option<u64> {
        let start = format!("{name}{{source=\"db\"}} ");
        let metrics = self.get(self.ports.metrics, "/metrics").await?.1;
        metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
    }

    /// A plain HTTP GET: status code and body. `None` when nobody answers.
    pub async fn get(&self, port: u16, path: &str) -> Option<(u16, String)> {
        http(port, "GET", path).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.ends_verified && !std::thread::panicking() {
            let failures = verify_server(self).failures;
            assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), self.process.output().join("\n"));
        }
    }
}

/// A plain HTTP request without a body to a port of this machine: status code and body. `None` when nobody answers.
pub async fn http(port: u16, method: &str, path: &str) -> Option<(u16, String)> {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let mut answer = Vec::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(request.as_bytes()).await.ok()?;
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, body.to_owned()))
}

/// A number of every table.
pub fn numbers<'a>(metrics: &'a str, name: &str) -> Vec<&'a str> {
    let of = |line: &'a str| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' ');
    metrics.lines().filter_map(of).map(|(_, number)| number).collect()
}
