//! A private PostgreSQL, and a stream of it that tests can inspect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Cell, CommitMark, Lsn, SourceIdentity, TupleRef};
use laredo_engine::Fork;
use laredo_engine::source::{SourceError, SourceEvent, SourceState, SourceStateReporter};
use laredo_engine::spool::{RawChange, Spool, SpoolEntry, SpoolOptions};
use laredo_postgres::ConnectionOptions;
use laredo_postgres::ddl::DdlWatch;
use laredo_postgres::stream::{ReconnectOptions, SlotMode, SourceSignals, StreamOptions, follow};
use laredo_testkit::{Cluster, ClusterOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// A time limit that no test reaches on any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a cluster with the tables `users` (0) and `orders` (1), the unfollowed table `other`, and
/// a publication of all.
pub(crate) fn cluster(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::start(options.set("wal_writer_delay", "10ms")).unwrap();
    cluster
        .psql(
            "CREATE TABLE users (id text PRIMARY KEY, note text);
             CREATE TABLE orders (id text PRIMARY KEY, note text);
             CREATE TABLE other (id text PRIMARY KEY, note text);
             CREATE PUBLICATION laredo FOR TABLE users, orders, other WITH (publish_via_partition_root = true);",
        )
        .unwrap();
    cluster
}

pub(crate) fn stateful() -> SlotMode {
    SlotMode::Stateful { name: "laredo".into() }
}

pub(crate) fn ephemeral() -> SlotMode {
    SlotMode::Ephemeral { name_prefix: "laredo".into() }
}

pub(crate) fn options(url: &str, slot: SlotMode) -> StreamOptions {
    StreamOptions {
        connection: ConnectionOptions::parse(url).unwrap(),
        slot,
        publication: "laredo".into(),
        creates_publication: false,
        tables: vec!["public.users".parse().unwrap(), "public.orders".parse().unwrap()],
        reconnect: ReconnectOptions {
            attempts_max: None,
            backoff_initial: Duration::from_millis(2),
            backoff_max: Duration::from_millis(100),
            multiplier: 2.0,
        },
        spool: Arc::new(SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() }),
        seed: 1,
        ddl: DdlWatch::Poll,
        from: None,
        kept: Vec::new(),
        server: None,
    }
}

/// A commit in a form for comparisons: the changes of its tables are text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ReceivedCommit {
    pub(crate) xid: u64,
    pub(crate) end: Lsn,
    pub(crate) mark: CommitMark,
    pub(crate) tables: BTreeMap<usize, Vec<String>>,
}

pub(crate) struct StreamFollower {
    pub(crate) acknowledged: watch::Sender<Lsn>,
    events: mpsc::Receiver<SourceEvent>,
    task: JoinHandle<Result<(), SourceError>>,
    pub(crate) reporter: SourceStateReporter,
}

impl StreamFollower {
    /// Starts to follow, and returns when the slot exists.
    pub(crate) async fn start(cluster: &Cluster, slot: SlotMode) -> StreamFollower {
        StreamFollower::start_with(options(&cluster.url("postgres"), slot), 64).await
    }

    pub(crate) async fn start_with(options: StreamOptions, capacity: usize) -> StreamFollower {
        let (follower, signals) = StreamFollower::spawn(options, capacity);
        tokio::time::timeout(PATIENCE, signals.wait_for_slot()).await.expect("a slot");
        follower
    }

    /// Starts to follow without waiting for a slot.
    pub(crate) fn launch(options: StreamOptions, capacity: usize) -> StreamFollower {
        StreamFollower::spawn(options, capacity).0
    }

    fn spawn(options: StreamOptions, capacity: usize) -> (StreamFollower, Arc<SourceSignals>) {
        let (sender, events) = mpsc::channel(capacity);
        let (acknowledged, position) = watch::channel(Lsn::ZERO);
        let signals = Arc::new(SourceSignals::default());
        let seen = Arc::clone(&signals);
        let reporter = SourceStateReporter::new("test");
        let states = reporter.clone();
        let position = move || *position.borrow();
        let task = tokio::spawn(async move { follow(&options, &seen, sender, Arc::new(position), &states).await });
        (StreamFollower { acknowledged, events, task, reporter }, signals)
    }

