//! The replica itself, and how one is started.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::Location;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use laredo_core::{IndexSpec, KeyColumns, Schema, TableName};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::applier::{Applier, Shared};
use crate::changes::{Hub, ListenerHandle, Transactions};
use crate::keeper::{Keeper, WallClock};
use crate::key::KeyValues;
use crate::layout::Layout;
use crate::local_snapshot::LocalSnapshot;
use crate::predicate::Predicate;
use crate::publish::{Front, Side};
use crate::row::{Row, RowRef};
use crate::session::{self, Options, Session, deepest};
use crate::status::{NotReady, Status};
use crate::view::View;

/// The name of the index over the look-up fields.
pub(crate) const LOOKUP: &str = "lookup";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// As much as the server may send in one piece of HTTP/2. With HTTP's own 16 KiB, 100 clients at full rate got half as many bytes
/// a second (`./dev bench fanout`).
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// A value of PostgreSQL is below 1 GiB, and a row hardly above; so much is never set aside before it comes.
const MESSAGE_BYTES_MAX: usize = (1 << 30) + (64 << 20);
const PENDING_BYTES_MAX: u32 = 64 << 20;
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
}

/// What a replica shall be.
#[must_use = "a replica runs once it is started"]
pub struct ReplicaBuilder {
    server: String,
    table: TableName,
    client_id: String,
    indexes: Vec<IndexSpec>,
    filters: Vec<Predicate>,
    ca_pem: Option<Vec<u8>>,
    identity: Option<Identity>,
    message_bytes_max: usize,
    pending_bytes_max: u32,
    pending_changes_max: usize,
    now: Box<dyn Fn() -> Instant + Send + Sync>,
    local_snapshot: Option<PathBuf>,
    local_snapshot_interval: Duration,
    serves_local_snapshot: bool,
    wall: WallClock,
    seed: Option<u64>,
}

/// Whether an index has at most one row per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unique {
    /// At most one row per key.
    Yes,
    /// Any number of rows per key.
    No,
}

