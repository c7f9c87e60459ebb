//! The application of a source's changes to a table state.

use std::io;

use laredo_core::{Cell, CommitTime, Key, StateError, TableState, Tuple, TupleBuf, TupleRef};

use super::displaced_rows::{DisplacedRow, DisplacedRows, RowLocation};
use crate::pipeline::Pipeline;
use crate::spool::{RawChange, Spool, SpoolEntry};

/// The effect of a change on a state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ChangeEffect<'a> {
    /// A row was added (no old row), changed, or removed (no new row).
    Row {
        /// The row before the change.
        old: Option<&'a Tuple>,
        /// The row after the change.
        new: Option<&'a Tuple>,
        /// True if the source sent every value of the new row, so that none was kept from the old
        /// one.
        is_whole: bool,
    },
    /// All rows were removed.
    Truncate,
}

/// The reason why a transaction could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// An error of a spool, or of the journal's temporary file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The copy no longer matches the source's table.
    #[error("the copy has diverged: {0}")]
    Diverged(#[from] StateError),
    /// An insert without large values that only a copy has. PostgreSQL sends an update that moves a
    /// row into a filtered publication as an insert. It leaves out the large values that the update
    /// did not change.
    #[error("a row came without a large value, which only the table has")]
    Incomplete,
}

/// Applies a transaction's changes to a state, and fills in the values that the source left out.
/// Calls `each` with the effect of each change.
///
/// A deferrable key is checked at commit, so two rows may share it until then. A row whose key is
/// taken is displaced until the row that has the key is removed. The effect of each change thus
/// fits the state at any time.
pub(crate) fn apply_spool(
    state: &mut TableState,
    pipeline: &Pipeline,
    spool: &mut Spool,
    committed_at: CommitTime,
    each: impl FnMut(ChangeEffect<'_>) -> io::Result<()>,
) -> Result<(), ApplyError> {
    let (displaced, scratch) = (DisplacedRows::default(), TupleBuf::new());
    let mut applier = SpoolApplier { state, pipeline, at: committed_at, displaced, scratch, each };
    spool.for_each_entry(|entry| match entry {
        // The caller has checked that every shape is the schema's.
        SpoolEntry::Shape(_) => Ok(()),
        SpoolEntry::Change(change) => applier.apply(change),
    })?;
    if applier.displaced.is_empty() { Ok(()) } else { Err(StateError::KeyExists.into()) }
}

/// A transaction that is being applied.
struct SpoolApplier<'a, E> {
    state: &'a mut TableState,
    pipeline: &'a Pipeline,
    at: CommitTime,
    displaced: DisplacedRows,
    scratch: TupleBuf,
    each: E,
}

