//! A consistent view of the table.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laredo_core::{CommitTime, Index, Key, Lsn, Schema};

use crate::key::{self, KeyError, KeyValues};
use crate::publish::{ReplicaTable, ViewHold};
use crate::row::RowRef;

/// The name of the index over the lookup columns.
pub(crate) const LOOKUP: &str = "lookup";

/// The rows and all indexes of the table as they were at one commit, for as long as the view is
/// held.
///
/// Taking a view takes no lock and copies nothing. While a view is held, the replica can show one
/// newer state and then must wait. So keep rows ([`RowRef::to_row`]) instead of views.
pub struct View<'a> {
    hold: ViewHold<'a>,
    at_head: Option<Instant>,
    now: &'a (dyn Fn() -> Instant + Send + Sync),
}

/// An iterator over the rows of one index key.
pub struct IndexRows<'a>(Box<dyn Iterator<Item = RowRef<'a>> + 'a>);

impl<'a> Iterator for IndexRows<'a> {
    type Item = RowRef<'a>;

    fn next(&mut self) -> Option<RowRef<'a>> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<'a> View<'a> {
    pub(crate) fn new(
        hold: ViewHold<'a>,
        at_head: Option<Instant>,
        now: &'a (dyn Fn() -> Instant + Send + Sync),
    ) -> View<'a> {
        View { hold, at_head, now }
    }

    /// Returns the row of a primary key, with its values in key order.
    ///
    /// Before the first snapshot ([`View::is_loaded`]) there are no rows, and keys are not checked.
    ///
    /// # Errors
    /// When the values do not fit the table's key, for example a text for a column of integers.
    pub fn get(&self, key: impl KeyValues) -> Result<Option<RowRef<'_>>, KeyError> {
        let side = self.side();
        let Some(table) = &side.table else { return Ok(None) };
        let key = key::encode(&key, table.schema().key(), &side.layout)?;
        Ok(table.get_by_cells(key.as_ref()).map(|row| RowRef::new(row, &side.layout)))
    }

    /// Returns the row with these values of the lookup columns ([`crate::ReplicaBuilder::lookup`]).
    ///
    /// # Errors
    /// When no lookup columns were declared, or the values do not fit them.
    pub fn lookup(&self, values: impl KeyValues) -> Result<Option<RowRef<'_>>, KeyError> {
        Ok(self.index_rows(LOOKUP, &values)?.next())
    }

    /// Returns the rows with these values of an index's columns, in no particular order.
    ///
    /// # Errors
    /// When there is no such index, or the values do not fit its columns.
    pub fn index(&self, name: &str, values: impl KeyValues) -> Result<IndexRows<'_>, KeyError> {
        Ok(IndexRows(Box::new(self.index_rows(name, &values)?)))
    }

    fn index_rows(
        &self,
        name: &str,
        values: &dyn KeyValues,
    ) -> Result<impl Iterator<Item = RowRef<'_>> + use<'_>, KeyError> {
        let side = self.side();
        let found = match &side.table {
            None => None,
            Some(table) => {
                let index = table.index(name).ok_or_else(|| KeyError::NoIndex(name.to_owned()))?;
                let cells = key::encode(values, index.columns(), &side.layout)?;
                Some((index, Key::from_tuple(cells.as_ref().to_tuple())))
            }
        };
        let rows = found.map(|(index, key): (&Index, Key)| index.rows(&key));
        Ok(rows.into_iter().flatten().map(|row| RowRef::new(row, &side.layout)))
    }

    /// Returns all rows, in no particular order.
    pub fn rows(&self) -> impl Iterator<Item = RowRef<'_>> {
        let side = self.side();
        let rows = side.table.iter().flat_map(|table| table.rows());
        rows.map(|row| RowRef::new(row, &side.layout))
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.side().table.as_ref().map_or(0, laredo_core::TableState::len)
    }

    /// Returns true if there are no rows. This is also true before the first snapshot
    /// ([`View::is_loaded`]).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns true if the table is loaded. It is false only before the first snapshot is complete.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.side().table.is_some()
    }

    /// Returns the position of this state. Every commit up to here is in it, and no later one.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.side().position
    }

    /// Returns the commit time of the newest transaction in this state, by the database's clock.
    /// `None` while all rows are from a snapshot.
    #[must_use]
    pub fn committed_at(&self) -> Option<CommitTime> {
        self.side().committed_at
    }

    /// Returns the time since the replica was last known to have everything that the database had.
    /// [`Duration::MAX`] if that was never the case.
    ///
    /// Only the server knows its head, and it reports when a client has reached it. It does so ten
    /// times a second while the table changes, and once per heartbeat interval otherwise (5 s
    /// unless configured). The server asks the database every two seconds whether there is more. So
    /// the age stays below the sum of both in normal operation. It grows while the replica or the
    /// server lags, while a connection is down, and while the table is paused or copied again.
    ///
    /// A server of an earlier version does not report its own lag. The age is then the time since
    /// the replica had everything that the server had.
    ///
    /// The age leaves out the delay that all messages of a connection have, because the clocks of
    /// client and server are not compared.
    #[must_use]
    pub fn age(&self) -> Duration {
        let now = (self.now)();
        self.at_head.map_or(Duration::MAX, |at| now.saturating_duration_since(at))
    }

    /// Returns the schema. It has no columns before the first snapshot.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        self.side().layout.schema()
    }

    fn side(&self) -> &ReplicaTable {
        self.hold.side()
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut view = f.debug_struct("View");
        view.field("position", &self.position()).field("rows", &self.len()).finish()
    }
}

impl fmt::Debug for IndexRows<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IndexRows")
    }
}
