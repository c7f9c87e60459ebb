//! The replica itself, and how one is started.

use std::fmt;
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use laredo_core::{IndexSpec, KeyColumns, Schema, TableName};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Identity;

use crate::applier::{Applier, Shared};
use crate::changes::{Hub, ListenerHandle, Transactions};
use crate::connect::{Connect, Line, StartError};
use crate::keeper::{Keeper, WallClock};
use crate::key::KeyValues;
use crate::layout::Layout;
use crate::local_snapshot::LocalSnapshot;
use crate::predicate::Predicate;
use crate::publish::{Front, Side};
use crate::row::{Row, RowRef};
use crate::session;
use crate::status::{NotReady, Status};
use crate::view::View;

/// The name of the index over the look-up fields.
pub(crate) const LOOKUP: &str = "lookup";

const PENDING_CHANGES_MAX: usize = 1 << 20;
const LOCAL_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(300);

/// A live copy of a table. Clones are the same replica; it stops when the last one is dropped.
#[derive(Clone)]
pub struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    stop: CancellationToken,
    _stop_when_dropped: DropGuard,
    #[cfg(debug_assertions)]
    plants: tokio::sync::mpsc::WeakUnboundedSender<crate::intake::Input>,
}

/// What a replica shall be.
#[must_use = "a replica runs once it is started"]
pub struct ReplicaBuilder {
    connect: Connect,
    indexes: Vec<IndexSpec>,
    filters: Vec<Predicate>,
    pending_changes_max: usize,
    local_snapshot: Option<PathBuf>,
    local_snapshot_interval: Duration,
    serves_local_snapshot: bool,
    wall: WallClock,
}

/// Whether an index has at most one row per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unique {
    /// At most one row per key.
    Yes,
    /// Any number of rows per key.
    No,
}

impl Replica {
    #[expect(clippy::disallowed_methods, reason = "the library's edge: here the clocks are handed in")]
    /// A replica of a table that this server (`http://HOST:PORT`, or `https://` for TLS) has.
    pub fn builder(server: impl Into<String>, table: TableName) -> ReplicaBuilder {
        ReplicaBuilder {
            connect: Connect::new(server.into(), table),
            indexes: Vec::new(),
            filters: Vec::new(),
            pending_changes_max: PENDING_CHANGES_MAX,
            local_snapshot: None,
            local_snapshot_interval: LOCAL_SNAPSHOT_INTERVAL,
            serves_local_snapshot: false,
            wall: Box::new(SystemTime::now),
        }
    }

    /// Waits until the replica has been at the head that the server had when it connected. Once it was, it stays ready: a
    /// replica that loses its server serves what it has ([`View::age`] tells).
    ///
    /// # Errors
    /// When it takes longer than `timeout`, when the server refuses (the replica still goes on trying, now and then), or when the
    /// replica is stopped.
    pub async fn ready(&self, timeout: Duration) -> Result<(), NotReady> {
        let mut status = self.inner.shared.health.status.subscribe();
        let settled = status.wait_for(|status| {
            status.ready || status.stopped || status.error.as_ref().is_some_and(|e| e.is_definite())
        });
        let settled = tokio::time::timeout(timeout, settled).await;
        let settled = settled.map(|status| status.map(|status| (status.ready, status.error.clone())));
        match settled {
            Ok(Ok((true, _))) => Ok(()),
            Ok(Ok((false, Some(error)))) if error.is_definite() => Err(NotReady::Definite(error)),
            Ok(_) => Err(NotReady::Stopped),
            Err(_) => Err(NotReady::Timeout {
                waited: timeout,
                last: self.inner.shared.health.status.borrow().last_error.clone(),
            }),
        }
    }

