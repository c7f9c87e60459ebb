//! The rows of a table by key and by secondary indexes, in persistent maps. A copy of all rows
//! costs as much as a copy of a few pointers.

use std::ops::Bound;
use std::sync::Arc;

use laredo_core::{Cell, KeyColumns, RowCast, Schema, StateError, Tuple, TupleBuf, TupleRef};
use laredo_engine::journal::{self, BatchFrame, JournalPiece};
use laredo_proto::batch::{BatchEntries, BatchEntry, BatchError, EntryAction};
use laredo_proto::schema::SchemaError;
use laredo_values::{LookupColumns, LookupValueError, Value};
use rpds::RedBlackTreeMapSync;

use crate::options::QueryIndexOptions;

/// All rows of a table. A clone shares them.
#[derive(Clone, Debug)]
pub(crate) struct QueryRows {
    schema: Arc<Schema>,
    primary: KeyedRows,
    indexes: Vec<QueryIndex>,
    row_bytes: u64,
}

/// A secondary index, or the reason why the table cannot have it.
#[derive(Clone, Debug)]
pub(crate) struct QueryIndex {
    pub(crate) options: Arc<QueryIndexOptions>,
    pub(crate) rows: Result<KeyedRows, Arc<str>>,
}

/// The rows in the order of the values of some columns, and then of the table's key.
#[derive(Clone, Debug)]
pub(crate) struct KeyedRows {
    columns: Arc<OrderColumns>,
    rows: RedBlackTreeMapSync<Box<[u8]>, Tuple>,
}

/// The columns of an order.
#[derive(Debug)]
struct OrderColumns {
    numbers: KeyColumns,
    /// The form in which the columns are compared, or the reason why they cannot be.
    lookup: Result<LookupColumns, String>,
    /// True if the cells of the table's key follow, because rows may have equal values.
    adds_key: bool,
}

/// The reason why rows cannot be looked up by some values.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupProblem {
    #[error("{0}")]
    Incomparable(String),
    #[error(transparent)]
    Value(#[from] LookupValueError),
}

