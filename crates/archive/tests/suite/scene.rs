//! A table with a history, a feed of its transactions, and a writer that archives them.

#![expect(clippy::disallowed_methods, reason = "these run by the machine's own clock")]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use laredo_archive::{
    Archive, ArchivePoint, ArchiveWriter, ArtifactStager, Destination, Feed, FeedStart, FeedUpdate, FolderDestination,
    ListedObject, Manifest, ReadProgress, SharedWriterStatus, WriterError, WriterHandle, WriterOptions,
    WriterResources,
};
use laredo_core::{
    Cell, Change, Checksum, Column, CommitMark, CommitTime, DefinitionVersion, KeyColumns, Lsn, Schema, ScopedMark,
    StateError, TableState, Transaction, Tuple, TupleBuf, Xid,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const TABLE: &str = "public.things";
pub(crate) const DIFF_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) fn schema(columns: &[&str]) -> Arc<Schema> {
    let column = |name: &&str| Column {
        name: (*name).to_owned(),
        type_oid: if *name == "id" { 23 } else { 25 },
        type_modifier: -1,
        type_name: if *name == "id" { "integer" } else { "text" }.to_owned(),
        not_null: *name == "id",
        is_text: false,
    };
    Arc::new(Schema::new(columns.iter().map(column).collect(), KeyColumns::new([0]), BTreeMap::new()))
}

pub(crate) fn row(id: i32, body: &str) -> Tuple {
    let row: TupleBuf = [Cell::Value(&id.to_be_bytes()), Cell::Value(body.as_bytes())].into_iter().collect();
    row.as_ref().to_tuple()
}

/// The table, its rows at each commit, and the transactions that led there.
pub(crate) struct TestTableHistory {
    pub(crate) table: TableState,
    pub(crate) position: Lsn,
    /// A number that distinguishes the commits of this history from those of others.
    number: i64,
    pub(crate) states: BTreeMap<Lsn, Vec<Tuple>>,
    transactions: Vec<Transaction>,
}

impl TestTableHistory {
    pub(crate) fn new() -> TestTableHistory {
        let mut table = TableState::new(schema(&["id", "body"]), &[], 0).unwrap();
        (0..20).for_each(|id| drop(table.put(row(id, "first"))));
        TestTableHistory::of(table)
    }

    pub(crate) fn of(table: TableState) -> TestTableHistory {
        let position = Lsn(0x100);
        let states = BTreeMap::from([(position, sorted(&table))]);
        TestTableHistory { table, position, number: 1, states, transactions: Vec::new() }
    }

    /// Returns a history that forks from this one after a position. The later commits are lost.
    pub(crate) fn fork(&self, after: Lsn) -> TestTableHistory {
        let transactions: Vec<Transaction> =
            self.transactions.iter().filter(|transaction| transaction.position <= after).cloned().collect();
        let states: BTreeMap<Lsn, Vec<Tuple>> =
            self.states.range(..=after).map(|(position, rows)| (*position, rows.clone())).collect();
        let (position, rows) = states.last_key_value().unwrap();
        let mut table = TableState::new(self.table.schema().clone(), &[], 0).unwrap();
        rows.iter().for_each(|row| drop(table.put(row.clone())));
        TestTableHistory { table, position: *position, number: self.number + 1, states, transactions }
    }

    /// Returns the mark of the newest commit.
    pub(crate) fn mark(&self) -> ScopedMark {
        mark(self.position, CommitTime(self.number))
    }

    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> Transaction {
        self.position = Lsn(self.position.0 + 0x10);
        let committed_at = CommitTime(self.number);
        let transaction = Transaction { position: self.position, span_from: None, committed_at, changes };
        self.table.apply(&transaction).unwrap();
        self.states.insert(self.position, sorted(&self.table));
        self.transactions.push(transaction.clone());
        transaction
    }

