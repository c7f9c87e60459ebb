//! `laredo verify` at the end of the demo. It compares the server's rows with the database's, and
//! the rows of the clients and the archive with the server's.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use laredo_testkit::clean_command;
use serde_json::Value;
use tokio::process::Command;

use crate::programs::program;

const PATIENCE: Duration = Duration::from_secs(60);
/// The arguments besides the table and the addresses.
const ARGUMENTS: [&str; 2] = ["--json", "--clients"];

/// The answer of the program.
pub(super) struct DemoVerification {
    /// True if all compared rows are equal.
    pub(super) equal: bool,
    pub(super) answer: Value,
}

/// Runs the program as an operator would.
pub(super) async fn run(oam: &str, address: &str, archive: &Path) -> anyhow::Result<DemoVerification> {
    let mut command = Command::from(clean_command(program("laredo")?));
    command.args(["verify", super::TABLE, "--oam", oam]).args(ARGUMENTS);
    command.arg("--archive").arg(archive).args(["--server", address]).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.context("no answer within a minute")??;
    match (output.status.code(), serde_json::from_slice(&output.stdout)) {
        (Some(code @ (0 | 1)), Ok(answer)) => Ok(DemoVerification { equal: code == 0, answer }),
        (_, _) => bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}
