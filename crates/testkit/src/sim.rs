//! A database in memory, as a source for the engine. As in PostgreSQL, the order in which commits
//! become visible to snapshots may differ from their order in the log.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use laredo_core::{
    Cell, Column, CommitMark, CommitTime, KeyColumns, Lsn, Schema, SourceIdentity, TupleBuf, TupleRef, Xid,
};
use laredo_engine::retention::WalRetention;
use laredo_engine::source::{
    AcknowledgedPosition, CopyEvent, KnownTable, ResumeDecision, SnapshotCheck, Source, SourceCommit, SourceError,
    SourceEvent, SourceServer, SourceState, SourceStateReporter, TableIndex, TablePart, TablePartEvent, TablePartOrder,
    TableRequest, TransactionSnapshot,
};
use laredo_engine::spool::{RawChange, RelationShape, SpoolOptions, SpoolWriter};
use laredo_engine::{Fork, ForkReceipt};
use tokio::sync::{mpsc, watch};

/// The interval at which the engine is asked what may be forgotten.
const ASKING_INTERVAL: Duration = Duration::from_millis(5);
/// The delay before a source that failed is prepared again.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// The rows of a simulated table: ID and text.
pub type SimRows = BTreeMap<i64, String>;

/// A change to a simulated table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SimChange {
    /// A new row.
    Insert(i64, String),
    /// A new text for an existing row.
    Update(i64, String),
    /// A new key and text for an existing row: the old key, the new key, the text.
    Rekey(i64, i64, String),
    /// An update that leaves the text unchanged and does not send it.
    Touch(i64),
    /// The deletion of a row.
    Delete(i64),
    /// The deletion of all rows.
    Truncate,
}

/// A fault of the source's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimFault {
    /// Preparing the source panics.
    PanicAtStart,
    /// Preparing the source is refused.
    Refused,
    /// Another process holds the slot.
    Held,
    /// The stream panics after its first event.
    Panic,
    /// The stream ends after its first event, so the source must be prepared again.
    Ended,
}

#[derive(Clone, Debug)]
struct SimCommit {
    xid: u64,
    end: Lsn,
    committed_at: CommitTime,
    history: i64,
    changes: Vec<(usize, SimChange)>,
    visible: bool,
    /// True if the stream does not send the changes.
    is_silent: bool,
}

#[derive(Debug)]
struct SimDatabaseState {
    log: Vec<SimCommit>,
    next_lsn: u64,
    tables: usize,
    /// The number of times that the database was put back.
    histories: i64,
    /// The position to which the database was last put back, and the end of the log before that.
    fork: Fork,
}

/// The tables that one engine has copied, with the position of the copy. Each engine has a clone of
/// the database, whose map is empty at first.
#[derive(Debug, Default)]
struct SimCopyPositions(Mutex<BTreeMap<usize, Lsn>>);

impl Clone for SimCopyPositions {
    fn clone(&self) -> SimCopyPositions {
        SimCopyPositions::default()
    }
}

/// A simulated database. Clones share its contents.
#[derive(Clone, Debug)]
pub struct SimDatabase {
    state: Arc<watch::Sender<SimDatabaseState>>,
    /// The position that the engine has acknowledged.
    acknowledged: Arc<watch::Sender<Lsn>>,
    extra: Arc<mpsc::Sender<SourceEvent>>,
    extra_events: Arc<tokio::sync::Mutex<mpsc::Receiver<SourceEvent>>>,
    copied: SimCopyPositions,
    /// The position after which the stream of this engine begins.
    from: Arc<AtomicU64>,
    /// The stand-in for the table definition in the catalog.
    definition: Arc<Mutex<String>>,
    retention: Arc<watch::Sender<WalRetention>>,
    /// The end of the WAL that the source reports, or `None` if it reports an error.
    written: Arc<Mutex<Option<Lsn>>>,
    /// The newest commits that the engine has kept from an earlier run.
    kept: Arc<Mutex<Vec<CommitMark>>>,
    /// The number of times that reading a part yields to other tasks between two rows.
    part_yields: Arc<AtomicU64>,
    /// The errors with which copies of tables fail, and the number of failed copies.
    refused_copies: Arc<Mutex<BTreeMap<usize, (SourceError, u64)>>>,
    are_copies_held: Arc<watch::Sender<bool>>,
    /// The number of tables that the engine has followed in this run.
    followed: Arc<AtomicUsize>,
    /// The fault of the source's task, and how many more times it happens.
    fault: Arc<Mutex<Option<(SimFault, u32)>>>,
}

