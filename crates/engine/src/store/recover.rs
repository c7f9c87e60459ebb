//! Recovery of a table from a folder: its newest base, its journal, and the rows of both.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use laredo_core::{CommitMark, CommitTime, DefinitionVersion, Lsn, Schema, Sequence, TableName, TableState};
use laredo_proto::batch::BatchEntries;
use laredo_values::NestedForm;
use tokio::time::Instant;

use super::append::{AppenderState, JournalAppender};
use super::error::{StoreError, read_error};
use super::forks::ForkLog;
use super::format::{JournalFileHeader, RecordHead, RowDefinition, SKIPPED, StoredCommitMark};
use super::journal_folder::{BASE, JOURNAL, JournalFolder};
use super::manifest::JournalManifest;
use super::{read, row_form};
use crate::base::{Base, BaseError};
use crate::history::Fork;
use crate::journal::{
    DefinitionChange, DefinitionHistory, EarlierInstance, Head, InstanceId, JournalBeginning, Segment, SequenceGaps,
    StoredSegment, TransactionBoundary, frames,
};
use crate::source::{KnownTable, SourceIdentity};

/// The table and settings that a folder is opened for.
pub(crate) struct RestoreContext<'a> {
    pub(crate) table: &'a TableName,
    pub(crate) source: &'a SourceIdentity,
    /// The name of the journal in this run.
    pub(crate) instance: &'a InstanceId,
    pub(crate) now: CommitTime,
    /// The maximum number of bytes of the journal.
    pub(crate) bytes_max: u64,
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
    if !error.is_of_no_use() {
        return Err(error);
    }
    let aside = store.folder().set_aside()?;
    tracing::error!(
        %table, %error, aside = %aside.display(),
        "the kept journal is of no use; it is put aside, and the table is copied anew"
    );
    Ok(())
}

/// Prepares a folder for a new journal: removes the files of the old journal, and writes a
/// manifest.
///
/// # Errors
/// When the folder cannot be written.
pub(crate) fn claim(
    store: &JournalFolder,
    instance: &InstanceId,
    about: (&TableName, &SourceIdentity),
) -> Result<JournalManifest, StoreError> {
    let mut owner = store.owner();
    *owner = Some(instance.clone());
    store.remove_journal()?;
    let manifest = JournalManifest::new(instance, about.0, about.1, ForkLog::read(store.folder())?.count());
    manifest.write(store)?;
    Ok(manifest)
}

/// Notes the journal file that this run begins with, so that a later run notices if it is missing.
///
/// # Errors
/// When the manifest cannot be written.
pub(crate) fn note_beginning(
    store: &JournalFolder,
    mut manifest: JournalManifest,
    appender: &JournalAppender,
) -> Result<(), StoreError> {
    manifest.begin_at(appender.begun_at());
    manifest.write(store)
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
        let fork = Fork { common: about.source.left_at(manifest.timeline()), abandoned: position, is_certain: true };
        // The contents are set aside even if the fork cannot be noted: none of them is served.
        if let Err(error) = ForkLog::note(store.folder(), &fork, &why) {
            tracing::error!(table = %about.table, %error, "the fork of the database's history cannot be noted");
        }
        error(why)
    })
}

