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

mod chain;
mod collect;
mod held;
mod job;
mod ledger;
mod report;
mod status;
mod work;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use laredo_core::{Checksum, DefinitionVersion, Lsn, Schema, StateError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::destination::{Destination, DestinationError, Stager};
use crate::events::Event;
use crate::feed::{Feed, Update};
use crate::format::Format;
use crate::manifest::{Artifact, Kind, ManifestError, PositionMark, SourceId, WriterId};
use crate::reader::{Archive, At, ReadProgress};
use crate::rebase::{Due, Reason, Thresholds};
use chain::Chain;
use held::{Held, RowsVersion, Taken};
use job::{JobEnd, JobError};
use ledger::Ledger;
use report::Report;
use work::{Done, Work};

pub use status::{DestinationStatus, Phase, Status, Written};

/// The longest time between two checks of whether an artifact is due.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// The delay before the first retry of a failed operation. `RETRY_LAST` is the longest delay.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(30);
/// The usual grace period, after which an object that no manifest names is deleted. Until then,
/// readers of an older manifest can finish.
pub const GRACE: Duration = Duration::from_secs(3600);
/// The default number of epochs that `manifest.json` names.
pub const MANIFEST_EPOCHS: u32 = 8;

/// The settings of a writer.
#[derive(Clone, Debug)]
pub struct Options {
    /// `schema.table`.
    pub table: String,
    /// The columns that `key_fields` requires as the table's key, in any order. If empty, any key
    /// is accepted.
    pub key: Vec<String>,
    /// An identifier of this run of the writer. It differs from those of all other runs, including
    /// earlier runs in the same process.
    pub writer_id: String,
    /// The formats of a snapshot; at least one.
    pub snapshot_formats: Vec<Format>,
    /// The formats of a diff; at least one.
    pub diff_formats: Vec<Format>,
    /// The interval between diffs. No diff is written if nothing has changed.
    pub diff_interval: Duration,
    /// The limits at which a snapshot is written instead of a diff.
    pub thresholds: Thresholds,
    /// The number of epochs to keep; all if `None`.
    pub keep_epochs: Option<usize>,
    /// The maximum number of epochs that `manifest.json` names: the newest ones. Older epochs are
    /// in sealed manifests.
    pub manifest_epochs: u32,
    /// The time that an object is kept although no manifest names it. [`GRACE`] is a reasonable
    /// value.
    pub grace: Duration,
    /// True if [`Writer::open`] retries while the first destination is unavailable or refuses
    /// calls. Otherwise it fails at once.
    pub waits_at_start: bool,
    /// The seed of the random retry delays, which makes them repeatable.
    pub seed: u64,
}

/// The settings and resources that the tasks of a writer share.
pub(crate) struct Tools {
    options: Options,
    stager: Stager,
    wall: Box<dyn Fn() -> SystemTime + Send + Sync>,
    publish: Box<dyn Fn(Event) + Send + Sync>,
}

/// The resources that [`Writer::open`] needs.
pub struct Surroundings {
    /// The destinations; at least one. The manifest at the first one is authoritative.
    pub destinations: Vec<Arc<dyn Destination>>,
    /// The local storage for artifacts that are not yet at a destination.
    pub stager: Stager,
    /// The wall clock for the times in manifests.
    pub wall: Box<dyn Fn() -> SystemTime + Send + Sync>,
    /// Publishes the event about a new artifact. The function must not block.
    pub publish: Box<dyn Fn(Event) + Send + Sync>,
    /// The channel for the writer's status, from its opening on.
    pub status: watch::Sender<Status>,
}

/// An error that ends a writer or prevents its start.
#[derive(Debug, thiserror::Error)]
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
    #[error("the manifest {at} was replaced or removed by a program that holds no number; this writer stops")]
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
    #[error("nothing is written: {0}")]
    Broken(ManifestError),
    /// Rows cannot be encoded.
    #[error("rows cannot be encoded: {0}")]
    Encode(String),
    /// The table's key differs from the configured one.
    #[error("rows of {table} are told apart by {} and not by {}, as `key_fields` has it: correct it, or leave it out", is.join(", "), asked.join(", "))]
    Key {
        /// `schema.table`.
        table: String,
        /// The columns of the table's key.
        is: Vec<String>,
        /// The configured columns.
        asked: Vec<String>,
    },
    /// The feed has ended.
    #[error("no changes come any more: {0}")]
    Feed(String),
}

