//! A table's rows and indexes, with one writer.

use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::change::{Change, RowEffect, Transaction};
use crate::checksum::{CHECKSUM_BUCKETS, Checksum, ChecksumBuckets};
use crate::key::{Key, KeyColumns};
use crate::schema::{RowCast, Schema};
use crate::tuple::{Tuple, TupleRef};

mod index;

pub use index::{Index, IndexSpec};

/// All rows of a table by key, and the table's secondary indexes.
///
/// The same code runs in the server, in every client, in the archive and in the tests' oracle. It
/// has one writer and is not synchronized. A caller that needs concurrent readers wraps it.
#[derive(Clone, Debug)]
pub struct TableState {
    schema: Arc<Schema>,
    hasher: RandomState,
    rows: HashTable<Tuple>,
    indexes: Vec<Index>,
    row_bytes: u64,
    /// The number of times that rows may have moved to other buckets.
    layout: u64,
    sums: ChecksumBuckets,
}

/// An error for a change that does not fit the state. The state no longer matches the table, which
/// must be copied again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// An insert of a key that already exists.
    #[error("the key of an inserted row already exists")]
    KeyExists,
    /// An update or delete of a key that does not exist.
    #[error("a row to update or delete does not exist")]
    KeyMissing,
    /// An index on a column that the table does not have.
    #[error("index `{index}` needs column `{column}`, which the table does not have")]
    IndexColumn {
        /// The index's name.
        index: String,
        /// The missing column.
        column: String,
    },
}

impl TableState {
    /// Returns an empty state with room for `capacity` rows.
    ///
    /// # Errors
    /// Returns an error if an index names a column that the schema lacks.
    pub fn new(schema: Arc<Schema>, specs: &[IndexSpec], capacity: usize) -> Result<TableState, StateError> {
        let hasher = RandomState::default();
        let indexes =
            specs.iter().map(|spec| Index::new(spec.clone(), &schema, hasher.clone())).collect::<Result<_, _>>()?;
        let (rows, sums) = (HashTable::with_capacity(capacity), ChecksumBuckets::default());
        Ok(TableState { schema, hasher, rows, indexes, row_bytes: 0, layout: 0, sums })
    }

