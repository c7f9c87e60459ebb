//! The parts of the program: made from the configuration, run together, and stopped together.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::aws::AwsProfiles;
use super::http;
use super::table::SnapshotterTable;
use crate::config::SnapshotterConfig;
use crate::program::{ProgramFailure, bind, random, temporary_folder, wait_for_flag};

/// Writes every table's archive until `stop` is true. A table that fails leaves the others running.
/// The program ends when no table is left.
pub(crate) async fn run(config: SnapshotterConfig, stop: watch::Receiver<bool>) -> Result<(), ProgramFailure> {
    let aws = Arc::new(AwsProfiles::new(&config.credentials)?);
    // A folder that no table uses need not be writable, unless the operator names it.
    let is_used = config.temp_dir.is_some() || config.tables.iter().any(|table| !table.has_local_destination());
    let set = config.temp_dir.as_deref();
    let folder = match is_used {
        true => temporary_folder("snapshotter.temp_dir", set)?,
        false => std::env::temp_dir(),
    };
    let listener = bind(config.http.port, "snapshotter.http.port").await;
    let listener = listener.map_err(|problem| ProgramFailure::Misconfigured(vec![problem]))?;
    let address = listener.local_addr().context("snapshotter.http.port")?;
    tracing::info!(port = address.port(), "serving the HTTP API");
    let tables: Vec<SnapshotterTable> = config.tables.into_iter().map(SnapshotterTable::new).collect();
    let (served, all_written) = watch::channel(false);
    let serving = tokio::spawn(http::serve(listener, tables.clone(), wait_for_flag(all_written)));
    let mut tasks = JoinSet::new();
    for table in &tables {
        tasks.spawn(table.clone().run(aws.clone(), folder.clone(), writer_id(), stop.clone()));
    }
    let mut failed = 0;
    while let Some(ended) = tasks.join_next().await {
        // The task has logged the reason.
        failed += usize::from(ended.context("a table's task")?.is_err());
    }
    served.send_replace(true);
    serving.await.context("serving HTTP")?;
    match failed {
        0 => Ok(()),
        failed => Err(anyhow!("{failed} of {} archives have failed", tables.len()).into()),
    }
}

/// Returns an ID that distinguishes this run from all others: the host name, the process ID and a
/// random number.
fn writer_id() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}:{:016x}", std::process::id(), random())
}
