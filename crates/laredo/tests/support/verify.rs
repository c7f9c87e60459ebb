//! The verification at the end of a test: the real `laredo verify`, over every live table of a
//! server.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use laredo_core::TableName;
use laredo_testkit::clean_command;
use serde_json::Value;

use super::server::{PATIENCE, ServerProcess};

/// The arguments of every verification.
const ARGUMENTS: &[&str] = &["--json", "--clients"];

/// An archive that is also compared with the server.
#[derive(Clone, Debug)]
pub struct ComparedArchive {
    /// The table of the archive.
    pub table: TableName,
    /// The folder of its manifest.
    pub folder: PathBuf,
}

/// The results of the verification of one server.
#[derive(Debug, Default)]
pub struct ServerVerification {
    /// Tables that were verified.
    pub tables: u64,
    /// The rows of these tables.
    pub rows: u64,
    /// Clients that had the server's checksum.
    pub clients: u64,
    /// A line for each table that differs from the database, or could not be verified.
    pub failures: Vec<String>,
}

/// Verifies each table that is live or being copied, and its archives. A failed table has no rows
/// to verify, and neither has a server that does not run.
pub fn verify_server(server: &ServerProcess) -> ServerVerification {
    let mut verified = ServerVerification::default();
    let Some(tables) = tables_to_verify(server.ports.health) else { return verified };
    for table in tables {
        let archives: Vec<&ComparedArchive> = server.archives.iter().filter(|archive| archive.table == table).collect();
        let folders = archives.iter().map(|archive| Some(archive.folder.as_path()));
        // Once for each archive, and once without an archive if there is none.
        let runs: Vec<Option<&Path>> = if archives.is_empty() { vec![None] } else { folders.collect() };
        for folder in runs {
            match verify_table(server, &table, folder) {
                Ok((rows, clients)) => {
                    verified.rows += rows;
                    verified.clients += clients;
                }
                Err(failure) => verified.failures.push(failure),
            }
        }
        verified.tables += 1;
    }
    verified
}

/// Returns the numbers of equal rows and clients, or the reason why the table is not known to be
/// equal.
fn verify_table(server: &ServerProcess, table: &TableName, archive: Option<&Path>) -> Result<(u64, u64), String> {
    let mut command = clean_command(env!("CARGO_BIN_EXE_laredo"));
    command.args(["verify", &table.to_string(), "--oam", &server.oam_url()]).args(ARGUMENTS);
    if let Some(folder) = archive {
        command.arg("--archive").arg(folder).args(["--server", &server.url()]);
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("laredo can be started");
    let failed = |text: String| format!("laredo verify {table} --oam {}: {text}", server.oam_url());
    let Some(output) = output_within(child, PATIENCE) else {
        let hint = "was the cluster dropped first, or is the server to be left out (ends_unverified)?";
        return Err(failed(format!("no answer within {} s; {hint}", PATIENCE.as_secs())));
    };
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let is_equal = |client: &&Value| client["outcome"] == "equal";
    let clients = found["clients"].as_array().map_or(0, |clients| clients.iter().filter(is_equal).count() as u64);
    match (output.status.success(), found["rows"].as_u64()) {
        (true, Some(rows)) => Ok((rows, clients)),
        (_, _) => Err(failed(format!("{} {}", found, String::from_utf8_lossy(&output.stderr)))),
    }
}

/// Waits for the output of a process, and kills a process that does not end in time.
fn output_within(mut child: Child, patience: Duration) -> Option<Output> {
    let streams = (child.stdout.take(), child.stderr.take());
    let readers = (std::thread::spawn(|| read_all(streams.0)), std::thread::spawn(|| read_all(streams.1)));
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let (stdout, stderr) = (readers.0.join().expect("it reads"), readers.1.join().expect("it reads"));
    Some(Output { status, stdout, stderr })
}

fn read_all(stream: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // The end of a killed process also ends its output.
        let _ = stream.read_to_end(&mut bytes);
    }
    bytes
}

/// Returns the tables that are live or being copied, of sources that are not paused. Returns `None`
/// if there is no server.
fn tables_to_verify(health_port: u16) -> Option<Vec<TableName>> {
    let mut stream = TcpStream::connect(("127.0.0.1", health_port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let health: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
    let is_paused = health["sources"].as_array()?.iter().any(|source| source["paused"] == true);
    let tables = health["tables"].as_array()?.iter();
    let tables = tables.filter(|table| !is_paused && table["state"] != "failed");
    let name = |table: &Value| Some(TableName::new(table["schema"].as_str()?, table["table"].as_str()?));
    tables.map(name).collect()
}
