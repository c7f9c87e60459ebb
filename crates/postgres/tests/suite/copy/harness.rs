//! A source that streams, so that copies may begin.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use laredo_core::{Cell, Lsn, Schema, TableName, TupleRef};
use laredo_engine::source::{
    CopyEvent, SnapshotCheck, Source, SourceError, SourceEvent, SourceStateReporter, TableIndex, TableRequest,
    TransactionSnapshot,
};
use laredo_engine::spool::SpoolOptions;
use laredo_postgres::ddl::DdlWatch;
use laredo_postgres::stream::{ReconnectOptions, SlotMode};
use laredo_postgres::{COPY_TIMEOUT, ConnectionOptions, PostgresOptions, PostgresSource, PublicationOptions};
use laredo_testkit::{Cluster, ClusterOptions};
use tokio::sync::{mpsc, watch};

/// A time limit that no test reaches on any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A source that streams, so that copies may begin.
pub(crate) struct StreamingSource {
    pub(crate) source: Arc<PostgresSource>,
    events: mpsc::Receiver<SourceEvent>,
    pub(crate) acknowledged: watch::Sender<Lsn>,
}

pub(crate) struct CopiedTable {
    pub(crate) schema: Arc<Schema>,
    pub(crate) rows: Vec<Vec<u8>>,
    pub(crate) snapshot: TransactionSnapshot,
    pub(crate) begun: usize,
    pub(crate) inserted: Lsn,
}

impl CopiedTable {
    /// Returns the cells of each row as text, in order. Works only if all cells are text.
    pub(crate) fn texts(&self) -> Vec<Vec<Option<String>>> {
        let mut rows: Vec<Vec<_>> = self
            .rows
            .iter()
            .map(|row| {
                let row = TupleRef::parse(row, self.schema.columns().len()).unwrap();
                row.cells().map(text).collect()
            })
            .collect();
        rows.sort();
        rows
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.schema.columns().iter().map(|column| column.name.as_str()).collect()
    }
}

fn text(cell: Cell<'_>) -> Option<String> {
    cell.value().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

pub(crate) fn requests(names: &[&str]) -> Vec<TableRequest> {
    let request = |name: &&str| TableRequest { name: name.parse::<TableName>().unwrap(), key_fields: Vec::new() };
    names.iter().map(request).collect()
}

pub(crate) fn options(cluster: &Cluster) -> PostgresOptions {
    PostgresOptions {
        connection: ConnectionOptions::parse(&cluster.url("postgres")).unwrap(),
        slot: SlotMode::Ephemeral { name_prefix: "laredo".to_owned() },
        publication: PublicationOptions { name: "laredo_pub".to_owned(), create: true },
        ddl: DdlWatch::Poll,
        reconnect: ReconnectOptions::default(),
        copies_max: 4,
        copy_timeout: COPY_TIMEOUT,
        spool: Arc::new(SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() }),
        seed: 1,
    }
}

pub(crate) async fn follow(options: PostgresOptions, tables: &[TableRequest]) -> StreamingSource {
    let source = Arc::new(PostgresSource::new(options));
    source.prepare(tables).await.unwrap();
    let (sender, events) = mpsc::channel(1000);
    let (acknowledged, reader) = watch::channel(Lsn::ZERO);
    let streaming = source.clone();
    let acknowledge = Arc::new(move || *reader.borrow());
    tokio::spawn(async move { streaming.stream(sender, acknowledge, SourceStateReporter::new("test")).await });
    StreamingSource { source, events, acknowledged }
}

pub(crate) fn everything() -> SnapshotCheck {
    Arc::new(|_| true)
}

impl StreamingSource {
    pub(crate) async fn copy(&self, table: usize) -> CopiedTable {
        self.try_copy(table, everything()).await.unwrap()
    }

    pub(crate) async fn try_copy(&self, table: usize, admits: SnapshotCheck) -> Result<CopiedTable, SourceError> {
        copy(self.source.clone(), table, admits).await
    }

    /// Returns the next event that is not mere progress.
    pub(crate) async fn event(&mut self) -> SourceEvent {
        loop {
            match self.next().await {
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                event => return event,
            }
        }
    }

    async fn next(&mut self) -> SourceEvent {
        loop {
            match tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("an event in time").unwrap() {
                SourceEvent::Connected { .. } => {}
                event => return event,
            }
        }
    }