impl SimCommit {
    fn mark(&self) -> CommitMark {
        CommitMark { end: self.end, xid: Xid(self.xid), committed_at: self.committed_at }
    }
}

impl SimDatabase {
    /// Returns a database with `tables` empty tables.
    #[must_use]
    pub fn new(tables: usize) -> SimDatabase {
        let (extra, events) = mpsc::channel(16);
        SimDatabase {
            state: Arc::new(watch::Sender::new(SimDatabaseState {
                log: Vec::new(),
                next_lsn: 1000,
                tables,
                histories: 0,
                fork: Fork::default(),
            })),
            acknowledged: Arc::new(watch::Sender::new(Lsn::ZERO)),
            extra: Arc::new(extra),
            extra_events: Arc::new(tokio::sync::Mutex::new(events)),
            copied: SimCopyPositions::default(),
            from: Arc::default(),
            definition: Arc::default(),
            retention: Arc::default(),
            written: Arc::default(),
            kept: Arc::default(),
            part_yields: Arc::new(AtomicU64::new(1)),
            refused_copies: Arc::default(),
            are_copies_held: Arc::default(),
            followed: Arc::default(),
            fault: Arc::default(),
        }
    }

    /// Adds an empty table, for an engine that follows one more.
    pub fn create_table(&self) {
        self.state.send_modify(|state| state.tables += 1);
    }

