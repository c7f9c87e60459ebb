//! The engine: a source and its tables, and what may be asked of them.

use std::sync::Arc;

use laredo_core::{CommitMark, Lsn, TableName};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{Id, JoinError, JoinSet};

use crate::durable::Durable;
use crate::history::{AskWritten, SourceHistory};
use crate::retention::Retention;
use crate::source::{Acknowledged, KnownTable, Resume, Source, SourceError, SourceIdentity, TableRequest};
use crate::status::{TableHandle, TablePhase, TableStatus};
use crate::table::{Clock, CopyCounts, CopyTurns, Table, TableOptions, VerifyTurns, Worker};

mod deal;
mod folders;

use deal::{Outlet, deal, outlet};
use folders::{Left, Opened, open_folders};

/// Events of the stream that may wait; a transaction among them holds little memory (it spools).
const STREAM_QUEUE: usize = 64;
/// Orders that may wait for the source.
const ORDERS: usize = 4;

/// One source and its tables, checked and ready to run.
pub struct Engine<S> {
    source: Arc<S>,
    history: Arc<SourceHistory>,
    workers: Vec<Worker<S>>,
    outlets: Vec<Outlet>,
    tables: Vec<TableHandle>,
    forgetting: Arc<Forgetting>,
    paused: Arc<watch::Sender<bool>>,
    orders: (mpsc::Sender<ResetOrder>, mpsc::Receiver<ResetOrder>),
    copy_turns: CopyTurns,
    verify_turns: VerifyTurns,
}

/// Somebody wants the source to be reset.
#[derive(Debug)]
struct ResetOrder {
    drop_publication: bool,
    answer: oneshot::Sender<Result<(), SourceError>>,
}

/// What others may see and ask of an engine; cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    tables: Arc<[TableHandle]>,
    history: Arc<SourceHistory>,
    forgetting: Arc<Forgetting>,
    paused: Arc<watch::Sender<bool>>,
    retention: watch::Receiver<Retention>,
    orders: mpsc::Sender<ResetOrder>,
    copy_turns: CopyTurns,
    connections_max: usize,
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

    /// The source, as it is now.
    #[must_use]
    pub fn identity(&self) -> Arc<SourceIdentity> {
        self.history.identity()
    }

    /// What the source may forget; it hears so when it next asks.
    #[must_use]
    pub fn acknowledged(&self) -> Lsn {
        self.forgetting.acknowledged(&self.tables)
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

    /// The copies that run and those that wait.
    #[must_use]
    pub fn copies(&self) -> CopyCounts {
        self.copy_turns.counts()
    }

    /// The connections of the database that the source takes at most; zero where it takes none.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// What the source keeps for it.
    #[must_use]
    pub fn retention(&self) -> Retention {
        self.retention.borrow().clone()
    }

    /// Has the source give up what it keeps, and keep anew ([`Source::reset`]); then every table is copied anew, and readers get what
    /// differs.
    ///
    /// # Errors
    /// Why the source did not, or that the engine has stopped.
    pub async fn reset(&self, drop_publication: bool) -> Result<(), SourceError> {
        let (answer, answered) = oneshot::channel();
        let stopped = || SourceError::Transient("the server is stopping".to_owned());
        self.orders.send(ResetOrder { drop_publication, answer }).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
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
        let copy_turns = CopyTurns::new(source.copies_max());
        let source = Arc::new(source);
        let names: Vec<TableName> = requests.into_iter().map(|request| request.name).collect();
        let asked = source.clone();
        let ask_written: AskWritten = Arc::new(move || {
            let source = asked.clone();
            Box::pin(async move { source.written().await })
        });
        let mut engine = Engine {
            source,
            history: Arc::new(SourceHistory::new(identity.clone(), &names, ask_written)),
            workers: Vec::new(),
            outlets: Vec::new(),
            tables: Vec::new(),
            forgetting: Arc::default(),
            paused: Arc::new(watch::Sender::new(false)),
            orders: mpsc::channel(ORDERS),
            copy_turns,
            verify_turns: VerifyTurns::default(),
        };
        let opened = open_folders(&tables, &identity, &clock).await?;
        let known: Vec<_> = opened.iter().map(|opened| opened.left.as_ref().map(Left::known)).collect();
        let resumes = engine.source.resume(&known).await?;
        if let Some((position, mark)) = followed_from(&known, &resumes) {
            engine.history.seed(position, mark);
        }
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
        let Opened { store, left, snapshots, abandoned } = opened;
        let index = crate::source::TableIndex(self.workers.len());
        let name = options.request.name.clone();
        let (status, commits) = (Arc::new(Mutex::new(TableStatus::default())), Arc::default());
        let (journal_sender, journal) = watch::channel(None);
        let (outlet, events) = outlet(name.clone());
        let (command_sender, commands) = mpsc::channel(4);
        let shown = (status.clone(), Arc::clone(&commits));
        let identity = SourceIdentity::clone(&self.history.identity());
        let written = identity.written;
        let mut table = Table::new(options, clock, shown, journal_sender, identity, (store, snapshots.clone()));
        table.set_abandoned(abandoned);
        let begun = match left {
            Some(Left::Journal(restored)) => table.restore(*restored, resume, written),
            Some(Left::Snapshot(recovered)) => table.begin_at_snapshot(*recovered, resume, written),
            None => Ok(()),
        };
        begun.map_err(|error| SourceError::Definite(vec![format!("table {name}: {error}")]))?;
        let turns = (self.copy_turns.clone(), self.verify_turns.clone());
        self.workers.push(Worker::new(table, index, self.source.clone(), events, outlet.progress(), commands, turns));
        self.outlets.push(outlet);
        let (commands, looks, history) = (command_sender, self.source.looks(), self.history.clone());
        self.tables.push(TableHandle { name, status, commits, journal, commands, snapshots, index, looks, history });
        Ok(())
    }

    /// The handle.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        EngineHandle {
            tables: self.tables.clone().into(),
            history: self.history.clone(),
            forgetting: self.forgetting.clone(),
            paused: self.paused.clone(),
            retention: self.source.retention(),
            orders: self.orders.0.clone(),
            copy_turns: self.copy_turns.clone(),
            connections_max: self.source.connections_max(),
        }
    }

    /// Runs until `stop` resolves or the source gives up.
    ///
    /// # Errors
    /// Why the source gave up.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), SourceError> {
        let handle = self.handle();
        let acknowledged: Acknowledged = Arc::new(move || handle.acknowledged());
        let Engine { source, history, workers, mut outlets, tables, forgetting, paused, orders, .. } = self;
        let (event_sender, events) = mpsc::channel(STREAM_QUEUE);
        let mut running = JoinSet::new();
        let ids: Vec<Id> = workers.into_iter().map(|worker| running.spawn(worker.run()).id()).collect();
        let watched = Workers { ids, tables: &tables };
        let ended = tokio::select! {
            // In this order: what the stream has sent is dealt before this task waits.
            biased;
            ended = source.stream(event_sender, acknowledged) => ended,
            () = deal(events, paused.subscribe(), &mut outlets, &history, &forgetting.dealt) => Ok(()),
            () = watched.watch(&mut running) => Ok(()),
            () = follow_orders(&*source, orders) => Ok(()),
            () = stop => Ok(()),
        };
        drop(outlets);
        while let Some(ended) = running.join_next_with_id().await {
            watched.ended(ended.map(|(id, ())| id));
        }
        ended
    }
}

