//! Writes one table's archive: a snapshot, diffs, and a new snapshot when one is due.
//!
//! ```text
//! feed ──▶ buffer (net changes) ──▶ job: encode ▶ put at all destinations ▶ publish the manifest
//!                                                        state := state at the manifest's head ◀┘
//! ```
//!
//! The state is exactly the one at the manifest's head; the changes after it are in the buffer. A
//! job writes from both while neither changes: changes that arrive meanwhile go into a second
//! buffer. The job's buffer is applied to the state only after the manifest is published.

mod buffered_state;
mod chain;
mod collection;
mod job;
mod ledger;
mod report;
mod status;
mod tasks;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use laredo_core::{Checksum, DefinitionVersion, Lsn, RetryDelays, Schema, ScopedMark, SourceIdentity, StateError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::destination::{ArtifactStager, Destination, DestinationError};
use crate::events::ArtifactEvent;
use crate::feed::{Feed, FeedUpdate};
use crate::layout::{ArtifactFormat, ArtifactKind};
use crate::manifest::{Artifact, ManifestError, WriterId, next_number};
use crate::reader::{Archive, ArchivePoint, ReadProgress};
use crate::rebase::{RebaseDecision, RebaseReason, RebaseThresholds};
use buffered_state::{AdvanceOutcome, BufferedState, RowsVersion, WriterRows};
use chain::NewestChain;
use job::{ArtifactJobEnd, ArtifactJobError};
use ledger::ManifestLedger;
use report::WriterReport;
use tasks::{WriterTaskResult, WriterTasks};

pub use status::{DestinationStatus, SharedWriterStatus, WriterPhase, WriterStatus, WrittenArtifact};

/// The longest time between two checks of whether an artifact is due.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// The delay before the first retry of a failed operation. `RETRY_LAST` is the longest delay.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// The usual grace period, after which an object that no manifest names is deleted. Until then,
/// readers of an older manifest can finish.
pub const GRACE_PERIOD: Duration = Duration::from_secs(3600);
/// The default number of epochs that `manifest.json` names.
pub const MANIFEST_EPOCHS: u32 = 8;

/// The settings of a writer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WriterOptions {
    /// `schema.table`.
    pub table: String,
    /// The columns that `key_fields` requires as the table's key, in any order. If empty, any key
    /// is accepted.
    pub key: Vec<String>,
    /// An identifier of this run of the writer. It differs from those of all other runs, including
    /// earlier runs in the same process.
    pub writer_id: String,
    /// The formats of a snapshot; at least one.
    pub snapshot_formats: Vec<ArtifactFormat>,
    /// The formats of a diff; at least one.
    pub diff_formats: Vec<ArtifactFormat>,
    /// The interval between diffs. No diff is written if nothing has changed.
    pub diff_interval: Duration,
    /// The limits at which a snapshot is written instead of a diff.
    pub thresholds: RebaseThresholds,
    /// The number of epochs to keep; all if `None`.
    pub keep_epochs: Option<usize>,
    /// The maximum number of epochs that `manifest.json` names: the newest ones. Older epochs are
    /// in sealed manifests.
    pub manifest_epochs: u32,
    /// The time that an object is kept although no manifest names it. [`GRACE_PERIOD`] is a
    /// reasonable value.
    pub grace: Duration,
    /// True if [`ArchiveWriter::open`] retries while the first destination is unavailable or
    /// refuses calls. Otherwise it fails at once.
    pub waits_at_start: bool,
    /// The seed of the random retry delays, which makes them repeatable.
    pub seed: u64,
}

/// The settings and resources that the tasks of a writer share.
pub(crate) struct WriterContext {
    options: WriterOptions,
    stager: ArtifactStager,
    wall: Box<dyn Fn() -> SystemTime + Send + Sync>,
    publish: Box<dyn Fn(ArtifactEvent) + Send + Sync>,
}

/// The resources that [`ArchiveWriter::open`] needs.
pub struct WriterResources {
    /// The destinations; at least one. The manifest at the first one is authoritative.
    pub destinations: Vec<Arc<dyn Destination>>,
    /// The local storage for artifacts that are not yet at a destination.
    pub stager: ArtifactStager,
    /// The wall clock for the times in manifests.
    pub wall: Box<dyn Fn() -> SystemTime + Send + Sync>,
    /// Publishes the event about a new artifact. The function must not block.
    pub publish: Box<dyn Fn(ArtifactEvent) + Send + Sync>,
    /// The place for the writer's status, from its opening on.
    pub status: SharedWriterStatus,
}