    /// Commits one of several kinds of changes.
    pub(crate) fn something(&mut self, number: i32) -> Transaction {
        let key = |id| self.table.schema().key().key_of(row(id, "").as_ref());
        let changes = match number % 5 {
            0 => vec![Change::Insert(row(100 + number, "new"))],
            1 => vec![Change::Update(row(number % 20, &format!("changed {number}")))],
            2 => vec![Change::Delete(key(5)), Change::Insert(row(5, "again"))],
            3 => vec![Change::Insert(row(1000 + number, "short-lived")), Change::Delete(key(1000 + number))],
            _ => {
                let rows: Vec<Tuple> = self.table.rows().cloned().collect();
                let back = rows.into_iter().filter(|row| row.len() % 7 != 0 || number % 10 == 4);
                let inserts = back.map(Change::Insert).chain([Change::Update(row(7, "after truncate"))]);
                let mut changes = vec![Change::Truncate];
                changes.extend(inserts.filter(|change| !matches!(change, Change::Update(_))));
                changes
            }
        };
        let kept = (0..20).filter(|id| self.table.get(&key(*id)).is_none()).collect::<Vec<_>>();
        let changes = changes.into_iter().flat_map(|change| match &change {
            Change::Update(new) if self.table.get_like(new.as_ref()).is_none() => vec![Change::Insert(new.clone())],
            Change::Delete(_) if kept.contains(&5) && number % 5 == 2 => Vec::new(),
            _ => vec![change],
        });
        let changes = changes.collect();
        self.commit(changes)
    }

    /// Returns the updates that a server sends to a writer that resumes from `start`.
    fn after(&self, start: Option<&FeedStart>) -> Vec<FeedUpdate> {
        match start {
            Some(start) => {
                let later = self.transactions.iter().filter(|transaction| transaction.position > start.position);
                let later = later.cloned().map(FeedUpdate::Transaction);
                [FeedUpdate::Resumed { source: None }].into_iter().chain(later).collect()
            }
            None => self.all(),
        }
    }

    pub(crate) fn all(&self) -> Vec<FeedUpdate> {
        let (table, position) = (Box::new(self.table.clone()), self.position);
        vec![restart(Lsn(u64::MAX)), FeedUpdate::State { table, position, source: None }]
    }
}

fn mark(end: Lsn, committed_at: CommitTime) -> ScopedMark {
    ScopedMark { commit: CommitMark { end, xid: Xid(end.0), committed_at }, scope: 0 }
}

/// Returns the update that announces all rows again. Up to `shared_until`, the old and the new
/// history are known to agree.
pub(crate) fn restart(shared_until: Lsn) -> FeedUpdate {
    FeedUpdate::Restart { reason: "test".to_owned(), shared_until }
}

pub(crate) fn sorted(table: &TableState) -> Vec<Tuple> {
    let mut rows: Vec<Tuple> = table.rows().cloned().collect();
    rows.sort_by_key(|row| row.as_ref().bytes().to_vec());
    rows
}

struct ChannelFeed {
    mark: Arc<Mutex<Option<ScopedMark>>>,
    definition: Arc<AtomicU64>,
    updates: mpsc::UnboundedReceiver<FeedUpdate>,
    restarts: mpsc::UnboundedSender<StateError>,
    differed: mpsc::UnboundedSender<(Checksum, Checksum)>,
}

impl Feed for ChannelFeed {
    async fn next(&mut self) -> FeedUpdate {
        match self.updates.recv().await {
            Some(update) => {
                if let FeedUpdate::Transaction(transaction) = &update {
                    *self.mark.lock().unwrap() = Some(mark(transaction.position, transaction.committed_at));
                }
                update
            }
            None => std::future::pending().await,
        }
    }

    fn definition(&self) -> DefinitionVersion {
        DefinitionVersion(self.definition.load(Ordering::SeqCst))
    }

    fn mark(&self) -> Option<ScopedMark> {
        *self.mark.lock().unwrap()
    }