    /// Makes the source's task fail with this fault, the next `times` times.
    pub fn fail(&self, fault: SimFault, times: u32) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some((fault, times));
    }

    /// Returns the fault that happens now, if it is among these.
    fn failure(&self, faults: &[SimFault]) -> Option<SimFault> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        let (fault, left) = fault.as_mut().filter(|(fault, left)| faults.contains(fault) && *left > 0)?;
        *left -= 1;
        Some(*fault)
    }

    /// Makes copies wait from now on.
    pub fn hold_copies(&self) {
        self.are_copies_held.send_replace(true);
    }

    /// Lets copies begin again, including those that wait.
    pub fn release_copies(&self) {
        self.are_copies_held.send_replace(false);
    }

    /// Makes copies of a table fail from now on.
    pub fn refuse_copies(&self, table: usize, error: SourceError) {
        self.refused_copies.lock().unwrap_or_else(PoisonError::into_inner).insert(table, (error, 0));
    }

    /// Lets copies of a table succeed again. Returns the number of copies that failed.
    pub fn allow_copies(&self, table: usize) -> u64 {
        let refused = self.refused_copies.lock().unwrap_or_else(PoisonError::into_inner).remove(&table);
        refused.map_or(0, |(_, count)| count)
    }

    /// Commits a transaction on one table, visible at once, and returns its end.
    pub fn commit(&self, table: usize, changes: Vec<SimChange>) -> Lsn {
        let end = self.commit_unseen(changes.into_iter().map(|change| (table, change)).collect());
        self.make_visible(end);
        end
    }

    /// Logs a commit that snapshots do not see yet.
    pub fn commit_unseen(&self, changes: Vec<(usize, SimChange)>) -> Lsn {
        self.log(changes, false)
    }

    /// Changes a table without sending the changes, as `ALTER TABLE` may. The stream only reports
    /// progress.
    pub fn change_silently(&self, table: usize, changes: Vec<SimChange>) -> Lsn {
        let end = self.log(changes.into_iter().map(|change| (table, change)).collect(), true);
        self.make_visible(end);
        end
    }

    fn log(&self, changes: Vec<(usize, SimChange)>, is_silent: bool) -> Lsn {
        let mut end = Lsn::ZERO;
        self.state.send_modify(|state| {
            state.next_lsn += 10 + changes.len() as u64;
            end = Lsn(state.next_lsn);
            let xid = 700 + state.log.len() as u64;
            // Commits of two histories never have the same time.
            let committed_at = CommitTime(i64::try_from(end.0).unwrap_or(0) + state.histories);
            let history = state.histories;
            state.log.push(SimCommit { xid, end, committed_at, history, changes, visible: false, is_silent });
        });
        end
    }

    /// Makes a commit visible to snapshots.
    pub fn make_visible(&self, end: Lsn) {
        self.state.send_modify(|state| {
            state.log.iter_mut().filter(|commit| commit.end == end).for_each(|commit| commit.visible = true);
        });
    }

    /// Injects an event into the stream, in addition to commits.
    pub async fn inject_event(&self, event: SourceEvent) {
        // Sending cannot fail, because `self` owns the receiver.
        let _ = self.extra.send(event).await;
    }

    /// Returns the rows of a table after every commit up to `position`, as the expected result for
    /// tests.
    #[must_use]
    pub fn rows_at(&self, table: usize, position: Lsn) -> SimRows {
        rows_of(&self.state.borrow(), table, |commit| commit.end <= position)
    }

    /// Returns the current definition of the tables.
    #[must_use]
    pub fn definition(&self) -> String {
        self.definition.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the definition of the tables, without an event in the stream.
    pub fn redefine(&self, definition: &str) {
        definition.clone_into(&mut self.definition.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Slows down reading parts: after each row, the reader yields to other tasks this many times.
    pub fn slow_parts_down(&self, yields: u64) {
        self.part_yields.store(yields, Ordering::Relaxed);
    }

    /// Sets the retention that the source reports.
    pub fn retain(&self, retention: WalRetention) {
        self.retention.send_replace(retention);
    }

    /// Sets the end of the WAL that the source reports.
    pub fn set_written(&self, written: Lsn) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
    }

    /// Puts the database back to its state at `position`. Later commits are removed, and new
    /// commits are of another history. Current and later streams notice this.
    pub fn put_back(&self, position: Lsn) {
        self.state.send_modify(|state| {
            let abandoned = state.log.last().map_or(position, |commit| commit.end);
            state.fork = Fork { common: position, abandoned, is_certain: true };
            state.log.retain(|commit| commit.end <= position);
            state.next_lsn = position.0;
            state.histories += 1;
        });
    }

    /// Returns the end of the log.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.state.borrow().log.last().map_or(Lsn(1000), |commit| commit.end)
    }

    /// Returns the position that the engine has acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> Lsn {
        *self.acknowledged.borrow()
    }

    /// Returns the schema of every simulated table: `id` int8 (the key) and `body` text.
    #[must_use]
    pub fn schema() -> Arc<Schema> {
        let column = |name: &str, type_oid, type_name: &str| Column {
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            type_name: type_name.to_owned(),
            not_null: type_oid == 20,
            is_text: false,
        };
        let columns = vec![column("id", 20, "bigint"), column("body", 25, "text")];
        Arc::new(Schema::new(columns, KeyColumns::new([0]), BTreeMap::new()))
    }

    /// Returns a row as the engine has it.
    #[must_use]
    pub fn row(id: i64, body: &str) -> TupleBuf {
        [Cell::Value(&id.to_be_bytes()), Cell::Value(body.as_bytes())].into_iter().collect()
    }

    /// Returns the ID and text of a row of the engine, or `None` if it is not such a row.
    #[must_use]
    pub fn parse(row: TupleRef<'_>) -> Option<(i64, String)> {
        let id = i64::from_be_bytes(row.cell(0).value()?.try_into().ok()?);
        Some((id, String::from_utf8(row.cell(1).value()?.to_vec()).ok()?))
    }

    fn to_event(commit: &SimCommit) -> Result<SourceEvent, SourceError> {
        let options = Arc::new(SpoolOptions { memory_bytes_max: 256, folder: std::env::temp_dir() });
        let columns = vec![("id".to_owned(), 20, -1), ("body".to_owned(), 25, -1)];
        let shape = Arc::new(RelationShape { columns });
        let mut spools: BTreeMap<usize, SpoolWriter> = BTreeMap::new();
        for (table, change) in &commit.changes {
            let spool = spools.entry(*table).or_insert_with(|| SpoolWriter::new(options.clone()));
            spool.push_shape(&shape);
            push(spool, change).map_err(|error| SourceError::Transient(error.to_string()))?;
        }
        let tables = spools
            .into_iter()
            .map(|(table, spool)| Ok((TableIndex(table), spool.finish()?)))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|error| SourceError::Transient(error.to_string()))?;
        let committed_at = commit.committed_at;
        Ok(SourceEvent::Commit(SourceCommit { xid: Xid(commit.xid), end: commit.end, committed_at, tables }))
    }
}