    /// Returns the next event that is not a new connection.
    pub(crate) async fn next(&mut self) -> SourceEvent {
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.recv()).await;
            match event.expect("an event in time") {
                Some(SourceEvent::Connected { .. }) => {}
                Some(event) => return event,
                None => panic!("the stream ended: {:?}", (&mut self.task).await),
            }
        }
    }

    /// Returns the next commit. Acknowledges everything that arrives.
    pub(crate) async fn commit(&mut self) -> ReceivedCommit {
        loop {
            match self.next().await {
                SourceEvent::Commit(commit) => {
                    self.acknowledged.send_replace(commit.end);
                    let mark = commit.mark();
                    let tables = commit.tables.into_iter().map(|(table, spool)| (table.0, texts(spool)));
                    return ReceivedCommit { xid: commit.xid.0, end: commit.end, mark, tables: tables.collect() };
                }
                SourceEvent::Progress(lsn) | SourceEvent::Current { position: lsn, .. } => {
                    self.acknowledged.send_replace(lsn);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Returns the changes of the next commit to one table.
    pub(crate) async fn changes(&mut self, table: usize) -> Vec<String> {
        self.commit().await.tables.remove(&table).unwrap_or_default()
    }

    /// Waits until the stream is past `lsn`, and acknowledges that position. Panics if anything
    /// else arrives.
    pub(crate) async fn progress(&mut self, past: Lsn) {
        loop {
            match self.next().await {
                SourceEvent::Progress(lsn) | SourceEvent::Current { position: lsn, .. } => {
                    self.acknowledged.send_replace(lsn);
                    if lsn >= past {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Starts a stream that begins with a fork, before its slot exists.
    pub(crate) async fn start_forked(options: StreamOptions) -> StreamFollower {
        StreamFollower::spawn(options, 64).0
    }

    /// Returns the reason and the possible fork of a restart. Panics if anything other than
    /// progress comes first.
    pub(crate) async fn restart(&mut self) -> (String, Option<Fork>) {
        loop {
            match self.next().await {
                SourceEvent::Restarted { reason, fork } => return (reason, fork),
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Returns the reason of a restart. Panics if anything other than progress comes first.
    pub(crate) async fn restarted(&mut self) -> String {
        loop {
            match self.next().await {
                SourceEvent::Restarted { reason, .. } => return reason,
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Returns the next fork of the database's history, after noting it. Panics if anything other
    /// than progress comes first.
    pub(crate) async fn forked(&mut self) -> (SourceIdentity, Fork, String) {
        loop {
            match self.next().await {
                SourceEvent::Forked { server, fork, reason, noted } => {
                    self.acknowledged.send_replace(Lsn::ZERO);
                    drop(noted);
                    return (server.identity, fork, reason);
                }
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Returns the identity of the database on its next timeline. Panics if anything other than
    /// progress comes first.
    pub(crate) async fn promoted(&mut self) -> SourceIdentity {
        loop {
            match self.next().await {
                SourceEvent::Promoted { server } => return server.identity,
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until the database refuses to be followed, and returns the reason.
    pub(crate) async fn refused(mut self) -> String {
        let mut states = self.reporter.watch();
        let refused = states.wait_for(|status| matches!(status.state, SourceState::Refused { .. }));
        let taken = async { while self.events.recv().await.is_some() {} };
        let waited = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                status = refused => status.unwrap().state.reason().unwrap().to_owned(),
                () = taken => panic!("the stream ended"),
            }
        });
        waited.await.expect("it is refused in time")
    }
}

impl Drop for StreamFollower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns a spool's changes as text: `+new`, `old=new`, `-old`, and `0` for a truncate.
pub(crate) fn texts(mut spool: Spool) -> Vec<String> {
    let mut changes = Vec::new();
    let read = spool.for_each_entry::<std::io::Error>(|entry| {
        if let SpoolEntry::Change(change) = entry {
            changes.push(match change {
                RawChange::Insert { new } => format!("+{}", row(new)),
                RawChange::Update { old: None, new } => format!("={}", row(new)),
                RawChange::Update { old: Some(old), new } => format!("{}={}", row(old), row(new)),
                RawChange::Delete { old } => format!("-{}", row(old)),
                RawChange::Truncate => "0".to_owned(),
            });
        }
        Ok(())
    });
    read.unwrap();
    changes
}

fn row(row: TupleRef<'_>) -> String {
    let cell = |cell| match cell {
        Cell::Null => "NULL".to_owned(),
        Cell::Unchanged => "?".to_owned(),
        Cell::Value(bytes) if bytes.len() > 100 => format!("{} bytes", bytes.len()),
        Cell::Value(bytes) => String::from_utf8_lossy(bytes).into_owned(),
    };
    row.cells().map(cell).collect::<Vec<_>>().join(",")
}

pub(crate) fn lsn(cluster: &Cluster, sql: &str) -> Lsn {
    cluster.psql(&format!("SELECT {sql}")).unwrap().parse().unwrap()
}
