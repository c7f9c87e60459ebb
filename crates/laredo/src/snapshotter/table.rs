//! The archive of one table: its destinations, its writer, and the stream that feeds it.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use anyhow::Context;
use laredo_archive::{
    ArchiveWriter, ArtifactStager, Destination, EventPublisher, SharedWriterStatus, SinkCounts, WriterHandle,
    WriterOptions, WriterResources, WriterStatus,
};
use laredo_client::StatusReceiver;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::feed::{SubscriptionFeed, resume_point};
use super::targets::ArchiveTargets;
use crate::config::snapshotter::ArchivedTableConfig;
use crate::program::{now, random, wait_for_flag};

/// The maximum size, in bytes, of the part of the stream that waits for the writer. Little is
/// enough, because the writer keeps up with the server. The memory is needed for the table.
const PENDING_BYTES_MAX: u32 = 8 << 20;

/// A table as the HTTP API sees it. Clones share their state.
#[derive(Clone)]
pub(super) struct SnapshotterTable {
    pub(super) config: Arc<ArchivedTableConfig>,
    state: Arc<Mutex<ArchiveTaskState>>,
    /// The writer's status, which is current from the opening of the archive.
    status: SharedWriterStatus,
}

/// The state of a table's task.
#[derive(Clone)]
pub(super) enum ArchiveTaskState {
    /// The task takes over the archive, or waits for a destination.
    Opening,
    /// The writer runs.
    Running(ArchiveTaskHandles),
    /// The task has failed, and nothing more is written.
    Failed {
        /// The reason.
        error: String,
        /// The state of the writer before the failure, if it ran.
        last: Option<ArchiveTaskHandles>,
    },
}

/// The parts of a running table that the HTTP API reads.
#[derive(Clone)]
pub(super) struct ArchiveTaskHandles {
    pub(super) writer: WriterHandle,
    pub(super) stream: StatusReceiver,
    publisher: EventPublisher,
}

impl ArchiveTaskHandles {
    /// Returns the counts of events for each event sink.
    pub(super) fn sinks(&self) -> Vec<SinkCounts> {
        self.publisher.counts()
    }
}

impl SnapshotterTable {
    pub(super) fn new(config: ArchivedTableConfig) -> SnapshotterTable {
        let status = SharedWriterStatus::default();
        SnapshotterTable { config: Arc::new(config), state: Arc::new(Mutex::new(ArchiveTaskState::Opening)), status }
    }

    /// Returns the name, as `schema.table`.
    pub(super) fn name(&self) -> String {
        self.config.source.name()
    }

    /// Returns the writer's status. While the archive is being opened, the status holds the last
    /// error.
    pub(super) fn status(&self) -> WriterStatus {
        self.status.current()
    }

    pub(super) fn state(&self) -> ArchiveTaskState {
        self.state.lock().clone()
    }

    /// Writes the archive until `stop` is true.
    ///
    /// # Errors
    /// An error that ends the writing of this archive. The archives of other tables are not
    /// affected.
    pub(super) async fn run(
        self,
        targets: Arc<ArchiveTargets>,
        temporary: PathBuf,
        writer_id: String,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let ended = self.write(&targets, &temporary, writer_id, stop).await;
        if let Err(error) = &ended {
            let error = format!("{error:#}");
            tracing::error!(
                event = "archive_task_failed",
                table = self.name(),
                error,
                "the task of the archive has failed"
            );
            let mut state = self.state.lock();
            let last = match &*state {
                ArchiveTaskState::Running(running) => Some(running.clone()),
                ArchiveTaskState::Opening | ArchiveTaskState::Failed { .. } => None,
            };
            *state = ArchiveTaskState::Failed { error, last };
        }
        ended
    }

    async fn write(
        &self,
        targets: &ArchiveTargets,
        temporary: &Path,
        writer_id: String,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let config = &self.config;
        let destinations = destinations(config, targets).await?;
        let stager = ArtifactStager::for_destinations(&destinations, temporary);
        let (publisher, publishing) = targets.publisher(config).await?;
        let event_publisher = publisher.clone();
        let resources = WriterResources {
            destinations,
            stager,
            wall: Box::new(now),
            publish: Box::new(move |event| event_publisher.publish(event)),
            status: self.status.clone(),
        };
        let opened = tokio::select! {
            opened = ArchiveWriter::open(options(config, writer_id), resources) => opened,
            () = wait_for_flag(stop.clone()) => return Ok(()),
        };
        let (writer, start) = opened?;
        let mut subscription = super::subscription::subscription(&config.source)?;
        if let Some(start) = start {
            tracing::info!(
                event = "archive_resumed", table = self.name(), position = %start.position,
                "resuming from the archive"
            );
            subscription = subscription.resume(resume_point(start));
        }
        let subscription = subscription.pending_bytes_max(PENDING_BYTES_MAX).start().context("source")?;
        let stream = subscription.watch_status();
        *self.state.lock() =
            ArchiveTaskState::Running(ArchiveTaskHandles { writer: writer.handle(), stream, publisher });
        // After the last artifact, waiting events are still sent, for a limited time.
        let written = CancellationToken::new();
        let publishing = tokio::spawn(publishing.run(written.clone().cancelled_owned()));
        let ended =
            until_stopped(stop, async |stopping| writer.run(SubscriptionFeed(subscription), stopping).await).await;
        written.cancel();
        publishing.await.context("publishing events")?;
        Ok(ended?)
    }
}

/// Runs `run`, and cancels its token when `stop` is true. If `run` ends first, returns its result
/// at once: for example, a writer ends when another writer takes over.
async fn until_stopped<T>(stop: watch::Receiver<bool>, run: impl AsyncFnOnce(CancellationToken) -> T) -> T {
    let stopping = CancellationToken::new();
    let mut running = pin!(run(stopping.clone()));
    tokio::select! {
        ended = &mut running => return ended,
        () = wait_for_flag(stop) => stopping.cancel(),
    }
    running.await
}

fn options(config: &ArchivedTableConfig, writer_id: String) -> WriterOptions {
    let formats = config.formats.snapshot.clone();
    let mut options = WriterOptions::new(config.source.name(), writer_id, formats, config.diff.interval);
    options.key.clone_from(&config.key_fields);
    options.diff_formats.clone_from(&config.formats.diff);
    options.thresholds = config.thresholds.clone();
    options.keep_epochs = config.retention.keep_epochs.map(|count| count as usize);
    options.manifest_epochs = config.retention.manifest_epochs;
    options.waits_at_start = true;
    options.seed = random();
    options
}

async fn destinations(
    config: &ArchivedTableConfig,
    targets: &ArchiveTargets,
) -> anyhow::Result<Vec<Arc<dyn Destination>>> {
    let mut destinations = Vec::new();
    for destination in &config.destinations {
        destinations.push(targets.open(destination, &config.key_prefix).await?);
    }
    Ok(destinations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_ends_by_itself_has_ended_before_a_stop() {
        let (stop, stopped) = watch::channel(false);
        assert_eq!(until_stopped(stopped.clone(), async |_| "taken over").await, "taken over");
        let flushing = async |stopping: CancellationToken| {
            stopping.cancelled().await;
            "flushed"
        };
        stop.send_replace(true);
        assert_eq!(until_stopped(stopped, flushing).await, "flushed");
    }
}
