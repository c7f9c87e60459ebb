//! State that all services of one server share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use laredo_core::{CommitTime, TableName};
use laredo_engine::{Clock, SnapshotError, SnapshotFolder};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use crate::access::{AccessGate, Caller, RowScope};
use crate::config_order::ConfigOrder;
use crate::lease::SnapshotAdmission;
use crate::log_limits::LogLimits;
use crate::options::{HttpOptions, ServedSource, ServedTableOptions, ServerTimeLimits, TableLimits};
use crate::query_state::follow_table;
use crate::refusal;
use crate::table::ServedTable;

/// The maximum number of parts of stored snapshots that are read and projected concurrently.
const FETCHES: usize = 4;
/// The maximum number of streams of status changes.
pub(crate) const STATUS_WATCHES_MAX: usize = 32;
/// The maximum number of requests to write, check, restore or delete whole snapshots that run
/// concurrently.
pub(crate) const SNAPSHOT_ORDERS_MAX: usize = 4;

/// A table, and its snapshots.
pub(crate) type TableSnapshotStore = (Arc<ServedTable>, Arc<SnapshotFolder>);

/// The tables of a server at one moment.
pub(crate) type ServedTables = Arc<[Arc<ServedTable>]>;

/// A stored snapshot, and the part of it that a caller may read.
pub(crate) struct ReadableSnapshot {
    pub(crate) table: Arc<ServedTable>,
    pub(crate) snapshots: Arc<SnapshotFolder>,
    pub(crate) scope: RowScope,
}

pub(crate) struct ServerState {
    pub(crate) sources: Vec<ServedSource>,
    tables: RwLock<ServedTables>,
    /// The removed tables whose health is still reported.
    removed: Mutex<BTreeSet<TableName>>,
    /// The tables that were removed or replaced, and whose streams have not all ended.
    former: Mutex<Vec<Arc<ServedTable>>>,
    /// The tasks that keep the rows for queries current.
    query_followers: Mutex<JoinSet<()>>,
    /// The receiver of orders that concern the configuration.
    pub(crate) config_orders: Option<mpsc::Sender<ConfigOrder>>,
    pub(crate) clock: Clock,
    pub(crate) waits: ServerTimeLimits,
    pub(crate) http: HttpOptions,
    /// The check of every request's caller.
    pub(crate) gate: AccessGate,
    /// Returns the number of log lines that the program dropped.
    pub(crate) dropped_log_lines: fn() -> u64,
    pub(crate) log_limits: LogLimits,
    /// The queue of clients that wait for a snapshot permit.
    admission: Arc<SnapshotAdmission>,
    /// The permits for fetching stored snapshots, whose rows are projected for each client.
    fetches: Arc<Semaphore>,
    /// The permits for projections on threads of their own.
    projections: Arc<Semaphore>,
    status_watches: Arc<Semaphore>,
    snapshot_orders: Arc<Semaphore>,
    /// Cancelled when the server is about to stop, and is therefore no longer ready.
    drain: CancellationToken,
    /// Cancelled to end every stream.
    stop: CancellationToken,
    /// The time when the server began.
    pub(crate) began: CommitTime,
    started: AtomicBool,
}

impl ServerState {
    pub(crate) fn new(
        sources: Vec<ServedSource>,
        tables: Vec<Arc<ServedTable>>,
        clock: Clock,
        waits: ServerTimeLimits,
        http: HttpOptions,
        gate: AccessGate,
        dropped_log_lines: fn() -> u64,
    ) -> ServerState {
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        let (began, admission, fetches) = (clock(), Arc::default(), Arc::new(Semaphore::new(FETCHES)));
        ServerState {
            sources,
            tables: RwLock::new(tables.into()),
            removed: Mutex::default(),
            former: Mutex::default(),
            query_followers: Mutex::default(),
            config_orders: None,
            clock,
            waits,
            http,
            gate,
            dropped_log_lines,
            log_limits: LogLimits::default(),
            admission,
            fetches,
            projections: Arc::new(Semaphore::new(cores())),
            status_watches: Arc::new(Semaphore::new(STATUS_WATCHES_MAX)),
            snapshot_orders: Arc::new(Semaphore::new(SNAPSHOT_ORDERS_MAX)),
            drain,
            stop,
            began,
            started: AtomicBool::new(false),
        }
    }

    /// Has orders that concern the configuration sent there.
    pub(crate) fn with_config_orders(self, config_orders: Option<mpsc::Sender<ConfigOrder>>) -> ServerState {
        ServerState { config_orders, ..self }
    }

