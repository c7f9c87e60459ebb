//! Recovery of a table from its folder: its newest base, its journal, and the rows of both.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use laredo_core::{CommitTime, Lsn, Sequence, TableName, TableState};
use laredo_proto::batch::BatchEntries;
use laredo_values::NestedForm;

use crate::base::{Base, BaseError};
use crate::head::{Head, InstanceId};
use crate::journal::JournalBeginning;
use crate::segment::{Segment, frames};
use crate::source::{Fork, KnownTable, SourceServer};
use crate::store::{
    BASE, ForkLog, JOURNAL, JournalAppender, JournalFolder, JournalManifest, RowDefinition, StoreError, note_beginning,
    read_error,
};

mod read;
mod replay;
mod row_form;
#[cfg(test)]
mod tests;

use replay::{JournalNames, JournalReplay};

/// The minimum size of a row in a base: the action and the length of its entry.
const ROW_BYTES_MIN: u64 = 5;

/// The table and settings that a folder is opened for.
pub(crate) struct RestoreContext<'a> {
    pub(crate) table: &'a TableName,
    pub(crate) source: &'a SourceServer,
    /// The name of the journal in this run.
    pub(crate) instance: &'a InstanceId,
    pub(crate) now: CommitTime,
    /// The maximum number of bytes of the journal.
    pub(crate) bytes_max: u64,
    /// The description of the filters and transforms in this run.
    pub(crate) pipeline: &'a str,
}

/// A table restored from its folder.
pub(crate) struct RestoredJournal {
    pub(crate) beginning: JournalBeginning,
    pub(crate) appender: JournalAppender,
    /// The rows that readers have.
    pub(crate) rows: TableState,
    pub(crate) definition: RowDefinition,
    /// The original name of the journal, which its files carry.
    pub(crate) lineage: InstanceId,
    /// True if PostgreSQL has not restarted since, so that its history is the same.
    pub(crate) is_of_same_server: bool,
}

impl RestoredJournal {
    /// Returns the restored state for the source, which resumes from it.
    pub(crate) fn to_known_table(&self) -> KnownTable {
        let Head { position, mark, .. } = self.beginning.head;
        let (definition, is_of_same_server) = (self.definition.source.clone(), self.is_of_same_server);
        KnownTable { position, mark, definition, is_of_same_server }
    }
}

/// Opens a table's folder and restores its contents. Damaged contents and those of another history
/// are set aside, and the table is copied again.
///
/// # Errors
/// When the folder belongs to another server or table, cannot be read or written, or has a format
/// that this version does not know.
pub(crate) fn open(
    folder: &Path,
    about: &RestoreContext<'_>,
) -> Result<(Arc<JournalFolder>, Option<RestoredJournal>), StoreError> {
    let store = Arc::new(JournalFolder::open(folder, about.bytes_max)?);
    match restore(&store, about) {
        Ok(restored) => Ok((store, restored)),
        Err(error) => set_aside(&store, about.table, error).map(|()| (store, None)),
    }
}

/// Opens a table's folder for a new journal that replaces what is in it. Unusable contents are set
/// aside.
///
/// # Errors
/// The errors of [`open`].
pub(crate) fn open_to_replace(
    folder: &Path,
    table: &TableName,
    bytes_max: u64,
) -> Result<Arc<JournalFolder>, StoreError> {
    let store = Arc::new(JournalFolder::open(folder, bytes_max)?);
    if let Err(error) = read_manifest(&store, table) {
        set_aside(&store, table, error)?;
    }
    Ok(store)
}

/// Sets contents aside for this error. Returns the error if they are not unusable.
fn set_aside(store: &JournalFolder, table: &TableName, error: StoreError) -> Result<(), StoreError> {
    if !error.is_unusable() {
        return Err(error);
    }
    let aside = store.folder().set_aside()?;
    tracing::error!(
        event = "journal_unusable",
        %table, %error, aside = %aside.display(),
        "the journal on disk is unusable; it is set aside, and the table is copied again"
    );
    Ok(())
}