    /// Returns the schema of the rows.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns true if there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the size of all rows in bytes: the cells with their length prefixes.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    /// Returns the checksum of all rows, which every change keeps current.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.sums.total()
    }

    /// Returns the checksums of the rows in each bucket of keys. They show where two tables differ.
    #[must_use]
    pub fn bucket_checksums(&self) -> [Checksum; CHECKSUM_BUCKETS] {
        self.sums.buckets()
    }

    /// Returns an iterator over all rows, in no particular order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &Tuple> {
        self.rows.iter()
    }

    /// Returns the number of hash buckets, including empty ones.
    #[must_use]
    pub fn buckets(&self) -> usize {
        self.rows.num_buckets()
    }

    /// Returns the rows of a range of buckets, for iterations that are interrupted by changes. A
    /// row that remains in the table keeps its bucket as long as [`TableState::layout`] does not
    /// change.
    pub fn rows_in(&self, buckets: Range<usize>) -> impl Iterator<Item = &Tuple> {
        buckets.filter_map(|bucket| self.rows.get_bucket(bucket))
    }

    /// Returns a number that grows whenever rows may have moved to other buckets.
    #[must_use]
    pub fn layout(&self) -> u64 {
        self.layout
    }

    /// Returns the row with this key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Tuple> {
        self.get_by_cells(key.as_ref())
    }

    /// Returns the row with a key that is given as a row of key cells.
    #[must_use]
    pub fn get_by_cells(&self, key: TupleRef<'_>) -> Option<&Tuple> {
        let hash = KeyColumns::hash_key(&self.hasher, key);
        self.rows.find(hash, |row| self.schema.key().row_has_key(row.as_ref(), key))
    }

    /// Returns the row that has the same key as this whole row.
    #[must_use]
    pub fn get_like(&self, row: TupleRef<'_>) -> Option<&Tuple> {
        let key = self.schema.key();
        self.rows.find(key.hash_row(&self.hasher, row), |other| key.same_key(other.as_ref(), row))
    }

    /// Returns an index by its name.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<&Index> {
        self.indexes.iter().find(|index| index.spec().name == name)
    }

    /// Returns all indexes.
    #[must_use]
    pub fn indexes(&self) -> &[Index] {
        &self.indexes
    }

    /// Applies a whole transaction.
    ///
    /// # Errors
    /// Returns an error if a change does not fit. The changes before it have been applied, so the
    /// state must be discarded.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<(), StateError> {
        transaction.changes.iter().try_for_each(|change| self.apply_change(change).map(drop))
    }

    /// Applies one change and returns its effect.
    ///
    /// # Errors
    /// Returns an error if the change does not fit. An insert or update has stored its row
    /// nevertheless.
    pub fn apply_change(&mut self, change: &Change) -> Result<RowEffect, StateError> {
        match change {
            Change::Insert(row) => match self.put(row.clone()) {
                None => Ok(RowEffect { old: None, new: Some(row.clone()) }),
                Some(_) => Err(StateError::KeyExists),
            },
            Change::Update(row) => match self.put(row.clone()) {
                None => Err(StateError::KeyMissing),
                old => Ok(RowEffect { old, new: Some(row.clone()) }),
            },
            Change::Delete(key) => {
                let old = self.remove(key.as_ref()).ok_or(StateError::KeyMissing)?;
                Ok(RowEffect { old: Some(old), new: None })
            }
            Change::Truncate => {
                self.clear();
                Ok(RowEffect { old: None, new: None })
            }
            Change::Schema(schema) => {
                self.cast_to(schema.clone())?;
                Ok(RowEffect { old: None, new: None })
            }
        }
    }

    /// Stores a row and returns the row with the same key that it replaces.
    pub fn put(&mut self, row: Tuple) -> Option<Tuple> {
        let key = self.schema.key();
        let hash = key.hash_row(&self.hasher, row.as_ref());
        self.row_bytes += row.len() as u64;
        let old = match self.rows.find_mut(hash, |other| key.same_key(other.as_ref(), row.as_ref())) {
            Some(place) => Some(std::mem::replace(place, row.clone())),
            None => {
                let rehash = |other: &Tuple| key.hash_row(&self.hasher, other.as_ref());
                // A hash table without free capacity grows, or rehashes its rows in place.
                self.layout += u64::from(self.rows.len() == self.rows.capacity());
                self.rows.insert_unique(hash, row.clone(), rehash);
                None
            }
        };
        self.row_bytes -= old.as_ref().map_or(0, |old| old.len() as u64);
        self.sums.replace(key, old.as_ref().map(Tuple::as_ref), Some(row.as_ref()));
        for index in &mut self.indexes {
            index.replace(key, old.as_ref(), Some(&row));
        }
        old
    }

    /// Removes the row of a key and returns it.
    pub fn remove(&mut self, key: TupleRef<'_>) -> Option<Tuple> {
        let columns = self.schema.key();
        let hash = KeyColumns::hash_key(&self.hasher, key);
        let entry = self.rows.find_entry(hash, |row| columns.row_has_key(row.as_ref(), key)).ok()?;
        let old = entry.remove().0;
        self.row_bytes -= old.len() as u64;
        self.sums.replace(columns, Some(old.as_ref()), None);
        for index in &mut self.indexes {
            index.replace(columns, Some(&old), None);
        }
        Some(old)
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.rows = HashTable::new();
        self.layout += 1;
        self.row_bytes = 0;
        self.sums.clear();
        self.indexes.iter_mut().for_each(Index::clear);
    }

    /// Casts every row to another schema.
    ///
    /// # Errors
    /// Returns an error if an index needs a column that is gone, or two rows have the same key
    /// under the new schema.
    pub fn cast_to(&mut self, schema: Arc<Schema>) -> Result<(), StateError> {
        let cast = RowCast::new(&self.schema, &schema);
        let specs: Vec<IndexSpec> = self.indexes.iter().map(|index| index.spec().clone()).collect();
        let mut next = TableState::new(schema, &specs, self.len())?;
        next.layout = self.layout + 1;
        for row in std::mem::take(&mut self.rows) {
            if next.put(cast.apply(row.as_ref()).as_ref().to_tuple()).is_some() {
                return Err(StateError::KeyExists);
            }
        }
        *self = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::schema::Column;
    use crate::tuple::{Cell, TupleBuf};

    /// Returns a schema of text columns whose key is the second column, so that no key is a prefix
    /// of its row.
    fn schema(names: &[&str]) -> Arc<Schema> {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            type_oid: 25,
            type_modifier: -1,
            type_name: "text".to_owned(),
            not_null: false,
            is_text: false,
        };
        Arc::new(Schema::new(names.iter().map(column).collect(), KeyColumns::new([1]), BTreeMap::new()))
    }

    fn row(id: u8, body: u8) -> Tuple {
        let cells = [Cell::Value(&[b'a' + body]), Cell::Value(&[id]), Cell::Null];
        cells.into_iter().collect::<TupleBuf>().as_ref().to_tuple()
    }

    /// Returns a state with the same rows, inserted one by one in another order.
    fn again(state: &TableState) -> TableState {
        let mut other = TableState::new(state.schema().clone(), &[], 0).unwrap();
        let mut rows: Vec<&Tuple> = state.rows().collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.as_ref().bytes()));
        rows.into_iter().for_each(|row| drop(other.put(row.clone())));
        other
    }

    proptest! {
        /// The checksum depends only on the rows, and not on the changes that led to them. A cell
        /// more or less changes it.
        #[test]
        fn the_checksum_is_that_of_the_rows(steps in prop::collection::vec((0..12_u8, 0..4_u8, 0..40_u8), 0..80)) {
            let mut state = TableState::new(schema(&["a", "id", "c"]), &[], 0).unwrap();
            for (id, body, kind) in steps {
                match kind {
                    0 => state.clear(),
                    1 => state.cast_to(schema(&["a", "id", "d", "e"])).unwrap(),
                    2 => state.cast_to(schema(&["a", "id", "c"])).unwrap(),
                    3..15 => drop(state.remove(state.schema().key().key_of(row(id, 0).as_ref()).as_ref())),
                    _ if state.schema().columns().len() == 3 => drop(state.put(row(id, body))),
                    _ => {}
                }
                let other = again(&state);
                prop_assert_eq!((state.checksum(), state.len()), (other.checksum(), other.len()));
                prop_assert_eq!(state.bucket_checksums(), other.bucket_checksums());
                let sum = state.rows().fold(Checksum::default(), |sum, row| sum.plus(Checksum::of_row(row.as_ref())));
                prop_assert_eq!(state.checksum(), sum);
            }
            let whole = state.clone();
            state.put(row(99, 0));
            prop_assert_ne!(state.checksum(), whole.checksum(), "an extra row");
            let differ = std::iter::zip(state.bucket_checksums(), whole.bucket_checksums());
            prop_assert_eq!(differ.filter(|(one, other)| one != other).count(), 1);
        }
    }
}