    /// The table as it is now.
    #[must_use]
    #[track_caller]
    pub fn view(&self) -> View<'_> {
        let shared = &self.inner.shared;
        // In this order: the state may be newer than what is known of its age, never older.
        let at_head = shared.at_head();
        View::new(shared.front.hold(Location::caller()), at_head, &*shared.health.now)
    }

    /// The row of a primary key; as [`View::get`].
    #[must_use]
    #[track_caller]
    pub fn get(&self, key: impl KeyValues) -> Option<Row> {
        self.view().get(key).map(RowRef::to_row)
    }

    /// The row with these values of the look-up fields; as [`View::lookup`].
    #[must_use]
    #[track_caller]
    pub fn lookup(&self, values: impl KeyValues) -> Option<Row> {
        self.view().lookup(values).map(RowRef::to_row)
    }

    /// The committed transactions from now on, as they become visible: a view taken after this call has everything that the
    /// stream leaves out, and perhaps some of what it begins with (up to [`View::position`]).
    #[must_use]
    pub fn transactions(&self) -> Transactions {
        self.inner.shared.hub.follow()
    }

    /// Calls a function with the old and the new row of every change from now on, in order, each when it is visible.
    ///
    /// It is called on the replica's own thread: while it runs nothing newer is shown, and it must not wait for the replica. One
    /// that panics is not called again. It ends when the handle is dropped.
    pub fn listen(&self, listener: impl FnMut(Option<&Row>, Option<&Row>) + Send + 'static) -> ListenerHandle {
        self.inner.shared.hub.listen(listener)
    }

    /// How the replica is doing.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Status {
        let mut status = self.inner.shared.health.status.borrow().clone();
        let view = self.view();
        status.position = view.position();
        status.rows = view.len();
        status
    }

    /// Tells whenever the connection's state changes. Position and rows are not kept current in it: ask [`Replica::status`].
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.inner.shared.health.status.subscribe()
    }

    /// Makes one row of the copy wrong, for tests that show that it is found out. Returns false where no row allows it, or where the
    /// replica has stopped. Not in release builds.
    #[doc(hidden)]
    #[cfg(debug_assertions)]
    pub async fn plant(&self, canary: laredo_core::Canary) -> bool {
        let (answer, planted) = tokio::sync::oneshot::channel();
        let Some(inputs) = self.inner.plants.upgrade() else { return false };
        inputs.send(crate::intake::Input::Plant(canary, answer)).is_ok() && planted.await.unwrap_or(false)
    }

    /// Ends the stream, for all clones, and saves the local snapshot if there is to be one. They go on serving what they have.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.shared.front.close();
        let mut status = self.inner.shared.health.status.subscribe();
        // It cannot fail: the sender is in `self`.
        let _ = status.wait_for(|status| status.stopped).await;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.front.close();
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Replica").field(&self.status()).finish()
    }
}

impl ReplicaBuilder {
    /// How the server's operator sees this client.
    pub fn client_id(mut self, client_id: impl Into<String>) -> ReplicaBuilder {
        self.connect.client_id = client_id.into();
        self
    }

    /// The columns for [`Replica::lookup`]: a unique index with the name `lookup`.
    pub fn lookup<C: Into<String>>(self, columns: impl IntoIterator<Item = C>) -> ReplicaBuilder {
        self.index(LOOKUP, columns, Unique::Yes)
    }

    /// Another index, for [`View::index`]. Uniqueness is not enforced: inside a transaction PostgreSQL may let duplicates pass.
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

    /// Only rows for which this holds, as for all other predicates given.
    pub fn filter(mut self, predicate: Predicate) -> ReplicaBuilder {
        self.filters.push(predicate);
        self
    }

