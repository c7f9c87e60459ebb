//! The folders of a table, and what an earlier run has left in them.

use std::sync::Arc;

use laredo_core::Lsn;

use super::options::TableOptions;
use crate::clock::Clock;
use crate::recovery::{self, RestoreContext, RestoredJournal};
use crate::snapshots::{RecoveredSnapshot, SnapshotFolder};
use crate::source::{KnownTable, SourceServer};
use crate::store::{ForkLog, JournalFolder, StoreError};

/// The opened folders of a table, and what was in them.
pub(crate) struct TableFolders {
    pub(super) store: Option<Arc<JournalFolder>>,
    pub(super) snapshots: Option<Arc<SnapshotFolder>>,
    pub(crate) left: Option<SavedTable>,
    /// Positions up to here may belong to a history that the database has abandoned.
    pub(super) abandoned: Lsn,
}

impl TableFolders {
    fn new(
        store: Option<Arc<JournalFolder>>,
        snapshots: Option<Arc<SnapshotFolder>>,
        left: Option<SavedTable>,
    ) -> Result<TableFolders, StoreError> {
        let of_store = store.as_ref().map(|store| ForkLog::read(store.folder())).transpose()?;
        let of_store = of_store.map_or(Lsn::ZERO, |forks| forks.abandoned());
        let abandoned = snapshots.as_ref().map_or(of_store, |snapshots| snapshots.abandoned().max(of_store));
        Ok(TableFolders { store, snapshots, left, abandoned })
    }
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
    source: &SourceServer,
    clock: &Clock,
) -> Result<TableFolders, StoreError> {
    // The snapshots come first: a journal is restored with all its rows, and in vain if they fail.
    let snapshots = open_snapshots(options, source, clock)?;
    let (mut store, mut left) = (None, None);
    if let Some(folder) = &options.store {
        let instance = options.instance.on_timeline(source.identity.timeline, 0);
        let (now, bytes_max) = (clock.as_ref()(), options.journal.bytes_max);
        let (table, pipeline) = (&options.request.name, &*options.pipeline.description());
        let context = RestoreContext { table, source, instance: &instance, now, bytes_max, pipeline };
        let (opened, restored) = recovery::open(folder, &context)?;
        (store, left) = (Some(opened), restored.map(|restored| SavedTable::Journal(Box::new(restored))));
    }
    if let Some(snapshots) = snapshots.as_ref().filter(|_| left.is_none() && options.pipeline.is_plain()) {
        let recovered = snapshots.recover_newest().filter(|recovered| recovered.definition.is_whole);
        left = recovered.map(|recovered| SavedTable::Snapshot(Box::new(recovered)));
    }
    TableFolders::new(store, snapshots, left)
}

/// Opens the folders of a table whose journal is replaced, whatever it holds. Blocks.
pub(super) fn open_without_restoring(
    options: &TableOptions,
    source: &SourceServer,
    clock: &Clock,
) -> Result<TableFolders, StoreError> {
    let snapshots = open_snapshots(options, source, clock)?;
    let open = |folder| recovery::open_to_replace(folder, &options.request.name, options.journal.bytes_max);
    TableFolders::new(options.store.as_deref().map(open).transpose()?, snapshots, None)
}

fn open_snapshots(
    options: &TableOptions,
    source: &SourceServer,
    clock: &Clock,
) -> Result<Option<Arc<SnapshotFolder>>, StoreError> {
    let Some(wanted) = options.snapshots.clone() else { return Ok(None) };
    let (temporary, name) = (options.folder.clone(), options.request.name.clone());
    let snapshots = SnapshotFolder::open(wanted, temporary, name, source.clone(), clock.clone())?;
    snapshots.remove_other_rows(&options.pipeline.description())?;
    Ok(Some(Arc::new(snapshots)))
}