    fn start_over(&mut self, error: StateError) {
        self.restarts.send(error).unwrap();
    }

    fn compare(&mut self, _: Lsn, ours: Checksum, theirs: Checksum) -> bool {
        if ours != theirs {
            self.differed.send((ours, theirs)).unwrap();
        }
        ours != theirs
    }
}

/// A running writer.
pub(crate) struct RunningArchiveWriter {
    /// The newest commit that the feed reports: that of the rows that it sends, or else of the
    /// newest transaction.
    pub(crate) mark: Arc<Mutex<Option<ScopedMark>>>,
    /// The definition version that the feed reports.
    pub(crate) definition: Arc<AtomicU64>,
    pub(crate) updates: mpsc::UnboundedSender<FeedUpdate>,
    pub(crate) restarts: mpsc::UnboundedReceiver<StateError>,
    /// The checksums that differed: the writer's and the source's.
    pub(crate) differed: mpsc::UnboundedReceiver<(Checksum, Checksum)>,
    pub(crate) handle: WriterHandle,
    pub(crate) start: Option<FeedStart>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), WriterError>>,
}

pub(crate) fn options(id: &str) -> WriterOptions {
    let mut options = WriterOptions::new(TABLE, id, vec!["jsonl".parse().unwrap()], DIFF_INTERVAL);
    options.diff_formats.push("protobuf.zst".parse().unwrap());
    // So few that older epochs are sealed in most tests.
    options.manifest_epochs = 2;
    options.waits_at_start = true;
    options.seed = 1;
    options
}

/// Returns changed settings.
pub(crate) fn changed(mut options: WriterOptions, change: impl FnOnce(&mut WriterOptions)) -> WriterOptions {
    change(&mut options);
    options
}

/// Starts a writer. The feed sends everything after the head of the writer's archive.
pub(crate) async fn begin(
    options: WriterOptions,
    destinations: Vec<Arc<dyn Destination>>,
    staging: &Path,
    history: &TestTableHistory,
) -> Result<RunningArchiveWriter, WriterError> {
    let resources = WriterResources {
        destinations,
        stager: ArtifactStager::new(staging),
        wall: Box::new(SystemTime::now),
        publish: Box::new(|_| {}),
        status: SharedWriterStatus::default(),
    };
    let (writer, start) = ArchiveWriter::open(options, resources).await?;
    let (updates, told) = mpsc::unbounded_channel();
    let (restarts, restarted) = mpsc::unbounded_channel();
    let (differed, differences) = mpsc::unbounded_channel();
    for update in history.after(start.as_ref()) {
        updates.send(update).unwrap();
    }
    let (handle, stop) = (writer.handle(), CancellationToken::new());
    let definition = Arc::new(AtomicU64::new(start.as_ref().map_or(0, |start| start.definition.0)));
    let mark = Arc::new(Mutex::new(start.as_ref().map_or(Some(history.mark()), |start| start.mark)));
    let feed = ChannelFeed { mark: mark.clone(), definition: definition.clone(), updates: told, restarts, differed };
    let task = tokio::spawn(writer.run(feed, stop.clone()));
    Ok(RunningArchiveWriter {
        mark,
        definition,
        updates,
        restarts: restarted,
        differed: differences,
        handle,
        start,
        stop,
        task,
    })
}

impl RunningArchiveWriter {
    pub(crate) fn send_transaction(&self, transaction: Transaction) {
        self.updates.send(FeedUpdate::Transaction(transaction)).unwrap();
    }

