//! A client process, from the demo's side.

use std::fmt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use laredo_core::Lsn;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

/// A client's report each second.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct PeriodicClientReport {
    pub(super) rows: usize,
    pub(super) changes: u64,
    pub(super) lag_ms: f64,
}

/// A client's last report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FinalClientReport {
    pub(super) rows: usize,
    pub(super) changes: u64,
    pub(super) lags_ms: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DemoClientReport {
    Final(FinalClientReport),
    Second(PeriodicClientReport),
}

/// A client process. It ends when this is dropped, and when the demo ends.
pub(super) struct DemoClientProcess {
    id: &'static str,
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::UnboundedReceiver<String>,
    before: PeriodicClientReport,
}

/// A client's part of the line that is printed each second.
pub(super) struct DemoClientProgress {
    id: &'static str,
    rows: usize,
    changes: u64,
    lag_ms: f64,
}

impl fmt::Display for DemoClientProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DemoClientProgress { id, rows, changes, lag_ms } = self;
        write!(f, "{id}: {rows:>6} rows {changes:>5} changes/s {lag_ms:>6.2} ms behind")
    }
}

impl DemoClientProcess {
    pub(super) fn start(id: &'static str, filter: &str, server: &str) -> anyhow::Result<DemoClientProcess> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["client", "--id", id, "--filter", filter, "--server", server]);
        // The demo receives Ctrl-C and ends its clients.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().context("the client's standard input")?;
        let stdout = child.stdout.take().context("the client's standard output")?;
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(DemoClientProcess { id, child, stdin, lines, before: PeriodicClientReport::default() })
    }

    pub(super) fn id(&self) -> &'static str {
        self.id
    }

    /// Returns the client's newest report.
    pub(super) fn latest(&mut self) -> anyhow::Result<DemoClientProgress> {
        if let Some(status) = self.child.try_wait()? {
            bail!("client {} has ended: {status}", self.id);
        }
        let before = self.before.clone();
        while let Ok(line) = self.lines.try_recv() {
            if let DemoClientReport::Second(second) = serde_json::from_str(&line)? {
                self.before = second;
            }
        }
        let PeriodicClientReport { rows, changes, lag_ms } = self.before;
        Ok(DemoClientProgress { id: self.id, rows, changes: changes - before.changes, lag_ms })
    }

    /// Makes the client follow up to a position and write its rows to a file.
    pub(super) async fn finish(&mut self, position: Lsn, rows_file: &Path) -> anyhow::Result<FinalClientReport> {
        self.stdin.write_all(format!("finish {position} {}\n", rows_file.display()).as_bytes()).await?;
        loop {
            let next = tokio::time::timeout(Duration::from_secs(90), self.lines.recv()).await;
            let line = next.ok().flatten().with_context(|| format!("client {} did not finish", self.id))?;
            if let DemoClientReport::Final(last) = serde_json::from_str(&line)? {
                return Ok(last);
            }
        }
    }
}
