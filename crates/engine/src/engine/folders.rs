//! The tables' folders, and what an earlier run has left in them.

use std::sync::Arc;

use laredo_core::Lsn;

use crate::snapshots::{Recovered, Snapshots};
use crate::source::{KnownTable, SourceError, SourceIdentity};
use crate::store::{self, About, Forks, Restored, Store, StoreError};
use crate::table::{Clock, TableOptions};

/// The opened folders of a table, and what was in them.
#[derive(Default)]
pub(super) struct Opened {
    pub(super) store: Option<Arc<Store>>,
    pub(super) snapshots: Option<Arc<Snapshots>>,
    pub(super) left: Option<Left>,
    /// Positions up to here may belong to a history that the database has abandoned.
    pub(super) abandoned: Lsn,
}

/// The state from which a table can continue.
pub(super) enum Left {
    Journal(Box<Restored>),
    /// A snapshot, used only if there is no journal: a journal is newer, and readers know its
    /// sequences.
    Snapshot(Box<Recovered>),
}

impl Left {
    /// Returns what the source needs to know to resume the table.
    pub(super) fn known(&self) -> KnownTable {
        match self {
            Left::Journal(restored) => restored.known(),
            Left::Snapshot(recovered) => recovered.known(),
        }
    }
}

/// Opens the folders of all tables, each table's on a thread that may block.
///
/// # Errors
/// All problems at once; or the process that holds one of the folders.
pub(super) async fn open_folders(
    tables: &[TableOptions],
    source: &SourceIdentity,
    clock: &Clock,
) -> Result<Vec<Opened>, SourceError> {
    let mut opening = Vec::new();
    for options in tables {
        let (options, source, clock) = (options.clone(), source.clone(), clock.clone());
        opening.push(tokio::task::spawn_blocking(move || {
            open(&options, &source, &clock)
                .map_err(|error| (is_held(&error), format!("table {}: {error}", options.request.name)))
        }));
    }
    let (mut opened, mut problems, mut held) = (Vec::new(), Vec::new(), None);
    for table in opening {
        match table.await {
            Ok(Ok(table)) => opened.push(table),
            Ok(Err((true, holder))) => drop(held.get_or_insert(holder)),
            Ok(Err((false, problem))) => problems.push(problem),
            Err(panic) => problems.push(format!("opening a table's folder failed ({panic}); report this")),
        }
    }
    match held {
        _ if !problems.is_empty() => Err(SourceError::Definite(problems)),
        // Opened folders are closed again, because the process that holds the others may need them.
        Some(holder) => Err(SourceError::Held(holder)),
        None => Ok(opened),
    }
}

/// Returns true if another process holds the folder.
fn is_held(error: &StoreError) -> bool {
    matches!(error, StoreError::Locked { .. })
}

fn open(options: &TableOptions, source: &SourceIdentity, clock: &Clock) -> Result<Opened, StoreError> {
    let name = &options.request.name;
    let mut opened = Opened::default();
    if let Some(folder) = &options.store {
        let instance = options.instance.on(source.timeline, 0);
        let (now, bytes_max) = (clock.as_ref()(), options.journal.bytes_max);
        let (store, restored) =
            store::open(folder, &About { table: name, source, instance: &instance, now, bytes_max })?;
        opened.abandoned = Forks::read(store.folder())?.abandoned();
        (opened.store, opened.left) = (Some(store), restored.map(|restored| Left::Journal(Box::new(restored))));
    }
    if let Some(wanted) = &options.snapshots {
        let (wanted, temporary) = (wanted.clone(), options.folder.clone());
        let snapshots = Snapshots::open(wanted, temporary, name.clone(), source.clone(), clock.clone())?;
        if opened.left.is_none() && options.pipeline.is_plain() {
            let recovered = snapshots.recover_newest().filter(|recovered| recovered.definition.is_whole);
            opened.left = recovered.map(|recovered| Left::Snapshot(Box::new(recovered)));
        }
        opened.abandoned = opened.abandoned.max(snapshots.abandoned());
        opened.snapshots = Some(Arc::new(snapshots));
    }
    Ok(opened)
}
