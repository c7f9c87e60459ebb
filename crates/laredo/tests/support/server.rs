//! A `laredo-server` process with a configuration file and ports of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use laredo_core::{Lsn, TableName};
use laredo_proto::oam::ReloadTableRequest;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_testkit::{ChildProcess, clean_command, eventually, free_port};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::verify::{ComparedArchive, ServerVerification, verify_server};

/// The longest time until a server becomes ready, and the limit of all other waits.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Keys of a target whose clients are never cut for being slow. If such a client reconnects, it has
/// another reason.
pub const PATIENT: &str = "client_buffer { max_size = 100000000 }";

/// The configuration of a test's server. Fields that are HOCON text are inserted unchanged.
#[derive(Clone, Debug)]
pub struct ServerProcessConfig {
    /// A connection string.
    pub connection: String,
    /// The name of a permanent slot. Without one the slot is temporary.
    pub slot: Option<String>,
    /// The name of the publication. Servers on one database share a publication if they have the
    /// same name for it.
    pub publication: String,
    /// The tables, with their `key_fields` (mostly none).
    pub tables: Vec<(TableName, Vec<String>)>,
    /// More keys of every target, such as `journal { max_entries = 10 }`.
    pub target: String,
    /// More keys of the source.
    pub source: String,
    /// More top-level keys.
    pub extra: String,
    /// More arguments of the command line.
    pub arguments: Vec<String>,
    /// More environment variables, for the first process only.
    pub environment: Vec<(&'static str, String)>,
    /// A named pipe that gets the log of the first process, which then waits for its reader.
    pub log_pipe: Option<PathBuf>,
    /// The limit of open files of the first process.
    pub descriptors_max: Option<u32>,
}

impl ServerProcessConfig {
    /// Returns a configuration that serves `tables`. It has five heartbeats a second, and short
    /// waits before reconnects.
    pub fn new(connection: impl Into<String>, tables: impl IntoIterator<Item = TableName>) -> ServerProcessConfig {
        ServerProcessConfig {
            connection: connection.into(),
            slot: None,
            publication: "laredo_test_pub".to_owned(),
            tables: tables.into_iter().map(|table| (table, Vec::new())).collect(),
            target: "heartbeat_interval = 200ms".to_owned(),
            source: "reconnect { initial_backoff = 20ms, max_backoff = 500ms }".to_owned(),
            extra: String::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log_pipe: None,
            descriptors_max: None,
        }
    }

    /// Sets a permanent slot of this name.
    #[must_use]
    pub fn slot(mut self, slot: &str) -> ServerProcessConfig {
        self.slot = Some(slot.to_owned());
        self
    }

    /// Adds keys to every target.
    #[must_use]
    pub fn target(mut self, keys: &str) -> ServerProcessConfig {
        self.target = format!("{}\n{keys}", self.target);
        self
    }

    /// Returns the text of the configuration file.
    pub fn to_hocon(&self, ports: &ServerPorts) -> String {
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

    /// Starts a server, and waits until all its tables are ready.
    pub async fn start(&self) -> ServerProcess {
        let server = self.launch();
        server.ready().await;
        server
    }

    /// Starts a server.
    pub fn launch(&self) -> ServerProcess {
        let port = || free_port().unwrap();
        let ports = ServerPorts { grpc: port(), fanout: port(), health: port(), metrics: port() };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("laredo.conf");
        std::fs::write(&file, self.to_hocon(&ports)).unwrap();
        let arguments = self.arguments.clone();
        let mut command = command(&file, &arguments);
        if let Some(pipe) = &self.log_pipe {
            command = in_shell("exec \"$@\" 2> \"$0\"", pipe.as_os_str(), &command);
        }
        if let Some(max) = self.descriptors_max {
            command = in_shell("ulimit -n \"$0\" && exec \"$@\"", max.to_string().as_ref(), &command);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let process = ChildProcess::spawn(command).unwrap();
        ServerProcess { process, ports, archives: Vec::new(), ends_verified: true, file, arguments, _dir: dir }
    }
}

fn command(file: &PathBuf, arguments: &[String]) -> Command {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo-server"));
    command.arg("--config").arg(file).args(arguments).env("NO_COLOR", "1");
    command
}

/// Returns the command inside a script of the shell, in which `$0` is the argument and `$@` the
/// command.
fn in_shell(script: &str, argument: &OsStr, command: &Command) -> Command {
    let mut shell = clean_command("sh");
    shell.args(["-c", script]).arg(argument).arg(command.get_program()).args(command.get_args());
    shell
}

/// The ports of a server, on 127.0.0.1.
#[derive(Clone, Copy, Debug)]
pub struct ServerPorts {
    /// The port of all gRPC services.
    pub grpc: u16,
    /// The port of the fan-out.
    pub fanout: u16,
    /// The port of health.
    pub health: u16,
    /// The port of metrics.
    pub metrics: u16,
}

/// A running server. When it is dropped, `laredo verify` compares its tables with the database and
/// with their archives. Then the server is killed. It prints its log when the test panics.
#[derive(Debug)]
pub struct ServerProcess {
    /// The process of the server.
    pub process: ChildProcess,
    /// The ports that the server listens on.
    pub ports: ServerPorts,
    /// The archives of its tables.
    pub archives: Vec<ComparedArchive>,
    ends_verified: bool,
    file: PathBuf,
    arguments: Vec<String>,
    _dir: TempDir,
}

impl ServerProcess {
    /// Returns the URL for clients.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.fanout)
    }

    /// Returns the URL for operators.
    pub fn oam_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.grpc)
    }

