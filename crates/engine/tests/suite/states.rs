//! A source whose task fails: it is prepared again, and ends with the database's rows.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::retention::Retention;
use laredo_engine::source::{
    Acknowledged, Admission, CopyEvent, KnownTable, PartEvent, PartOrder, Resume, Source, SourceError, SourceEvent,
    SourceIdentity, SourceState, StateReporter, TableIndex, TableRequest,
};
use laredo_engine::{Clock, Engine, EngineHandle, TableOptions};
use laredo_testkit::{SimChange, SimDatabase, eventually, sim_table};
use tokio::sync::{mpsc, oneshot, watch};

const PATIENCE: Duration = Duration::from_secs(60);

/// A fault of the source's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It panics after its first event.
    Panic,
    /// It panics while it is prepared.
    PanicAtStart,
    /// Preparing it is refused.
    Refused,
    /// Another process holds its slot.
    Held,
    /// It has to be prepared again.
    Ended,
}

/// A source that fails twice.
struct Faulty {
    database: SimDatabase,
    fault: Fault,
    left: AtomicU32,
}

impl Faulty {
    /// Returns true if the fault happens now.
    fn fails(&self, faults: &[Fault]) -> bool {
        let take = |left: u32| left.checked_sub(1);
        faults.contains(&self.fault) && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Source for Faulty {
    async fn prepare(&self, tables: &[TableRequest]) -> Result<SourceIdentity, SourceError> {
        if self.fails(&[Fault::PanicAtStart, Fault::Refused, Fault::Held]) {
            match self.fault {
                Fault::Refused => return Err(SourceError::Definite(vec!["fix it".to_owned()])),
                Fault::Held => return Err(SourceError::Held("process 7 has it".to_owned())),
                _ => panic!("a fault of the test"),
            }
        }
        self.database.prepare(tables).await
    }

    async fn resume(&self, tables: &[Option<KnownTable>]) -> Result<Vec<Resume>, SourceError> {
        self.database.resume(tables).await
    }

    async fn stream(
        &self,
        events: mpsc::Sender<SourceEvent>,
        acknowledged: Acknowledged,
        reporter: StateReporter,
    ) -> Result<(), SourceError> {
        if self.fails(&[Fault::Panic, Fault::Ended]) {
            let _ = events.send(SourceEvent::Progress(Lsn(1000))).await;
            match self.fault {
                Fault::Ended => return Err(SourceError::Transient("it ended".to_owned())),
                _ => panic!("a fault of the test"),
            }
        }
        self.database.stream(events, acknowledged, reporter).await
    }

    fn retry_delay(&self, _: u32) -> Option<Duration> {
        Some(Duration::from_millis(10))
    }

    async fn written(&self) -> Result<Lsn, SourceError> {
        self.database.written().await
    }

    async fn copy(
        &self,
        table: TableIndex,
        before: Option<&str>,
        admits: Admission,
        rows: mpsc::Sender<CopyEvent>,
    ) -> Result<(), SourceError> {
        self.database.copy(table, before, admits, rows).await
    }

    async fn inspect(
        &self,
        table: TableIndex,
        orders: mpsc::Receiver<PartOrder>,
        parts: mpsc::Sender<PartEvent>,
    ) -> Result<(), SourceError> {
        self.database.inspect(table, orders, parts).await
    }

    fn retention(&self) -> watch::Receiver<Retention> {
        self.database.retention()
    }

    async fn reset(&self, drop_publication: bool) -> Result<(), SourceError> {
        self.database.reset(drop_publication).await
    }
}

async fn heals(fault: Fault, store: Option<&Path>) {
    let database = SimDatabase::new(1);
    database.commit(0, vec![SimChange::Insert(1, "one".to_owned())]);
    let source = Faulty { database: database.clone(), fault, left: AtomicU32::new(2) };
    let clock: Clock = Arc::new(|| CommitTime(0));
    let options = TableOptions { store: store.map(|folder| folder.join("t0")), ..sim_table("t0") };
    let engine = Engine::new("sim", source, vec![options], clock);
    let handle = engine.handle();
    assert_eq!(handle.source_status().state, SourceState::Connecting, "nothing is asked before it runs");
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(engine.run(async move { drop(stopped.await) }));
    let is_followed = async || handle.source_status().state.is_following();
    eventually(PATIENCE, is_followed).await.unwrap_or_else(|_| panic!("{fault:?}: {:?}", handle.source_status()));
    let end = database.commit(0, vec![SimChange::Insert(2, "two".to_owned())]);
    has_rows(&handle, 2, end).await;
    let _ = stop.send(());
    task.await.unwrap();
}

async fn has_rows(handle: &EngineHandle, rows: u64, end: Lsn) {
    let has = async || {
        let status = handle.tables()[0].status();
        status.rows == rows && status.position >= end && handle.tables()[0].journal().is_some()
    };
    eventually(PATIENCE, has).await.unwrap_or_else(|_| panic!("{:?}", handle.tables()[0].status()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_whose_task_fails_is_prepared_again() {
    for fault in [Fault::Panic, Fault::PanicAtStart, Fault::Held, Fault::Ended] {
        heals(fault, None).await;
        let folder = tempfile::tempdir().unwrap();
        heals(fault, Some(folder.path())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_refused_is_looked_at_again() {
    heals(Fault::Refused, None).await;
}
