//! The replica and its builder.

use std::fmt;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use laredo_core::{IndexSpec, KeyColumns, Schema, TableName};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::applier::{ReplicaApplier, ReplicaState};
use crate::changes::{ChangeHub, ListenerHandle, Transactions};
use crate::connect::{ConnectSettings, PreparedSession, StartError, connect_setters};
use crate::key::{KeyError, KeyValues};
use crate::layout::RowLayout;
use crate::local_snapshot::LocalSnapshotFile;
use crate::local_snapshot_saver::{LocalSnapshotSaver, WallClock};
use crate::predicate::ColumnPredicate;
use crate::publish::{ReplicaFront, ReplicaTable};
use crate::row::{Row, RowRef};
use crate::session;
use crate::status::{NotReady, ReplicaStatus, StatusReceiver};
use crate::view::{LOOKUP, View};

const PENDING_CHANGES_MAX: usize = 1 << 20;
const LOCAL_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(300);

/// A live copy of a table. Clones share one replica, which stops when the last clone is dropped.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<ReplicaInner>,
}

struct ReplicaInner {
    shared: Arc<ReplicaState>,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
    #[cfg(debug_assertions)]
    plants: tokio::sync::mpsc::WeakUnboundedSender<crate::sync_receiver::SessionInput>,
}

/// The settings of a [`Replica`] that is not started yet.
#[must_use = "a replica runs once it is started"]
pub struct ReplicaBuilder {
    connect: ConnectSettings,
    indexes: Vec<IndexSpec>,
    filters: Vec<ColumnPredicate>,
    pending_changes_max: usize,
    local_snapshot: Option<PathBuf>,
    local_snapshot_interval: Duration,
    serves_local_snapshot: bool,
    wall: WallClock,
}

/// The number of rows that an index may have for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unique {
    /// At most one row for each key.
    Yes,
    /// Any number of rows for each key.
    No,
}

impl Replica {
    #[expect(clippy::disallowed_methods, reason = "the library's edge: here the clocks are handed in")]
    /// Returns a builder for a replica of a table of this server: `http://HOST:PORT`, or
    /// `https://HOST:PORT` for TLS.
    pub fn builder(server: impl Into<String>, table: TableName) -> ReplicaBuilder {
        ReplicaBuilder {
            connect: ConnectSettings::new(server.into(), table),
            indexes: Vec::new(),
            filters: Vec::new(),
            pending_changes_max: PENDING_CHANGES_MAX,
            local_snapshot: None,
            local_snapshot_interval: LOCAL_SNAPSHOT_INTERVAL,
            serves_local_snapshot: false,
            wall: Box::new(SystemTime::now),
        }
    }

    /// Waits until the replica has reached the head that the server had when the replica connected.
    /// From then on it stays ready: without a server it serves the rows that it has, and
    /// [`View::age`] grows.
    ///
    /// ```
    /// # tokio_test(async {
    /// use std::time::Duration;
    ///
    /// use laredo_client::{NotReady, Replica, TableName};
    ///
    /// // No server listens at this port. The replica starts, and tries to connect until one does.
    /// let table = TableName::new("public", "orders");
    /// let replica = Replica::builder("http://127.0.0.1:1", table).start()?;
    /// let waited = replica.ready(Duration::from_millis(100)).await;
    /// assert!(matches!(waited, Err(NotReady::Timeout { .. })));
    /// assert!(!replica.view().is_loaded());
    /// assert_eq!(replica.get(1)?, None);
    /// # Ok(())
    /// # });
    /// # fn tokio_test(
    /// #     example: impl Future<Output = Result<(), Box<dyn std::error::Error>>>,
    /// # ) {
    /// #     tokio::runtime::Runtime::new().unwrap().block_on(example).unwrap();
    /// # }
    /// ```
    ///
    /// # Errors
    /// When this takes longer than `timeout`, when the server refuses, or when the replica is
    /// stopped. After a refusal the replica still retries at long intervals.
    pub async fn ready(&self, timeout: Duration) -> Result<(), NotReady> {
        let mut status = self.watch_status();
        let settled = status.wait_for(|status| {
            status.ready || status.stopped || status.error.as_ref().is_some_and(|e| e.is_definite())
        });
        match tokio::time::timeout(timeout, settled).await {
            Ok(Some(ReplicaStatus { ready: true, .. })) => Ok(()),
            Ok(Some(ReplicaStatus { error: Some(error), .. })) if error.is_definite() => Err(NotReady::Definite(error)),
            Ok(_) => Err(NotReady::Stopped),
            Err(_) => Err(NotReady::Timeout { waited: timeout, last: self.watch_status().current().last_error }),
        }
    }

