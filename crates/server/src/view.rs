//! Views of a journal. Clients with the same encoding, filter and columns share one view. A
//! projection that is made for one client is cached for the others.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use laredo_core::{Schema, Sequence, TableName};
use laredo_engine::journal::BatchFrame;
use laredo_proto::batch::BatchError;
use laredo_proto::replication::RowEncoding;
use laredo_proto::schema::SchemaError;
use laredo_values::{FilterError, FilterKey, HexCells, Predicate, ProjectError};
use parking_lot::Mutex;

mod binary;
mod changes;
mod selection;
mod structs;
#[cfg(test)]
mod tests;
mod view_cursor;

pub(crate) use binary::empty_batch;
pub(crate) use selection::RowSelection;
pub(crate) use structs::{PositionMarker, marker, row_struct, timestamp, to_wire};
pub(crate) use view_cursor::{ProjectedChunk, TransactionEnd, ViewCursor};

use changes::FrameChanges;

/// The views of a table that are in use.
#[derive(Debug)]
pub(crate) struct JournalViews {
    views: Mutex<HashMap<ViewKey, Weak<JournalView>>>,
    usage: Arc<ViewUsage>,
}

type ViewKey = (RowEncoding, FilterKey, Vec<String>);

/// The usage of all views of a table together.
#[derive(Debug)]
struct ViewUsage {
    table: TableName,
    bytes: AtomicU64,
    bytes_max: u64,
    struct_entries: AtomicU64,
    filtered_entries: AtomicU64,
    hex_cells: HexCells,
}

/// A view: one encoding, one filter, and the columns that it leaves out.
#[derive(Debug)]
pub(crate) struct JournalView {
    encoding: RowEncoding,
    predicates: Arc<[Predicate]>,
    hidden_columns: Vec<String>,
    /// The selection for the schema that was used last.
    bound: Mutex<Option<Arc<RowSelection>>>,
    cache: Mutex<ProjectionCache>,
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

#[derive(Debug, Default)]
struct ProjectionCache {
    slots: HashMap<FrameCacheKey, ProjectionSlot>,
    /// Oldest first. Clients move forward, so the oldest projections are needed least.
    order: VecDeque<(FrameCacheKey, u64)>,
}

type ProjectionSlot = Arc<OnceLock<Result<ProjectedFrame, ViewError>>>;

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

/// The estimated overhead of one cached projection, in addition to its bytes.
const SLOT_BYTES: u64 = 256;

impl JournalViews {
    pub(crate) fn new(table: TableName, bytes_max: u64) -> JournalViews {
        let usage = ViewUsage {
            table,
            bytes: AtomicU64::new(0),
            bytes_max,
            struct_entries: AtomicU64::new(0),
            filtered_entries: AtomicU64::new(0),
            hex_cells: HexCells::default(),
        };
        JournalViews { views: Mutex::new(HashMap::new()), usage: Arc::new(usage) }
    }

