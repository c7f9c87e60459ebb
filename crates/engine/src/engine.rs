//! The engine: a source's stream, dealt out to its tables.

use std::sync::Arc;

use laredo_core::{Lsn, TableName};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

use crate::source::{Source, SourceCommit, SourceError, SourceEvent, SourceIdentity, TableRequest};
use crate::status::{TableHandle, TablePhase, TableStatus};
use crate::table::{Clock, Table, TableCommit, TableEvent, TableOptions, Worker};

/// Events of the stream that may wait; a transaction among them holds little memory (it spools).
const STREAM_QUEUE: usize = 64;
/// Events that may wait for one table.
const TABLE_QUEUE: usize = 64;

/// One source and its tables, checked and ready to run.
pub struct Engine<S> {
    source: Arc<S>,
    identity: SourceIdentity,
    workers: Vec<Worker<S>>,
    senders: Vec<mpsc::Sender<TableEvent>>,
    tables: Vec<TableHandle>,
    moved: Arc<Notify>,
    acknowledged: watch::Sender<Lsn>,
}

/// What others may see and ask of an engine; cheap to clone.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    tables: Arc<[TableHandle]>,
    identity: Arc<SourceIdentity>,
    acknowledged: watch::Receiver<Lsn>,
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
            senders: Vec::new(),
            tables: Vec::new(),
            moved,
            acknowledged: watch::Sender::new(Lsn::ZERO),
        };
        tables.into_iter().for_each(|options| engine.add_table(options, clock.clone()));
        Ok(engine)
    }

    fn add_table(&mut self, options: TableOptions, clock: Clock) {
        let index = crate::source::TableIndex(self.workers.len());
        let name = options.request.name.clone();
        let status = Arc::new(Mutex::new(TableStatus::default()));
        let (journal_sender, journal) = watch::channel(None);
        let (sender, events) = mpsc::channel(TABLE_QUEUE);
        let (command_sender, commands) = mpsc::channel(4);
        let table = Table::new(options, clock, status.clone(), journal_sender);
        let (source, moved) = (self.source.clone(), self.moved.clone());
        self.workers.push(Worker { table, index, source, events, commands, moved });
        self.senders.push(sender);
        self.tables.push(TableHandle { name, status, journal, commands: command_sender });
    }

    /// The handle.
    #[must_use]
    pub fn handle(&self) -> EngineHandle {
        EngineHandle {
            tables: self.tables.clone().into(),
            identity: Arc::new(self.identity.clone()),
            acknowledged: self.acknowledged.subscribe(),
        }
    }

    /// Runs until `stop` resolves or the source gives up.
    ///
    /// # Errors
    /// Why the source gave up.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), SourceError> {
        let Engine { source, workers, senders, tables, moved, acknowledged, .. } = self;
        let (event_sender, events) = mpsc::channel(STREAM_QUEUE);
        let acknowledged_reader = acknowledged.subscribe();
        let runtime = Handle::current();
        let mut threads = JoinSet::new();
        for worker in workers {
            let runtime = runtime.clone();
            threads.spawn_blocking(move || worker.run(&runtime));
        }
        let ended = tokio::select! {
            ended = source.stream(event_sender, acknowledged_reader) => ended,
            () = deal(events, &senders) => Ok(()),
            () = acknowledge(&tables, &moved, &acknowledged) => Ok(()),
            () = stop => Ok(()),
        };
        drop(senders);
        while threads.join_next().await.is_some() {}
        ended
    }
}

/// Sends each event to the tables that it concerns, and tells the others how far the stream is once nothing waits.
async fn deal(mut events: mpsc::Receiver<SourceEvent>, tables: &[mpsc::Sender<TableEvent>]) {
    let mut behind = vec![false; tables.len()];
    let (mut reached, mut current_at) = (Lsn::ZERO, None);
    while let Some(event) = events.recv().await {
        match event {
            SourceEvent::Commit(SourceCommit { xid, end, committed_at, tables: spools }) => {
                (reached, current_at) = (reached.max(end), Some(committed_at));
                behind.fill(true);
                for (index, spool) in spools {
                    behind[index.0] = false;
                    let commit = TableCommit { xid, end, committed_at, spool };
                    tell(tables, index.0, TableEvent::Commit(commit)).await;
                }
            }
            SourceEvent::Progress(position) => {
                (reached, current_at) = (reached.max(position), None);
                behind.fill(true);
            }
            SourceEvent::Moved { table, reason } => tell(tables, table.0, TableEvent::Moved(reason)).await,
            SourceEvent::Broken { table, error } => tell(tables, table.0, TableEvent::Broken(error)).await,
            SourceEvent::Restarted { reason } => {
                for index in 0..tables.len() {
                    tell(tables, index, TableEvent::Restarted(reason.clone())).await;
                }
            }
        }
        if events.is_empty() {
            for (index, behind) in behind.iter_mut().enumerate() {
                if std::mem::take(behind) {
                    tell(tables, index, TableEvent::Progress { position: reached, current_at }).await;
                }
            }
        }
    }
}

async fn tell(tables: &[mpsc::Sender<TableEvent>], index: usize, event: TableEvent) {
    // A table whose thread is gone has said why in its status; its neighbours go on.
    let _ = tables[index].send(event).await;
}

/// Keeps what may be forgotten at the least position of all tables that can still be followed.
async fn acknowledge(tables: &[TableHandle], moved: &Notify, acknowledged: &watch::Sender<Lsn>) {
    loop {
        moved.notified().await;
        let followed = tables.iter().map(TableHandle::status).filter(|s| !matches!(s.phase, TablePhase::Failed { .. }));
        let Some(least) = followed.map(|status| status.position).min() else {
            continue;
        };
        acknowledged.send_if_modified(|known| {
            let later = least > *known;
            *known = least.max(*known);
            later
        });
    }
}
