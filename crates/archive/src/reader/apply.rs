//! The application of an object's entries to a table.

use laredo_core::Checksum;
use laredo_values::{ArchivedChecksums, ProjectError};

use super::checked_table::CheckedTable;
use super::object::ObjectEntries;
use crate::format::{ArchivedChange, FormatError};

/// Adds a snapshot's rows to a table. Returns the table and its number of keys.
pub(super) fn fill(
    mut table: CheckedTable,
    entries: &mut ObjectEntries<'_>,
) -> Result<(CheckedTable, u64), FormatError> {
    while let Some(row) = entries.row()? {
        table.put(row)?;
    }
    let count = table.len() as u64;
    Ok((table, count))
}

/// The changes of a diff.
pub(super) struct ArchivedDiff(Vec<ArchivedChange>);

/// A digest of a diff's changes that does not depend on the format they were read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChangesDigest {
    pub(super) truncates: u64,
    rows: Checksum,
    gone: Checksum,
}

impl ArchivedDiff {
    pub(super) fn read(entries: &mut ObjectEntries<'_>) -> Result<ArchivedDiff, FormatError> {
        let mut changes = Vec::new();
        while let Some(change) = entries.change()? {
            changes.push(change);
        }
        Ok(ArchivedDiff(changes))
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// Returns the digest of the changes.
    ///
    /// # Errors
    /// If a row has a value that is invalid for its column.
    pub(super) fn digest(&self, sums: &ArchivedChecksums) -> Result<ChangesDigest, ProjectError> {
        let mut digest = ChangesDigest::default();
        for change in &self.0 {
            match change {
                ArchivedChange::Truncate => digest.truncates += 1,
                ArchivedChange::Put(row) => digest.rows = digest.rows.plus(sums.of_row(row.as_ref())?),
                ArchivedChange::Move { from, to } => {
                    digest.rows = digest.rows.plus(sums.of_row(to.as_ref())?);
                    digest.gone = digest.gone.plus(sums.of_row(from.as_ref())?);
                }
                ArchivedChange::Delete(row) => digest.gone = digest.gone.plus(sums.of_row(row.as_ref())?),
            }
        }
        Ok(digest)
    }

    /// Applies the changes to a table.
    ///
    /// Other writers may put the changes in any order, with one for each key. A TRUNCATE therefore
    /// applies before all others, wherever it is in the diff. An update may move a row to another
    /// key, which laredo's own diffs never do. All such old rows are removed first, because another
    /// row may take their key.
    ///
    /// # Errors
    /// If a row has a value that is invalid for its column.
    pub(super) fn apply_to(self, mut table: CheckedTable) -> Result<CheckedTable, ProjectError> {
        if self.0.contains(&ArchivedChange::Truncate) {
            table.clear();
        }
        for change in &self.0 {
            if let ArchivedChange::Move { from, .. } = change {
                table.remove(from)?;
            }
        }
        for change in self.0 {
            match change {
                ArchivedChange::Truncate => {}
                ArchivedChange::Put(row) | ArchivedChange::Move { to: row, .. } => table.put(row)?,
                ArchivedChange::Delete(row) => table.remove(&row)?,
            }
        }
        Ok(table)
    }
}