    /// Returns the view of an encoding and a filter, without some columns. Returns `None` if the
    /// journal's own frames serve unchanged. `hidden_columns` must be sorted.
    pub(crate) fn get(
        &self,
        encoding: RowEncoding,
        predicates: &Arc<[Predicate]>,
        hidden_columns: &[String],
    ) -> Option<Arc<JournalView>> {
        if encoding == RowEncoding::PostgresBinary && predicates.is_empty() && hidden_columns.is_empty() {
            return None;
        }
        let key = (encoding, FilterKey::of(predicates), hidden_columns.to_vec());
        let mut views = self.views.lock();
        if let Some(view) = views.get(&key).and_then(Weak::upgrade) {
            return Some(view);
        }
        views.retain(|_, view| view.strong_count() > 0);
        let view = Arc::new(JournalView {
            encoding,
            predicates: predicates.clone(),
            hidden_columns: hidden_columns.to_vec(),
            bound: Mutex::new(None),
            cache: Mutex::new(ProjectionCache::default()),
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
        self.usage.bytes.load(Ordering::Relaxed)
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
    /// Returns an error if a predicate has no meaning for its column, or the key is hidden.
    pub(crate) fn selection(&self, schema: &Arc<Schema>) -> Result<Arc<RowSelection>, ViewError> {
        let mut bound = self.bound.lock();
        if let Some(known) = bound.as_ref().filter(|known| known.is_of(schema)) {
            return Ok(known.clone());
        }
        let selection = Arc::new(RowSelection::bind(&self.predicates, &self.hidden_columns, schema)?);
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
        self.shared(place, || {
            self.count(u64::from(frame.batch.count));
            let selection = self.selection(schema)?;
            match self.encoding {
                RowEncoding::Struct => self.warn_of_hex(|hex| structs::rows(frame, schema, &selection, hex)),
                RowEncoding::PostgresBinary => binary::rows(frame, schema, &selection),
            }
        })
    }

    /// Returns the projected changes of a journal's frame. The work may take long.
    fn changes(&self, changes: &FrameChanges<'_>) -> Result<ProjectedFrame, ViewError> {
        let make = || {
            self.count(u64::from(changes.frame.batch.count));
            match self.encoding {
                RowEncoding::Struct => self.warn_of_hex(|hex| structs::changes(changes, hex)),
                RowEncoding::PostgresBinary => binary::changes(changes),
            }
        };
        let last = changes.frame.header.last_sequence;
        match (changes.is_known_in_part(), changes.mode) {
            (false, EntryMode::Ordinary) => self.shared(FrameCacheKey::Journal(last), make),
            (false, EntryMode::Snapshot) => self.shared(FrameCacheKey::Snapshot(last), make),
            (true, _) | (_, EntryMode::Repeat) => make(),
        }
    }

    fn count(&self, entries: u64) {
        let counter = match self.encoding {
            RowEncoding::Struct => &self.usage.struct_entries,
            RowEncoding::PostgresBinary => &self.usage.filtered_entries,
        };
        counter.fetch_add(entries, Ordering::Relaxed);
    }

    /// Logs a warning about the first cell that is shown in hex. A metric counts all of them.
    fn warn_of_hex<T>(&self, show: impl FnOnce(&HexCells) -> T) -> T {
        let hex = &self.usage.hex_cells;
        let had_none = hex.count() == 0;
        let shown = show(hex);
        if let Some(error) = hex.first().filter(|_| had_none) {
            tracing::warn!(table = %self.usage.table, %error, "values that do not fit their type are sent in hex");
        }
        shown
    }

    /// Returns the cached projection, or makes it with `make`. Concurrent callers for the same
    /// place wait for the first one.
    fn shared(
        &self,
        place: FrameCacheKey,
        make: impl FnOnce() -> Result<ProjectedFrame, ViewError>,
    ) -> Result<ProjectedFrame, ViewError> {
        let slot = self.cache.lock().slots.entry(place).or_default().clone();
        let mut is_new = false;
        let projected = slot.get_or_init(|| {
            is_new = true;
            make()
        });
        if is_new {
            let bytes = SLOT_BYTES + projected.as_ref().map_or(0, |p| p.bytes.len() as u64);
            self.keep(place, bytes);
        }
        projected.clone()
    }

    fn keep(&self, place: FrameCacheKey, bytes: u64) {
        let mut cache = self.cache.lock();
        cache.order.push_back((place, bytes));
        let mut used = self.usage.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        while used > self.usage.bytes_max {
            let Some((oldest, bytes)) = cache.order.pop_front() else { return };
            cache.slots.remove(&oldest);
            used = self.usage.bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        }
    }
}

impl Drop for JournalView {
    fn drop(&mut self) {
        let bytes = self.cache.get_mut().order.iter().map(|(_, bytes)| bytes).sum();
        self.usage.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
