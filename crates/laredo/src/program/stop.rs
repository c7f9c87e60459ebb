//! Signals that stop a program.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::logging::ProcessLog;

/// Returns a flag that becomes true when SIGTERM or SIGINT arrives. A second signal ends the
/// process at once. SIGHUP does not end the process: it asks for the files of TLS, of keys and of
/// access rules to be read again.
pub(super) fn stop_signal(log: ProcessLog) -> anyhow::Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    let (sender, stop) = watch::channel(false);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!(
                event = "files_read_again",
                "SIGHUP: the files of TLS, of keys and of access rules are read again"
            );
        }
    });
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!(event = "stopping", "SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!(event = "stopping", "SIGINT: stopping"),
        }
        sender.send_replace(true);
        // A second signal ends the process at once.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!(event = "stopping_at_once", "second signal: ending at once");
        log.flush();
        std::process::exit(1);
    });
    Ok(stop)
}

/// Waits until the flag is true or its sender is dropped.
pub(crate) async fn wait_for_flag(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}
