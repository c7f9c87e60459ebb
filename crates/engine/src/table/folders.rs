//! The folders of a table, and what an earlier run has left in them.

use std::sync::Arc;

use laredo_core::Lsn;

use super::{Clock, Table, TableError, TableOptions};
use crate::snapshots::{RecoveredSnapshot, SnapshotFolder};
use crate::source::{KnownTable, SourceIdentity};
use crate::store::{self, ForkLog, JournalFolder, RestoreContext, RestoredJournal, StoreError};

/// The opened folders of a table, and what was in them.
#[derive(Default)]
pub(crate) struct TableFolders {
    pub(crate) store: Option<Arc<JournalFolder>>,
    pub(crate) snapshots: Option<Arc<SnapshotFolder>>,
    pub(crate) left: Option<SavedTable>,
    /// Positions up to here may belong to a history that the database has abandoned.
    abandoned: Lsn,
}

/// The state from which a table can continue.
pub(crate) enum SavedTable {
    Journal(Box<RestoredJournal>),
    /// A snapshot, used only if there is no journal: a journal is newer, and readers know its
    /// sequences.
    Snapshot(Box<RecoveredSnapshot>),
}

impl SavedTable {
    /// Returns what the source needs to know to resume the table.
    pub(crate) fn known(&self) -> KnownTable {
        match self {
            SavedTable::Journal(restored) => restored.to_known_table(),
            SavedTable::Snapshot(recovered) => recovered.to_known_table(),
        }
    }
}

/// Opens the folders of a table, and restores what an earlier run has left. Blocks.
///
/// # Errors
/// When a folder cannot be read or written, or when an operator has to move its contents away:
/// those of another table, or in a format that this version does not know.
pub(crate) fn open_table_folders(
    options: &TableOptions,
    source: &SourceIdentity,
    clock: &Clock,
) -> Result<TableFolders, StoreError> {
    // The snapshots come first: a journal is restored with all its rows, and in vain if they fail.
    let mut opened = open_snapshots(options, source, clock)?;
    if let Some(folder) = &options.store {
        let instance = options.instance.on_timeline(source.timeline, 0);
        let (now, bytes_max) = (clock.as_ref()(), options.journal.bytes_max);
        let context = RestoreContext { table: &options.request.name, source, instance: &instance, now, bytes_max };
        let (store, restored) = store::open(folder, &context)?;
        opened.abandoned = opened.abandoned.max(ForkLog::read(store.folder())?.abandoned());
        (opened.store, opened.left) = (Some(store), restored.map(|restored| SavedTable::Journal(Box::new(restored))));
    }
    if let Some(snapshots) = opened.snapshots.as_ref().filter(|_| opened.left.is_none() && options.pipeline.is_plain())
    {
        let recovered = snapshots.recover_newest().filter(|recovered| recovered.definition.is_whole);
        opened.left = recovered.map(|recovered| SavedTable::Snapshot(Box::new(recovered)));
    }
    Ok(opened)
}

/// Opens the folders of a table whose journal is replaced, whatever it holds. Blocks.
fn open_without_restoring(
    options: &TableOptions,
    source: &SourceIdentity,
    clock: &Clock,
) -> Result<TableFolders, StoreError> {
    let mut opened = open_snapshots(options, source, clock)?;
    if let Some(folder) = &options.store {
        let store = store::open_to_replace(folder, &options.request.name, options.journal.bytes_max)?;
        opened.abandoned = opened.abandoned.max(ForkLog::read(store.folder())?.abandoned());
        opened.store = Some(store);
    }
    Ok(opened)
}

fn open_snapshots(options: &TableOptions, source: &SourceIdentity, clock: &Clock) -> Result<TableFolders, StoreError> {
    let Some(wanted) = options.snapshots.clone() else { return Ok(TableFolders::default()) };
    let (temporary, name) = (options.folder.clone(), options.request.name.clone());
    let snapshots = SnapshotFolder::open(wanted, temporary, name, source.clone(), clock.clone())?;
    let abandoned = snapshots.abandoned();
    Ok(TableFolders { snapshots: Some(Arc::new(snapshots)), abandoned, ..TableFolders::default() })
}

impl Table {
    /// Uses the folders for the journal, its bases and the snapshots. Returns what was in them.
    pub(crate) fn use_folders(&mut self, opened: TableFolders) -> Option<SavedTable> {
        let TableFolders { store, snapshots, left, abandoned } = opened;
        let instance = self.options.instance.on_timeline(self.identity.timeline, self.status.lock().forks);
        self.bases.store = store.map(|store| (store, instance));
        self.abandoned = self.abandoned.max(abandoned);
        self.snapshots.send_replace(snapshots);
        self.has_folders = true;
        left
    }

    /// Opens the folders that could not be opened when the run began. What is in them is too old to
    /// continue from: the source has kept nothing for it since.
    pub(super) fn open_missing_folders(&mut self) -> Result<(), TableError> {
        if !self.has_folders {
            let opened = open_without_restoring(&self.options, &self.identity, &self.clock.0)?;
            drop(self.use_folders(opened));
        }
        Ok(())
    }
}
