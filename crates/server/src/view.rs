//! Views of a journal. Clients with the same encoding, filter and columns share one view. A
//! projection that is made for one client is cached for the others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use laredo_core::{Schema, Sequence, TableName};
use laredo_engine::journal::BatchFrame;
use laredo_proto::batch::BatchError;
use laredo_proto::schema::SchemaError;
use laredo_values::{FilterError, FilterKey, HexCells, Predicate, ProjectError, UnprintableType};
use parking_lot::Mutex;

mod binary;
mod changes;
mod condition_origins;
mod events;
mod projection_cache;
mod selection;
mod stream_format;
mod structs;
#[cfg(test)]
mod tests;
mod view_cursor;

pub(crate) use binary::empty_batch;
pub(crate) use condition_origins::ConditionOrigins;
pub(crate) use selection::{ColumnRules, RowSelection};
pub(crate) use stream_format::StreamFormat;
pub(crate) use structs::{PositionMarker, marker, row_struct, timestamp, to_wire};
pub(crate) use view_cursor::{ProjectedChunk, TransactionEnd, ViewCursor};

use changes::FrameChanges;
use projection_cache::{CacheBudget, ProjectionCache};

/// The views of a table that are in use.
#[derive(Debug)]
pub(crate) struct JournalViews {
    views: Mutex<HashMap<ViewKey, Weak<JournalView>>>,
    usage: Arc<ViewUsage>,
}

type ViewKey = (StreamFormat, FilterKey, ColumnRules);

/// The usage of all views of a table together.
#[derive(Debug)]
struct ViewUsage {
    source: Box<str>,
    table: TableName,
    budget: Arc<CacheBudget>,
    struct_entries: AtomicU64,
    filtered_entries: AtomicU64,
    hex_cells: HexCells,
}

/// A view: one format, one filter, and the columns that it leaves out or masks.
#[derive(Debug)]
pub(crate) struct JournalView {
    format: StreamFormat,
    predicates: Arc<[Predicate]>,
    rules: ColumnRules,
    /// The selection for the schema that was used last.
    bound: Mutex<Option<Arc<RowSelection>>>,
    cache: ProjectionCache,
    usage: Arc<ViewUsage>,
}

/// The identity of a frame in the cache. A frame of the journal is identified by its last entry,
/// separately for ordinary use and for snapshots. A frame of a base is identified by the base's
/// sequence and the frame's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FrameCacheKey {
    Journal(Sequence),
    Snapshot(Sequence),
    Base(Sequence, u64),
}

/// The mode in which a reader receives the entries of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryMode {
    /// Each entry carries the reader's position.
    Ordinary,
    /// The reader may already have the transaction, or a part of it.
    Repeat,
    /// The entries belong to an incomplete snapshot, so no entry carries a position.
    Snapshot,
}

/// A frame as projected by a view.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProjectedFrame {
    /// Encoded frames; empty if nothing of the frame was let through.
    pub(crate) bytes: Bytes,
    /// The number of rows or changes in the frames.
    pub(crate) count: u64,
    /// True if the last message carries the end of the transaction.
    pub(crate) carries_end: bool,
}

/// An error for a frame that cannot be projected, because of a fault of the server or invalid data
/// from PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ViewError {
    /// The filter does not fit a definition that came after the stream began.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A column of the key is hidden from the reader.
    #[error("column `{0}` of the key is left out")]
    HiddenKey(String),
    /// A column of the key is masked for the reader.
    #[error("column `{0}` of the key is masked")]
    MaskedKey(String),
    /// The mask of a column depends on the text of its values, which is unknown.
    #[error("column `{column}` of type {type_name} is masked, and {problem}")]
    Unprintable {
        /// The column's name.
        column: String,
        /// The name of the column's type.
        type_name: String,
        /// The cause.
        problem: UnprintableType,
    },
    #[error("projecting a row: {0}")]
    Project(#[from] ProjectError),
    #[error("reading the journal: {0}")]
    Batch(#[from] BatchError),
    #[error("reading the journal: {0}")]
    Schema(#[from] SchemaError),
    #[error("reading the journal: an old row is missing")]
    OldRow,
    #[error("reading the journal: it contains bytes that are not a frame")]
    Frame,
    #[error("a row is too large for a Struct; ask for rows in PostgreSQL's binary form, or filter it out")]
    TooLarge,
}

impl JournalViews {
    pub(crate) fn new(source: &str, table: TableName, bytes_max: u64) -> JournalViews {
        let usage = ViewUsage {
            source: source.into(),
            table,
            budget: Arc::new(CacheBudget::new(bytes_max)),
            struct_entries: AtomicU64::new(0),
            filtered_entries: AtomicU64::new(0),
            hex_cells: HexCells::default(),
        };
        JournalViews { views: Mutex::new(HashMap::new()), usage: Arc::new(usage) }
    }

    /// Returns the view of a format, a filter and column rules. Returns `None` if the journal's
    /// own frames serve unchanged.
    pub(crate) fn get(
        &self,
        format: impl Into<StreamFormat>,
        predicates: &Arc<[Predicate]>,
        rules: &ColumnRules,
    ) -> Option<Arc<JournalView>> {
        let format = format.into();
        if format == StreamFormat::Batches && predicates.is_empty() && rules.is_empty() {
            return None;
        }
        let key = (format, FilterKey::of(predicates), rules.clone());
        let mut views = self.views.lock();
        if let Some(view) = views.get(&key).and_then(Weak::upgrade) {
            return Some(view);
        }
        views.retain(|_, view| view.strong_count() > 0);
        let view = Arc::new(JournalView {
            format,
            predicates: predicates.clone(),
            rules: rules.clone(),
            bound: Mutex::new(None),
            cache: ProjectionCache::new(self.usage.budget.clone()),
            usage: self.usage.clone(),
        });
        views.insert(key, Arc::downgrade(&view));
        Some(view)
    }

    /// Returns the number of entries since the start that were projected to Structs, and the number
    /// that were tested by a filter.
    pub(crate) fn projected_entries(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.usage.struct_entries), read(&self.usage.filtered_entries))
    }

    /// Returns the cells that were shown in hex since the start.
    pub(crate) fn hex_cells(&self) -> &HexCells {
        &self.usage.hex_cells
    }

    /// Returns the size in bytes of the cached projections.
    pub(crate) fn bytes(&self) -> u64 {
        self.usage.budget.bytes()
    }
}