pub(super) fn restore(
    store: &Arc<JournalFolder>,
    about: &RestoreContext<'_>,
) -> Result<Option<RestoredJournal>, StoreError> {
    let Some(mut manifest) = read_manifest(store, about.table)? else { return Ok(None) };
    let lineage = manifest.instance();
    *store.owner() = Some(lineage.clone());
    let Some(path) = store.folder().files(BASE)?.pop() else {
        return match store.folder().files(JOURNAL)?.pop() {
            Some(path) => Err(StoreError::damaged(&path, 0, "there is no base that it could be put on")),
            None => Ok(None),
        };
    };
    let (base, footer) = Base::open(&path)?;
    if footer.instance != lineage.0 {
        return Err(StoreError::damaged(&path, base.bytes(), "it is another journal's"));
    }
    let (base, base_definition) = (Arc::new(base), footer.definition.unwrap_or_default());
    let mut kept = None;
    let mut files = read::read_journal(store, &lineage.0, &mut kept)?;
    check_files(store, &manifest, &path)?;
    let head = base.head();
    let mut kept = match kept {
        Some(kept) if kept.head.sequence >= base.sequence() => kept,
        // The base is ahead of a journal that has lost its end. It is used alone then.
        kept => {
            store.remove_journal()?;
            files.clear();
            let taken = kept.map_or(head.sequence, |kept| kept.taken.max(head.sequence));
            JournalReplay { taken, ..JournalReplay::at(head, base.schema().clone(), base_definition) }
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
    manifest.open_as(about.instance, about.source, (pruned, kept.head.sequence));
    let abandoned = ForkLog::read(store.folder())?.abandoned();
    let names = (about.instance.clone(), manifest.earlier());
    let mut restored = kept.restored(store.clone(), files, (lineage, names), abandoned, base, rows)?;
    restored.is_of_same_server = is_of_same_server;
    // The source may be on a later timeline now, with the journal in its history.
    note_beginning(store, manifest, &restored.appender)?;
    Ok(Some(restored))
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
        "the journal file that begins at entry {begun_at} is missing, and there is none behind it: restore the folder as a whole, or not at all"
    );
    Err(StoreError::damaged(base, 0, what))
}

/// Returns the rows of a base with all later entries of the journal applied. Verifies the number
/// and the checksum of the base's rows.
pub(crate) fn rows_of(base: &Base, segments: &VecDeque<Segment>, path: &Path) -> Result<TableState, StoreError> {
    let damaged = |what: String| StoreError::damaged(path, 0, what);
    let capacity = usize::try_from(base.rows()).unwrap_or(0);
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
        return Err(damaged(format!("it has {} rows and says it has {}", state.len(), base.rows())));
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

/// The state of a journal up to the last record read from its files.
pub(super) struct JournalReplay {
    pub(super) head: Head,
    pub(super) pruned: TransactionBoundary,
    pub(super) segments: VecDeque<Segment>,
    /// The commit time of the last transaction of each segment.
    committed: VecDeque<CommitTime>,
    /// The pieces of a transaction that has not ended.
    open: Vec<Segment>,
    open_schema: Arc<Schema>,
    /// The last sequence that may have been assigned.
    taken: Sequence,
    spans: Vec<(Lsn, Lsn)>,
    gaps: SequenceGaps,
    schema: Arc<Schema>,
    definition: RowDefinition,
    definitions: DefinitionHistory,
    /// The definition that the open transaction begins; unknown if it begins none.
    open_definition: DefinitionVersion,
    /// The position of the last transaction if that is a new copy of the table.
    copied_at: Option<Lsn>,
}

/// The size up to which small records are joined into one segment.
const JOINED_BYTES: usize = 512 * 1024;

impl JournalReplay {
    fn at(head: Head, schema: Arc<Schema>, definition: RowDefinition) -> JournalReplay {
        JournalReplay {
            head,
            pruned: TransactionBoundary { sequence: head.sequence, position: head.position },
            segments: VecDeque::new(),
            committed: VecDeque::new(),
            open: Vec::new(),
            open_schema: schema.clone(),
            taken: head.sequence,
            spans: Vec::new(),
            gaps: SequenceGaps::default(),
            schema,
            definitions: DefinitionHistory::new(head.position, definition.version()),
            definition,
            open_definition: DefinitionVersion::UNKNOWN,
            copied_at: None,
        }
    }

    /// Returns the state at the beginning of the oldest file.
    pub(super) fn begin(header: &JournalFileHeader) -> Result<JournalReplay, String> {
        let schema = laredo_proto::schema::from_wire(header.schema.clone().unwrap_or_default());
        let head = Head {
            sequence: Sequence(header.before_sequence),
            position: Lsn(header.before_position),
            committed_at: CommitTime(header.committed_at),
            mark: StoredCommitMark::known(header.mark),
            checksum: None,
        };
        let schema = Arc::new(schema.map_err(|error| error.to_string())?);
        Ok(JournalReplay::at(head, schema, header.definition.clone().unwrap_or_default()))
    }

    pub(super) fn begin_file(&mut self, header: &JournalFileHeader) -> Result<(), String> {
        read::follows((self.head.sequence, self.head.position), header)?;
        self.head.position = Lsn(header.before_position);
        self.head.mark = StoredCommitMark::known(header.mark);
        self.taken = self.taken.max(Sequence(header.first_sequence - 1));
        // The same definition as before proves nothing: a later copy may have begun another one.
        let definition = header.definition.clone().unwrap_or_default();
        if definition != self.definition {
            self.define_now(definition);
        }
        Ok(())
    }

    /// Returns true if a transaction has begun and not ended.
    pub(super) fn is_inside(&self) -> bool {
        !self.open.is_empty()
    }

    pub(super) fn frames(&mut self, record: &RecordHead, run: Bytes, stored: StoredSegment) -> Result<(), String> {
        let after = self.open.last().map_or(self.taken, |piece| piece.last);
        let is_next = record.first == after.plus(1);
        let fits = record.begins == self.open.is_empty()
            && record.last >= record.first
            && record.position >= self.head.position;
        if !(is_next && fits) {
            return Err(format!("entries {} to {} do not follow entry {after}", record.first, record.last));
        }
        let segment = Segment {
            first: record.first,
            last: record.last,
            before: record.before,
            position: record.position,
            span_from: record.span_from,
            begins: record.begins,
            ends: record.ends,
            schema: self.open_schema.clone(),
            marks: Vec::new(),
            appended_at: Instant::now(),
            data: crate::journal::SegmentData::File(stored),
        };
        if record.has_schema {
            for schema in frames(run.clone()).filter_map(|frame| frame.batch.schema) {
                let schema = laredo_proto::schema::from_wire(schema).map_err(|error| error.to_string())?;
                self.open_schema = Arc::new(schema);
            }
        }
        // Only a new copy of the table begins another definition inside a transaction. The record
        // with the whole definition follows it, and may be lost.
        if record.span_from.is_some() {
            let begun = frames(run.clone()).map(|frame| frame.batch.definition).find(|definition| *definition != 0);
            self.open_definition = begun.map_or(self.open_definition, DefinitionVersion);
        }
        self.open.push(segment);
        if record.ends {
            let newest = frames(run).last().map(|frame| frame.header.mark()).and_then(CommitMark::known);
            self.commit(record, newest.unwrap_or_default());
        }
        Ok(())
    }

    fn commit(&mut self, record: &RecordHead, mark: CommitMark) {
        if let Some(first) = self.open.first() {
            self.gaps.push(self.head.sequence, Sequence(first.first.0 - 1));
        }
        let (sequence, position, committed_at) = (record.last, record.position, record.committed_at);
        self.head = Head { sequence, position, committed_at, mark, checksum: None };
        self.taken = self.taken.max(record.last);
        self.spans.extend(record.span_from.map(|from| (from, record.position)));
        self.schema = self.open_schema.clone();
        let begun = std::mem::take(&mut self.open_definition);
        if begun.is_known() {
            self.definitions.push(record.position, begun, DefinitionChange::ChangesRows);
        }
        self.copied_at = record.span_from.map(|_| record.position);
        for segment in self.open.drain(..) {
            match self.segments.back_mut() {
                Some(last) if joins(last, &segment) => {
                    last.data = joined(&last.data, &segment.data);
                    (last.last, last.position) = (segment.last, segment.position);
                    self.committed.pop_back();
                }
                _ => self.segments.push_back(segment),
            }
            self.committed.push_back(record.committed_at);
        }
    }

    pub(super) fn mark(&mut self, record: &RecordHead, mark: StoredCommitMark) -> Result<(), String> {
        if self.is_inside() || record.position < self.head.position {
            return Err("a position that does not follow".to_owned());
        }
        self.head.position = record.position;
        self.head.mark = StoredCommitMark::known(Some(mark));
        self.spans.extend(record.span_from.map(|from| (from, record.position)));
        Ok(())
    }

    pub(super) fn define(&mut self, definition: RowDefinition) -> Result<(), String> {
        if self.is_inside() {
            return Err("a definition inside a transaction".to_owned());
        }
        self.define_now(definition);
        Ok(())
    }

    fn define_now(&mut self, definition: RowDefinition) {
        // Earlier versions did not note in the copy that it was made under another definition.
        let change = match self.copied_at == Some(self.head.position) {
            true => DefinitionChange::ChangesRows,
            false => DefinitionChange::KeepsRows,
        };
        self.definitions.push(self.head.position, definition.version(), change);
        self.definition = definition;
    }

    /// Discards the transaction that has not ended.
    pub(super) fn abort(&mut self) {
        self.open.clear();
        self.open_definition = DefinitionVersion::UNKNOWN;
        self.open_schema = self.schema.clone();
    }

    /// Sets the age of each segment to the current age of its last commit.
    fn date_segments(&mut self, now: CommitTime) {
        let today = Instant::now();
        for (segment, committed_at) in self.segments.iter_mut().zip(&self.committed) {
            let age = u64::try_from(now.0.saturating_sub(committed_at.0)).unwrap_or(0);
            segment.appended_at = today.checked_sub(std::time::Duration::from_micros(age)).unwrap_or(today);
        }
    }

    fn restored(
        self,
        store: Arc<JournalFolder>,
        files: VecDeque<super::append::JournalFile>,
        (lineage, (instance, earlier)): (InstanceId, (InstanceId, Vec<EarlierInstance>)),
        abandoned: Lsn,
        base: Arc<Base>,
        rows: TableState,
    ) -> Result<RestoredJournal, StoreError> {
        let JournalReplay { head, pruned, segments, taken, spans, mut gaps, schema, definition, definitions, .. } =
            self;
        let head = Head { checksum: Some(rows.checksum()), ..head };
        let taken = taken.plus(SKIPPED);
        gaps.push(head.sequence, taken);
        let begun = AppenderState {
            instance: lineage.clone(),
            head,
            taken,
            schema: schema.clone(),
            definition: definition.clone(),
        };
        let appender = JournalAppender::begin(store, files, begun)?;
        let beginning = JournalBeginning {
            instance,
            earlier,
            predecessor: None,
            abandoned,
            abandoned_journals: Vec::new(),
            base,
            schema,
            definition: definition.clone(),
            definitions,
            segments,
            spans,
            gaps,
            pruned,
            head,
            taken,
        };
        Ok(RestoredJournal { beginning, appender, rows, definition, lineage, is_of_same_server: false })
    }
}

/// Returns true if two segments of whole transactions may be joined. A new copy of the table always
/// stays separate.
fn joins(last: &Segment, next: &Segment) -> bool {
    let is_plain = |s: &Segment| s.begins && s.ends && s.span_from.is_none();
    is_plain(last)
        && is_plain(next)
        && last.last.plus(1) == next.first
        && last.data.bytes() + next.data.bytes() <= JOINED_BYTES
        && last.joins(next)
}

fn joined(last: &crate::journal::SegmentData, next: &crate::journal::SegmentData) -> crate::journal::SegmentData {
    match (last, next) {
        (crate::journal::SegmentData::File(one), crate::journal::SegmentData::File(other)) => {
            let mut both = one.clone();
            both.extend(other);
            crate::journal::SegmentData::File(both)
        }
        _ => last.clone(),
    }
}