/// An error that ends a writer or prevents its start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriterError {
    /// The list of destinations is empty.
    #[error("there is no destination")]
    NoDestination,
    /// A newer writer has taken over.
    #[error(
        "the archive {at} is now written by {} (number {}); this writer, {} (number {}), stops",
        theirs.id, theirs.fence, ours.id, ours.fence
    )]
    Fenced {
        /// The manifest's address.
        at: String,
        /// This writer's identity.
        ours: WriterId,
        /// The newer writer's identity.
        theirs: WriterId,
    },
    /// A program other than a laredo writer has replaced or removed the manifest.
    #[error(
        "the manifest {at} was removed, or replaced by a program that is not a writer of laredo; this writer stops"
    )]
    Replaced {
        /// The manifest's address.
        at: String,
    },
    /// The manifest is invalid or belongs to another table.
    #[error("{at}: {error}")]
    Manifest {
        /// The manifest's address.
        at: String,
        /// The error in the manifest.
        error: ManifestError,
    },
    /// Another destination has a newer archive than the first one.
    #[error("{at} has a newer archive of this table than the first destination, {first}; put it first, or empty it")]
    Ahead {
        /// The name of the other destination.
        at: String,
        /// The name of the first destination.
        first: String,
    },
    /// A call to a destination failed.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The next manifest would break a rule, so it is not written.
    #[error("the next manifest was not written: {0}")]
    Broken(ManifestError),
    /// Rows cannot be encoded.
    #[error("rows cannot be encoded: {0}")]
    Encode(String),
    /// The table's key differs from the configured one.
    #[error("the key of {table} is {}, but `key_fields` names {}; correct `key_fields`, or leave it out", is.join(", "), asked.join(", "))]
    Key {
        /// `schema.table`.
        table: String,
        /// The columns of the table's key.
        is: Vec<String>,
        /// The configured columns.
        asked: Vec<String>,
    },
    /// The feed has ended.
    #[error("the stream of changes has ended: {0}")]
    Feed(String),
}

/// The state from which a feed resumes.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedStart {
    /// The schema of the archived rows.
    pub schema: Arc<Schema>,
    /// The position of the archive's head.
    pub position: Lsn,
    /// The database and history that the position belongs to, if known.
    pub source: Option<SourceIdentity>,
    /// The definition version of the rows; unknown in an archive of an earlier laredo version.
    pub definition: DefinitionVersion,
    /// The newest commit at or before the head; unknown in an archive of an earlier laredo version.
    pub mark: Option<ScopedMark>,
}

/// The writer of one table's archive.
pub struct ArchiveWriter {
    tools: Arc<WriterContext>,
    report: WriterReport,
    rows: WriterRows,
    chain: NewestChain,
    work: WriterTasks,
    asks: mpsc::UnboundedReceiver<SnapshotReplySender>,
    ask: mpsc::UnboundedSender<SnapshotReplySender>,
    /// The requests for the next snapshot. `answering` has the requests that the snapshot being
    /// written answers.
    waiting: Vec<SnapshotReplySender>,
    answering: Vec<SnapshotReplySender>,
    /// The reason for a snapshot that is due regardless of the thresholds.
    due: Option<RebaseReason>,
    /// The lowest epoch for the next snapshot. Other objects may occupy the names of lower epochs.
    epoch_least: u64,
}

type SnapshotReplySender = oneshot::Sender<Result<WrittenArtifact, SnapshotRequestError>>;

/// The reason why a requested snapshot was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRequestError {
    /// The writer has no rows yet.
    #[error("there are no rows to write yet")]
    NoRows,
    /// The writer has ended.
    #[error("the writer has ended")]
    Ended,
}

/// A handle for requests to a writer and for its status.
#[derive(Clone, Debug)]
pub struct WriterHandle {
    ask: mpsc::UnboundedSender<SnapshotReplySender>,
    status: SharedWriterStatus,
}

impl WriterHandle {
    /// Requests a snapshot and waits until the manifest names it.
    ///
    /// # Errors
    /// [`SnapshotRequestError`] if the writer has no rows yet or has ended.
    pub async fn snapshot(&self) -> Result<WrittenArtifact, SnapshotRequestError> {
        let (ask, answer) = oneshot::channel();
        self.ask.send(ask).map_err(|_| SnapshotRequestError::Ended)?;
        answer.await.map_err(|_| SnapshotRequestError::Ended)?
    }

