//! The engine: a source's stream, dealt out to its tables.

mod folders;

use std::sync::Arc;

use laredo_core::{CommitTime, Lsn, TableName};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};

use crate::durable::Durable;
use crate::source::{Resume, Source, SourceCommit, SourceError, SourceEvent, SourceIdentity, TableRequest};
use crate::status::{TableHandle, TablePhase, TableStatus};
use crate::table::{Clock, Progress, Table, TableCommit, TableEvent, TableOptions, Worker};

use folders::{Left, Opened, open_folders};

/// Events of the stream that may wait; a transaction among them holds little memory (it spools).
const STREAM_QUEUE: usize = 64;
/// Events that may wait for one table.
const TABLE_QUEUE: usize = 64;
/// How far the stream is, is told to all tables after this many events, and whenever no other waits.
const PROGRESS_EVENTS: u32 = 256;

/// One source and its tables, checked and ready to run.
pub struct Engine<S> {
    source: Arc<S>,
    identity: SourceIdentity,
    workers: Vec<Worker<S>>,
    outlets: Vec<Outlet>,
    tables: Vec<TableHandle>,
    moved: Arc<Notify>,
    acknowledged: watch::Sender<Lsn>,
    paused: Arc<watch::Sender<bool>>,
}

/// What others may see and ask of an engine; cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    tables: Arc<[TableHandle]>,
    identity: Arc<SourceIdentity>,
    acknowledged: watch::Receiver<Lsn>,
    paused: Arc<watch::Sender<bool>>,
}

impl EngineHandle {
    /// Its tables.
    #[must_use]
    pub fn tables(&self) -> &[TableHandle] {
        &self.tables
    }

    /// One of them.
    #[must_use]
    pub fn table(&self, name: &TableName) -> Option<&TableHandle> {
        self.tables.iter().find(|table| table.name() == name)
    }

    /// The source.
    #[must_use]
    pub fn identity(&self) -> &SourceIdentity {
        &self.identity
    }

    /// What the source has been told that it may forget.
    #[must_use]
    pub fn acknowledged(&self) -> Lsn {
        *self.acknowledged.borrow()
    }

    /// Pauses all its tables, or lets them go on. While paused, what commits stays in the source, which keeps it for the slot; a copy
    /// that is being made does not end.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Whether its tables are paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }
}

impl<S: Source> Engine<S> {
    /// Checks the tables and makes the source ready. Nothing runs before [`Engine::run`].
    ///
    /// # Errors
    /// Everything that keeps a table from being followed, each as a sentence that says how to mend it.
    pub async fn prepare(source: S, tables: Vec<TableOptions>, clock: Clock) -> Result<Engine<S>, SourceError> {
        let requests: Vec<TableRequest> = tables.iter().map(|table| table.request.clone()).collect();
        let identity = source.prepare(&requests).await?;
        let source = Arc::new(source);
        let moved = Arc::new(Notify::new());
        let mut engine = Engine {
            source,
            identity,
            workers: Vec::new(),
            outlets: Vec::new(),
            tables: Vec::new(),
            moved,
            acknowledged: watch::Sender::new(Lsn::ZERO),
            paused: Arc::new(watch::Sender::new(false)),
        };
        let opened = open_folders(&tables, &engine.identity, &clock).await?;
        let known: Vec<_> = opened.iter().map(|opened| opened.left.as_ref().map(Left::known)).collect();
        let resumes = engine.source.resume(&known).await?;
        for ((options, opened), resume) in tables.into_iter().zip(opened).zip(resumes) {
            engine.add_table(options, clock.clone(), opened, resume)?;
        }
        Ok(engine)
    }