/// The state from which a feed resumes.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The schema of the archived rows.
    pub schema: Arc<Schema>,
    /// The position of the archive's head.
    pub position: Lsn,
    /// The database and history that the position belongs to, if known.
    pub source: Option<SourceId>,
    /// The definition version of the rows; unknown in an archive of an earlier laredo version.
    pub definition: DefinitionVersion,
    /// The newest commit at or before the head; unknown in an archive of an earlier laredo version.
    pub mark: Option<PositionMark>,
}

/// The writer of one table's archive.
pub struct Writer {
    tools: Arc<Tools>,
    report: Report,
    held: Option<Held>,
    chain: Chain,
    work: Work,
    asks: mpsc::UnboundedReceiver<Ask>,
    ask: mpsc::UnboundedSender<Ask>,
    /// The requests for the next snapshot. `answering` has the requests that the snapshot being
    /// written answers.
    waiting: Vec<Ask>,
    answering: Vec<Ask>,
    /// The reason for a snapshot that is due regardless of the thresholds.
    due: Option<Reason>,
    /// The lowest epoch for the next snapshot. Other objects may occupy the names of lower epochs.
    epoch_least: u64,
    /// The position that rows received after a restart must reach before they are written.
    least: Option<Lsn>,
    /// The newest position up to which the history of the archive's head and that of the next
    /// complete rows are known to be the same.
    shared_until: Lsn,
}

type Ask = oneshot::Sender<Result<Written, NoSnapshot>>;

/// The reason why a requested snapshot was not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSnapshot {
    /// The writer has no rows yet.
    #[error("there are no rows to write yet")]
    NoRows,
    /// The writer has ended.
    #[error("the writer has ended")]
    Ended,
}

/// A handle for requests to a writer and for its status.
#[derive(Clone, Debug)]
pub struct Handle {
    ask: mpsc::UnboundedSender<Ask>,
    status: watch::Receiver<Status>,
}

impl Handle {
    /// Requests a snapshot and waits until the manifest names it.
    ///
    /// # Errors
    /// [`NoSnapshot`] if the writer has no rows yet or has ended.
    pub async fn snapshot(&self) -> Result<Written, NoSnapshot> {
        let (ask, answer) = oneshot::channel();
        self.ask.send(ask).map_err(|_| NoSnapshot::Ended)?;
        answer.await.map_err(|_| NoSnapshot::Ended)?
    }

    /// Returns the current status of the writer.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }
}

impl Writer {
    /// Takes over an archive and rebuilds its newest state. Also returns the state from which the
    /// feed has to resume, or `None` if the archive is empty or cannot be read.
    ///
    /// # Errors
    /// [`WriterError`] if the first destination cannot be used or has something other than an
    /// archive of this table.
    pub async fn open(options: Options, surroundings: Surroundings) -> Result<(Writer, Option<Start>), WriterError> {
        let Surroundings { destinations, stager, wall, publish, status } = surroundings;
        let tools = Arc::new(Tools { options, stager, wall, publish });
        let report = Report::new(&tools.options.table, status, &destinations);
        let Options { table, writer_id, .. } = &tools.options;
        let ledger = Ledger::claim(destinations, table, writer_id, &tools, &report).await?;
        let held = rebuilt(&ledger, &report).await;
        let start = held.as_ref().map(|held| Start {
            schema: held.schema().clone(),
            position: held.position(),
            source: held.source().cloned(),
            definition: held.definition(),
            mark: held.mark(),
        });
        let chain = Chain::of(ledger.manifest(), (tools.wall)());
        let has_other_formats = held.is_some() && !tools.options.formats_are_of(ledger.manifest().chain());
        let work = Work::new(ledger, tools.options.grace);
        let (ask, asks) = mpsc::unbounded_channel();
        let writer = Writer {
            tools,
            report,
            held,
            chain,
            work,
            asks,
            ask,
            waiting: Vec::new(),
            answering: Vec::new(),
            due: has_other_formats.then_some(Reason::Formats),
            epoch_least: 0,
            least: None,
            shared_until: Lsn(u64::MAX),
        };
        writer.tell();
        Ok((writer, start))
    }