    /// Returns the current status of the writer.
    #[must_use]
    pub fn status(&self) -> WriterStatus {
        self.status.current()
    }
}

impl ArchiveWriter {
    /// Takes over an archive and rebuilds its newest state. Also returns the state from which the
    /// feed has to resume, or `None` if the archive is empty or cannot be read.
    ///
    /// # Errors
    /// [`WriterError`] if the first destination cannot be used or has something other than an
    /// archive of this table.
    pub async fn open(
        options: WriterOptions,
        resources: WriterResources,
    ) -> Result<(ArchiveWriter, Option<FeedStart>), WriterError> {
        let WriterResources { destinations, stager, wall, publish, status } = resources;
        let leftovers = stager.clone();
        // If the thread fails, the files stay.
        let _ = tokio::task::spawn_blocking(move || leftovers.remove_abandoned()).await;
        let tools = Arc::new(WriterContext { options, stager, wall, publish });
        let report = WriterReport::new(&tools.options.table, status, &destinations);
        let WriterOptions { table, writer_id, .. } = &tools.options;
        let ledger = ManifestLedger::claim(destinations, table, writer_id, &tools, &report).await?;
        let held = rebuild_newest_state(&ledger, &report).await;
        let start = held.as_ref().map(|held| FeedStart {
            schema: held.schema().clone(),
            position: held.position(),
            source: held.source().cloned(),
            definition: held.definition(),
            mark: held.mark(),
        });
        let chain = NewestChain::of(ledger.manifest(), (tools.wall)());
        let has_other_formats = held.is_some() && !tools.options.formats_are_of(ledger.manifest().chain());
        let work = WriterTasks::new(ledger, tools.options.grace);
        let (ask, asks) = mpsc::unbounded_channel();
        let writer = ArchiveWriter {
            tools,
            report,
            rows: WriterRows::new(held),
            chain,
            work,
            asks,
            ask,
            waiting: Vec::new(),
            answering: Vec::new(),
            due: has_other_formats.then_some(RebaseReason::Formats),
            epoch_least: 0,
        };
        writer.report_status();
        Ok((writer, start))
    }

    /// Returns a handle for requests to this writer.
    #[must_use]
    pub fn handle(&self) -> WriterHandle {
        WriterHandle { ask: self.ask.clone(), status: self.report.status().clone() }
    }

    /// Runs the writer until `stop` is cancelled, and then writes the changes that it has
    /// collected.
    ///
    /// # Errors
    /// When another writer takes over, the feed ends, the table's key is not the configured one, or
    /// rows cannot be encoded. The archive stays consistent.
    pub async fn run(mut self, mut feed: impl Feed, stop: CancellationToken) -> Result<(), WriterError> {
        let mut ended = self.serve(&mut feed, &stop).await;
        if ended.is_ok() {
            self.report.update(|status| status.phase = WriterPhase::Stopping);
            ended = self.flush().await;
        }
        if let Err(error) = &ended {
            self.report.record_error(error);
        }
        self.report.update(|status| status.phase = WriterPhase::Stopped);
        ended
    }