    fn add_table(
        &mut self,
        options: TableOptions,
        clock: Clock,
        opened: Opened,
        resume: Resume,
    ) -> Result<(), SourceError> {
        let Opened { store, left, snapshots } = opened;
        let index = crate::source::TableIndex(self.workers.len());
        let name = options.request.name.clone();
        let status = Arc::new(Mutex::new(TableStatus::default()));
        let (journal_sender, journal) = watch::channel(None);
        let (sender, events) = mpsc::channel(TABLE_QUEUE);
        let (command_sender, commands) = mpsc::channel(4);
        let store = store.map(|store| (store, self.identity.clone()));
        let mut table = Table::new(options, clock, status.clone(), journal_sender, store, snapshots.clone());
        let begun = match left {
            Some(Left::Journal(restored)) => table.restore(*restored, resume, self.identity.written),
            Some(Left::Snapshot(recovered)) => table.begin_at_snapshot(*recovered, resume, self.identity.written),
            None => Ok(()),
        };
        begun.map_err(|error| SourceError::Definite(vec![format!("table {name}: {error}")]))?;
        let (source, moved) = (self.source.clone(), self.moved.clone());
        let (progress_sender, progress) = watch::channel(Progress::default());
        self.workers.push(Worker::new(table, index, source, events, progress, commands, moved));
        self.outlets.push(Outlet { queue: sender, sent: 0, progress: progress_sender });
        self.tables.push(TableHandle { name, status, journal, commands: command_sender, snapshots });
        Ok(())
    }

    /// The handle.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        EngineHandle {
            tables: self.tables.clone().into(),
            identity: Arc::new(self.identity.clone()),
            acknowledged: self.acknowledged.subscribe(),
            paused: self.paused.clone(),
        }
    }

    /// Runs until `stop` resolves or the source gives up.
    ///
    /// # Errors
    /// Why the source gave up.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), SourceError> {
        let Engine { source, workers, mut outlets, tables, moved, acknowledged, paused, .. } = self;
        let (event_sender, events) = mpsc::channel(STREAM_QUEUE);
        let acknowledged_reader = acknowledged.subscribe();
        let (dealt, mut running) = (watch::Sender::new(Lsn::ZERO), JoinSet::new());
        let ids: Vec<Id> = workers.into_iter().map(|worker| running.spawn(worker.run()).id()).collect();
        let watched = Workers { ids, tables: &tables, moved: &moved };
        let ended = tokio::select! {
            ended = source.stream(event_sender, acknowledged_reader) => ended,
            () = deal(events, paused.subscribe(), &mut outlets, &dealt, &moved) => Ok(()),
            () = acknowledge(&tables, &dealt, &moved, &acknowledged) => Ok(()),
            () = watched.watch(&mut running) => Ok(()),
            () = stop => Ok(()),
        };
        drop(outlets);
        while let Some(ended) = running.join_next_with_id().await {
            watched.ended(ended.map(|(id, ())| id));
        }
        ended
    }
}

/// The tables' tasks.
struct Workers<'a> {
    ids: Vec<Id>,
    tables: &'a [TableHandle],
    moved: &'a Notify,
}

impl Workers<'_> {
    /// Sees each end. Never returns: when all have ended there is still a source to tell what it may forget.
    async fn watch(&self, running: &mut JoinSet<()>) {
        while let Some(ended) = running.join_next_with_id().await {
            self.ended(ended.map(|(id, ())| id));
        }
        std::future::pending().await
    }

    /// A task that ends by itself does so at the end of the stream; another one has taken its table with it.
    fn ended(&self, task: Result<Id, JoinError>) {
        let Err(panic) = task else { return };
        let Some(table) = self.ids.iter().position(|id| *id == panic.id()).and_then(|at| self.tables.get(at)) else {
            return;
        };
        let error = format!("the task of table {} failed ({panic}); restart laredo, and report this", table.name);
        tracing::error!(table = %table.name, %error, "table stopped");
        let mut status = table.status.lock();
        status.phase = TablePhase::Failed { error };
        (status.copy, status.releasable) = (None, None);
        drop(status);
        self.moved.notify_one();
    }
}