    /// Returns a view of the table as it is now.
    #[must_use]
    #[track_caller]
    pub fn view(&self) -> View<'_> {
        self.inner.shared.view(Location::caller())
    }

    /// Returns the row of a primary key, as [`View::get`].
    ///
    /// # Errors
    /// When the values do not fit the table's key.
    #[track_caller]
    pub fn get(&self, key: impl KeyValues) -> Result<Option<Row>, KeyError> {
        Ok(self.view().get(key)?.map(RowRef::to_row))
    }

    /// Returns the row with these values of the lookup columns, as [`View::lookup`].
    ///
    /// # Errors
    /// When no lookup columns were declared, or the values do not fit them.
    #[track_caller]
    pub fn lookup(&self, values: impl KeyValues) -> Result<Option<Row>, KeyError> {
        Ok(self.view().lookup(values)?.map(RowRef::to_row))
    }

    /// Returns a stream of all transactions committed from now on, as they become visible.
    ///
    /// A view taken after this call includes every transaction that is not in the stream. It may
    /// also include some that the stream begins with, namely those up to [`View::position`].
    #[must_use]
    pub fn transactions(&self) -> Transactions {
        self.inner.shared.changes().follow()
    }

    /// Calls a function with the old and the new row of every change from now on. Changes arrive in
    /// order, and each is visible before its call.
    ///
    /// The function runs on the replica's own thread. While it runs, nothing newer is shown, and it
    /// must not wait for the replica. After a panic it is not called again. Dropping the handle
    /// ends the calls.
    pub fn listen(&self, listener: impl FnMut(Option<&Row>, Option<&Row>) + Send + 'static) -> ListenerHandle {
        self.inner.shared.changes().listen(listener)
    }

    /// Returns the current status of the replica.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> ReplicaStatus {
        self.inner.shared.status(Location::caller())
    }

    /// Returns a receiver that is notified when the state of the connection changes.
    #[must_use]
    pub fn watch_status(&self) -> StatusReceiver {
        self.inner.shared.health().watch_status()
    }

    /// Makes one row of the copy wrong, for tests of the checksum comparison. Returns false if no
    /// row allows it or the replica has stopped. Missing in release builds.
    #[doc(hidden)]
    #[cfg(debug_assertions)]
    pub async fn plant(&self, canary: laredo_core::CanaryFault) -> bool {
        let (answer, planted) = tokio::sync::oneshot::channel();
        let Some(inputs) = self.inner.plants.upgrade() else { return false };
        inputs.send(crate::sync_receiver::SessionInput::Plant(canary, answer)).is_ok() && planted.await.unwrap_or(false)
    }

    /// Ends the stream for all clones, and saves the local snapshot if a path is set. The clones
    /// continue to serve the rows that they have.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.shared.close_views();
        // This returns a status, because `self` keeps the replica.
        self.watch_status().wait_for(|status| status.stopped).await;
    }
}

impl Drop for ReplicaInner {
    fn drop(&mut self) {
        self.shared.close_views();
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Replica").field(&self.status()).finish()
    }
}

connect_setters!(ReplicaBuilder);

impl ReplicaBuilder {
    /// Sets the columns for [`Replica::lookup`]. They become a unique index with the name `lookup`.
    pub fn lookup<C: Into<String>>(self, columns: impl IntoIterator<Item = C>) -> ReplicaBuilder {
        self.index(LOOKUP, columns, Unique::Yes)
    }

    /// Adds an index for [`View::index`]. Uniqueness is not enforced, because PostgreSQL may allow
    /// duplicates within a transaction.
    pub fn index<C: Into<String>>(
        mut self,
        name: impl Into<String>,
        columns: impl IntoIterator<Item = C>,
        unique: Unique,
    ) -> ReplicaBuilder {
        self.indexes.push(IndexSpec {
            name: name.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            unique: unique == Unique::Yes,
        });
        self
    }