/// An error for a journal that does not fit the rows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryRowsError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("reading the journal: {0}")]
    Batch(#[from] BatchError),
    #[error("reading the journal: {0}")]
    Schema(#[from] SchemaError),
    #[error("reading the journal: it contains bytes that are not a frame")]
    Frame,
}

impl QueryRows {
    /// Returns no rows, with their indexes.
    pub(crate) fn new(schema: Arc<Schema>, indexes: &[Arc<QueryIndexOptions>]) -> QueryRows {
        let primary = KeyedRows::primary(&schema);
        let index = |options: &Arc<QueryIndexOptions>| QueryIndex {
            options: options.clone(),
            rows: KeyedRows::secondary(&schema, &options.fields),
        };
        let indexes = indexes.iter().map(index).collect();
        QueryRows { schema, primary, indexes, row_bytes: 0 }
    }

    pub(crate) fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Returns the rows in the order of the table's key.
    pub(crate) fn primary(&self) -> &KeyedRows {
        &self.primary
    }

    pub(crate) fn indexes(&self) -> &[QueryIndex] {
        &self.indexes
    }

    /// Returns the index with this name.
    pub(crate) fn index(&self, name: &str) -> Option<&QueryIndex> {
        self.indexes.iter().find(|index| index.options.name == name)
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.primary.rows.size()
    }

    /// Returns the size of all rows in bytes, each once.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    /// Applies the changes of a piece of the journal.
    ///
    /// # Errors
    /// Returns an error if the piece is damaged or does not fit. The rows are then unusable.
    pub(super) fn apply_piece(&mut self, piece: JournalPiece) -> Result<(), QueryRowsError> {
        let mut read = 0;
        let length = piece.frames.len();
        for frame in journal::frames(piece.frames) {
            read += frame.length;
            self.apply_frame(&frame, piece.after)?;
        }
        if read == length { Ok(()) } else { Err(QueryRowsError::Frame) }
    }

    /// Applies the entries of a frame that come after a sequence.
    fn apply_frame(&mut self, frame: &BatchFrame, after: laredo_core::Sequence) -> Result<(), QueryRowsError> {
        let mut sequence = frame.first();
        if let Some(schema) = frame.batch.schema.clone() {
            if sequence > after {
                self.cast_to(Arc::new(laredo_proto::schema::from_wire(schema)?))?;
            }
            sequence = sequence.plus(1);
        }
        let schema = self.schema.clone();
        for entry in BatchEntries::new(&frame.batch.entries, &schema) {
            let entry = entry?;
            if sequence > after {
                self.apply_entry(&entry)?;
            }
            sequence = sequence.plus(1);
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: &BatchEntry<'_>) -> Result<(), StateError> {
        match entry.action {
            EntryAction::Insert => match self.put(entry.row) {
                None => Ok(()),
                Some(_) => Err(StateError::KeyExists),
            },
            EntryAction::Update => self.put(entry.row).map(drop).ok_or(StateError::KeyMissing),
            EntryAction::Delete => self.remove(entry.row),
            EntryAction::Truncate => {
                self.clear();
                Ok(())
            }
        }
    }

    /// Stores a row and returns the row with the same key that it replaces.
    pub(super) fn put(&mut self, row: TupleRef<'_>) -> Option<Tuple> {
        let key_columns = self.schema.key();
        let key = self.primary.entry_key(row, key_columns);
        let old = self.primary.rows.get(&*key).cloned();
        let row = row.to_tuple();
        for index in self.indexes.iter_mut().filter_map(|index| index.rows.as_mut().ok()) {
            let new_key = index.entry_key(row.as_ref(), key_columns);
            if let Some(old_key) = old.as_ref().map(|old| index.entry_key(old.as_ref(), key_columns))
                && old_key != new_key
            {
                index.rows.remove_mut(&*old_key);
            }
            index.rows.insert_mut(new_key, row.clone());
        }
        self.row_bytes += row.len() as u64;
        self.row_bytes -= old.as_ref().map_or(0, |old| old.len() as u64);
        self.primary.rows.insert_mut(key, row);
        old
    }

    /// Removes the row of a key, which is given as a row of the key's cells.
    pub(super) fn remove(&mut self, key: TupleRef<'_>) -> Result<(), StateError> {
        let key = self.primary.columns.key_of(key.cells(), key.cells());
        let old = self.primary.rows.get(&*key).cloned().ok_or(StateError::KeyMissing)?;
        self.primary.rows.remove_mut(&*key);
        for index in self.indexes.iter_mut().filter_map(|index| index.rows.as_mut().ok()) {
            let key = index.entry_key(old.as_ref(), self.schema.key());
            index.rows.remove_mut(&*key);
        }
        self.row_bytes -= old.len() as u64;
        Ok(())
    }

    fn clear(&mut self) {
        self.primary.rows = RedBlackTreeMapSync::new_sync();
        for index in self.indexes.iter_mut().filter_map(|index| index.rows.as_mut().ok()) {
            index.rows = RedBlackTreeMapSync::new_sync();
        }
        self.row_bytes = 0;
    }

    /// Casts every row to another schema.
    fn cast_to(&mut self, schema: Arc<Schema>) -> Result<(), StateError> {
        let cast = RowCast::new(&self.schema, &schema);
        let options: Vec<_> = self.indexes.iter().map(|index| index.options.clone()).collect();
        let mut next = QueryRows::new(schema, &options);
        for (_, row) in self.primary.rows.iter() {
            if next.put(cast.apply(row.as_ref()).as_ref()).is_some() {
                return Err(StateError::KeyExists);
            }
        }
        *self = next;
        Ok(())
    }
}

impl KeyedRows {
    /// Returns no rows, in the order of the table's key.
    fn primary(schema: &Schema) -> KeyedRows {
        let numbers = schema.key().clone();
        let lookup = LookupColumns::bind(schema, numbers.columns()).map_err(|error| error.to_string());
        // Different keys may be equal by SQL's `=`, such as 1.0 and 1.00.
        let adds_key = lookup.as_ref().is_ok_and(|lookup| !lookup.are_canonical());
        KeyedRows::with(OrderColumns { numbers, lookup, adds_key })
    }

    /// Returns no rows, in the order of an index.
    fn secondary(schema: &Schema, fields: &[String]) -> Result<KeyedRows, Arc<str>> {
        let numbers = schema.positions_of(fields).map_err(|column| format!("the table has no column `{column}`"))?;
        let lookup = LookupColumns::bind(schema, numbers.columns()).map_err(|error| error.to_string())?;
        Ok(KeyedRows::with(OrderColumns { numbers, lookup: Ok(lookup), adds_key: true }))
    }

    fn with(columns: OrderColumns) -> KeyedRows {
        KeyedRows { columns: Arc::new(columns), rows: RedBlackTreeMapSync::new_sync() }
    }

    /// Returns the number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.size()
    }

    /// Returns the rows whose columns have these values, in the order of the table's key.
    ///
    /// # Errors
    /// Returns an error if the values do not fit the columns, or those cannot be compared.
    pub(crate) fn find(&self, values: &[Value]) -> Result<impl Iterator<Item = &Tuple>, LookupProblem> {
        let lookup = self.columns.lookup.as_ref().map_err(|problem| LookupProblem::Incomparable(problem.clone()))?;
        let key = lookup.key_of_values(values)?;
        // Without the cells of the table's key, an entry is found without a search for its range.
        let (one, prefix) = match self.columns.adds_key {
            false => (self.rows.get(key.as_slice()), None),
            true => (None, Some(key.into_boxed_slice())),
        };
        let many = prefix.map(|prefix| {
            let entries = self.rows.range((Bound::Included(prefix.clone()), Bound::Unbounded));
            entries.take_while(move |(key, _)| key.starts_with(&prefix)).map(|(_, row)| row)
        });
        Ok(one.into_iter().chain(many.into_iter().flatten()))
    }

    /// Returns the entries after a key, or all of them.
    pub(crate) fn entries_after(&self, key: Option<&[u8]>) -> impl Iterator<Item = (&[u8], &Tuple)> {
        let from: Bound<Box<[u8]>> = key.map_or(Bound::Unbounded, |key| Bound::Excluded(key.into()));
        self.rows.range((from, Bound::Unbounded)).map(|(key, row)| (&**key, row))
    }

    /// Returns all rows.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tuple> {
        self.rows.values()
    }

    fn entry_key(&self, row: TupleRef<'_>, key: &KeyColumns) -> Box<[u8]> {
        self.columns.key_of(self.columns.numbers.cells_of(row), key.cells_of(row))
    }
}

impl OrderColumns {
    /// Returns the key of an entry, from the cells of the columns and those of the table's key.
    fn key_of<'a>(&self, cells: impl Iterator<Item = Cell<'a>>, key: impl Iterator<Item = Cell<'a>>) -> Box<[u8]> {
        let mut entry = Vec::new();
        let adds_key = match &self.lookup {
            Ok(lookup) => {
                lookup.push_cells(cells, &mut entry);
                self.adds_key
            }
            Err(_) => true,
        };
        if adds_key {
            let key: TupleBuf = key.collect();
            entry.extend_from_slice(key.as_ref().bytes());
        }
        entry.into()
    }
}
