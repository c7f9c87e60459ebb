//! Rows of an unfinished transaction that share their key with another row.

use std::collections::HashMap;

use laredo_core::{Key, Tuple};

/// A row whose key another row has in the state.
#[derive(Debug)]
pub(super) struct DisplacedRow {
    pub(super) row: Tuple,
    /// True if the source sent every value of the row.
    pub(super) is_whole: bool,
}

/// The place of a row while a transaction is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowLocation {
    /// The row is in the state.
    State,
    /// The row has this number among the rows that are displaced from its key.
    Displaced(usize),
}

/// The rows that are not in the state until the row that has their key is removed. Empty unless a
/// deferrable key is violated at the moment.
#[derive(Debug, Default)]
pub(super) struct DisplacedRows(HashMap<Key, Vec<DisplacedRow>>);

impl DisplacedRows {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if a row is displaced from this key.
    pub(super) fn has(&self, key: &Key) -> bool {
        !self.0.is_empty() && self.0.contains_key(key)
    }

    pub(super) fn push(&mut self, key: Key, row: DisplacedRow) {
        self.0.entry(key).or_default().push(row);
    }

    /// Returns the number of the first row of a key that meets a condition.
    pub(super) fn position(&self, key: &Key, is_it: impl Fn(&Tuple) -> bool) -> Option<usize> {
        self.0.get(key)?.iter().position(|displaced| is_it(&displaced.row))
    }

    pub(super) fn get(&self, key: &Key, at: usize) -> Option<&Tuple> {
        self.0.get(key)?.get(at).map(|displaced| &displaced.row)
    }

    /// Removes the row of this number.
    pub(super) fn remove(&mut self, key: &Key, at: usize) -> Option<DisplacedRow> {
        let rows = self.0.get_mut(key)?;
        let removed = (at < rows.len()).then(|| rows.remove(at));
        if rows.is_empty() {
            self.0.remove(key);
        }
        removed
    }

    /// Removes the first row of a key.
    pub(super) fn pop(&mut self, key: &Key) -> Option<DisplacedRow> {
        if self.0.is_empty() { None } else { self.remove(key, 0) }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
