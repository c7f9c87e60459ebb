//! The demo's archive: its growth while it is written, and in the end a table that is rebuilt from
//! it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use laredo_archive::{ArchivePoint, ArtifactKind};
use laredo_core::Lsn;
use laredo_testkit::{ChildProcess, Cluster, clean_command};
use serde::Serialize;

use super::database;
use crate::programs::program;
use crate::snapshotter::FolderSnapshotter;

const PATIENCE: Duration = Duration::from_secs(60);
/// The table that is rebuilt from the archive in the end.
const REBUILT: &str = "public.orders_rebuilt";

/// A diff each second, and a new snapshot after some seconds, or at once when a quarter of the rows
/// have changed. Artifacts are compressed and only the newest epochs are kept, because the demo may
/// run for hours.
const KEYS: &str = "diff { interval = 1s }
  snapshot { min_interval = 3s, max_interval = 10s, max_churn_fraction = 0.25 }
  formats { snapshot = [ jsonl.zst ], diff = [ jsonl.zst ] }
  retention { keep_epochs = 20 }";

/// The archive's figures at the end.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DemoArchiveReport {
    artifacts: usize,
    epochs: usize,
    rows: usize,
    pub(super) equal: bool,
}

/// The process that writes the archive.
pub(super) struct DemoArchiver(FolderSnapshotter);

impl DemoArchiver {
    /// Starts the process, and waits for the first snapshot.
    pub(super) async fn start(address: &str, folder: &Path) -> anyhow::Result<DemoArchiver> {
        let snapshotter = FolderSnapshotter::start(address, super::TABLE, folder, KEYS)?;
        snapshotter.ready(PATIENCE).await?;
        println!("laredo-snapshotter: http://127.0.0.1:{}/status", snapshotter.port());
        Ok(DemoArchiver(snapshotter))
    }

    /// Returns the archive's folder.
    pub(super) fn folder(&self) -> &Path {
        self.0.folder()
    }

    /// Returns the archive's current contents, as a part of the line that is printed each second.
    pub(super) async fn line(&self) -> anyhow::Result<String> {
        self.0.is_running().await?;
        let archive = self.0.archive().await?;
        let (manifest, head) = (archive.manifest(), archive.boundary(ArchivePoint::Latest)?);
        let head = head.position.context("the archive's head has no position")?;
        Ok(format!("archive: epoch {:>2}, {:>3} artifacts, head {head}", manifest.epoch, manifest.artifacts.len()))
    }

    /// Waits until the process is past a position, and stops it. Then rebuilds the table from the
    /// archive alone, as a table of the database, and compares both. The original must not have
    /// changed since the position.
    pub(super) async fn finish(&self, cluster: &Cluster, past: Lsn) -> anyhow::Result<DemoArchiveReport> {
        let arrived = async {
            while self.0.position().await?.is_none_or(|position| position <= past) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(PATIENCE, arrived).await {
            Ok(arrived) => arrived?,
            Err(_) => bail!("the archive did not pass {past} within a minute"),
        }
        self.0.stop().await?;
        let archive = self.0.archive().await?;
        self.rebuild(cluster).await.context("laredo archive reconstruct")?;
        let rows = database::rows(cluster, REBUILT).await?;
        let (count, equal) = (rows.len(), super::same_rows(cluster, super::TABLE, rows).await?);
        let artifacts = &archive.manifest().artifacts;
        let epochs = artifacts.iter().filter(|artifact| artifact.kind == ArtifactKind::Snapshot).count();
        Ok(DemoArchiveReport { artifacts: artifacts.len(), epochs, rows: count, equal })
    }

    /// Rebuilds the table with the command that users run.
    async fn rebuild(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let mut command = clean_command(program("laredo")?);
        command.args(["archive", "reconstruct"]).arg(self.folder());
        command.args(["--postgres", &cluster.url("postgres"), "--table", REBUILT, "--create"]);
        let laredo = ChildProcess::spawn(command)?;
        let status = laredo.wait(PATIENCE).await?;
        if !status.success() {
            bail!("{status}\n{}", laredo.output().join("\n"));
        }
        Ok(())
    }
}