    async fn serve(&mut self, feed: &mut impl Feed, stop: &CancellationToken) -> Result<(), WriterError> {
        self.check_key()?;
        let look = LOOK_MAX.min(self.tools.options.diff_interval).max(Duration::from_millis(10));
        loop {
            self.plan(feed)?;
            self.work.collect(&self.tools, &self.report);
            self.report_status();
            let takes = self.rows.held().is_none_or(BufferedState::accepts_transactions);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                done = self.work.next_finished() => self.finish(done)?,
                Some(ask) = self.asks.recv() => self.queue_snapshot_request(ask),
                update = feed.next(), if takes => self.apply_update(update, feed)?,
                () = tokio::time::sleep(look) => {}
            }
        }
    }

    fn apply_update(&mut self, update: FeedUpdate, feed: &mut impl Feed) -> Result<(), WriterError> {
        match update {
            FeedUpdate::Restart { reason, shared_until } => {
                tracing::info!(
                    event = "rows_received_again", table = %self.tools.options.table, reason,
                    "all rows will be received again"
                );
                self.rows.restart(shared_until);
            }
            FeedUpdate::State { table, position, source } => {
                // Within one history, the archive never moves back in time. A server may send rows
                // that are older than the archive's head, and the later transactions after them.
                let shared_until = match self.rows {
                    WriterRows::Awaited { shared_until } => shared_until,
                    WriterRows::Held(_) => Lsn(u64::MAX),
                };
                let least = self.chain.head.filter(|head| shared_until >= *head);
                tracing::info!(
                    event = "rows_arrived", table = %self.tools.options.table, rows = table.len(), %position,
                    "all rows have arrived"
                );
                self.tools.options.check_key(table.schema())?;
                let rows = RowsVersion { definition: feed.definition(), mark: feed.mark() };
                let held = BufferedState::new(*table, position, source, rows, shared_until, least);
                self.rows = WriterRows::Held(Box::new(held));
                self.due = Some(if self.chain.epoch > 0 { RebaseReason::NewRows } else { RebaseReason::First });
            }
            FeedUpdate::Resumed { source } => {
                let definition = feed.definition();
                self.rows.held_mut().into_iter().for_each(|held| held.set_source(source.clone(), definition));
            }
            FeedUpdate::Transaction(transaction) => {
                let version = RowsVersion { definition: feed.definition(), mark: feed.mark() };
                if let Some(held) = self.rows.held_mut()
                    && let Err(error) = held.add_transaction(transaction, version)
                {
                    self.request_rows_again(error, feed);
                }
            }
            FeedUpdate::Current { at, position, checksum } => {
                self.report.update(|status| status.current_at = Some(at));
                checksum.into_iter().for_each(|theirs| self.compare(position, theirs, feed));
            }
            FeedUpdate::Ended { reason } => return Err(WriterError::Feed(reason)),
        }
        Ok(())
    }

    /// Compares the checksum of the rows here with the source's. If they differ, the rows are
    /// dropped and a new epoch begins with all rows.
    fn compare(&mut self, position: Lsn, theirs: Checksum, feed: &mut impl Feed) {
        let Some(held) = self.rows.held().filter(|held| position >= held.reached()) else { return };
        let Some(ours) = held.checksum() else { return };
        if feed.compare(position, ours, theirs) {
            let table = &self.tools.options.table;
            let error = ChecksumMismatch { position, ours, theirs };
            tracing::error!(
                event = "archive_rows_differ", %table, %error,
                "the archive does not have the table's rows; a new epoch begins with all rows"
            );
            self.report.retried(&error);
            self.rows.drop_held();
        }
    }

    /// Checks that the key of the rows is the configured one.
    fn check_key(&self) -> Result<(), WriterError> {
        self.rows.held().map_or(Ok(()), |held| self.tools.options.check_key(held.schema()))
    }

    /// Drops rows that do not match the table, and requests all rows again. The archive does not
    /// change.
    fn request_rows_again(&mut self, error: StateError, feed: &mut impl Feed) {
        self.report.retried(&error);
        self.rows.drop_held();
        feed.start_over(error);
    }

    /// Begins the artifact that is due, unless one is being written.
    ///
    /// # Errors
    /// When the table's key is no longer the configured one.
    fn plan(&mut self, feed: &mut impl Feed) -> Result<(), WriterError> {
        if !self.work.is_idle() {
            return Ok(());
        }
        match self.rows.held_mut().map_or(Ok(AdvanceOutcome::All), BufferedState::advance) {
            Ok(AdvanceOutcome::All) => {}
            Ok(AdvanceOutcome::Schema) => {
                self.check_key()?;
                self.due = Some(RebaseReason::NewRows);
            }
            Ok(AdvanceOutcome::Gone { shared_until }) => self.rows = WriterRows::Awaited { shared_until },
            Err(error) => self.request_rows_again(error, feed),
        }
        self.begin_due()
    }

    fn begin_due(&mut self) -> Result<(), WriterError> {
        let Some(held) = self.rows.held().filter(|held| held.is_writable()) else {
            self.work.tidy(&self.tools, &self.report);
            return Ok(());
        };
        let options = &self.tools.options;
        let progress = self.chain.progress(held.depth());
        let due = match self.due {
            Some(reason) => RebaseDecision::Base(reason),
            None if !self.waiting.is_empty() => RebaseDecision::Base(RebaseReason::Asked),
            // An update that waits for the end of the epoch is let through at once.
            None if !held.accepts_transactions() => RebaseDecision::Diff,
            None => options.thresholds.due(&progress, options.diff_interval),
        };
        match due {
            RebaseDecision::Nothing => self.work.tidy(&self.tools, &self.report),
            RebaseDecision::Diff => {
                self.begin_job(ArtifactPlan::Diff { bytes_left: options.thresholds.diff_bytes_left(&progress) })
            }
            RebaseDecision::Base(reason) => {
                let epoch_least = self.epoch_least.max(next_epoch(self.chain.epoch)?);
                tracing::info!(event = "base_begins", table = %options.table, ?reason, "a new base is written");
                self.begin_job(ArtifactPlan::Base { epoch_least });
            }
        }
        Ok(())
    }

    fn begin_job(&mut self, plan: ArtifactPlan) {
        let Some(held) = self.rows.held_mut() else { return };
        if let ArtifactPlan::Base { .. } = plan {
            self.answering.append(&mut self.waiting);
        }
        let job = held.seal(plan);
        self.work.begin(job, &self.tools, &self.report);
    }

    fn finish(&mut self, done: WriterTaskResult) -> Result<(), WriterError> {
        let ArtifactJobEnd { ledger, result } = match done {
            WriterTaskResult::Job(end) => *end,
            WriterTaskResult::Tidied(tidied) => return tidied,
        };
        match result {
            Ok(written) => {
                self.chain = self.chain.after(ledger.manifest(), written.kind);
                if let Some(held) = self.rows.held_mut()
                    && held.unseal(Some(written.checksum))
                {
                    self.due = None;
                }
                self.record_artifact(&written);
            }
            Err(ArtifactJobError::Occupied { epoch }) => {
                self.epoch_least = next_epoch(epoch)?;
                self.due = Some(RebaseReason::Occupied);
                self.rows.held_mut().into_iter().for_each(|held| {
                    held.unseal(None);
                });
                // The next snapshot answers the requests for this one.
                self.waiting.append(&mut self.answering);
            }
            Err(ArtifactJobError::Writer(error)) => return Err(error),
        }
        self.work.return_ledger(ledger);
        Ok(())
    }

    fn record_artifact(&mut self, written: &WrittenArtifact) {
        let WrittenArtifact { kind, epoch, to_position, count, bytes, .. } = written;
        let table = &self.tools.options.table;
        tracing::info!(event = "artifact_written", %table, ?kind, epoch, to = %to_position, count, bytes, "written");
        if *kind == ArtifactKind::Snapshot {
            for ask in self.answering.drain(..) {
                // The requester may be gone.
                let _ = ask.send(Ok(written.clone()));
            }
        }
        self.report.update(|status| {
            let newest = match written.kind {
                ArtifactKind::Snapshot => &mut status.last_snapshot,
                ArtifactKind::Diff => &mut status.last_diff,
            };
            *newest = Some(written.clone());
        });
    }

    fn queue_snapshot_request(&mut self, ask: SnapshotReplySender) {
        match self.rows {
            WriterRows::Held(_) => {
                // The next snapshot answers this request, and counts for those who are gone. So
                // requests that are abandoned while a destination fails do not pile up.
                self.waiting.retain(|earlier| !earlier.is_closed());
                self.waiting.push(ask);
            }
            // The requester may be gone.
            WriterRows::Awaited { .. } => drop(ask.send(Err(SnapshotRequestError::NoRows))),
        }
    }

    /// Writes the collected changes if they can continue the archive. The feed delivers any others
    /// again after the next start.
    async fn flush(&mut self) -> Result<(), WriterError> {
        self.end_work().await?;
        if self.rows.held().is_some_and(|held| held.is_archived() && held.depth() > 0) {
            self.begin_job(ArtifactPlan::Diff { bytes_left: None });
            self.end_work().await?;
        }
        self.report_status();
        Ok(())
    }

    /// Waits until no task is running.
    async fn end_work(&mut self) -> Result<(), WriterError> {
        while !self.work.is_idle() {
            let done = self.work.next_finished().await;
            self.finish(done)?;
        }
        Ok(())
    }

    fn report_status(&self) {
        let held = self.rows.held();
        let progress = self.chain.progress(held.map_or(0, BufferedState::depth));
        let (head_position, epoch) = (self.chain.head, self.chain.epoch);
        self.report.update(|status| {
            status.phase = match held {
                _ if status.phase == WriterPhase::Stopping => WriterPhase::Stopping,
                Some(_) => WriterPhase::Running,
                None => WriterPhase::Waiting,
            };
            status.position = held.map(BufferedState::reached);
            status.buffer_depth = held.map_or(0, BufferedState::depth);
            (status.progress, status.head_position, status.epoch) = (progress, head_position, epoch);
        });
    }
}

