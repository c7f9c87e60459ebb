//! One state of the table, to look around in.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use laredo_core::{CommitTime, Index, Key, Lsn, Schema};

use crate::key::{self, KeyError, KeyValues};
use crate::publish::{Held, Side};
use crate::replica::LOOKUP;
use crate::row::RowRef;

/// One state of the table: the rows and all indexes as they were at one commit, however long it is held.
///
/// Taking one takes no lock and copies nothing. While a view is held, the replica can show one newer state to others and then
/// has to wait, so keep rows ([`RowRef::to_row`]) rather than views.
pub struct View<'a> {
    held: Held<'a>,
    at_head: Option<Instant>,
    now: &'a (dyn Fn() -> Instant + Send + Sync),
}

/// Rows of one index key.
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
        held: Held<'a>,
        at_head: Option<Instant>,
        now: &'a (dyn Fn() -> Instant + Send + Sync),
    ) -> View<'a> {
        View { held, at_head, now }
    }

    /// The row of a primary key, its values in key order.
    #[must_use]
    pub fn get(&self, key: impl KeyValues) -> Option<RowRef<'_>> {
        told(self.try_get(key))
    }

    /// The row of a primary key.
    ///
    /// # Errors
    /// When the values are no key of this table.
    pub fn try_get(&self, key: impl KeyValues) -> Result<Option<RowRef<'_>>, KeyError> {
        let side = self.side();
        let Some(table) = &side.table else { return Ok(None) };
        let key = key::encode(&key, table.schema().key(), &side.layout)?;
        Ok(table.get_by_cells(key.as_ref()).map(|row| RowRef::new(row, &side.layout)))
    }

    /// The row with these values of the look-up fields ([`crate::ReplicaBuilder::lookup`]).
    #[must_use]
    pub fn lookup(&self, values: impl KeyValues) -> Option<RowRef<'_>> {
        told(self.try_lookup(values))
    }

    /// The row with these values of the look-up fields.
    ///
    /// # Errors
    /// When no look-up fields were declared, or the values do not fit them.
    pub fn try_lookup(&self, values: impl KeyValues) -> Result<Option<RowRef<'_>>, KeyError> {
        Ok(self.index_rows(LOOKUP, &values)?.next())
    }

    /// The rows with these values of an index's columns, in no order.
    pub fn index(&self, name: &str, values: impl KeyValues) -> IndexRows<'_> {
        told(self.try_index(name, values).map(Some)).unwrap_or_else(|| IndexRows(Box::new(std::iter::empty())))
    }

    /// The rows with these values of an index's columns, in no order.
    ///
    /// # Errors
    /// When there is no such index, or the values do not fit its columns.
    pub fn try_index(&self, name: &str, values: impl KeyValues) -> Result<IndexRows<'_>, KeyError> {
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

    /// Every row, in no order.
    pub fn rows(&self) -> impl Iterator<Item = RowRef<'_>> {
        let side = self.side();
        let rows = side.table.iter().flat_map(|table| table.rows());
        rows.map(|row| RowRef::new(row, &side.layout))
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.side().table.as_ref().map_or(0, laredo_core::TableState::len)
    }

    /// Whether there is no row. So it is before the first snapshot, too ([`View::is_loaded`]).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is a state at all: false only before the first snapshot is complete.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.side().table.is_some()
    }

    /// Every commit up to here is in this state, and none after it.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.side().position
    }

    /// When the newest transaction in it committed, by the database's clock; `None` while all of it came in a snapshot.
    #[must_use]
    pub fn committed_at(&self) -> Option<CommitTime> {
        self.side().committed_at
    }

    /// How long ago the replica was last known to have everything the server had; [`Duration::MAX`] if never. Only the server can
    /// know, and it says so at its head: ten times a second while something happens, and every heartbeat interval (5 s unless
    /// configured) while nothing does. So it stays below that while all is well, and grows while the replica lags or the connection is
    /// down. What all messages of a connection need for their way is not in it, for no clocks are compared.
    #[must_use]
    pub fn age(&self) -> Duration {
        let now = (self.now)();
        self.at_head.map_or(Duration::MAX, |at| now.saturating_duration_since(at))
    }

    /// The columns; none before the first snapshot.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        self.side().layout.schema()
    }

    fn side(&self) -> &Side {
        self.held.side()
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

/// Values that cannot be a key find nothing; as that is a mistake in the program, it is logged.
fn told<T>(result: Result<Option<T>, KeyError>) -> Option<T> {
    result.unwrap_or_else(|error| {
        tracing::error!(%error, "a look-up that can find nothing");
        None
    })
}