fn push(spool: &mut SpoolWriter, change: &SimChange) -> std::io::Result<()> {
    let key = |id: &i64| -> TupleBuf { [Cell::Value(&id.to_be_bytes()), Cell::Null].into_iter().collect() };
    match change {
        SimChange::Insert(id, body) => spool.push(0, RawChange::Insert { new: SimDatabase::row(*id, body).as_ref() }),
        SimChange::Update(id, body) => {
            spool.push(0, RawChange::Update { old: None, new: SimDatabase::row(*id, body).as_ref() })
        }
        SimChange::Rekey(old, new, body) => {
            let (old, new) = (key(old), SimDatabase::row(*new, body));
            spool.push(0, RawChange::Update { old: Some(old.as_ref()), new: new.as_ref() })
        }
        SimChange::Touch(id) => {
            let new: TupleBuf = [Cell::Value(&id.to_be_bytes()), Cell::Unchanged].into_iter().collect();
            spool.push(0, RawChange::Update { old: None, new: new.as_ref() })
        }
        SimChange::Delete(id) => spool.push(0, RawChange::Delete { old: key(id).as_ref() }),
        SimChange::Truncate => spool.push(0, RawChange::Truncate),
    }
}

fn rows_of(state: &SimDatabaseState, table: usize, wanted: impl Fn(&SimCommit) -> bool) -> SimRows {
    let mut rows = SimRows::new();
    for (_, change) in state.log.iter().filter(|c| wanted(c)).flat_map(|c| &c.changes).filter(|(t, _)| *t == table) {
        match change {
            SimChange::Insert(id, body) | SimChange::Update(id, body) => drop(rows.insert(*id, body.clone())),
            SimChange::Rekey(old, new, body) => {
                rows.remove(old);
                rows.insert(*new, body.clone());
            }
            SimChange::Touch(_) => {}
            SimChange::Delete(id) => drop(rows.remove(id)),
            SimChange::Truncate => rows.clear(),
        }
    }
    rows
}

