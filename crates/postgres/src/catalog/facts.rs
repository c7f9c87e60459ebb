use laredo_core::CommitMark;
use serde::Deserialize;

use super::definition::TableDefinition;

/// A table as the catalog describes it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct TableFacts {
    /// The definition of its rows. A copy stays valid as long as the definition is unchanged.
    pub(crate) definition: TableDefinition,
    /// The last transaction that changed the table's entry in `pg_class`.
    pub(crate) changed_by: u32,
    /// The last transaction that changed any entry that decides what the rows are.
    pub(crate) newest_change: u32,
    /// True if the table's entry counts rows. There were then rows when an index was built or
    /// statistics were collected. Also true if the table has no index that would show rows.
    pub(crate) counts_rows: bool,
    /// The facts that only decide whether the table may be followed.
    pub(crate) access: TableAccess,
}

/// The facts that decide whether our role may follow the table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct TableAccess {
    pub(crate) owner: String,
    /// True if our role has the owner's rights.
    pub(crate) owned: bool,
    /// True if our role has `USAGE` on the schema.
    pub(crate) usage: bool,
    pub(crate) select: bool,
    /// True if the publication sends partitions' changes as their root's. `None` if the publication
    /// does not exist.
    pub(crate) publication_via_root: Option<bool>,
    /// True if row-level security applies to our role.
    pub(crate) hides_rows: bool,
    /// True if the primary key is deferrable, so that PostgreSQL does not use it as a replica
    /// identity.
    pub(crate) deferrable_key: bool,
    /// The column sets of the unique indexes.
    pub(crate) unique: Vec<Option<Vec<String>>>,
}

impl TableFacts {
    /// Returns the transaction that truncated the table since it had the definition `older`, if
    /// nothing else can have changed its rows.
    ///
    /// That transaction was the last to change the table's entry. Rows that were rewritten before
    /// the truncate are gone. If the transaction rewrote the table after the truncate, or wrote it
    /// while it was unlogged, this shows. The toast table differs, or the entry counts rows.
    pub(crate) fn truncated_since(&self, older: &TableDefinition) -> Option<u32> {
        let newer = &self.definition;
        let (before, after) = (older.file, newer.file);
        let is_other = before.number != after.number;
        let is_all = is_other && older.with_file(after).difference(newer).is_none();
        let is_rewritten = before.toast != after.toast || self.counts_rows;
        (is_all && older.has_columns_of(newer) && !is_rewritten).then_some(self.changed_by)
    }

    /// Returns true if the definition was changed after `proven`, a commit in the database's
    /// history, or if no such commit is known. The database may then have been restored, and the
    /// change made again in another way.
    pub(crate) fn changed_after(&self, proven: CommitMark) -> bool {
        // Transaction IDs in the catalog are the lower 32 bits, and wrap around.
        const FIRST_NORMAL_XID: u32 = 3;
        let Some(CommitMark { xid, .. }) = proven.known() else { return true };
        let is_later = self.newest_change.wrapping_sub(xid.0 as u32).cast_signed() > 0;
        self.newest_change >= FIRST_NORMAL_XID && is_later
    }
}