impl JournalView {
    pub(crate) fn is_filtered(&self) -> bool {
        !self.predicates.is_empty()
    }

    /// Returns the view's copy of its predicates.
    pub(crate) fn predicates(&self) -> &Arc<[Predicate]> {
        &self.predicates
    }

    /// Returns the selection from rows of a schema.
    ///
    /// # Errors
    /// Returns an error if a predicate has no meaning for its column, if a column of the key is
    /// hidden or masked, or if a mask does not fit its column.
    pub(crate) fn selection(&self, schema: &Arc<Schema>) -> Result<Arc<RowSelection>, ViewError> {
        let mut bound = self.bound.lock();
        if let Some(known) = bound.as_ref().filter(|known| known.is_of(schema)) {
            return Ok(known.clone());
        }
        let selection = Arc::new(RowSelection::bind(&self.predicates, &self.rules, schema)?);
        *bound = Some(selection.clone());
        Ok(selection)
    }

    /// Returns the projected rows of a base's frame. The work may take long.
    ///
    /// # Errors
    /// Returns an error if a row cannot be projected.
    pub(crate) fn rows(
        &self,
        frame: &BatchFrame,
        place: FrameCacheKey,
        schema: &Arc<Schema>,
    ) -> Result<ProjectedFrame, ViewError> {
        self.cache.get_or_make(place, || {
            self.count(u64::from(frame.batch.count));
            let selection = self.selection(schema)?;
            match self.format {
                StreamFormat::Structs => self.warn_of_hex(|hex| structs::rows(frame, schema, &selection, hex)),
                StreamFormat::Events => self.warn_of_hex(|hex| events::rows(frame, schema, &selection, hex)),
                StreamFormat::Batches => binary::rows(frame, schema, &selection),
            }
        })
    }

    /// Returns the projected changes of a journal's frame. The work may take long.
    fn changes(&self, changes: &FrameChanges<'_>) -> Result<ProjectedFrame, ViewError> {
        let make = || {
            self.count(u64::from(changes.frame.batch.count));
            match self.format {
                StreamFormat::Structs => self.warn_of_hex(|hex| structs::changes(changes, hex)),
                StreamFormat::Events => self.warn_of_hex(|hex| events::changes(changes, hex)),
                StreamFormat::Batches => binary::changes(changes),
            }
        };
        let last = changes.frame.header.last_sequence;
        match (changes.is_known_in_part(), changes.mode) {
            (false, EntryMode::Ordinary) => self.cache.get_or_make(FrameCacheKey::Journal(last), make),
            (false, EntryMode::Snapshot) => self.cache.get_or_make(FrameCacheKey::Snapshot(last), make),
            (true, _) | (_, EntryMode::Repeat) => make(),
        }
    }

    fn count(&self, entries: u64) {
        let counter = match self.format {
            StreamFormat::Structs | StreamFormat::Events => &self.usage.struct_entries,
            StreamFormat::Batches => &self.usage.filtered_entries,
        };
        counter.fetch_add(entries, Ordering::Relaxed);
    }

    /// Logs a warning about the first cell that is shown in hex. A metric counts all of them.
    fn warn_of_hex<T>(&self, show: impl FnOnce(&HexCells) -> T) -> T {
        let hex = &self.usage.hex_cells;
        let had_none = hex.count() == 0;
        let shown = show(hex);
        if let Some(error) = hex.first().filter(|_| had_none) {
            tracing::warn!(
                event = "sent_values_in_hex", source = &*self.usage.source, table = %self.usage.table, %error,
                "values that do not fit their type are sent in hex"
            );
        }
        shown
    }
}
