//! Changes of an engine's tables while its source is followed.

use std::sync::Arc;

use laredo_core::TableName;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::dispatch::{OutletChange, StreamState};
use super::folders::{ATTEMPTS, DELAY, open_added};
use super::run::{EngineCore, EngineTable, TableTasks};
use crate::source::{ResumeDecision, Source, SourceError, SourceServer};
use crate::table::{TableError, TableFolders, TableOptions};

/// A change of an engine's tables. A table in both lists begins again with other options.
#[derive(Clone, Debug, Default)]
pub struct TableSetChange {
    /// The tables that are not followed any more.
    pub removed: Vec<TableName>,
    /// The tables that are copied and followed from now on.
    pub added: Vec<TableOptions>,
}

/// Closes a table when it is dropped, even if the run ends while the table's task does. The run
/// does not know the table any more by then.
struct ClosedTable(Arc<EngineTable>);

impl Drop for ClosedTable {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The parts of a run that change with its tables.
pub(super) struct TableSetChanger<'a, S> {
    pub(super) core: &'a EngineCore<S>,
    pub(super) tasks: &'a TableTasks,
    pub(super) outlets: mpsc::UnboundedSender<OutletChange<'a>>,
}

impl<S: Source> TableSetChanger<'_, S> {
    /// Changes the tables. The tables in neither list are not affected.
    pub(super) async fn change(&self, change: TableSetChange) {
        let TableSetChange { removed, added } = change;
        let tables = self.core.tables.read().clone();
        let names: Vec<TableName> = tables.iter().map(|table| table.request().name.clone()).collect();
        self.core.handle.history.change_tables(&names, (self.core.clock)());
        for name in &removed {
            self.remove(name).await;
        }
        for options in added {
            self.add(options).await;
        }
        self.publish();
    }

    /// Ends a table: its readers have to leave, and its files are closed.
    async fn remove(&self, name: &TableName) {
        let found = self.core.tables.read().iter().find(|table| table.request().name == *name).cloned();
        let Some(table) = found else { return };
        let closing = ClosedTable(table.clone());
        // From here on, the acknowledged position does not wait for the table.
        self.core.tables.write().retain(|kept| !Arc::ptr_eq(kept, &table));
        self.publish();
        table.end_task().await;
        let index = table.handle().index();
        // The receiver lives as long as the run.
        let _ = self.outlets.send(OutletChange::Remove(index));
        self.core.source.remove_table(index);
        drop(closing);
        tracing::info!(event = "table_removed", table = %name, "the table is not followed any more");
    }

    /// Adds a table, which begins with a copy.
    async fn add(&self, options: TableOptions) {
        let core = self.core;
        let opened = self.open(&options).await;
        let table = Arc::new(EngineTable::new(options, core.source.looks(), &core.handle.history));
        // Nothing waits from here on. The source may send events of the table at once, and they
        // must find it.
        let index = core.source.add_table(table.request().clone());
        table.set_index(index);
        core.tables.write().push(table.clone());
        self.publish();
        tracing::info!(event = "table_added", table = %table.request().name, "the table is followed from now on");
        let tasks = self.tasks;
        let begin = move |state: &StreamState| {
            let resume = ResumeDecision::Copy("the table was added, or its options were changed".to_owned());
            let (options, forks) = (table.options(), Some(state.forks));
            let (opened, server) = match opened {
                Ok((opened, server)) if !state.has_left(&server) => (Ok(opened), server),
                Ok(_) => (Err(opened_for_another_server()), state.server.clone()),
                Err(error) => (Err(error), state.server.clone()),
            };
            let (worker, outlet) = core.begin_table(&table, options, &server, opened, resume, forks);
            tasks.spawn(&table, worker);
            outlet
        };
        // The receiver lives as long as the run.
        let _ = self.outlets.send(OutletChange::Add(index, Box::new(begin)));
    }

    /// Opens the folders of a table for the present server. What is in them may be newer than the
    /// server of the beginning of the run, or of a history that has been abandoned since.
    async fn open(&self, options: &TableOptions) -> Result<(TableFolders, SourceServer), TableError> {
        let mut attempt = 1;
        let server = loop {
            match self.core.source.read_server().await {
                Err(SourceError::Transient(_) | SourceError::Held(_)) if attempt < ATTEMPTS => sleep(DELAY).await,
                read => break read?,
            }
            attempt += 1;
        };
        Ok((open_added(options, &server, &self.core.clock).await?, server))
    }

    /// Shows the present tables to the holders of handles.
    fn publish(&self) {
        let tables = self.core.tables.read().iter().map(|table| table.handle().clone()).collect();
        *self.core.handle.tables.write() = tables;
    }
}

/// Returns the error of a table whose folders were judged by a server that is gone. The table's
/// next attempt begins with a copy and a new journal.
fn opened_for_another_server() -> TableError {
    let reason = "the database's server was restarted or replaced while the folders of the table were opened";
    SourceError::Transient(reason.to_owned()).into()
}