    /// Returns the present tables.
    pub(crate) fn tables(&self) -> ServedTables {
        self.tables.read().clone()
    }

    /// Removes tables, and ends their streams.
    pub(crate) fn remove_tables(&self, names: &[TableName]) {
        let mut tables = self.tables.write();
        let (removed, kept): (Vec<_>, Vec<_>) = tables.iter().cloned().partition(|table| names.contains(table.name()));
        *tables = kept.into();
        drop(tables);
        for table in removed {
            self.removed.lock().insert(table.name().clone());
            self.end_table(table, false);
        }
    }

    /// Ends the streams of a table that is not in the list any more. It is swept until they have
    /// ended: a client that reads nothing does not notice.
    fn end_table(&self, table: Arc<ServedTable>, is_replaced: bool) {
        table.end(is_replaced);
        self.former.lock().push(table);
    }

    /// Adds tables. A table that the server has is replaced by the one with the same name.
    pub(crate) fn put_tables(&self, added: Vec<ServedTableOptions>) {
        let mut tables = self.tables.write();
        let mut all: Vec<Arc<ServedTable>> = tables.to_vec();
        for options in added {
            // The engine may have refused to change the table.
            if all.iter().any(|table| table.handle().is_same(&options.handle)) {
                continue;
            }
            let added = Arc::new(ServedTable::new(options, true));
            self.removed.lock().remove(added.name());
            self.follow_for_queries(&added);
            match all.iter_mut().find(|table| table.name() == added.name()) {
                Some(table) => self.end_table(std::mem::replace(table, added), true),
                None => all.push(added),
            }
        }
        *tables = all.into();
    }

    /// Keeps the rows of a table current for queries, if it answers any, until it is removed.
    pub(crate) fn follow_for_queries(&self, table: &Arc<ServedTable>) {
        let (table, ended) = (table.clone(), table.ended());
        self.query_followers.lock().spawn(async move {
            if let Some(query) = table.query() {
                tokio::select! {
                    () = ended => {}
                    () = follow_table(query, table.handle()) => {}
                }
            }
        });
    }

    /// Ends the tasks that keep the rows for queries current.
    pub(crate) fn end_queries(&self) {
        self.query_followers.lock().abort_all();
    }

    /// Changes the limits of a table's clients.
    pub(crate) fn set_limits(&self, name: &TableName, limits: TableLimits) {
        self.tables().iter().filter(|table| table.name() == name).for_each(|table| table.set_limits(limits));
    }

    /// Takes the tables that were removed since the last call.
    pub(crate) fn take_removed(&self) -> BTreeSet<TableName> {
        std::mem::take(&mut *self.removed.lock())
    }

    /// Returns the queue of clients that wait to be sent a snapshot.
    pub(crate) fn admission(&self) -> &Arc<SnapshotAdmission> {
        &self.admission
    }

    /// Returns the permits for reading parts of stored snapshots.
    pub(crate) fn fetch_permits(&self) -> Arc<Semaphore> {
        self.fetches.clone()
    }