/// Checks that a journal is part of the database's history. If it is not, notes the fork on disk.
fn check_history(
    store: &JournalFolder,
    manifest: &JournalManifest,
    about: &RestoreContext<'_>,
    position: Lsn,
) -> Result<(), StoreError> {
    let error = |why| StoreError::History { path: store.folder().path().to_owned(), why };
    let forks = ForkLog::read(store.folder())?;
    forks.check(manifest.forks(), position).map_err(error)?;
    manifest.is_past_of(about.source, position).map_err(|why| {
        if !manifest.is_of_database(about.source) {
            return error(why);
        }
        let fork = Fork {
            common: about.source.identity.left_at(manifest.timeline()).unwrap_or_default(),
            abandoned: position,
            is_certain: true,
        };
        // The contents are set aside even if the fork cannot be noted: none of them is served.
        if let Err(error) = ForkLog::note(store.folder(), &fork, &why) {
            tracing::error!(
                event = "fork_not_noted", table = %about.table, %error,
                "the fork of the database's history cannot be noted"
            );
        }
        error(why)
    })
}

fn restore(store: &Arc<JournalFolder>, about: &RestoreContext<'_>) -> Result<Option<RestoredJournal>, StoreError> {
    let Some(mut manifest) = read_manifest(store, about.table)? else { return Ok(None) };
    let lineage = manifest.instance();
    *store.owner() = Some(lineage.clone());
    let Some(path) = store.folder().files(BASE)?.pop() else {
        return match store.folder().files(JOURNAL)?.pop() {
            Some(path) => Err(StoreError::damaged(&path, 0, "the folder has no base that the journal continues from")),
            None => Ok(None),
        };
    };
    let (base, footer) = Base::open(&path)?;
    if footer.instance != lineage.0 {
        return Err(StoreError::damaged(&path, base.bytes(), "it belongs to another journal"));
    }
    let (base, base_definition) = (Arc::new(base), footer.definition.unwrap_or_default());
    let mut kept = None;
    let mut files = read::read_journal(store, &lineage.0, &mut kept)?;
    let is_other = |definition: &RowDefinition| definition.pipeline != about.pipeline;
    if [Some(&base_definition), kept.as_ref().map(JournalReplay::definition)].into_iter().flatten().any(is_other)
        || kept.as_ref().is_some_and(JournalReplay::has_several_pipelines)
    {
        return remove_other_rows(store, about.table).map(|()| None);
    }
    check_files(store, &manifest, &path)?;
    let head = base.head();
    let mut kept = match kept {
        Some(kept) if kept.head.sequence >= base.sequence() => kept,
        // The base is ahead of a journal that has lost its end. It is used alone then.
        kept => {
            store.remove_journal()?;
            files.clear();
            let assigned = kept.map_or(head.sequence, |kept| kept.assigned.max(head.sequence));
            let mut alone = JournalReplay::at(head, base.schema().clone(), base_definition);
            alone.assigned = assigned;
            alone
        }
    };
    if base.sequence() < kept.pruned.sequence {
        let what = "the journal begins after it: a file is missing";
        return Err(StoreError::damaged(&path, 0, what));
    }
    kept.head.position =
        kept.head.position.max(if kept.head.sequence == head.sequence { head.position } else { Lsn::ZERO });
    check_history(store, &manifest, about, kept.head.position)?;
    let rows = rows_of(&base, &kept.segments, &path)?;
    row_form::check(&base, &kept.segments, &kept.schema, &path)?;
    store.keep_base(path.file_name().and_then(|name| name.to_str()).unwrap_or_default())?;
    kept.date_segments(about.now);
    let pruned = kept.pruned.sequence;
    let is_of_same_server = manifest.is_of_server(about.source);
    manifest.open_as(about.instance, about.source, pruned, kept.head.sequence);
    let abandoned = ForkLog::read(store.folder())?.abandoned();
    let names = JournalNames { lineage, instance: about.instance.clone(), earlier: manifest.earlier() };
    let mut restored = kept.restored(store.clone(), files, names, abandoned, base, rows)?;
    restored.is_of_same_server = is_of_same_server;
    // The source may be on a later timeline now, with the journal in its history.
    note_beginning(store, manifest, &restored.appender)?;
    Ok(Some(restored))
}

