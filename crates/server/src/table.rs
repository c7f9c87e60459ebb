//! A table and its service to clients.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use laredo_core::{CommitTime, TableName};
use laredo_engine::journal::Journal;
use laredo_engine::{SnapshotFolder, TableHandle, TablePhase};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::drain::TableDrain;
use crate::lease::{ClientLease, ClientSeat, ClientSeats, SnapshotDownload};
use crate::options::{BufferOptions, ServedTableOptions, ServerTimeLimits, TableLimits};
use crate::query_state::QueryTable;
use crate::refusal;
use crate::roster::StreamRoster;
use crate::view::JournalViews;

/// The time after which a table is not ready if its definition was not verified.
const UNVERIFIED_MAX: Duration = Duration::from_secs(60);

/// The state of a table that is drained, in addition to those of [`TablePhase`].
pub(crate) const DRAINED: &str = "drained";

pub(crate) struct ServedTable {
    handle: TableHandle,
    source_id: String,
    limits: RwLock<TableLimits>,
    views: JournalViews,
    counters: TableCounters,
    drain: TableDrain,
    roster: Arc<StreamRoster>,
    seats: ClientSeats,
    query: Option<QueryTable>,
    leases: Mutex<Vec<Weak<ClientLease>>>,
    downloads: Mutex<Vec<Weak<SnapshotDownload>>>,
    /// True if the table was added while the server ran. The server is ready without it until its
    /// first copy is over.
    is_late: bool,
    /// Cancelled when the table is removed from the server, or replaced.
    ended: CancellationToken,
    is_replaced: AtomicBool,
}

/// Counters of events since the start.
#[derive(Debug, Default)]
pub(crate) struct TableCounters {
    bytes_sent: AtomicU64,
    deltas: AtomicU64,
    clients_cut: AtomicU64,
    clients_refused: AtomicU64,
    snapshots: Mutex<BTreeMap<&'static str, u64>>,
}

/// The values of [`TableCounters`].
#[derive(Clone, Debug)]
pub(crate) struct TableCounts {
    pub(crate) bytes_sent: u64,
    /// The number of streams that began without a snapshot.
    pub(crate) deltas: u64,
    pub(crate) clients_cut: u64,
    pub(crate) clients_refused: u64,
    /// The number of streams that began with a full snapshot, by reason.
    pub(crate) snapshots: BTreeMap<&'static str, u64>,
}

impl ServedTable {
    pub(crate) fn new(options: ServedTableOptions, is_late: bool) -> ServedTable {
        let ServedTableOptions { handle, source_id, limits, projection_bytes_max, query } = options;
        ServedTable {
            views: JournalViews::new(&source_id, handle.name().clone(), projection_bytes_max),
            roster: Arc::new(StreamRoster::new(&source_id, handle.name().clone())),
            seats: ClientSeats::new(limits.clients_max),
            query: query.map(QueryTable::new),
            handle,
            source_id,
            limits: RwLock::new(limits),
            counters: TableCounters::default(),
            drain: TableDrain::new(),
            leases: Mutex::new(Vec::new()),
            downloads: Mutex::new(Vec::new()),
            is_late,
            ended: CancellationToken::new(),
            is_replaced: AtomicBool::new(false),
        }
    }

    pub(crate) fn handle(&self) -> &TableHandle {
        &self.handle
    }

    pub(crate) fn name(&self) -> &TableName {
        self.handle.name()
    }

    /// Returns the name of the table's source.
    pub(crate) fn source_id(&self) -> &str {
        &self.source_id
    }