    /// Projects a part of a stream on another thread. Streams take turns, and only as many parts
    /// are projected at once as there are cores. So any number of streams with costly filters
    /// does not keep the threads of the others from running.
    ///
    /// # Errors
    /// Returns an error if the work panics.
    pub(crate) async fn project<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let permits = self.projections.clone();
        // A task of its own waits for the permit. A stream that is not read is not polled, and must
        // not keep a permit from others. The task ends with the stream, but not in the middle of
        // the work, which has the permit until then.
        let mut task = JoinSet::new();
        task.spawn(async move {
            let permit = permits.acquire_owned().await;
            let project = move || {
                let projected = work();
                drop(permit);
                projected
            };
            spawn_blocking(project).await
        });
        match task.join_next().await {
            Some(Ok(Ok(projected))) => Ok(projected),
            Some(Ok(Err(error)) | Err(error)) => Err(Status::internal(format!("projecting rows: {error}"))),
            None => Err(refusal::stopping()),
        }
    }

    /// Takes the permit for a stream of status changes.
    ///
    /// # Errors
    /// Returns an error if there are [`STATUS_WATCHES_MAX`] of them.
    pub(crate) fn status_watch_permit(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.status_watches.clone().try_acquire_owned().map_err(|_| refusal::too_many_watches(STATUS_WATCHES_MAX))
    }

    /// Runs a request to write, check, restore or delete whole snapshots. The work is completed,
    /// and counts, even if its client leaves.
    ///
    /// # Errors
    /// Returns an error if [`SNAPSHOT_ORDERS_MAX`] of them run, or the work fails.
    pub(crate) async fn run_snapshot_order<T: Send + 'static>(
        &self,
        order: impl Future<Output = Result<T, SnapshotError>> + Send + 'static,
    ) -> Result<T, Status> {
        let permit = self.snapshot_orders.clone().try_acquire_owned();
        let permit = permit.map_err(|_| refusal::too_many_snapshot_orders(SNAPSHOT_ORDERS_MAX))?;
        let run = tokio::spawn(async move {
            let done = order.await;
            drop(permit);
            done
        });
        let done = run.await.map_err(|error| Status::internal(format!("a request for snapshots: {error}")))?;
        done.map_err(|error| refusal::snapshot(&error))
    }

    /// Ends every stream.
    pub(crate) fn end_streams(&self) {
        self.stop.cancel();
    }

    /// Waits until every stream must end.
    pub(crate) fn streams_ended(&self) -> WaitForCancellationFutureOwned {
        self.stop.clone().cancelled_owned()
    }

    /// Returns the table with this name.
    ///
    /// # Errors
    /// Returns an error if a name is empty, or no table has it.
    pub(crate) fn table(&self, schema: &str, table: &str) -> Result<Arc<ServedTable>, Status> {
        check_named(schema, table)?;
        let tables = self.tables();
        let found = tables.iter().find(|t| t.name().schema == schema && t.name().table == table);
        found.cloned().ok_or_else(|| refusal::unknown_table(&TableName::new(schema, table)))
    }

    /// Returns the table with this name, and the part of it that a caller may read.
    ///
    /// # Errors
    /// As [`ServerState::table`]. Returns PERMISSION_DENIED for a table that the caller may not
    /// read, even if there is none.
    pub(crate) fn readable_table(
        &self,
        caller: &Caller,
        schema: &str,
        table: &str,
    ) -> Result<(Arc<ServedTable>, RowScope), Status> {
        check_named(schema, table)?;
        let name = TableName::new(schema, table);
        caller.describe(&format_args!("{name}"));
        let scope = caller.scope(&name)?;
        Ok((self.table(schema, table)?, scope))
    }

    /// Returns the tables whose snapshot folder is open.
    ///
    /// # Errors
    /// Returns an error if there are none, because no folder is configured or could be opened.
    pub(crate) fn snapshot_stores(&self) -> Result<Vec<TableSnapshotStore>, Status> {
        let tables = self.tables();
        let stores: Vec<_> =
            tables.iter().filter_map(|table| Some((table.clone(), table.handle().snapshots()?))).collect();
        if !stores.is_empty() {
            return Ok(stores);
        }
        Err(self.unopened_folder().map_or_else(refusal::no_store, |table| refusal::folder_not_open(table.handle())))
    }

    /// Returns a table with snapshots whose folder is not open.
    fn unopened_folder(&self) -> Option<Arc<ServedTable>> {
        let is_unopened =
            |table: &ServedTable| table.handle().keeps_snapshots() && table.handle().snapshots().is_none();
        self.tables().iter().find(|table| is_unopened(table)).cloned()
    }

    /// Returns the table that has a snapshot with this ID, and its store.
    ///
    /// # Errors
    /// Returns an error if no table has such a snapshot, or no table's snapshot folder is open.
    pub(crate) fn snapshot_store(&self, id: &str) -> Result<(Arc<ServedTable>, Arc<SnapshotFolder>), Status> {
        if id.is_empty() {
            return Err(refusal::required("snapshot_id"));
        }
        let has = |snapshots: &SnapshotFolder| snapshots.list().iter().any(|info| info.id == id);
        let found = self.snapshot_stores()?.into_iter().find(|(_, snapshots)| has(snapshots));
        match (found, self.unopened_folder()) {
            (Some(store), _) => Ok(store),
            (None, Some(unopened)) => Err(refusal::snapshot_not_in_open_folders(id, unopened.handle())),
            (None, None) => Err(refusal::unknown_snapshot(id)),
        }
    }

    /// Returns the table that has a snapshot with this ID, its store, and the part of the table
    /// that a caller may read.
    ///
    /// # Errors
    /// As [`ServerState::snapshot_store`]. A snapshot of a table that the caller may not read is
    /// unknown to it.
    pub(crate) fn readable_snapshot(&self, caller: &Caller, id: &str) -> Result<ReadableSnapshot, Status> {
        caller.describe(&format_args!("{id}"));
        match self.snapshot_store(id) {
            Ok((table, snapshots)) => match caller.scope(table.name()) {
                Ok(scope) => Ok(ReadableSnapshot { table, snapshots, scope }),
                Err(_) => Err(refusal::unknown_snapshot(id)),
            },
            // The reason may name a table that the caller may not read.
            Err(_) if caller.is_ruled() => Err(refusal::unknown_snapshot(id)),
            Err(status) => Err(status),
        }
    }

    /// Returns the time of day of a past moment.
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

    /// Returns true if the server is not draining and serves all that it can. At least one table
    /// must be ready, and no other may be in its first copy. With strict readiness, every table
    /// must be ready. A server without tables is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.are_ready(&self.tables())
    }

    /// Returns true if all of these tables that can be served are served.
    pub(crate) fn are_ready(&self, tables: &[Arc<ServedTable>]) -> bool {
        let now = (self.clock)();
        let is_ready = |table: &Arc<ServedTable>| table.is_ready(now);
        if self.is_draining() {
            return false;
        }
        if self.http.strict_readiness || tables.is_empty() {
            return tables.iter().all(is_ready);
        }
        tables.iter().any(is_ready) && tables.iter().all(|table| table.is_settled(now))
    }

    /// Returns true if no table accepts new streams.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_cancelled() || {
            let tables = self.tables();
            !tables.is_empty() && tables.iter().all(|table| table.drain().has_begun())
        }
    }

    /// Returns true if every table's first copy is over, successful or not. The result then stays
    /// true.
    pub(crate) fn is_started(&self) -> bool {
        if !self.started.load(Ordering::Relaxed) && self.tables().iter().all(|table| table.is_started()) {
            self.started.store(true, Ordering::Relaxed);
        }
        self.started.load(Ordering::Relaxed)
    }

    /// Stops accepting streams, and sets the time limit for the existing ones.
    pub(crate) fn leave(&self, now: Instant) {
        self.drain.cancel();
        self.tables().iter().for_each(|table| table.drain().begin(now, Some(self.waits.drain)));
    }

    /// Returns the number of streams of all tables.
    pub(crate) fn clients(&self) -> usize {
        self.tables().iter().map(|table| table.clients()).sum()
    }

    /// Cuts clients that hold resources for too long, and reports log lines that were left out.
    pub(crate) fn sweep(&self, now: Instant) {
        self.log_limits.report(now);
        let others_wait = self.admission.has_waiting();
        self.tables().iter().for_each(|table| table.sweep(now, &self.waits, others_wait));
        self.former.lock().retain(|table| {
            table.sweep(now, &self.waits, others_wait);
            table.is_in_use()
        });
    }
}