async fn next_of(extra: Option<&mut mpsc::Receiver<SourceEvent>>) -> Option<SourceEvent> {
    match extra {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// The time after which the database ends a session that holds a lock and is not read.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// The number of blocks of a simulated table's file.
const BLOCKS: u64 = 8;
/// The bytes of one block. They are so many that each block is a part of its own.
const BLOCK_BYTES: u64 = 32 << 20;

/// Returns the rows of a simulated table by ID, each with its block. The block changes whenever the
/// row is written.
fn blocks_of(state: &SimDatabaseState, table: usize, wanted: impl Fn(&SimCommit) -> bool) -> BTreeMap<i64, u64> {
    let mut blocks_by_id = BTreeMap::new();
    for commit in state.log.iter().filter(|commit| wanted(commit)) {
        let block = commit.end.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        for (_, change) in commit.changes.iter().filter(|(changed, _)| *changed == table) {
            match change {
                SimChange::Insert(id, _) | SimChange::Update(id, _) | SimChange::Touch(id) => {
                    blocks_by_id.insert(*id, block % BLOCKS);
                }
                SimChange::Rekey(old, new, _) => {
                    blocks_by_id.remove(old);
                    blocks_by_id.insert(*new, block % BLOCKS);
                }
                SimChange::Delete(id) => drop(blocks_by_id.remove(id)),
                SimChange::Truncate => blocks_by_id.clear(),
            }
        }
    }
    blocks_by_id
}

/// Returns true if a truncation is not visible yet. It holds a lock that readers wait for.
fn is_locked(state: &SimDatabaseState, table: usize) -> bool {
    let hidden = state.log.iter().filter(|commit| !commit.visible).flat_map(|commit| &commit.changes);
    hidden.into_iter().any(|(changed, change)| *changed == table && *change == SimChange::Truncate)
}

impl SimDatabase {
    fn chunk(id: i64, body: &str) -> Vec<u8> {
        let row = SimDatabase::row(id, body);
        let bytes = row.as_ref().bytes();
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        [&length.to_ne_bytes(), bytes].concat()
    }

    /// Takes snapshots, and again after every change of the log, until one is accepted. Returns the
    /// snapshot, the end of the log, and the result of `accept`.
    async fn take_snapshot<T>(
        &self,
        mut accept: impl FnMut(&SimDatabaseState, &TransactionSnapshot) -> Option<T> + Send,
    ) -> Result<(TransactionSnapshot, Lsn, T), SourceError> {
        let mut log = self.state.subscribe();
        loop {
            {
                let state = log.borrow_and_update();
                let hidden: Vec<Xid> = state.log.iter().filter(|c| !c.visible).map(|c| Xid(c.xid)).collect();
                let xmax = Xid(700 + state.log.len() as u64);
                let xmin = hidden.first().copied().unwrap_or(xmax);
                let snapshot = TransactionSnapshot { xmin, xmax, in_progress: hidden, server_started: String::new() };
                if let Some(accepted) = accept(&state, &snapshot) {
                    let inserted = state.log.last().map_or(Lsn(1000), |commit| commit.end);
                    return Ok((snapshot, inserted, accepted));
                }
            }
            log.changed().await.map_err(|error| SourceError::Transient(error.to_string()))?;
        }
    }

    /// Reads a part of a table. Returns its first event, its rows, and its last event.
    async fn read_part(
        &self,
        table: usize,
        TablePartOrder { part, admits }: &TablePartOrder,
    ) -> Result<(TablePartEvent, SimRows, TablePartEvent), SourceError> {
        let (wanted, next) = match part {
            TablePart::Blocks { from, bytes } => {
                let next = from + (bytes / BLOCK_BYTES).max(1);
                (Some(*from..next), Some(next).filter(|next| *next < BLOCKS))
            }
            TablePart::Keys(_) => (None, None),
        };
        let looked = self.take_snapshot(|state, snapshot| {
            if !admits(snapshot) || is_locked(state, table) {
                return None;
            }
            let blocks_by_id = blocks_of(state, table, |commit| commit.visible);
            let mut rows = rows_of(state, table, |commit| commit.visible);
            rows.retain(|id, body| match (&wanted, part) {
                (Some(blocks), _) => blocks_by_id.get(id).is_some_and(|block| blocks.contains(block)),
                (None, TablePart::Keys(keys)) => {
                    let row = SimDatabase::row(*id, body);
                    keys.contains(&SimDatabase::schema().key().key_of(row.as_ref()))
                }
                (None, TablePart::Blocks { .. }) => false,
            });
            Some(rows)
        });
        let (snapshot, inserted, rows) = looked.await?;
        let schema = SimDatabase::schema();
        let begin = TablePartEvent::Begin { schema, snapshot, inserted, blocks: BLOCKS };
        Ok((begin, rows, TablePartEvent::End { next }))
    }

    /// Sends the stream's events, in order.
    async fn send_events(&self, events: mpsc::Sender<SourceEvent>) -> Result<(), SourceError> {
        let mut log = self.state.subscribe();
        // If several engines follow one database, only the first receives injected events.
        let mut extra = self.extra_events.try_lock().ok();
        let (mut sent, mut reached) = (0, Lsn(1000));
        let mut history = log.borrow().histories;
        if self.has_forked() && !self.send_fork(&events).await {
            return Ok(());
        }
        loop {
            let now = log.borrow_and_update().histories;
            if std::mem::replace(&mut history, now) != now {
                if !self.send_fork(&events).await {
                    return Ok(());
                }
                let state = self.state.borrow();
                sent = state.log.iter().filter(|commit| commit.history < now).count();
                reached = state.fork.common;
            }
            let new: Vec<SimCommit> = self.state.borrow().log.iter().skip(sent).cloned().collect();
            reached = new.last().map_or(reached, |commit| commit.end);
            sent += new.len();
            for commit in new.iter().filter(|commit| commit.end.0 > self.from.load(Ordering::Relaxed)) {
                let event = if commit.changes.is_empty() || commit.is_silent {
                    SourceEvent::Progress(commit.end)
                } else {
                    SimDatabase::to_event(commit)?
                };
                if events.send(event).await.is_err() {
                    return Ok(());
                }
            }
            // PostgreSQL also reports progress while nothing is written, so that a copy of an idle
            // table ends. The time of a commit is its position.
            let at = CommitTime(i64::try_from(reached.0).unwrap_or(0));
            if events.send(SourceEvent::Current { position: reached, at }).await.is_err() {
                return Ok(());
            }
            tokio::select! {
                changed = log.changed() => changed.map_err(|error| SourceError::Transient(error.to_string()))?,
                () = events.closed() => return Ok(()),
                Some(event) = next_of(extra.as_deref_mut()) => if events.send(event).await.is_err() { return Ok(()) },
            }
        }
    }

    /// Returns true if a commit that an earlier engine has kept is not in the log.
    fn has_forked(&self) -> bool {
        let (kept, state) = (self.kept.lock().unwrap_or_else(PoisonError::into_inner), self.state.borrow());
        let is_there = |mark: &CommitMark| state.log.iter().any(|commit| commit.mark() == *mark);
        !kept.iter().all(is_there)
    }

    /// Sends the fork of the history, and waits until the engine has noted it. Returns false if the
    /// receiver was dropped.
    async fn send_fork(&self, events: &mpsc::Sender<SourceEvent>) -> bool {
        let (noted, receipts) = ForkReceipt::new();
        let (server, fork) = (self.server(), self.state.borrow().fork.clone());
        // Acknowledged positions of the other history are void.
        self.from.store(0, Ordering::Relaxed);
        let event = SourceEvent::Forked { server, fork, reason: "it was put back".to_owned(), noted };
        let is_taken = events.send(event).await.is_ok();
        receipts.wait_for_all().await;
        is_taken
    }

    fn server(&self) -> SourceServer {
        let (system_identifier, database) = ("simulated".to_owned(), "sim".to_owned());
        let identity = SourceIdentity { system_identifier, database, timeline: 1, history: Vec::new() };
        SourceServer { identity, written: self.end(), started: String::new() }
    }

    /// Asks at intervals what may be forgotten.
    async fn poll_acknowledged(&self, acknowledged: AcknowledgedPosition) -> Infallible {
        let mut asking = tokio::time::interval(ASKING_INTERVAL);
        loop {
            asking.tick().await;
            self.acknowledged.send_replace(acknowledged());
        }
    }
}

#[expect(clippy::panic, reason = "a fault that tests ask for")]
impl Source for SimDatabase {
    async fn prepare(&self, tables: &[TableRequest]) -> Result<SourceServer, SourceError> {
        match self.failure(&[SimFault::PanicAtStart, SimFault::Refused, SimFault::Held]) {
            None => {}
            Some(SimFault::Refused) => return Err(SourceError::Definite(vec!["fix it".to_owned()])),
            Some(SimFault::Held) => return Err(SourceError::Held("process 7 has it".to_owned())),
            Some(fault) => panic!("a fault of the test: {fault:?}"),
        }
        if tables.len() > self.state.borrow().tables {
            return Err(SourceError::Definite(vec!["no such simulated table".to_owned()]));
        }
        self.followed.store(tables.len(), Ordering::Relaxed);
        Ok(self.server())
    }

    fn retry_delay(&self, _: u32) -> Option<Duration> {
        Some(RETRY_DELAY)
    }

    async fn check_more(
        &self,
        more: &[TableRequest],
        _: &[TableRequest],
        _: bool,
    ) -> Result<Vec<Arc<Schema>>, SourceError> {
        match self.followed.load(Ordering::Relaxed) + more.len() > self.state.borrow().tables {
            true => Err(SourceError::Definite(vec!["no such simulated table".to_owned()])),
            false => Ok(more.iter().map(|_| SimDatabase::schema()).collect()),
        }
    }

    async fn read_server(&self) -> Result<SourceServer, SourceError> {
        Ok(self.server())
    }

    fn add_table(&self, _: TableRequest) -> TableIndex {
        TableIndex(self.followed.fetch_add(1, Ordering::Relaxed))
    }

    fn remove_table(&self, _: TableIndex) {}

    async fn written(&self) -> Result<Lsn, SourceError> {
        let written = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.ok_or_else(|| SourceError::Transient("a simulated database has no WAL".to_owned()))
    }

    async fn resume(&self, tables: &[Option<KnownTable>]) -> Result<Vec<ResumeDecision>, SourceError> {
        let confirmed = self.acknowledged();
        let resume = |known: &KnownTable| {
            if known.position < confirmed {
                return ResumeDecision::Copy("commits are missing".to_owned());
            }
            match known.definition == self.definition() {
                true => ResumeDecision::Follow,
                false => ResumeDecision::FollowThenCopy("the definition changed".to_owned()),
            }
        };
        // Readers have received positions of these tables before.
        let known_ones = tables.iter().enumerate().filter_map(|(index, known)| Some((index, known.as_ref()?.position)));
        self.copied.0.lock().unwrap_or_else(PoisonError::into_inner).extend(known_ones);
        let marks = tables.iter().flatten().filter_map(|known| known.mark.known());
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = marks.collect();
        // Acknowledged commits are no longer available.
        let is_known = tables.iter().any(Option::is_some);
        self.from.store(if is_known { confirmed.0 } else { 0 }, Ordering::Relaxed);
        Ok(tables.iter().map(|known| known.as_ref().map_or(ResumeDecision::Follow, resume)).collect())
    }

    async fn stream(
        &self,
        events: mpsc::Sender<SourceEvent>,
        acknowledged: AcknowledgedPosition,
        reporter: SourceStateReporter,
    ) -> Result<(), SourceError> {
        match self.failure(&[SimFault::Panic, SimFault::Ended]) {
            None => reporter.report(SourceState::Following),
            Some(fault) => {
                let _ = events.send(SourceEvent::Progress(Lsn(1000))).await;
                match fault {
                    SimFault::Ended => return Err(SourceError::Transient("it ended".to_owned())),
                    _ => panic!("a fault of the test: {fault:?}"),
                }
            }
        }
        tokio::select! {
            ended = self.send_events(events) => ended,
            never = self.poll_acknowledged(acknowledged) => match never {},
        }
    }

    async fn copy(
        &self,
        table: TableIndex,
        before: Option<&str>,
        admits: SnapshotCheck,
        rows: mpsc::Sender<CopyEvent>,
    ) -> Result<(), SourceError> {
        if table.0 >= self.state.borrow().tables {
            return Err(SourceError::Definite(vec![format!("there is no table number {}", table.0)]));
        }
        if let Some((error, count)) =
            self.refused_copies.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&table.0)
        {
            *count += 1;
            return Err(error.clone());
        }
        let mut are_held = self.are_copies_held.subscribe();
        tokio::select! {
            _ = are_held.wait_for(|are_held| !are_held) => {}
            () = rows.closed() => return Ok(()),
        }
        let log = self.state.subscribe();
        let looked = self.take_snapshot(|state, snapshot| {
            admits(snapshot).then(|| rows_of(state, table.0, |commit| commit.visible))
        });
        let looked = tokio::select! {
            looked = looked => looked,
            () = rows.closed() => return Ok(()),
        };
        let (snapshot, inserted, copied) = looked?;
        let rows_estimated = copied.len() as u64;
        let (schema, bytes_estimated) = (SimDatabase::schema(), 64 * rows_estimated);
        let begin = CopyEvent::Begin { schema, snapshot, rows_estimated, bytes_estimated };
        let chunks = copied.iter().map(|(id, body)| CopyEvent::Rows(SimDatabase::chunk(*id, body)));
        for event in std::iter::once(begin).chain(chunks) {
            if rows.send(event).await.is_err() {
                return Ok(());
            }
            // Lets other tasks commit between the rows of a copy.
            tokio::task::yield_now().await;
        }
        let last = self.copied.0.lock().unwrap_or_else(PoisonError::into_inner).insert(table.0, inserted);
        let untold = |commit: &SimCommit| {
            let concerns = commit.changes.iter().any(|(changed, _)| *changed == table.0);
            commit.is_silent && concerns && Some(commit.end) > last && commit.end <= inserted
        };
        let is_streamed = before.is_some() && !log.borrow().log.iter().any(untold);
        if last.is_some() {
            // The differences that a new copy shows need a position that was never reported before.
            self.change_silently(table.0, Vec::new());
        }
        // The copy is over, even if its reader has given it up.
        let _ = rows.send(CopyEvent::End { inserted, definition: self.definition(), is_streamed }).await;
        Ok(())
    }

    async fn inspect(
        &self,
        table: TableIndex,
        mut orders: mpsc::Receiver<TablePartOrder>,
        parts: mpsc::Sender<TablePartEvent>,
    ) -> Result<(), SourceError> {
        while let Some(order) = orders.recv().await {
            let (begin, rows, end) = self.read_part(table.0, &order).await?;
            let rows = rows.into_iter().map(|(id, body)| TablePartEvent::Rows(SimDatabase::chunk(id, &body)));
            for event in std::iter::once(begin).chain(rows).chain([end]) {
                match tokio::time::timeout(UNREAD_MAX, parts.send(event)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(()),
                    Err(_) => return Err(SourceError::Transient("the session was not read and was ended".to_owned())),
                }
                // Lets other tasks commit between the rows of a part.
                for _ in 0..self.part_yields.load(Ordering::Relaxed) {
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }

    fn retention(&self) -> watch::Receiver<WalRetention> {
        self.retention.subscribe()
    }

    async fn reset(&self, drop_publication: bool) -> Result<(), SourceError> {
        if drop_publication {
            return Err(SourceError::Definite(vec!["a simulated database has no publication".to_owned()]));
        }
        let reason = "it was reset".to_owned();
        self.retention.send_modify(|known| known.losses += 1);
        self.inject_event(SourceEvent::Restarted { reason, fork: None }).await;
        Ok(())
    }
}

/// Returns the options of a simulated table. Temporary files are in the system's temporary folder.
#[must_use]
pub fn sim_table(name: &str) -> laredo_engine::TableOptions {
    let folder: PathBuf = std::env::temp_dir();
    laredo_engine::TableOptions {
        request: TableRequest { name: laredo_core::TableName::new("public", name), key_fields: Vec::new() },
        pipeline: laredo_engine::PipelineOptions::default(),
        journal: laredo_engine::journal::JournalOptions {
            entries_max: 100_000,
            age_max: Duration::from_secs(3600),
            bytes_max: 1 << 30,
            memory_bytes_max: 1 << 28,
            folder: folder.clone(),
        },
        held_bytes_max: 1 << 20,
        instance: laredo_engine::journal::InstanceId(format!("sim-{name}")),
        first_sequence: laredo_core::Sequence(5000),
        folder,
        store: None,
        snapshots: None,
        verify: None,
    }
}
