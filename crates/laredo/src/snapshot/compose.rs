//! Parts made from the configuration, run together, and stopped together.

use anyhow::anyhow;
use tokio::sync::watch;

use crate::config::SnapshotterConfig;
use crate::program::Failure;

/// Writes every table's archive until told to stop.
pub(crate) async fn run(config: SnapshotterConfig, stop: watch::Receiver<bool>) -> Result<(), Failure> {
    let (_, _) = (config, stop);
    Err(anyhow!("not composed yet").into())
}