/// Why a replica cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is none.
    #[error("`{server}` is no server address ({reason}); write one like http://127.0.0.1:4002 or https://laredo:4002")]
    Address {
        /// As given.
        server: String,
        /// What is wrong.
        reason: String,
    },
    /// There is no runtime.
    #[error("a replica needs a tokio runtime; call start() inside one")]
    NoRuntime,
    /// Two indexes of one name.
    #[error("there are two indexes `{0}`; give one another name")]
    SameName(String),
    /// No thread.
    #[error("cannot start the replica's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Replica {
    #[expect(clippy::disallowed_methods, reason = "the library's edge: here the clocks are handed in")]
    /// A replica of a table that this server (`http://HOST:PORT`, or `https://` for TLS) has.
    pub fn builder(server: impl Into<String>, table: TableName) -> ReplicaBuilder {
        ReplicaBuilder {
            server: server.into(),
            table,
            client_id: String::new(),
            indexes: Vec::new(),
            filters: Vec::new(),
            ca_pem: None,
            identity: None,
            message_bytes_max: MESSAGE_BYTES_MAX,
            pending_bytes_max: PENDING_BYTES_MAX,
            pending_changes_max: PENDING_CHANGES_MAX,
            now: Box::new(Instant::now),
            local_snapshot: None,
            local_snapshot_interval: LOCAL_SNAPSHOT_INTERVAL,
            serves_local_snapshot: false,
            wall: Box::new(SystemTime::now),
            seed: None,
        }
    }

    /// Waits until the replica has been at the head that the server had when it connected. Once it was, it stays ready: a
    /// replica that loses its server serves what it has ([`View::age`] tells).
    ///
    /// # Errors
    /// When it takes longer than `timeout`, when the server refuses (the replica still goes on trying, now and then), or when the
    /// replica is stopped.
    pub async fn ready(&self, timeout: Duration) -> Result<(), NotReady> {
        let mut status = self.inner.shared.status.subscribe();
        let settled = status.wait_for(|status| {
            status.ready || status.stopped || status.error.as_ref().is_some_and(|e| e.is_definite())
        });
        let settled = tokio::time::timeout(timeout, settled).await;
        let settled = settled.map(|status| status.map(|status| (status.ready, status.error.clone())));
        match settled {
            Ok(Ok((true, _))) => Ok(()),
            Ok(Ok((false, Some(error)))) if error.is_definite() => Err(NotReady::Definite(error)),
            Ok(_) => Err(NotReady::Stopped),
            Err(_) => {
                Err(NotReady::Timeout { waited: timeout, last: self.inner.shared.status.borrow().last_error.clone() })
            }
        }
    }

    /// The table as it is now.
    #[must_use]
    #[track_caller]
    pub fn view(&self) -> View<'_> {
        let shared = &self.inner.shared;
        // In this order: the state may be newer than what is known of its age, never older.
        let at_head = shared.at_head();
        View::new(shared.front.hold(Location::caller()), at_head, &*shared.now)
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
        let mut status = self.inner.shared.status.borrow().clone();
        let view = self.view();
        status.position = view.position();
        status.rows = view.len();
        status
    }

    /// Tells whenever the connection's state changes. Position and rows are not kept current in it: ask [`Replica::status`].
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Status> {
        self.inner.shared.status.subscribe()
    }

    /// Ends the stream, for all clones, and saves the local snapshot if there is to be one. They go on serving what they have.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        self.inner.shared.front.close();
        let mut status = self.inner.shared.status.subscribe();
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
        self.client_id = client_id.into();
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
        self.ca_pem = Some(pem.into());
        self
    }

    /// The certificate that this client shows to an `https://` server, and its key, as PEM: for servers that serve nobody without one.
    pub fn identity_pem(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> ReplicaBuilder {
        self.identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// The largest message taken, in bytes (1 GiB and 64 MiB unless set): it must hold the table's largest row.
    pub fn message_bytes_max(mut self, bytes: usize) -> ReplicaBuilder {
        self.message_bytes_max = bytes;
        self
    }

    /// How many bytes may wait to be applied (64 MiB unless set), as while a view is held. At this bound the stream is not read,
    /// and the replica falls behind.
    pub fn pending_bytes_max(mut self, bytes: u32) -> ReplicaBuilder {
        self.pending_bytes_max = bytes.max(1);
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
        self.now = Box::new(now);
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
        self.seed = Some(seed);
        self
    }

    /// Starts it. It connects, and connects anew, in the background.
    ///
    /// # Errors
    /// When the address is none, two indexes have one name, or there is no runtime or no thread for it.
    pub fn start(self) -> Result<Replica, StartError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        for (place, index) in self.indexes.iter().enumerate() {
            if self.indexes[..place].iter().any(|other| other.name == index.name) {
                return Err(StartError::SameName(index.name.clone()));
            }
        }
        let endpoint = self.endpoint()?;
        let nothing = Schema::new(Vec::new(), KeyColumns::new([]), std::collections::BTreeMap::new());
        let front = Front::new(Side::empty(Arc::new(Layout::new(Arc::new(nothing)))));
        let shared = Arc::new(Shared::new(front, Hub::new(self.pending_changes_max), self.now));
        let (inputs, waiting) = mpsc::unbounded_channel();
        let (faults, faulty) = mpsc::unbounded_channel();
        let filters: Vec<_> = self.filters.into_iter().map(Predicate::into_wire).collect();
        let keeper = self.local_snapshot.map(|path| {
            let request = session::request(&self.table, &filters);
            let file = LocalSnapshot::new(path, request);
            let now = (shared.now)();
            Keeper::new(file, self.local_snapshot_interval, self.serves_local_snapshot, self.wall, now)
        });
        let applier = Applier::new(shared.clone(), self.indexes, keeper, waiting, faults);
        let options = Options {
            server: self.server,
            endpoint,
            table: self.table,
            client_id: self.client_id,
            filters,
            message_bytes_max: self.message_bytes_max,
            pending_bytes_max: self.pending_bytes_max,
            seed: self.seed.unwrap_or_else(|| RandomState::new().hash_one(0)),
        };
        let session = Session::new(options, shared.clone(), inputs, faulty);
        std::thread::Builder::new().name("laredo-replica".to_owned()).spawn(|| applier.run())?;
        let stop = CancellationToken::new();
        runtime.spawn(session.run(stop.clone()));
        Ok(Replica { inner: Arc::new(Inner { shared, _stop_when_dropped: stop.clone().drop_guard(), stop }) })
    }

    fn endpoint(&self) -> Result<Endpoint, StartError> {
        let wrong = |reason: String| StartError::Address { server: self.server.clone(), reason };
        let endpoint = Endpoint::from_shared(self.server.clone()).map_err(|e| wrong(e.to_string()))?;
        let endpoint = match endpoint.uri().scheme_str() {
            Some("http") => endpoint,
            Some("https") => {
                let tls = match &self.ca_pem {
                    Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                    None => ClientTlsConfig::new().with_native_roots(),
                };
                let tls = self.identity.iter().fold(tls, |tls, identity| tls.identity(identity.clone()));
                // The innermost error says which of the certificates is wrong.
                endpoint.tls_config(tls).map_err(|e| wrong(deepest(&e)))?
            }
            _ => return Err(wrong("it must begin with http:// or https://".to_owned())),
        };
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(PING_INTERVAL))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES_MAX)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL / 2)
            .keep_alive_while_idle(true))
    }
}

impl fmt::Debug for ReplicaBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut builder = f.debug_struct("ReplicaBuilder");
        builder.field("server", &self.server).field("table", &self.table).finish_non_exhaustive()
    }
}