impl<E: FnMut(ChangeEffect<'_>) -> io::Result<()>> SpoolApplier<'_, E> {
    fn apply(&mut self, change: RawChange<'_>) -> Result<(), ApplyError> {
        match change {
            RawChange::Insert { new } if new.has_unchanged() => Err(ApplyError::Incomplete),
            RawChange::Insert { new } => {
                let row = self.pipeline.state_row(new, self.at, &mut self.scratch).to_tuple();
                self.insert(row, true)
            }
            RawChange::Update { old: None, new } if !new.has_unchanged() && self.displaced.is_empty() => {
                let row = self.pipeline.state_row(new, self.at, &mut self.scratch).to_tuple();
                let old = self.state.put(row.clone()).ok_or(StateError::KeyMissing)?;
                Ok((self.each)(ChangeEffect::Row { old: Some(&old), new: Some(&row), is_whole: true })?)
            }
            RawChange::Update { old, new } => self.update(old, new),
            RawChange::Delete { old } => self.remove(old).map(drop),
            RawChange::Truncate => {
                self.state.clear();
                self.displaced.clear();
                Ok((self.each)(ChangeEffect::Truncate)?)
            }
        }
    }

    /// Adds a row. A row whose key is taken is displaced.
    fn insert(&mut self, row: Tuple, is_whole: bool) -> Result<(), ApplyError> {
        match self.state.put(row.clone()) {
            None => (self.each)(ChangeEffect::Row { old: None, new: Some(&row), is_whole })?,
            Some(other) => {
                self.state.put(other);
                self.displaced.push(self.state.schema().key().key_of(row.as_ref()), DisplacedRow { row, is_whole });
            }
        }
        Ok(())
    }

    /// Changes a row.
    ///
    /// An old key does not mean that the key changed, because a large key value brings one, too.
    /// The new row may lack a large key value that did not change. It is therefore completed from
    /// the old row before the two keys are compared.
    fn update(&mut self, old: Option<TupleRef<'_>>, new: TupleRef<'_>) -> Result<(), ApplyError> {
        let is_whole = !new.has_unchanged();
        let key = self.state.schema().key().key_of(old.unwrap_or(new));
        let location = self.location_of(&key, old)?;
        let current = match location {
            RowLocation::State => self.state.get(&key),
            RowLocation::Displaced(at) => self.displaced.get(&key, at),
        };
        let current = current.ok_or(StateError::KeyMissing)?;
        let whole: TupleBuf = new
            .cells()
            .zip(current.as_ref().cells())
            .map(|(sent, kept)| if sent == Cell::Unchanged { kept } else { sent })
            .collect();
        let row = self.pipeline.state_row(whole.as_ref(), self.at, &mut self.scratch).to_tuple();
        if location == RowLocation::State && self.state.schema().key().row_has_key(row.as_ref(), key.as_ref()) {
            let old = self.state.put(row.clone()).ok_or(StateError::KeyMissing)?;
            return Ok((self.each)(ChangeEffect::Row { old: Some(&old), new: Some(&row), is_whole })?);
        }
        self.remove_from(location, &key)?;
        self.insert(row, is_whole)
    }

    fn remove(&mut self, old: TupleRef<'_>) -> Result<(), ApplyError> {
        let key = self.state.schema().key().key_of(old);
        let location = self.location_of(&key, Some(old))?;
        self.remove_from(location, &key)
    }

    /// Removes a row. A row that is displaced from the same key takes its place in the state.
    fn remove_from(&mut self, location: RowLocation, key: &Key) -> Result<(), ApplyError> {
        if let RowLocation::Displaced(at) = location {
            // No effect was reported for this row.
            self.displaced.remove(key, at);
            return Ok(());
        }
        match self.displaced.pop(key) {
            Some(DisplacedRow { row, is_whole }) => {
                let old = self.state.put(row.clone()).ok_or(StateError::KeyMissing)?;
                (self.each)(ChangeEffect::Row { old: Some(&old), new: Some(&row), is_whole })?;
            }
            None => {
                let old = self.state.remove(key.as_ref()).ok_or(StateError::KeyMissing)?;
                (self.each)(ChangeEffect::Row { old: Some(&old), new: None, is_whole: true })?;
            }
        }
        Ok(())
    }

    /// Finds the row that a change applies to. If several rows have its key, the whole old row
    /// decides. A key that may be shared cannot be a replica identity, so the source sends whole
    /// old rows.
    fn location_of(&self, key: &Key, old: Option<TupleRef<'_>>) -> Result<RowLocation, StateError> {
        if !self.displaced.has(key) {
            return Ok(RowLocation::State);
        }
        let old = old.ok_or(StateError::KeyExists)?;
        let is_it = |row: &Tuple| {
            let count = self.pipeline.source().columns().len();
            let same = |(sent, kept): (Cell<'_>, Cell<'_>)| sent == Cell::Unchanged || sent == kept;
            std::iter::zip(old.cells(), row.as_ref().cells()).take(count).all(same)
        };
        if let Some(at) = self.displaced.position(key, is_it) {
            return Ok(RowLocation::Displaced(at));
        }
        self.state.get(key).filter(|row| is_it(row)).map(|_| RowLocation::State).ok_or(StateError::KeyMissing)
    }
}

#[cfg(test)]
mod tests;