    /// Returns a handle for requests to this writer.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { ask: self.ask.clone(), status: self.report.subscribe() }
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
            self.report.update(|status| status.phase = Phase::Stopping);
            ended = self.flush().await;
        }
        if let Err(error) = &ended {
            self.report.failed_with(error);
        }
        self.report.update(|status| status.phase = Phase::Stopped);
        ended
    }

    async fn serve(&mut self, feed: &mut impl Feed, stop: &CancellationToken) -> Result<(), WriterError> {
        self.held.iter().try_for_each(|held| self.tools.options.check_key(held.schema()))?;
        let look = LOOK_MAX.min(self.tools.options.diff_interval).max(Duration::from_millis(10));
        loop {
            self.plan(feed)?;
            self.work.collect(&self.tools, &self.report);
            self.tell();
            let takes = self.held.as_ref().is_none_or(Held::takes);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                done = self.work.done() => self.finish(done)?,
                Some(ask) = self.asks.recv() => self.asked(ask),
                update = feed.next(), if takes => self.take(update, feed)?,
                () = tokio::time::sleep(look) => {}
            }
        }
    }

    fn take(&mut self, update: Update, feed: &mut impl Feed) -> Result<(), WriterError> {
        match update {
            Update::Restart { reason, shared_until } => {
                tracing::info!(table = %self.tools.options.table, reason, "all rows come anew");
                self.shared_until = self.shared_until.min(shared_until);
                let held = self.held.take();
                self.note_dropped(held.as_ref());
                self.held = held.and_then(Held::without_rows);
            }
            Update::State { table, position, source } => {
                // Within one history, the archive never moves back in time. A server may send rows
                // that are older than the archive's head, and the later transactions after them.
                let shared_until = std::mem::replace(&mut self.shared_until, Lsn(u64::MAX));
                self.least = self.chain.head.filter(|head| shared_until >= *head);
                tracing::info!(table = %self.tools.options.table, rows = table.len(), %position, "all rows are there");
                self.tools.options.check_key(table.schema())?;
                let rows = RowsVersion { definition: feed.definition(), mark: feed.mark() };
                self.held = Some(Held::new(*table, position, source, rows, shared_until));
                self.due = Some(if self.chain.epoch > 0 { Reason::NewRows } else { Reason::First });
            }
            Update::Resumed { source } => {
                let definition = feed.definition();
                self.held.iter_mut().for_each(|held| held.is_of(source.clone(), definition));
            }
            Update::Transaction(transaction) => {
                if let Some(held) = &mut self.held
                    && let Err(error) =
                        held.take(transaction, RowsVersion { definition: feed.definition(), mark: feed.mark() })
                {
                    self.misfit(error, feed);
                }
            }
            Update::Current { at, position, checksum } => {
                self.report.update(|status| status.current_at = Some(at));
                checksum.into_iter().for_each(|theirs| self.compare(position, theirs, feed));
            }
            Update::Ended { reason } => return Err(WriterError::Feed(reason)),
        }
        Ok(())
    }

    /// Compares the checksum of the rows here with the source's. If they differ, the rows are
    /// dropped and a new epoch begins with all rows.
    fn compare(&mut self, position: Lsn, theirs: Checksum, feed: &mut impl Feed) {
        let Some(held) = self.held.as_ref().filter(|held| position >= held.reached()) else { return };
        let Some(ours) = held.checksum() else { return };
        if feed.compare(position, ours, theirs) {
            let table = &self.tools.options.table;
            let error = Differs { position, ours, theirs };
            tracing::error!(%table, %error, "the archive does not have the table's rows; a new epoch begins with all rows");
            self.report.retried(&error);
            self.drop_rows();
        }
    }

    fn drop_rows(&mut self) {
        let held = self.held.take();
        self.note_dropped(held.as_ref());
    }

    /// Records how dropped rows that are in no archive relate to the archive's history. The next
    /// rows inherit that relation.
    fn note_dropped(&mut self, held: Option<&Held>) {
        let shared = held.map_or(Lsn(u64::MAX), Held::shared_until);
        self.shared_until = self.shared_until.min(shared);
    }

    /// Drops rows that do not match the table, and requests all rows again. The archive does not
    /// change.
    fn misfit(&mut self, error: StateError, feed: &mut impl Feed) {
        self.report.retried(&error);
        self.drop_rows();
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
        match self.held.as_mut().map_or(Ok(Taken::All), Held::advance) {
            Ok(Taken::All) => {}
            Ok(Taken::Schema) => {
                self.held.iter().try_for_each(|held| self.tools.options.check_key(held.schema()))?;
                self.due = Some(Reason::NewRows);
            }
            Ok(Taken::Gone) => self.drop_rows(),
            Err(error) => self.misfit(error, feed),
        }
        self.begin_due();
        Ok(())
    }

    fn begin_due(&mut self) {
        let Some(held) = &self.held else { return self.work.tidy(&self.tools, &self.report) };
        if !held.is_archived() && self.least.is_some_and(|least| held.reached() < least) {
            return self.work.tidy(&self.tools, &self.report);
        }
        let options = &self.tools.options;
        let progress = self.chain.progress(held.depth());
        let due = match self.due {
            Some(reason) => Due::Base(reason),
            None if !self.waiting.is_empty() => Due::Base(Reason::Asked),
            // An update that waits for the end of the epoch is let through at once.
            None if !held.takes() => Due::Diff,
            None => options.thresholds.due(&progress, options.diff_interval),
        };
        match due {
            Due::Nothing => self.work.tidy(&self.tools, &self.report),
            Due::Diff => self.begin(Plan::Diff { bytes_left: options.thresholds.diff_bytes_left(&progress) }),
            Due::Base(reason) => {
                tracing::info!(table = %options.table, ?reason, "a new base is written");
                self.begin(Plan::Base { epoch_least: self.epoch_least.max(self.chain.epoch + 1) });
            }
        }
    }

    fn begin(&mut self, plan: Plan) {
        let Some(held) = &mut self.held else { return };
        if let Plan::Base { .. } = plan {
            self.answering.append(&mut self.waiting);
        }
        let job = held.seal(plan);
        self.work.begin(job, &self.tools, &self.report);
    }

    fn finish(&mut self, done: Done) -> Result<(), WriterError> {
        let JobEnd { ledger, result } = match done {
            Done::Job(end) => *end,
            Done::Tidied(tidied) => return tidied,
        };
        match result {
            Ok(written) => {
                self.chain = self.chain.after(ledger.manifest(), written.kind);
                if let Some(held) = &mut self.held
                    && held.unseal(Some(written.checksum))
                {
                    self.due = None;
                }
                self.written(&written);
            }
            Err(JobError::Occupied { epoch }) => {
                self.epoch_least = epoch + 1;
                self.due = Some(Reason::Occupied);
                self.held.iter_mut().for_each(|held| {
                    held.unseal(None);
                });
                // The next snapshot answers the requests for this one.
                self.waiting.append(&mut self.answering);
            }
            Err(JobError::Writer(error)) => return Err(error),
        }
        self.work.rest(ledger);
        Ok(())
    }

    fn written(&mut self, written: &Written) {
        let Written { kind, epoch, to_position, count, bytes, .. } = written;
        let table = &self.tools.options.table;
        tracing::info!(%table, ?kind, epoch, to = %to_position, count, bytes, "written");
        if *kind == Kind::Snapshot {
            for ask in self.answering.drain(..) {
                // The requester may be gone.
                let _ = ask.send(Ok(written.clone()));
            }
        }
        self.report.update(|status| {
            let newest = match written.kind {
                Kind::Snapshot => &mut status.last_snapshot,
                Kind::Diff => &mut status.last_diff,
            };
            *newest = Some(written.clone());
        });
    }

    fn asked(&mut self, ask: Ask) {
        match self.held {
            Some(_) => self.waiting.push(ask),
            // The requester may be gone.
            None => drop(ask.send(Err(NoSnapshot::NoRows))),
        }
    }

    /// Writes the collected changes if they can continue the archive. The feed delivers any others
    /// again after the next start.
    async fn flush(&mut self) -> Result<(), WriterError> {
        self.end_work().await?;
        if self.held.as_ref().is_some_and(|held| held.is_archived() && held.depth() > 0) {
            self.begin(Plan::Diff { bytes_left: None });
            self.end_work().await?;
        }
        self.tell();
        Ok(())
    }

    /// Waits until no task is running.
    async fn end_work(&mut self) -> Result<(), WriterError> {
        while !self.work.is_idle() {
            let done = self.work.done().await;
            self.finish(done)?;
        }
        Ok(())
    }

    fn tell(&self) {
        let progress = self.chain.progress(self.held.as_ref().map_or(0, Held::depth));
        let (head_position, epoch) = (self.chain.head, self.chain.epoch);
        self.report.update(|status| {
            status.phase = match &self.held {
                _ if status.phase == Phase::Stopping => Phase::Stopping,
                Some(_) => Phase::Running,
                None => Phase::Waiting,
            };
            status.position = self.held.as_ref().map(Held::reached);
            status.buffer_depth = self.held.as_ref().map_or(0, Held::depth);
            (status.progress, status.head_position, status.epoch) = (progress, head_position, epoch);
        });
    }
}

