//! Secondary indexes: rows by the values of some columns.

use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::StateError;
use crate::key::{Key, KeyColumns};
use crate::schema::Schema;
use crate::tuple::{Tuple, TupleRef};

/// The definition of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSpec {
    /// The index's name, for look-ups.
    pub name: String,
    /// The columns, in the order in which look-ups give their values.
    pub columns: Vec<String>,
    /// True if at most one row per key is expected. This is not enforced, because PostgreSQL may
    /// pass through a duplicate inside a transaction (deferred constraints). Duplicates are only
    /// counted ([`Index::duplicates`]).
    pub unique: bool,
}

/// Rows by the values of some columns. NULLs are values like any other here.
#[derive(Clone, Debug)]
pub struct Index {
    spec: Arc<IndexSpec>,
    columns: KeyColumns,
    hasher: RandomState,
    groups: HashTable<IndexGroup>,
}

/// The rows with one index key. Several rows are kept in a table by primary key, so that removing
/// one of a million needs no scan.
#[derive(Clone, Debug)]
enum IndexGroup {
    One(Tuple),
    Many(HashTable<Tuple>),
}

impl IndexGroup {
    fn any(&self) -> &Tuple {
        match self {
            IndexGroup::One(row) => row,
            IndexGroup::Many(rows) => rows.iter().next().expect("a group holds at least one row"),
        }
    }
}

impl Index {
    pub(super) fn new(spec: IndexSpec, schema: &Schema, hasher: RandomState) -> Result<Index, StateError> {
        let columns = schema
            .positions_of(&spec.columns)
            .map_err(|column| StateError::IndexColumn { index: spec.name.clone(), column })?;
        Ok(Index { spec: Arc::new(spec), columns, hasher, groups: HashTable::new() })
    }

    /// Returns the index's definition.
    #[must_use]
    pub fn spec(&self) -> &IndexSpec {
        &self.spec
    }

    /// Returns the columns, by their numbers in the schema.
    #[must_use]
    pub fn columns(&self) -> &KeyColumns {
        &self.columns
    }

    /// Returns the number of distinct keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Returns true if the index has no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns the rows whose columns have these values, in no particular order.
    pub fn rows<'a>(&'a self, key: &Key) -> impl Iterator<Item = &'a Tuple> + use<'a> {
        let hash = KeyColumns::hash_key(&self.hasher, key.as_ref());
        let group = self.groups.find(hash, |g| self.columns.row_has_key(g.any().as_ref(), key.as_ref()));
        let (one, many) = match group {
            None => (None, None),
            Some(IndexGroup::One(row)) => (Some(row), None),
            Some(IndexGroup::Many(rows)) => (None, Some(rows.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(super) fn clear(&mut self) {
        self.groups = HashTable::new();
    }

    /// Returns the number of keys that more than one row has, which a unique index should not have.
    /// Keys with NULLs are not counted.
    #[must_use]
    pub fn duplicates(&self) -> usize {
        let crowded = |g: &&IndexGroup| match g {
            IndexGroup::One(_) => false,
            IndexGroup::Many(rows) => {
                rows.len() > 1 && self.columns.cells_of(g.any().as_ref()).all(|cell| cell.value().is_some())
            }
        };
        self.groups.iter().filter(crowded).count()
    }

    pub(super) fn replace(&mut self, primary: &KeyColumns, old: Option<&Tuple>, new: Option<&Tuple>) {
        if let Some(old) = old {
            self.remove(primary, old.as_ref());
        }
        if let Some(new) = new {
            self.insert(primary, new);
        }
    }

    fn insert(&mut self, primary: &KeyColumns, row: &Tuple) {
        let (columns, hasher) = (&self.columns, &self.hasher);
        let hash = columns.hash_row(hasher, row.as_ref());
        let same = |g: &IndexGroup| columns.same_key(g.any().as_ref(), row.as_ref());
        let rehash = |g: &IndexGroup| columns.hash_row(hasher, g.any().as_ref());
        match self.groups.entry(hash, same, rehash) {
            Entry::Vacant(entry) => {
                entry.insert(IndexGroup::One(row.clone()));
            }
            Entry::Occupied(mut entry) => {
                let by_key = |r: &Tuple| primary.hash_row(hasher, r.as_ref());
                let group = entry.get_mut();
                if let IndexGroup::One(first) = group {
                    let mut rows = HashTable::with_capacity(2);
                    rows.insert_unique(by_key(first), first.clone(), by_key);
                    *group = IndexGroup::Many(rows);
                }
                if let IndexGroup::Many(rows) = group {
                    rows.insert_unique(by_key(row), row.clone(), by_key);
                }
            }
        }
    }

    fn remove(&mut self, primary: &KeyColumns, row: TupleRef<'_>) {
        let (columns, hasher) = (&self.columns, &self.hasher);
        let hash = columns.hash_row(hasher, row);
        let Ok(mut entry) = self.groups.find_entry(hash, |g| columns.same_key(g.any().as_ref(), row)) else {
            return;
        };
        let emptied = match entry.get_mut() {
            IndexGroup::One(_) => true,
            IndexGroup::Many(rows) => {
                let by_key = primary.hash_row(hasher, row);
                if let Ok(found) = rows.find_entry(by_key, |r| primary.same_key(r.as_ref(), row)) {
                    found.remove();
                }
                rows.is_empty()
            }
        };
        if emptied {
            entry.remove();
        }
    }
}
