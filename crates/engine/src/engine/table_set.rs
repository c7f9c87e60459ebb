//! Changes of an engine's tables while its source is followed.

use std::sync::Arc;

use laredo_core::TableName;
use tokio::sync::mpsc;

use super::dispatch::{OutletChange, StreamState};
use super::folders::open_added;
use super::run::{EngineCore, EngineTable, TableTasks};
use crate::source::{ResumeDecision, Source, SourceServer};
use crate::table::TableOptions;

/// A change of an engine's tables. A table in both lists begins again with other options.
#[derive(Clone, Debug, Default)]
pub struct TableSetChange {
    /// The tables that are not followed any more.
    pub removed: Vec<TableName>,
    /// The tables that are copied and followed from now on.
    pub added: Vec<TableOptions>,
}

/// The parts of a run that change with its tables.
pub(super) struct TableSetChanger<'a, S> {
    pub(super) core: &'a EngineCore<S>,
    pub(super) tasks: &'a TableTasks,
    pub(super) outlets: mpsc::UnboundedSender<OutletChange<'a>>,
    /// The server of the database at the beginning of the run.
    pub(super) server: SourceServer,
}

impl<S: Source> TableSetChanger<'_, S> {
    /// Changes the tables. The tables in neither list are not affected.
    pub(super) async fn change(&self, change: TableSetChange) {
        let TableSetChange { removed, added } = change;
        for name in &removed {
            self.remove(name).await;
        }
        for options in added {
            self.add(options).await;
        }
        let tables = self.core.tables.read().clone();
        let names: Vec<TableName> = tables.iter().map(|table| table.request().name.clone()).collect();
        self.core.handle.history.change_tables(&names, (self.core.clock)());
        self.publish();
    }

    /// Ends a table: its readers have to leave, and its files are closed.
    async fn remove(&self, name: &TableName) {
        let found = self.core.tables.read().iter().find(|table| table.request().name == *name).cloned();
        let Some(table) = found else { return };
        // From here on, the acknowledged position does not wait for the table.
        self.core.tables.write().retain(|kept| !Arc::ptr_eq(kept, &table));
        self.publish();
        table.end_task().await;
        let index = table.handle().index();
        // The receiver lives as long as the run.
        let _ = self.outlets.send(OutletChange::Remove(index));
        self.core.source.remove_table(index);
        table.close();
        tracing::info!(event = "table_removed", table = %name, "the table is not followed any more");
    }

    /// Adds a table, which begins with a copy.
    async fn add(&self, options: TableOptions) {
        let core = self.core;
        let opened = open_added(&options, &self.server, &core.clock).await;
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
            let (worker, outlet) = core.begin_table(&table, options, &state.server, opened, resume, forks);
            tasks.spawn(&table, worker);
            outlet
        };
        // The receiver lives as long as the run.
        let _ = self.outlets.send(OutletChange::Add(index, Box::new(begin)));
    }

    /// Shows the present tables to the holders of handles.
    fn publish(&self) {
        let tables = self.core.tables.read().iter().map(|table| table.handle().clone()).collect();
        *self.core.handle.tables.write() = tables;
    }
}