/// Returns the epoch after an epoch.
///
/// # Errors
/// If a manifest cannot have the next epoch.
fn next_epoch(epoch: u64) -> Result<u64, WriterError> {
    next_number("next epoch", epoch).map_err(|violation| WriterError::Broken(violation.into()))
}

/// A difference between the checksums of the rows here and of the source's rows.
#[derive(Debug, thiserror::Error)]
#[error("at {position} the rows have the checksum {ours} and the server's have {theirs}")]
struct ChecksumMismatch {
    position: Lsn,
    ours: Checksum,
    theirs: Checksum,
}

/// The artifact to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ArtifactPlan {
    /// A snapshot that opens the epoch `epoch_least`.
    Base { epoch_least: u64 },
    /// A diff, or a snapshot if the diff would have at least `bytes_left` bytes.
    Diff { bytes_left: Option<u64> },
}

/// Rebuilds the newest state of the archive. Returns `None` if it is empty or cannot be read.
async fn rebuild_newest_state(ledger: &ManifestLedger, report: &WriterReport) -> Option<BufferedState> {
    let manifest = ledger.manifest();
    let (position, first) = (manifest.head_position?, ledger.first()?);
    let archive = Archive::of(first.clone(), manifest.clone());
    match archive.rebuild(ArchivePoint::Latest, &ReadProgress::default()).await {
        Ok(rebuilt) => {
            let rows = RowsVersion { definition: manifest.definition.unwrap_or_default(), mark: rebuilt.boundary.mark };
            Some(BufferedState::archived(rebuilt, position, manifest.source.clone(), rows))
        }
        Err(error) => {
            tracing::error!(
                event = "archive_not_resumable", %error,
                "cannot resume from the archive; a snapshot will be written"
            );
            report.record_error(&error);
            None
        }
    }
}