/// Checks that a request names a table.
fn check_named(schema: &str, table: &str) -> Result<(), Status> {
    match (schema, table) {
        ("", _) => Err(refusal::required("schema")),
        (_, "") => Err(refusal::required("table")),
        _ => Ok(()),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_for_snapshots_counts_until_its_work_is_done_even_if_its_client_leaves() {
        let (clock, waits): (Clock, _) = (Arc::new(|| CommitTime(0)), ServerTimeLimits::default());
        let gate = AccessGate::new(None);
        let state = ServerState::new(Vec::new(), Vec::new(), clock, waits, HttpOptions::default(), gate, || 0);
        let (done, _) = watch::channel(false);
        for _ in 0..SNAPSHOT_ORDERS_MAX {
            let mut is_done = done.subscribe();
            let order = state.run_snapshot_order(async move {
                is_done.wait_for(|is_done| *is_done).await.unwrap();
                Ok(())
            });
            assert!(timeout(std::time::Duration::from_secs(1), order).await.is_err(), "the client leaves");
        }
        let refused = state.run_snapshot_order(async { Ok(()) }).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("maximum of 4"), "{refused}");
        done.send_replace(true);
        done.closed().await;
        tokio::task::yield_now().await;
        assert!(state.run_snapshot_order(async { Ok(7) }).await.is_ok_and(|seven| seven == 7));
        let failed = state.run_snapshot_order::<()>(async { Err(SnapshotError::Unknown("a".to_owned())) }).await;
        assert_eq!(failed.unwrap_err().code(), tonic::Code::NotFound);
    }
}
