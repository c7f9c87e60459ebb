//! One table's archive: its destinations, its writer, and the stream that feeds it.

use std::pin::pin;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use laredo_archive::{
    Destination, GRACE, Handle, Local, Options, Publisher, SinkCounts, Stager, Status, Surroundings, Writer,
};
use laredo_client::Status as StreamStatus;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::aws::Aws;
use super::feed::{Subscribed, resume_point};
use crate::config::snapshotter::{DestinationConfig, TableConfig};
use crate::program::{random, until};

/// Bytes of the stream that may wait for the writer: it keeps up with what a server sends, and memory is for the table.
const PENDING_BYTES_MAX: u32 = 8 << 20;

/// One table, as the HTTP API sees it. Clones are the same.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) config: Arc<TableConfig>,
    state: Arc<Mutex<State>>,
    /// The writer's status, from its opening on.
    status: watch::Sender<Status>,
}

/// What a table's task is at.
#[derive(Clone)]
pub(super) enum State {
    /// The archive is being taken over, or its destination is waited for.
    Opening,
    /// Its writer runs.
    Running(Running),
    /// It has ended, and nothing more is written.
    Failed {
        /// Why.
        error: String,
        /// As it was then.
        last: Option<Running>,
    },
}

/// What there is to ask of a table that is written.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) writer: Handle,
    pub(super) stream: watch::Receiver<StreamStatus>,
    publisher: Publisher,
}

impl Running {
    /// How it goes with each of those who are told.
    pub(super) fn sinks(&self) -> Vec<SinkCounts> {
        self.publisher.counts()
    }
}

impl Table {
    pub(super) fn new(config: TableConfig) -> Table {
        let status = watch::Sender::new(Status::default());
        Table { config: Arc::new(config), state: Arc::new(Mutex::new(State::Opening)), status }
    }

    /// `schema.table`.
    pub(super) fn name(&self) -> String {
        self.config.source.name()
    }

    /// The writer's status. While the archive is being opened, it has the last error.
    pub(super) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    pub(super) fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// Writes until it is told to stop.
    ///
    /// # Errors
    /// When this archive cannot be written any more; the other tables' can.
    pub(super) async fn run(self, aws: Arc<Aws>, writer_id: String, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let ended = self.write(&aws, writer_id, stop).await;
        if let Err(error) = &ended {
            let error = format!("{error:#}");
            tracing::error!(table = self.name(), error, "its archive is not written any more");
            let mut state = self.state.lock();
            let last = match &*state {
                State::Running(running) => Some(running.clone()),
                State::Opening | State::Failed { .. } => None,
            };
            *state = State::Failed { error, last };
        }
        ended
    }

    async fn write(&self, aws: &Aws, writer_id: String, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let config = &self.config;
        let (destinations, staging) = destinations(config, aws).await?;
        let (publisher, publishing) = aws.publisher(config).await?;
        let told = publisher.clone();
        let surroundings = Surroundings {
            destinations,
            stager: Stager::new(staging),
            wall: Box::new(now),
            publish: Box::new(move |event| told.publish(event)),
            status: self.status.clone(),
        };
        let opened = tokio::select! {
            opened = Writer::open(options(config, writer_id), surroundings) => opened,
            () = until(stop.clone()) => return Ok(()),
        };
        let (writer, start) = opened?;
        let mut subscription = super::connect::subscription(&config.source)?;
        if let Some(start) = start {
            tracing::info!(table = self.name(), position = %start.position, "going on from the archive");
            subscription = subscription.resume(resume_point(start));
        }
        let subscription = subscription.pending_bytes_max(PENDING_BYTES_MAX).start().context("source")?;
        let stream = subscription.watch_status();
        *self.state.lock() = State::Running(Running { writer: writer.handle(), stream, publisher });
        // What was to be told is told after the last artifact, for a while.
        let written = CancellationToken::new();
        let publishing = tokio::spawn(publishing.run(written.clone().cancelled_owned()));
        let ended = until_stopped(stop, async |stopping| writer.run(Subscribed(subscription), stopping).await).await;
        written.cancel();
        publishing.await.context("telling of what was written")?;
        Ok(ended?)
    }
}

/// Tells what runs when it is to stop. What ends by itself, as a writer does that another one has taken over from, has ended then.
async fn until_stopped<T>(stop: watch::Receiver<bool>, run: impl AsyncFnOnce(CancellationToken) -> T) -> T {
    let stopping = CancellationToken::new();
    let mut running = pin!(run(stopping.clone()));
    tokio::select! {
        ended = &mut running => return ended,
        () = until(stop) => stopping.cancel(),
    }
    running.await
}

fn options(config: &TableConfig, writer_id: String) -> Options {
    Options {
        table: config.source.name(),
        key: config.key_fields.clone(),
        writer_id,
        snapshot_formats: config.formats.snapshot.clone(),
        diff_formats: config.formats.diff.clone(),
        diff_interval: config.diff_interval,
        thresholds: config.thresholds.clone(),
        keep_epochs: config.keep_epochs.map(|count| count as usize),
        manifest_epochs: config.manifest_epochs,
        grace: GRACE,
        waits_at_start: true,
        seed: random(),
    }
}

/// The destinations, and where artifacts wait on this machine: beside a local destination, so that they need not be copied.
async fn destinations(
    config: &TableConfig,
    aws: &Aws,
) -> anyhow::Result<(Vec<Arc<dyn Destination>>, std::path::PathBuf)> {
    let mut destinations: Vec<Arc<dyn Destination>> = Vec::new();
    let mut staging = None;
    for destination in &config.destinations {
        match destination {
            DestinationConfig::Local { path } => {
                let local = Local::with_prefix(path, &config.key_prefix);
                staging.get_or_insert_with(|| local.staging());
                destinations.push(Arc::new(local));
            }
            DestinationConfig::S3(s3) => destinations.push(Arc::new(aws.s3(s3, &config.key_prefix).await?)),
        }
    }
    let staging = staging.unwrap_or_else(|| std::env::temp_dir().join("laredo-snapshotter"));
    Ok((destinations, staging))
}

#[expect(clippy::disallowed_methods, reason = "the program's edge: here the clock is handed in")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ends_by_itself_has_ended_before_anybody_stops_it() {
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