    /// Keeps only rows for which this predicate holds. With several filters, a row must satisfy all
    /// of them. The server refuses more than 32 filters, and more than 1,000 values or 64 KiB in
    /// all.
    pub fn filter(mut self, predicate: ColumnPredicate) -> ReplicaBuilder {
        self.filters.push(predicate);
        self
    }

    /// Sets how many row changes may wait in each stream of transactions (1,048,576 unless set).
    /// When more wait, transactions are left out; see [`crate::LagError`].
    pub fn pending_changes_max(mut self, changes: usize) -> ReplicaBuilder {
        self.pending_changes_max = changes;
        self
    }

    /// Sets the file that keeps the table while the process is down. It is written when the replica
    /// is stopped and at intervals. The next start resumes from it, on whichever server answers,
    /// without loading the whole table. Each replica needs its own file.
    ///
    /// A file that is damaged, or was written for another table or other filters, is renamed with
    /// the suffix `.unusable`, and a warning is logged.
    pub fn local_snapshot_path(mut self, path: impl Into<PathBuf>) -> ReplicaBuilder {
        self.local_snapshot = Some(path.into());
        self
    }

    /// Sets how often the local snapshot is written while the replica runs (5 minutes unless set).
    pub fn local_snapshot_interval(mut self, interval: Duration) -> ReplicaBuilder {
        self.local_snapshot_interval = interval;
        self
    }

    /// Serves the rows of the local snapshot at once, before a server has answered. [`View::age`]
    /// reports their age. The replica becomes ready only after a server has continued from them.
    /// Without this setting, nothing is shown until then.
    pub fn serve_local_snapshot(mut self) -> ReplicaBuilder {
        self.serves_local_snapshot = true;
        self
    }

    /// Starts the replica. It connects, and reconnects after failures, in the background.
    ///
    /// # Errors
    /// When the server address or the token is invalid, or two indexes have the same name. Also
    /// when the caller is not inside a tokio runtime, or the replica's thread cannot be started.
    pub fn start(self) -> Result<Replica, StartError> {
        for (i, index) in self.indexes.iter().enumerate() {
            if self.indexes[..i].iter().any(|other| other.name == index.name) {
                return Err(StartError::SameName(index.name.clone()));
            }
        }
        let filters: Vec<_> = self.filters.into_iter().map(ColumnPredicate::into_wire).collect();
        let request = session::snapshot_request(&self.connect.table, &filters);
        #[cfg(feature = "metrics")]
        let names = (self.connect.table.to_string(), self.connect.client_id.clone());
        let prepared = self.connect.prepare_session(filters)?;
        #[cfg(debug_assertions)]
        let plants = prepared.plants.clone();
        let PreparedSession { runtime, session, health, inputs, feedback, .. } = prepared;
        // Lines of the log that the replica's threads write have the field `table`.
        let span = tracing::error_span!("replica", table = %health.table());
        let nothing = Schema::new(Vec::new(), KeyColumns::new([]), std::collections::BTreeMap::new());
        let front = ReplicaFront::new(ReplicaTable::empty(Arc::new(RowLayout::new(Arc::new(nothing)))));
        let shared = Arc::new(ReplicaState::new(front, ChangeHub::new(self.pending_changes_max), health));
        let saver = self.local_snapshot.map(|path| {
            let file = LocalSnapshotFile::new(path, request);
            let now = shared.health().now();
            LocalSnapshotSaver::new(file, self.local_snapshot_interval, self.serves_local_snapshot, self.wall, now)
        });
        let applier = ReplicaApplier::new(shared.clone(), self.indexes, saver, inputs, feedback);
        std::thread::Builder::new().name("laredo-replica".to_owned()).spawn(move || span.in_scope(|| applier.run()))?;
        let stop = CancellationToken::new();
        let run = session.run(stop.clone());
        #[cfg(feature = "metrics")]
        let run = {
            let sampled = shared.clone();
            crate::metric_reporter::report_while(run, names, move || sampled.sample())
        };
        runtime.spawn(run);
        let inner = ReplicaInner {
            shared,
            _stop_when_dropped: stop.clone().drop_guard(),
            stop,
            #[cfg(debug_assertions)]
            plants,
        };
        Ok(Replica { inner: Arc::new(inner) })
    }
}

impl fmt::Debug for ReplicaBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = f.debug_struct("ReplicaBuilder");
        let ConnectSettings { server, table, .. } = &self.connect;
        builder.field("server", server).field("table", table).finish_non_exhaustive()
    }
}
