//! What all services of one server share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use laredo_core::{CommitTime, TableName};
use laredo_engine::{Clock, Snapshots};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::options::{HttpOptions, ServedSource, Waits};
use crate::refusal;
use crate::session::Admission;
use crate::table::Served;

/// Parts of kept snapshots that are read and projected at once.
const FETCHES: usize = 4;

pub(crate) struct Shared {
    pub(crate) sources: Vec<ServedSource>,
    pub(crate) tables: Vec<Arc<Served>>,
    pub(crate) clock: Clock,
    pub(crate) waits: Waits,
    pub(crate) http: HttpOptions,
    /// The line of those who are to be sent a snapshot.
    pub(crate) admission: Arc<Admission>,
    /// Turns of those who fetch a kept snapshot: its rows are projected for each of them.
    pub(crate) fetches: Arc<Semaphore>,
    /// Not ready any more: the server is about to stop.
    pub(crate) drain: CancellationToken,
    /// Ends every stream.
    pub(crate) stop: CancellationToken,
    /// When the server began.
    pub(crate) began: CommitTime,
    started: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        sources: Vec<ServedSource>,
        tables: Vec<Arc<Served>>,
        clock: Clock,
        waits: Waits,
        http: HttpOptions,
    ) -> Shared {
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        let (began, admission, fetches) = (clock(), Arc::default(), Arc::new(Semaphore::new(FETCHES)));
        Shared {
            sources,
            tables,
            clock,
            waits,
            http,
            admission,
            fetches,
            drain,
            stop,
            began,
            started: AtomicBool::new(false),
        }
    }

    /// # Errors
    /// A name that is empty, or that no table has.
    pub(crate) fn table(&self, schema: &str, table: &str) -> Result<&Arc<Served>, Status> {
        if schema.is_empty() {
            return Err(refusal::required("schema"));
        }
        if table.is_empty() {
            return Err(refusal::required("table"));
        }
        let found = self.tables.iter().find(|t| t.name().schema == schema && t.name().table == table);
        found.ok_or_else(|| refusal::unknown_table(&TableName::new(schema, table)))
    }

    /// The table that has a snapshot of this id, and its store.
    ///
    /// # Errors
    /// When no table has one, or no table has any.
    pub(crate) fn snapshot_store(&self, id: &str) -> Result<(Arc<Served>, Arc<Snapshots>), Status> {
        if id.is_empty() {
            return Err(refusal::required("snapshot_id"));
        }
        let mut stores = self.tables.iter().filter_map(|table| Some((table, table.handle().snapshots()?))).peekable();
        stores.peek().ok_or_else(refusal::no_store)?;
        let has = |snapshots: &Snapshots| snapshots.list().iter().any(|info| info.id == id);
        let found = stores.find(|(_, snapshots)| has(snapshots));
        let (table, snapshots) = found.ok_or_else(|| refusal::unknown_snapshot(id))?;
        Ok((table.clone(), snapshots))
    }

    /// Returns the time of day of a moment that has passed.
    pub(crate) fn time_of(&self, moment: Instant) -> CommitTime {
        let passed_us = i64::try_from(moment.elapsed().as_micros()).unwrap_or(i64::MAX);
        CommitTime((self.clock)().0.saturating_sub(passed_us))
    }

    /// Returns the sources that are not followed, each with its state and reason.
    pub(crate) fn waiting_for(&self) -> BTreeMap<String, String> {
        let waiting = self.sources.iter().filter_map(|source| {
            let state = source.engine.source_status().state;
            let said = match state.reason() {
                Some(reason) => format!("{}: {reason}", state.name()),
                None => "connecting: the source is being checked".to_owned(),
            };
            (!state.is_following()).then(|| (source.id.clone(), said))
        });
        waiting.collect()
    }

    pub(crate) fn source(&self, id: &str) -> Option<&ServedSource> {
        self.sources.iter().find(|source| source.id == id)
    }

    /// Returns true if the server serves what can be served: at least one table is ready, and none is expected to be soon.
    /// With strict readiness every table has to be ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.are_ready(&self.tables)
    }

    /// Returns true if what can be served of these tables is served.
    pub(crate) fn are_ready(&self, tables: &[Arc<Served>]) -> bool {
        let now = (self.clock)();
        let is_ready = |table: &Arc<Served>| table.is_ready(now);
        if self.is_draining() {
            return false;
        }
        if self.http.strict_readiness || tables.is_empty() {
            return tables.iter().all(is_ready);
        }
        tables.iter().any(is_ready) && tables.iter().all(|table| table.is_settled(now))
    }

    /// Whether no table begins any more streams.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_cancelled() || (!self.tables.is_empty() && self.tables.iter().all(|t| t.drain.has_begun()))
    }

    /// Whether every table's first copy is over, well or not. It stays so.
    pub(crate) fn is_started(&self) -> bool {
        if !self.started.load(Ordering::Relaxed) && self.tables.iter().all(|table| table.is_started()) {
            self.started.store(true, Ordering::Relaxed);
        }
        self.started.load(Ordering::Relaxed)
    }

    /// No more streams begin, and those that there are have so long to end.
    pub(crate) fn leave(&self, now: Instant) {
        self.drain.cancel();
        self.tables.iter().for_each(|table| table.drain.begin(now, Some(self.waits.drain)));
    }

    /// Streams of all tables.
    pub(crate) fn clients(&self) -> usize {
        self.tables.iter().map(|table| table.clients()).sum()
    }

    /// Cuts clients that hold what others need.
    pub(crate) fn sweep(&self, now: Instant) {
        self.tables.iter().for_each(|table| table.sweep(now, self.waits.stalled));
    }
}