    /// Waits until the stream has reached `lsn`, and returns its position.
    pub(crate) async fn progress(&mut self, past: Lsn) -> Lsn {
        loop {
            match self.next().await {
                SourceEvent::Progress(lsn) | SourceEvent::Current { position: lsn, .. } if lsn >= past => return lsn,
                SourceEvent::Progress(_) | SourceEvent::Current { .. } => {}
                event => panic!("{event:?}"),
            }
        }
    }

    /// Waits until a table has moved, and returns the reason.
    pub(crate) async fn moved(&mut self, index: usize) -> String {
        loop {
            match self.event().await {
                SourceEvent::Moved { table, reason, .. } if table.0 == index => return reason,
                SourceEvent::Restarted { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
    }

    /// Waits until a table can no longer be followed, and returns the reason.
    pub(crate) async fn broken(&mut self, index: usize) -> String {
        loop {
            match self.event().await {
                SourceEvent::Broken { table, error } if table.0 == index => return error,
                SourceEvent::Restarted { reason, .. } => panic!("{reason}"),
                _ => {}
            }
        }
    }

    /// Returns the reason why a table cannot be copied before the operator fixes something.
    pub(crate) async fn refused(&self, table: usize) -> String {
        match self.try_copy(table, everything()).await {
            Err(SourceError::Definite(problems)) => problems.join("\n"),
            Err(SourceError::Transient(problem) | SourceError::Held(problem)) => panic!("not definite: {problem}"),
            Ok(copied) => panic!("a copy of {} rows", copied.rows.len()),
        }
    }
}

pub(crate) async fn copy(
    source: Arc<PostgresSource>,
    table: usize,
    admits: SnapshotCheck,
) -> Result<CopiedTable, SourceError> {
    let (sender, mut receiver) = mpsc::channel(4);
    let copy = tokio::spawn(async move { source.copy(TableIndex(table), None, admits, sender).await });
    let (mut schema, mut rows, mut begun, mut seen, mut end) = (None, Vec::new(), 0, None, None);
    while let Some(event) = receiver.recv().await {
        match event {
            CopyEvent::Begin { schema: new, snapshot, .. } => {
                schema = Some(new);
                seen = Some(snapshot);
                rows.clear();
                begun += 1;
            }
            CopyEvent::Rows(chunk) => rows.extend(split(&chunk)),
            CopyEvent::End { inserted, .. } => end = Some(inserted),
        }
    }
    copy.await.unwrap()?;
    Ok(CopiedTable { schema: schema.unwrap(), rows, snapshot: seen.unwrap(), begun, inserted: end.unwrap() })
}

fn split(chunk: &[u8]) -> Vec<Vec<u8>> {
    let (mut rows, mut rest) = (Vec::new(), chunk);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (row, after) = after.split_at(u32::from_ne_bytes(*length) as usize);
        rows.push(row.to_vec());
        rest = after;
    }
    assert!(rest.is_empty());
    rows
}

pub(crate) fn cluster(sql: &str) -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    cluster.psql(sql).unwrap();
    cluster
}

pub(crate) fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

/// Returns when a waiting copy has checked three more times if its writers still exist.
pub(crate) async fn asked_again(watcher: &tokio_postgres::Client) {
    let sql = "SELECT extract(epoch FROM query_start)::float8 FROM pg_stat_activity
               WHERE application_name = 'laredo copy' AND query LIKE '%transactionid%IN (%'";
    let mut times = BTreeSet::new();
    while times.len() < 4 {
        for row in watcher.query(sql, &[]).await.unwrap() {
            times.insert(row.get::<_, f64>(0).to_bits());
        }
    }
}

/// Makes PostgreSQL announce a table on the stream. It sends a relation again after every change of
/// its definition.
pub(crate) fn announce(cluster: &Cluster) {
    cluster
        .psql(
            "ALTER TABLE trigger ALTER COLUMN id SET STATISTICS 100; INSERT INTO trigger SELECT count(*) FROM trigger",
        )
        .unwrap();
}

/// Creates a role with just the required rights. Returns a source's options with that role; the
/// publication exists.
pub(crate) fn limited(cluster: &Cluster) -> PostgresOptions {
    cluster
        .psql("CREATE ROLE follower LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO follower")
        .unwrap();
    let url = cluster.url("postgres").replace("postgres@", "follower@");
    PostgresOptions { connection: ConnectionOptions::parse(&url).unwrap(), ..options(cluster) }
}