    /// The certificates to check an `https://` server against, as PEM, in the place of the system's.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> ReplicaBuilder {
        self.connect.ca_pem = Some(pem.into());
        self
    }

    /// The certificate that this client shows to an `https://` server, and its key, as PEM: for servers that serve nobody without one.
    pub fn identity_pem(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> ReplicaBuilder {
        self.connect.identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// A token that is sent with each request as `authorization: Bearer …`, for servers or proxies that ask for one. Without TLS whoever
    /// is on the way can read it.
    pub fn token(mut self, token: impl Into<String>) -> ReplicaBuilder {
        self.connect.token = Some(token.into());
        self
    }

    /// The largest message taken, in bytes (1 GiB and 64 MiB unless set): it must hold the table's largest row.
    pub fn message_bytes_max(mut self, bytes: usize) -> ReplicaBuilder {
        self.connect.message_bytes_max = bytes;
        self
    }

    /// How many bytes may wait to be applied (64 MiB unless set), as while a view is held. At this bound the stream is not read,
    /// and the replica falls behind.
    pub fn pending_bytes_max(mut self, bytes: u32) -> ReplicaBuilder {
        self.connect.pending_bytes_max = bytes.max(1);
        self
    }

    /// How many row changes may wait in each stream of transactions (1,048,576 unless set) before some are left out; see
    /// [`crate::Lagged`].
    pub fn pending_changes_max(mut self, changes: usize) -> ReplicaBuilder {
        self.pending_changes_max = changes;
        self
    }

    /// The clock for [`View::age`]; it must never go back.
    pub fn clock(mut self, now: impl Fn() -> Instant + Send + Sync + 'static) -> ReplicaBuilder {
        self.connect.now = Box::new(now);
        self
    }

    /// The file that keeps the state while the process is down: it is written when the replica is stopped, and from time to time. The
    /// next start goes on from there, on whichever server answers, and need not load the table. No two replicas may share one.
    ///
    /// A file that is damaged, or was written for another table or other filters, is set aside (`.unusable`) with a warning.
    pub fn local_snapshot_path(mut self, path: impl Into<PathBuf>) -> ReplicaBuilder {
        self.local_snapshot = Some(path.into());
        self
    }

    /// How often the local snapshot is written while the replica runs (5 minutes unless set).
    pub fn local_snapshot_interval(mut self, interval: Duration) -> ReplicaBuilder {
        self.local_snapshot_interval = interval;
        self
    }

    /// Shows what the local snapshot holds at once, before any server has answered: [`View::age`] tells how old it is. The replica is
    /// ready only when it has gone on from there. Without this nothing is shown before a server goes on from it.
    pub fn serve_local_snapshot(mut self) -> ReplicaBuilder {
        self.serves_local_snapshot = true;
        self
    }

    /// Makes the waits between attempts to connect repeatable.
    pub fn seed(mut self, seed: u64) -> ReplicaBuilder {
        self.connect.seed = Some(seed);
        self
    }

    /// Starts it. It connects, and connects anew, in the background.
    ///
    /// # Errors
    /// When the address is none, two indexes have one name, or there is no runtime or no thread for it.
    pub fn start(self) -> Result<Replica, StartError> {
        for (place, index) in self.indexes.iter().enumerate() {
            if self.indexes[..place].iter().any(|other| other.name == index.name) {
                return Err(StartError::SameName(index.name.clone()));
            }
        }
        let filters: Vec<_> = self.filters.into_iter().map(Predicate::into_wire).collect();
        let request = session::request(&self.connect.table, &filters);
        let line = self.connect.line(filters)?;
        #[cfg(debug_assertions)]
        let plants = line.plants.clone();
        let Line { runtime, session, health, inputs, feedback, .. } = line;
        let nothing = Schema::new(Vec::new(), KeyColumns::new([]), std::collections::BTreeMap::new());
        let front = Front::new(Side::empty(Arc::new(Layout::new(Arc::new(nothing)))));
        let shared = Arc::new(Shared::new(front, Hub::new(self.pending_changes_max), health));
        let keeper = self.local_snapshot.map(|path| {
            let file = LocalSnapshot::new(path, request);
            let now = (shared.health.now)();
            Keeper::new(file, self.local_snapshot_interval, self.serves_local_snapshot, self.wall, now)
        });
        let applier = Applier::new(shared.clone(), self.indexes, keeper, inputs, feedback);
        std::thread::Builder::new().name("laredo-replica".to_owned()).spawn(|| applier.run())?;
        let stop = CancellationToken::new();
        runtime.spawn(session.run(stop.clone()));
        let inner = Inner {
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
        let Connect { server, table, .. } = &self.connect;
        builder.field("server", server).field("table", table).finish_non_exhaustive()
    }
}