/// The way to one table: a queue of what it must not miss, and beside it the latest of how far the stream is, which waits for
/// nobody.
struct Outlet {
    queue: mpsc::Sender<TableEvent>,
    /// Events put into the queue.
    sent: u64,
    progress: watch::Sender<Progress>,
}

/// Sends each event to the tables that it concerns, and tells all of them how far the stream is.
async fn deal(
    mut events: mpsc::Receiver<SourceEvent>,
    mut paused: watch::Receiver<bool>,
    tables: &mut [Outlet],
    dealt: &watch::Sender<Lsn>,
    moved: &Notify,
) {
    let mut dealer = Dealer { tables, reached: Lsn::ZERO, current_at: None, untold: 0 };
    while let Some(event) = events.recv().await {
        // The next events wait in their queue, and when that is full, nothing more is read of the stream.
        let _ = paused.wait_for(|paused| !paused).await;
        dealer.deal(event).await;
        dealer.untold += 1;
        if events.is_empty() || dealer.untold >= PROGRESS_EVENTS {
            dealer.tell_progress();
            dealt.send_replace(dealer.reached);
            moved.notify_one();
        }
    }
}

struct Dealer<'a> {
    tables: &'a mut [Outlet],
    /// Everything up to here is in the tables' queues.
    reached: Lsn,
    current_at: Option<CommitTime>,
    /// Events since all tables were told how far the stream is.
    untold: u32,
}

impl Dealer<'_> {
    async fn deal(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Commit(SourceCommit { xid, end, committed_at, tables }) => {
                for (index, spool) in tables {
                    self.tell(index.0, TableEvent::Commit(TableCommit { xid, end, committed_at, spool })).await;
                }
                (self.reached, self.current_at) = (self.reached.max(end), Some(committed_at));
            }
            SourceEvent::Progress(position) => {
                (self.reached, self.current_at) = (self.reached.max(position), None);
            }
            SourceEvent::Moved { table, reason } => self.tell(table.0, TableEvent::Moved(reason)).await,
            SourceEvent::Broken { table, error } => self.tell(table.0, TableEvent::Broken(error)).await,
            SourceEvent::Restarted { reason } => {
                for index in 0..self.tables.len() {
                    self.tell(index, TableEvent::Restarted(reason.clone())).await;
                }
            }
        }
    }

    async fn tell(&mut self, index: usize, event: TableEvent) {
        if self.tables[index].queue.capacity() == 0 {
            // Its neighbours need not wait for it to hear what is known.
            self.tell_progress();
        }
        let table = &mut self.tables[index];
        table.sent += 1;
        // A table whose task is gone has said why in its status; its neighbours go on.
        let _ = table.queue.send(event).await;
    }

    fn tell_progress(&mut self) {
        self.untold = 0;
        for table in &*self.tables {
            let (position, current_at, after) = (self.reached, self.current_at, table.sent);
            table.progress.send_replace(Progress { position, current_at, after });
        }
    }
}

/// Keeps what may be forgotten at the least position of all tables that can still be followed. Where none can, nobody needs what
/// was dealt (a failed table owes a copy), and keeping it would fill the source's disk.
async fn acknowledge(
    tables: &[TableHandle],
    dealt: &watch::Sender<Lsn>,
    moved: &Notify,
    acknowledged: &watch::Sender<Lsn>,
) {
    loop {
        moved.notified().await;
        // Before the tables are looked at: one that is followed again has all that comes after this.
        let dealt = *dealt.borrow();
        let least = tables.iter().filter_map(|table| table.status().releasable).min();
        release(acknowledged, least.unwrap_or(Durable::of_nobody(dealt)));
    }
}

/// The only place where the acknowledged position moves.
fn release(acknowledged: &watch::Sender<Lsn>, until: Durable) {
    let least = until.position();
    acknowledged.send_if_modified(|known| {
        let later = least > *known;
        *known = least.max(*known);
        later
    });
}
