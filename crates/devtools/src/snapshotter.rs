//! A `laredo-snapshotter` process that writes the archive of one table to a folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use laredo_archive::{Archive, FolderDestination};
use laredo_core::{Lsn, TableName};
use laredo_testkit::{ChildProcess, clean_command, free_port};
use serde_json::Value;

use crate::programs::{program, send_request};

/// The longest time for writing the last diff.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// The process, which ends when this is dropped.
pub(crate) struct FolderSnapshotter {
    process: ChildProcess,
    port: u16,
    table: String,
    /// The folder of `manifest.json`.
    archive: PathBuf,
}

/// A snapshot that was written on request.
pub(crate) struct RequestedSnapshot {
    pub(crate) epoch: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

impl FolderSnapshotter {
    /// Starts a process that follows a table of the server at this address. Its configuration and
    /// the archive are in `folder`; `more` has further keys of the table.
    pub(crate) fn start(address: &str, table: &str, folder: &Path, more: &str) -> anyhow::Result<FolderSnapshotter> {
        let (name, port) = (table.parse::<TableName>()?, free_port()?);
        let path = folder.join("archive");
        let config = format!(
            r#"snapshotter {{
  source {{ server = "{address}", schema = {}, table = {} }}
  destinations = [ {{ type = local, path = {} }} ]
  {more}
  http {{ port = {port} }}
}}
"#,
            name.schema,
            name.table,
            Value::from(path.to_string_lossy())
        );
        let file = folder.join("snapshotter.conf");
        std::fs::write(&file, config)?;
        let mut command = clean_command(program("laredo-snapshotter")?);
        command.arg("--config").arg(&file);
        let process = ChildProcess::spawn(command)?;
        Ok(FolderSnapshotter { process, port, table: table.to_owned(), archive: path.join(&name.table) })
    }

    /// Returns the process, so that it can be measured.
    pub(crate) fn process(&self) -> &ChildProcess {
        &self.process
    }

    /// Returns the port of its HTTP API.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the archive's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.archive
    }

    /// Waits until the archive has its first snapshot.
    pub(crate) async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let ready = async {
            while !matches!(send_request(self.port, "GET /health/ready").await, Ok((200, _))) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = ready => Ok(()),
            ended = self.process.wait(patience) => bail!("laredo-snapshotter wrote no base ({ended:?})\n{}", self.log()),
        }
    }

    /// Fails if the process has ended.
    pub(crate) async fn is_running(&self) -> anyhow::Result<()> {
        match self.process.wait(Duration::ZERO).await {
            Ok(status) => bail!("laredo-snapshotter has ended: {status}\n{}", self.log()),
            Err(_) => Ok(()),
        }
    }

    /// Returns the position of the newest transaction in the archive or in the process's buffer.
    pub(crate) async fn position(&self) -> anyhow::Result<Option<Lsn>> {
        let (_, body) = send_request(self.port, "GET /status").await?;
        let status: Value = serde_json::from_str(&body)?;
        Ok(status["tables"][0]["position"].as_str().map(str::parse).transpose()?)
    }

    /// Requests a snapshot, and waits until the manifest has it.
    pub(crate) async fn snapshot(&self) -> anyhow::Result<RequestedSnapshot> {
        let (code, body) = send_request(self.port, "POST /snapshot?force=true").await.with_context(|| self.log())?;
        let answer: Value = serde_json::from_str(&body).unwrap_or_default();
        let written = &answer["snapshots"][0];
        let number = |name: &str| written[name].as_u64();
        match (number("epoch"), number("entries"), number("bytes")) {
            (Some(epoch), Some(rows), Some(bytes)) if code == 200 => Ok(RequestedSnapshot { epoch, rows, bytes }),
            _ => bail!("no base was written: {code} {body}\n{}", self.log()),
        }
    }

    /// Opens the archive with its current manifest.
    pub(crate) async fn archive(&self) -> anyhow::Result<Archive> {
        Ok(Archive::open(Arc::new(FolderDestination::new(&self.archive)), Some(&self.table)).await?)
    }

    /// Stops the process, which first writes what it has collected.
    pub(crate) async fn stop(&self) -> anyhow::Result<()> {
        self.process.terminate();
        let status = self.process.wait(STOP_PATIENCE).await?;
        if !status.success() {
            bail!("laredo-snapshotter ended with {status}\n{}", self.log());
        }
        Ok(())
    }

    /// Returns the end of the process's log.
    fn log(&self) -> String {
        let lines = self.process.output();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}