/// The least position that a table is followed from, and the newest commit at or before it.
fn followed_from(known: &[Option<KnownTable>], resumes: &[Resume]) -> Option<(Lsn, CommitMark)> {
    let followed = known.iter().zip(resumes).filter_map(|(known, resume)| match resume {
        Resume::Follow | Resume::FollowThenCopy(_) => known.as_ref().map(|known| (known.position, known.mark)),
        Resume::Copy(_) => None,
    });
    followed.min_by_key(|(position, _)| *position)
}

/// The tables' tasks.
struct Workers<'a> {
    ids: Vec<Id>,
    tables: &'a [TableHandle],
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
    }
}

/// Resets the source when somebody wants that, one after the other.
async fn follow_orders<S: Source>(
    source: &S,
    (own, mut orders): (mpsc::Sender<ResetOrder>, mpsc::Receiver<ResetOrder>),
) {
    while let Some(ResetOrder { drop_publication, answer }) = orders.recv().await {
        // Whoever asked may have gone away.
        let _ = answer.send(source.reset(drop_publication).await);
    }
    // It never ends by itself: there is always one who could give an order.
    drop(own);
}

/// What may be forgotten. Nobody is told when that changes: the source asks when it has something to say to the database.
#[derive(Debug, Default)]
struct Forgetting {
    /// Everything up to here is in the tables' queues.
    dealt: Mutex<Lsn>,
    /// The furthest that was ever said since the last fork of the database's history, and how many forks there were.
    known: Mutex<(u64, Lsn)>,
}

impl Forgetting {
    /// The least position of all tables that can still be followed. Where none can, nobody needs what was dealt (a failed table owes a
    /// copy), and keeping it would fill the source's disk.
    fn acknowledged(&self, tables: &[TableHandle]) -> Lsn {
        // Before the tables are looked at: one that is followed again has all that comes after this.
        let dealt = *self.dealt.lock();
        let statuses: Vec<_> = tables.iter().map(TableHandle::status).collect();
        let is_live = |status: &&TableStatus| !matches!(status.phase, TablePhase::Failed { .. });
        let forks = statuses.iter().filter(is_live).map(|status| status.forks);
        let (fewest, most) = (forks.clone().min().unwrap_or(0), forks.max().unwrap_or(0));
        if fewest < most {
            // A table has not noted the fork yet: its positions are of another history.
            return Lsn::ZERO;
        }
        let least = statuses.iter().filter_map(|status| status.releasable).min();
        self.release(least.unwrap_or(Durable::of_nobody(dealt)), most)
    }

    /// The only place where the acknowledged position moves.
    fn release(&self, until: Durable, forks: u64) -> Lsn {
        let mut known = self.known.lock();
        if known.0 < forks {
            *known = (forks, Lsn::ZERO);
        }
        known.1 = until.position().max(known.1);
        known.1
    }
}
