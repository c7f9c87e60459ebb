//! A part in another process. Its standard input receives orders, and it reports lines of JSON.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A process that runs a part. It ends when this is dropped, and when the benchmark ends.
pub(super) struct BenchmarkChild {
    name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl BenchmarkChild {
    /// Starts this program again as the part `name`.
    pub(super) fn start(name: &str, arguments: &[&str]) -> anyhow::Result<BenchmarkChild> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["part", name]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let stdin = child.stdin.take().context("the part's standard input")?;
        let stdout = child.stdout.take().context("the part's standard output")?;
        Ok(BenchmarkChild { name: name.to_owned(), child, stdin, stdout: BufReader::new(stdout).lines() })
    }

    /// Sends an order to the part.
    pub(super) async fn send_order(&mut self, order: &str) -> anyhow::Result<()> {
        self.stdin
            .write_all(format!("{order}\n").as_bytes())
            .await
            .with_context(|| format!("sending an order to {}", self.name))
    }

    /// Waits for the part's next report.
    pub(super) async fn next_report<T: DeserializeOwned>(&mut self, patience: Duration) -> anyhow::Result<T> {
        let name = &self.name;
        let Ok(line) = tokio::time::timeout(patience, self.stdout.next_line()).await else {
            bail!("{name} did not answer within {} s", patience.as_secs());
        };
        match line? {
            Some(line) => serde_json::from_str(&line)
                .with_context(|| format!("the answer of {name} is not the expected JSON: {line:?}")),
            None => bail!("{name} ended: {}", self.child.wait().await?),
        }
    }
}