/// A difference between the checksums of the rows here and of the source's rows.
#[derive(Debug, thiserror::Error)]
#[error("at {position} the rows have the checksum {ours} and the server's have {theirs}")]
struct Differs {
    position: Lsn,
    ours: Checksum,
    theirs: Checksum,
}

/// The artifact to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// A snapshot that opens the epoch `epoch_least`.
    Base { epoch_least: u64 },
    /// A diff, or a snapshot if the diff would have at least `bytes_left` bytes.
    Diff { bytes_left: Option<u64> },
}

/// Rebuilds the newest state of the archive. Returns `None` if it is empty or cannot be read.
async fn rebuilt(ledger: &Ledger, report: &Report) -> Option<Held> {
    let manifest = ledger.manifest();
    let (position, first) = (manifest.head_position?, ledger.first()?);
    let archive = Archive::of(first.clone(), manifest.clone());
    match archive.rebuild(At::Latest, &ReadProgress::default()).await {
        Ok(rebuilt) => {
            let rows = RowsVersion { definition: manifest.definition.unwrap_or_default(), mark: rebuilt.boundary.mark };
            Some(Held::archived(rebuilt, position, manifest.source.clone(), rows))
        }
        Err(error) => {
            tracing::error!(%error, "the archive cannot be gone on from; a new base will be written");
            report.failed_with(&error);
            None
        }
    }
}

impl Options {
    /// Returns true if the configured formats can continue this chain, so that readers of each
    /// format find every artifact of an epoch.
    fn formats_are_of(&self, chain: &[Artifact]) -> bool {
        chain.iter().all(|artifact| {
            let formats = match artifact.kind {
                Kind::Snapshot => &self.snapshot_formats,
                Kind::Diff => &self.diff_formats,
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

impl Tools {
    /// Returns the current time as RFC 3339, UTC.
    pub(crate) fn now(&self) -> String {
        prost_types::Timestamp::from((self.wall)()).to_string()
    }

    pub(crate) fn backoff(&self) -> Backoff {
        Backoff::new(RETRY_FIRST, RETRY_LAST, self.options.seed)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("table", &self.tools.options.table).finish_non_exhaustive()
    }
}