/// Removes a journal and its bases, because their rows have passed other filters or transforms.
///
/// The rows may have values that the present ones hide. No client may be sent what follows them: it
/// does not have what the present ones would have left.
fn remove_other_rows(store: &JournalFolder, table: &TableName) -> Result<(), StoreError> {
    tracing::warn!(
        event = "pipeline_changed",
        %table, folder = %store.folder().path().display(),
        "the filters or transforms have changed: the journal is removed, and clients are sent the whole table"
    );
    store.remove_journal()?;
    store.remove_bases()
}

/// Returns the manifest of this table's journal; `None` if the folder has no journal.
fn read_manifest(store: &JournalFolder, table: &TableName) -> Result<Option<JournalManifest>, StoreError> {
    let Some(manifest) = JournalManifest::read(store)? else {
        return match store.folder().files(BASE)?.pop() {
            Some(path) => Err(StoreError::damaged(&path, 0, "the folder has no manifest")),
            None => Ok(None),
        };
    };
    if manifest.table() != *table {
        let (path, wanted) = (store.folder().path().to_owned(), Box::new(table.clone()));
        return Err(StoreError::Table { path, found: Box::new(manifest.table()), wanted });
    }
    Ok(Some(manifest))
}

/// Checks that the journal file that the last run began with exists, or a later one.
fn check_files(store: &JournalFolder, manifest: &JournalManifest, base: &Path) -> Result<(), StoreError> {
    let Some(begun_at) = manifest.begun_at() else { return Ok(()) };
    let newest = store.folder().files(JOURNAL)?.pop();
    let first = newest.and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok());
    if first.is_some_and(|first| first >= begun_at.0) {
        return Ok(());
    }
    let what = format!(
        "the journal file that begins at entry {begun_at} is missing, and so are all later ones: restore the folder as a whole, or not at all"
    );
    Err(StoreError::damaged(base, 0, what))
}

/// Returns the rows of a base with all later entries of the journal applied. Verifies the number
/// and the checksum of the base's rows.
pub(crate) fn rows_of(base: &Base, segments: &VecDeque<Segment>, path: &Path) -> Result<TableState, StoreError> {
    let damaged = |what: String| StoreError::damaged(path, 0, what);
    // The footer may state any number, and memory is reserved only for what fits in the file.
    let capacity = usize::try_from(base.rows().min(base.bytes() / ROW_BYTES_MIN)).unwrap_or(0);
    let mut state =
        TableState::new(base.schema().clone(), &[], capacity).map_err(|error| damaged(error.to_string()))?;
    let loaded = base.for_each_row::<BaseError>(|row| {
        state.put(row.to_tuple());
        Ok(())
    });
    loaded.map_err(|error| match error {
        BaseError::Io(error) => read_error(path)(error),
        error => damaged(error.to_string()),
    })?;
    if state.len() as u64 != base.rows() {
        return Err(damaged(format!("it has {} rows, and states {}", state.len(), base.rows())));
    }
    if let Some(stated) = base.checksum().filter(|stated| *stated != state.checksum()) {
        return Err(damaged(format!("its rows have the checksum {} and should have {stated}", state.checksum())));
    }
    for segment in segments.iter().filter(|segment| segment.last > base.sequence()) {
        let run = segment.data.read_frames().map_err(read_error(path))?;
        replay(&mut state, run, base.sequence()).map_err(|what| {
            let place = format!("entries {} to {}", segment.first, segment.last);
            damaged(format!("{place} of the journal do not fit what came before them: {what}"))
        })?;
    }
    let form = NestedForm::new(state.schema().clone());
    match form.is_trivial() || state.rows().all(|row| form.fits(row.as_ref())) {
        true => Ok(state),
        false => Err(damaged(row_form::MIXED.to_owned())),
    }
}

/// Applies the entries after `after`. A segment may begin before a base and end after it.
fn replay(state: &mut TableState, run: Bytes, after: Sequence) -> Result<(), String> {
    for frame in frames(run).filter(|frame| frame.header.last_sequence > after) {
        if let Some(schema) = frame.batch.schema {
            let schema = laredo_proto::schema::from_wire(schema).map_err(|error| error.to_string())?;
            state.cast_to(Arc::new(schema)).map_err(|error| error.to_string())?;
        }
        let schema = state.schema().clone();
        for entry in BatchEntries::new(&frame.batch.entries, &schema) {
            let change = entry.map_err(|error| error.to_string())?.to_change();
            state.apply_change(&change).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
