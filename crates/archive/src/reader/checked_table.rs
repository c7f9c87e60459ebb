//! A table that is being rebuilt, with the checksum of its rows as archives compute it.

use std::sync::Arc;

use laredo_core::{Checksum, Schema, TableState, Tuple};
use laredo_values::{ArchivedChecksums, ProjectError};

/// A table with the checksum of its rows.
pub(super) struct CheckedTable {
    table: TableState,
    sums: ArchivedChecksums,
    /// The checksum, maintained only if it differs from the table's own.
    sum: Checksum,
}

impl CheckedTable {
    pub(super) fn new(schema: Arc<Schema>) -> CheckedTable {
        let sums = ArchivedChecksums::new(schema.clone());
        // A schema without indexes cannot lack an index's column.
        let table = TableState::new(schema, &[], 0).expect("there are no indexes");
        CheckedTable { table, sums, sum: Checksum::default() }
    }

    pub(super) fn schema(&self) -> &Arc<Schema> {
        self.table.schema()
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn checksum(&self) -> Checksum {
        if self.sums.are_of_bytes() { self.table.checksum() } else { self.sum }
    }

    pub(super) fn into_table(self) -> TableState {
        self.table
    }

    pub(super) fn put(&mut self, row: Tuple) -> Result<(), ProjectError> {
        let old = self.table.put(row.clone());
        self.moved(old.as_ref(), Some(&row))
    }

    /// Removes the row with the same key, if there is one.
    pub(super) fn remove(&mut self, like: &Tuple) -> Result<(), ProjectError> {
        let key = self.table.schema().key().key_of(like.as_ref());
        let old = self.table.remove(key.as_ref());
        self.moved(old.as_ref(), None)
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.sum = Checksum::default();
    }

    fn moved(&mut self, old: Option<&Tuple>, new: Option<&Tuple>) -> Result<(), ProjectError> {
        if !self.sums.are_of_bytes() {
            let of = |row: Option<&Tuple>| row.map_or(Ok(Checksum::default()), |row| self.sums.of_row(row.as_ref()));
            self.sum = self.sum.plus(of(new)?).minus(of(old)?);
        }
        Ok(())
    }
}