    /// Has an archive of a table compared with the server when the test ends. The folder must exist
    /// until then.
    pub fn has_archive(&mut self, table: &TableName, folder: &Path) {
        self.archives.push(ComparedArchive { table: table.clone(), folder: folder.to_owned() });
    }

    /// Leaves out the verification at the end of a test whose tables cannot equal the database's.
    pub fn ends_unverified(&mut self) {
        self.ends_verified = false;
    }

    /// Verifies every table now instead of when this is dropped.
    pub fn verify(&mut self) -> ServerVerification {
        self.ends_verified = false;
        verify_server(self)
    }

    /// Replaces a text in the configuration file, for the next start, or for the next reading of
    /// access rules. No reader sees half of the file.
    pub fn edit_config(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.file).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        let new = self.file.with_extension("new");
        std::fs::write(&new, text.replace(from, to)).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    /// Replaces the configuration file by another configuration with the same ports, for the next
    /// start or reload. No reader sees half of the file.
    pub fn write_config(&self, config: &ServerProcessConfig) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, config.to_hocon(&self.ports)).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    /// Starts the server again with the same configuration and ports, after killing it if it runs.
    pub async fn restart(&mut self) {
        self.relaunch().await;
        self.ready().await;
    }

    /// Does the same as [`ServerProcess::restart`] without waiting until the server is ready.
    /// Returns the old process.
    pub async fn relaunch(&mut self) -> ChildProcess {
        self.process.kill9();
        self.process.wait(PATIENCE).await.unwrap();
        std::mem::replace(&mut self.process, ChildProcess::spawn(command(&self.file, &self.arguments)).unwrap())
    }

    /// Waits until every table is ready.
    pub async fn ready(&self) {
        let ready = async || matches!(self.get(self.ports.health, "/health/ready").await, Some((200, _)));
        if eventually(PATIENCE, ready).await.is_err() {
            let (health, output) = (self.health().await, self.process.output());
            panic!("not ready: {health:#?}\n{}", output[output.len().saturating_sub(40)..].join("\n"));
        }
    }

    /// Returns the status code and the JSON of the readiness endpoint.
    pub async fn health(&self) -> (u16, Value) {
        let (code, body) = self.get(self.ports.health, "/health/ready").await.expect("health answers");
        (code, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// Returns true if every table is live and has all commits up to a position.
    pub async fn is_live_at(&self, position: Lsn) -> bool {
        let (_, health) = self.health().await;
        let is_there = |table: &Value| {
            let reached = table["position"].as_str().and_then(|text| text.parse::<Lsn>().ok());
            table["state"] == "live" && reached.is_some_and(|reached| reached >= position)
        };
        health["tables"].as_array().is_some_and(|tables| tables.iter().all(is_there))
    }

    /// Returns the number of times that a base was merged from an older one and the journal.
    pub fn bases(&self) -> usize {
        self.process.output().iter().filter(|line| line.contains("new base snapshot")).count()
    }

    /// Returns the metrics as Prometheus reads them.
    pub async fn metrics(&self) -> String {
        self.get(self.ports.metrics, "/metrics").await.expect("metrics answer").1
    }

    /// Returns a metric of a table, or `None` if it does not exist yet.
    pub async fn metric(&self, name: &str, table: &TableName) -> Option<u64> {
        let start = format!("{name}{{table=\"{table}\"}} ");
        let metrics = self.get(self.ports.metrics, "/metrics").await?.1;
        metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
    }

    /// Orders a copy of a table.
    pub async fn reload(&self, table: &TableName) {
        let channel = tonic::transport::Channel::from_shared(self.oam_url()).unwrap().connect().await.unwrap();
        let request =
            ReloadTableRequest { schema: table.schema.clone(), table: table.table.clone(), ..Default::default() };
        let answer = LaredoOamServiceClient::new(channel).reload_table(request).await.unwrap().into_inner();
        assert!(answer.accepted, "{answer:?}");
    }

    /// Returns a metric of the source, or `None` if it does not exist yet.
    pub async fn source_metric(&self, name: &str) -> Option<u64> {
        let start = format!("{name}{{source=\"db\"}} ");
        let metrics = self.get(self.ports.metrics, "/metrics").await?.1;
        metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
    }

    /// Sends a plain HTTP GET. Returns the status code and the body, or `None` without an answer.
    pub async fn get(&self, port: u16, path: &str) -> Option<(u16, String)> {
        http(port, "GET", path).await
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if self.ends_verified && !std::thread::panicking() {
            let failures = verify_server(self).failures;
            assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), self.process.output().join("\n"));
        }
    }
}

/// Sends a plain HTTP request without a body to a port of this machine. Returns the status code and
/// the body, or `None` without an answer.
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

/// Returns the values of a metric, one for each table.
pub fn numbers<'a>(metrics: &'a str, name: &str) -> Vec<&'a str> {
    let of = |line: &'a str| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' ');
    metrics.lines().filter_map(of).map(|(_, number)| number).collect()
}
