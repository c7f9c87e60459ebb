//! An engine that runs in the background of a test.

use std::sync::Arc;
use std::time::Duration;

use laredo_core::{CommitTime, Lsn};
use laredo_engine::journal::Journal;
use laredo_engine::source::{Source, SourceError};
use laredo_engine::{Clock, Engine, EngineHandle, TableHandle, TableOptions, TablePhase};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::eventually;

/// The longest wait for a journal.
const PATIENCE: Duration = Duration::from_secs(60);

/// An engine that runs until this is dropped.
#[derive(Debug)]
pub struct RunningEngine {
    handle: EngineHandle,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl RunningEngine {
    /// Prepares an engine, and runs it.
    ///
    /// # Errors
    /// When the source cannot be prepared.
    pub async fn start(
        source: impl Source,
        tables: Vec<TableOptions>,
        clock: Clock,
    ) -> Result<RunningEngine, SourceError> {
        Engine::prepare(source, tables, clock).await.map(RunningEngine::run)
    }

    /// Runs an engine.
    #[must_use]
    pub fn run(engine: Engine<impl Source>) -> RunningEngine {
        let handle = engine.handle();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(engine.run(async move {
            // A dropped sender stops the engine, too.
            let _ = stopped.await;
        }));
        RunningEngine { handle, stop, task }
    }

    /// Returns the handle of the engine.
    #[must_use]
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// Returns the handle of a table.
    #[must_use]
    pub fn table(&self, index: usize) -> TableHandle {
        self.handle.tables().get(index).cloned().expect("the test names a table of the engine")
    }

    /// Returns the state of a table.
    #[must_use]
    pub fn phase(&self, index: usize) -> TablePhase {
        self.table(index).status().phase
    }

    /// Returns the number of a table's copies since the start.
    #[must_use]
    pub fn copies(&self, index: usize) -> u64 {
        self.table(index).status().copies
    }

    /// Waits until a table has been copied. Its journal shows the copy before the status counts it.
    pub async fn copied(&self, index: usize) {
        eventually(PATIENCE, async || self.copies(index) > 0).await.expect("it is copied");
    }

    /// Waits for the journal of a table.
    pub async fn journal(&self, index: usize) -> Journal {
        let journal = tokio::time::timeout(PATIENCE, self.table(index).wait_journal()).await;
        journal.expect("the table is served in time").expect("the engine runs")
    }

    /// Waits until the journal of a table has reached a position.
    pub async fn reached(&self, index: usize, position: Lsn) -> Journal {
        let journal = self.journal(index).await;
        wait_until_reached(&journal, position).await;
        journal
    }

    /// Stops the engine, and waits for its end.
    pub async fn end(self) {
        // The engine may have ended by itself.
        let _ = self.stop.send(());
        self.task.await.expect("the engine does not panic");
    }
}

/// Waits until the head of a journal has reached a position.
pub async fn wait_until_reached(journal: &Journal, position: Lsn) {
    let mut head = journal.watch_head();
    let waiting = head.wait_for(|head| head.position >= position);
    tokio::time::timeout(PATIENCE, waiting).await.expect("the head gets there").expect("the journal exists");
}

/// Returns a clock that always shows this time.
#[must_use]
pub fn stopped_clock(time: CommitTime) -> Clock {
    Arc::new(move || time)
}