    /// Waits until the archive's head is at a position.
    pub(crate) async fn head(&self, position: Lsn) {
        while self.handle.status().head_position != Some(position) {
            assert!(!self.task.is_finished(), "the writer has ended: {:?}", self.handle.status().last_error);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Aborts the writer like `kill -9`: nothing is finished.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(crate) async fn ended(self) -> Result<(), WriterError> {
        self.task.await.unwrap()
    }
}

pub(crate) fn local(folder: &Path) -> Arc<dyn Destination> {
    Arc::new(FolderDestination::new(folder))
}

/// Rebuilds every boundary that the archive names, and compares it with the table's rows. Returns
/// the artifacts as (epoch, to).
pub(crate) async fn compare(destination: Arc<dyn Destination>, history: &TestTableHistory) -> Vec<(u64, u64)> {
    let archive = Archive::open(destination, Some(TABLE)).await.unwrap();
    archive.verify(&ReadProgress::default(), |damage| panic!("{damage}")).await;
    let mut boundaries = Vec::new();
    for artifact in &archive.manifest().artifacts {
        let position = artifact.to_position.unwrap();
        let rebuilt = archive.rebuild(ArchivePoint::Position(position), &ReadProgress::default()).await.unwrap();
        assert_eq!(sorted(&rebuilt.table), history.states[&position], "at {position}");
        boundaries.push((artifact.epoch, position.0));
    }
    boundaries
}

/// Checks that the manifest is valid, and that every object in it exists with its size.
///
/// # Errors
///
/// Returns the first violation.
pub(crate) async fn is_whole(destination: &dyn Destination) -> Result<(), String> {
    let Some(there) = destination.manifest().await.map_err(|error| error.to_string())? else { return Ok(()) };
    let manifest = Manifest::parse(&there.bytes, Some(TABLE)).map_err(|error| error.to_string())?;
    let listed = destination.list().await.map_err(|error| error.to_string())?;
    for artifact in &manifest.artifacts {
        for format in artifact.known_formats() {
            let object = artifact.object(format).unwrap();
            has_size(&listed, &object, artifact.formats[format.id()].size_bytes)?;
        }
    }
    let (mut next, mut newer) = (manifest.sealed.map(|link| serde_json::to_value(link).unwrap()), manifest.artifacts);
    while let Some(link) = next {
        let sealed = sealed_text(destination, &link).await?;
        for artifact in sealed["artifacts"].as_array().unwrap() {
            for stored in artifact["formats"].as_object().unwrap().values() {
                let object = stored["uri"].as_str().unwrap();
                if manifest.oldest_epoch.is_none_or(|oldest| artifact["epoch"].as_u64() >= Some(oldest)) {
                    has_size(&listed, object, stored["size_bytes"].as_u64().unwrap())?;
                }
            }
        }
        let last = sealed["artifacts"].as_array().unwrap().last().unwrap()["epoch"].as_u64().unwrap();
        if newer.drain(..).any(|artifact| artifact.epoch <= last) {
            return Err(format!("epoch {last} is sealed and named"));
        }
        next = sealed.get("earlier").cloned();
        next =
            next.filter(|link| manifest.oldest_epoch.is_none_or(|oldest| link["last_epoch"].as_u64() >= Some(oldest)));
    }
    Ok(())
}

fn has_size(listed: &[ListedObject], object: &str, expected: u64) -> Result<(), String> {
    let size = listed.iter().find(|listed| listed.object == object).map(|listed| listed.size_bytes);
    if size != Some(expected) {
        return Err(format!("{object}, which the manifest names, has {size:?} bytes"));
    }
    Ok(())
}

/// Reads a sealed manifest like another program that only has the documentation.
async fn sealed_text(destination: &dyn Destination, link: &serde_json::Value) -> Result<serde_json::Value, String> {
    let uri = link["uri"].as_str().unwrap();
    let object = &uri[uri.rfind("epoch=").unwrap()..];
    let mut opened = destination.open(object).await.map_err(|error| error.to_string())?;
    let mut text = String::new();
    opened.read_to_string(&mut text).map_err(|error| error.to_string())?;
    assert_eq!(link["size_bytes"], text.len());
    Ok(serde_json::from_str(&text).unwrap())
}