    pub(crate) fn buffer(&self) -> BufferOptions {
        self.limits.read().buffer
    }

    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.limits.read().heartbeat_interval
    }

    /// Changes the limits. Streams that have begun keep their limit on how far they may fall
    /// behind.
    pub(crate) fn set_limits(&self, limits: TableLimits) {
        self.seats.set_max(limits.clients_max);
        *self.limits.write() = limits;
    }

    /// Ends every stream of the table. `is_replaced` is true if another table of the same name
    /// takes its place, and false if the server does not have it any more.
    pub(crate) fn end(&self, is_replaced: bool) {
        self.is_replaced.store(is_replaced, Ordering::Relaxed);
        self.ended.cancel();
    }

    /// Waits until the table is removed or replaced.
    pub(crate) fn ended(&self) -> WaitForCancellationFutureOwned {
        self.ended.clone().cancelled_owned()
    }

    /// Returns the error for the streams of a table that has ended.
    pub(crate) fn end_refusal(&self) -> Status {
        match self.is_replaced.load(Ordering::Relaxed) {
            true => refusal::journal_replaced(),
            false => refusal::removed(self.name()),
        }
    }

    /// Returns true if a stream or a download has to be swept.
    pub(crate) fn is_in_use(&self) -> bool {
        !self.leases.lock().is_empty() || !self.downloads.lock().is_empty()
    }

    /// Returns the views of the table's journal that clients share.
    pub(crate) fn views(&self) -> &JournalViews {
        &self.views
    }

    pub(crate) fn roster(&self) -> &Arc<StreamRoster> {
        &self.roster
    }

    /// Returns the rows for queries, if the table answers any.
    pub(crate) fn query(&self) -> Option<&QueryTable> {
        self.query.as_ref()
    }

    pub(crate) fn counters(&self) -> &TableCounters {
        &self.counters
    }

    pub(crate) fn drain(&self) -> &TableDrain {
        &self.drain
    }

    /// Returns the number of clients, including those that fetch a snapshot.
    pub(crate) fn clients(&self) -> usize {
        self.seats.taken()
    }

    /// Returns true if the table is served. It must have been copied and not be drained. It must
    /// not have failed, and its definition must not have been unverified for too long.
    pub(crate) fn is_ready(&self, now: CommitTime) -> bool {
        self.failure().is_none()
            && !self.drain.has_begun()
            && self.handle().journal().is_some_and(|journal| !journal.is_parted())
            && self.unverified(now).is_none()
    }

    /// Returns the time for which the stream has continued without a check of the table's
    /// definition, if that is too long. In that time, a change that PostgreSQL does not announce
    /// would not be noticed. Time in which the database is unavailable does not count, because the
    /// stream does not continue either; the lag shows it.
    pub(crate) fn unverified(&self, now: CommitTime) -> Option<Duration> {
        let age = self.handle().definition().verified_age?;
        let now = self.handle().source_time(now);
        let lag_us = now.0.saturating_sub(self.handle().status().current_at.0);
        let lag = Duration::from_micros(u64::try_from(lag_us).unwrap_or(0));
        Some(age.saturating_sub(lag)).filter(|unverified| *unverified > UNVERIFIED_MAX)
    }

    /// Returns true if the first copy is over, successful or not. This includes a copy that has
    /// failed and is tried again, so that other tables do not wait for it.
    pub(crate) fn is_started(&self) -> bool {
        self.handle().status().has_failed || self.handle().journal().is_some()
    }

    /// Returns true if the server may become ready even if this table is not, because the table is
    /// not expected to be ready soon.
    pub(crate) fn is_settled(&self, now: CommitTime) -> bool {
        self.is_late || self.is_ready(now) || self.drain.has_begun() || self.is_started()
    }

    /// Returns the name of the table's state. A table that is drained follows its source, but
    /// accepts no new clients.
    pub(crate) fn state_name(&self, phase: &TablePhase) -> &'static str {
        match phase {
            TablePhase::Live if self.drain.has_begun() => DRAINED,
            TablePhase::Live | TablePhase::Copying { .. } | TablePhase::Retrying { .. } | TablePhase::Failed { .. } => {
                phase.name()
            }
        }
    }

    /// Returns the reason why the table cannot be followed until an operator acts, if there is one.
    pub(crate) fn failure(&self) -> Option<String> {
        match self.handle().status().phase {
            TablePhase::Failed { error } => Some(error),
            TablePhase::Copying { .. } | TablePhase::Live | TablePhase::Retrying { .. } => None,
        }
    }

    /// Returns the table's snapshots.
    ///
    /// # Errors
    /// Returns an error if no snapshot store is configured, or its folder is not open.
    pub(crate) fn snapshot_folder(&self) -> Result<Arc<SnapshotFolder>, Status> {
        match self.handle().snapshots() {
            Some(folder) => Ok(folder),
            None if self.handle().keeps_snapshots() => Err(refusal::folder_not_open(self.handle())),
            None => Err(refusal::no_store()),
        }
    }

    /// Returns the reason why the table's last snapshot was not written, if there is one.
    pub(crate) fn snapshot_error(&self) -> Option<String> {
        self.handle().snapshots()?.status().error
    }

    /// Takes a seat for a client.
    ///
    /// # Errors
    /// Returns an error if all seats are taken.
    pub(crate) fn take_seat(&self) -> Result<ClientSeat, Status> {
        self.seats.take_seat().map_err(|clients_max| {
            self.counters.count_refused_client();
            refusal::too_many_clients(self.name(), clients_max)
        })
    }

    /// Includes a lease in later sweeps.
    pub(crate) fn watch(&self, lease: &Arc<ClientLease>) {
        self.leases.lock().push(Arc::downgrade(lease));
    }

    /// Includes a download in later sweeps.
    pub(crate) fn watch_download(&self, download: &Arc<SnapshotDownload>) {
        self.downloads.lock().push(Arc::downgrade(download));
    }

    /// Cuts clients that are too far behind, that read nothing of their snapshot or too little, or
    /// whose pins keep the journal beyond its limits. Resets the streams of those that were cut and
    /// still read nothing, and ends downloads that are not read. `others_wait` is true if clients
    /// wait for a snapshot permit.
    pub(crate) fn sweep(&self, now: Instant, waits: &ServerTimeLimits, others_wait: bool) {
        let mut leases = self.leases.lock();
        let journal = self.handle().journal();
        while let Some(pinned) = journal.as_ref().and_then(Journal::overdue_pin) {
            let released = leases.iter().filter_map(Weak::upgrade).filter(|lease| lease.release_base(pinned)).count();
            if released == 0 {
                break;
            }
        }
        leases.retain(|lease| match lease.upgrade() {
            Some(lease) => lease.sweep(now, waits, others_wait),
            None => false,
        });
        let is_watched = |download: &Weak<SnapshotDownload>| {
            download.upgrade().is_some_and(|download| download.sweep(now, waits.stalled))
        };
        self.downloads.lock().retain(is_watched);
        self.query.iter().for_each(|query| query.sweep(now));
    }
}

impl TableCounters {
    pub(crate) fn add_sent_bytes(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a stream that begins without a snapshot.
    pub(crate) fn count_delta(&self) {
        self.deltas.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stream that begins with a full snapshot.
    pub(crate) fn count_snapshot(&self, reason: &'static str) {
        *self.snapshots.lock().entry(reason).or_insert(0) += 1;
    }

    pub(crate) fn count_cut_client(&self) {
        self.clients_cut.fetch_add(1, Ordering::Relaxed);
    }

    fn count_refused_client(&self) {
        self.clients_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the present values.
    pub(crate) fn read(&self) -> TableCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TableCounts {
            bytes_sent: read(&self.bytes_sent),
            deltas: read(&self.deltas),
            clients_cut: read(&self.clients_cut),
            clients_refused: read(&self.clients_refused),
            snapshots: self.snapshots.lock().clone(),
        }
    }
}
