//! The parts of the program: made from the configuration, run together, and stopped together.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use laredo_server::{PortListener, ServerTls};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument;

use super::http;
use super::table::SnapshotterTable;
use super::targets::ArchiveTargets;
use crate::config::SnapshotterConfig;
use crate::program::{
    PortCertificates, ProgramFailure, allowed_hosts, bind, log_port, random, report_ready, temporary_folder,
    wait_for_flag,
};

/// Writes every table's archive until `stop` is true. A table that fails leaves the others running.
/// The program ends when no table is left.
pub(crate) async fn run(config: SnapshotterConfig, stop: watch::Receiver<bool>) -> Result<(), ProgramFailure> {
    let targets = Arc::new(ArchiveTargets::new(&config.credentials)?);
    // A folder that no table uses need not be writable, unless the operator names it.
    let is_used = config.temp_dir.is_some() || config.tables.iter().any(|table| !table.has_local_destination());
    let set = config.temp_dir.as_deref();
    let folder = match is_used {
        true => temporary_folder("snapshotter.temp_dir", set)?,
        false => std::env::temp_dir(),
    };
    let key = "snapshotter.http.port";
    let (mut files, mut problems) = (PortCertificates::default(), Vec::new());
    let tls = files.load("snapshotter.http.tls", config.http.tls.as_ref(), &mut problems);
    if !problems.is_empty() {
        return Err(ProgramFailure::Misconfigured(problems));
    }
    let listener = bind(&config.http.address, config.http.port, key, tls).await;
    let listener = listener.map_err(|problem| ProgramFailure::Misconfigured(vec![problem]))?;
    log_port(&listener, key, config.http.address.is_local(), "status and metrics (orders only from this machine)");
    let certificates = files.certificates();
    tokio::select! {
        ended = write_archives(config, (targets, folder), (listener, certificates), stop) => ended,
        failed = files.keep_current() => failed.map_err(ProgramFailure::Failed),
    }
}

async fn write_archives(
    config: SnapshotterConfig,
    (targets, folder): (Arc<ArchiveTargets>, PathBuf),
    (listener, certificates): (PortListener, Vec<ServerTls>),
    stop: watch::Receiver<bool>,
) -> Result<(), ProgramFailure> {
    let hosts = allowed_hosts(&config.http.allowed_hosts);
    let tables: Vec<SnapshotterTable> = config.tables.into_iter().map(SnapshotterTable::new).collect();
    let (served, all_written) = watch::channel(false);
    let api = http::SnapshotterApi::new(tables.clone(), certificates);
    let serving = tokio::spawn(http::serve(listener, hosts, api, wait_for_flag(all_written)));
    let mut tasks = JoinSet::new();
    for table in &tables {
        let run = table.clone().run(targets.clone(), folder.clone(), writer_id(), stop.clone());
        tasks.spawn(run.instrument(tracing::error_span!("table", table = table.name())));
    }
    report_ready("the port is open; its /status shows the archives");
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