impl WriterOptions {
    /// Returns the settings of a writer that accepts any key, writes snapshots and diffs in the
    /// same formats, and keeps all epochs.
    #[must_use]
    pub fn new(
        table: impl Into<String>,
        writer_id: impl Into<String>,
        formats: Vec<ArtifactFormat>,
        diff_interval: Duration,
    ) -> WriterOptions {
        WriterOptions {
            table: table.into(),
            key: Vec::new(),
            writer_id: writer_id.into(),
            snapshot_formats: formats.clone(),
            diff_formats: formats,
            diff_interval,
            thresholds: RebaseThresholds::default(),
            keep_epochs: None,
            manifest_epochs: MANIFEST_EPOCHS,
            grace: GRACE_PERIOD,
            waits_at_start: false,
            seed: 0,
        }
    }

    /// Returns true if the configured formats can continue this chain, so that readers of each
    /// format find every artifact of an epoch.
    fn formats_are_of(&self, chain: &[Artifact]) -> bool {
        chain.iter().all(|artifact| {
            let formats = match artifact.kind {
                ArtifactKind::Snapshot => &self.snapshot_formats,
                ArtifactKind::Diff => &self.diff_formats,
            };
            let ids: BTreeSet<&str> = formats.iter().map(|format| format.id()).collect();
            ids.into_iter().eq(artifact.formats.keys().map(String::as_str))
        })
    }

    /// Checks that the table's key is the configured one.
    ///
    /// # Errors
    /// [`WriterError::Key`] if it is not.
    fn check_key(&self, schema: &Schema) -> Result<(), WriterError> {
        let name = |column: &usize| schema.columns().get(*column).map(|column| column.name.clone());
        let is: Vec<String> = schema.key().columns().iter().filter_map(name).collect();
        let is_so = is.len() == self.key.len() && self.key.iter().all(|column| is.contains(column));
        if self.key.is_empty() || is_so {
            return Ok(());
        }
        Err(WriterError::Key { table: self.table.clone(), is, asked: self.key.clone() })
    }
}

impl WriterContext {
    /// Returns the current time as RFC 3339, UTC.
    pub(crate) fn now(&self) -> String {
        prost_types::Timestamp::from((self.wall)()).to_string()
    }

    pub(crate) fn backoff(&self) -> RetryDelays {
        RetryDelays::new(RETRY_FIRST, RETRY_LAST).with_random_share(self.options.seed)
    }
}

impl fmt::Debug for ArchiveWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("table", &self.tools.options.table).finish_non_exhaustive()
    }
}
