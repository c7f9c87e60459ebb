//! From what a source tells to what happened to the state.

use std::io;

use laredo_core::{Cell, CommitTime, Key, StateError, TableState, Tuple, TupleBuf, TupleRef};

use super::displaced::{Displaced, DisplacedRow, Place};
use crate::pipeline::Pipeline;
use crate::spool::{RawChange, Spool, SpoolEntry};

/// What happened to a state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Applied<'a> {
    /// A row came (no old), changed, or went (no new).
    Row {
        /// The row before.
        old: Option<&'a Tuple>,
        /// The row since.
        new: Option<&'a Tuple>,
        /// Whether the source sent every value of the new row, so that none was kept from the old one.
        is_whole: bool,
    },
    /// All rows went.
    Truncate,
}

/// Why a transaction could not be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// A spool, or the journal's temporary file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The copy is not the table's any more.
    #[error("the copy has diverged: {0}")]
    Diverged(#[from] StateError),
    /// An update that moved a row into a filtered publication comes as an insert, without the large values that it left alone:
    /// only a copy has them.
    #[error("a row came without a large value, which only the table has")]
    Incomplete,
}

/// Applies a transaction's changes to a state, filling in what the source left out, and tells what each did.
///
/// A deferrable key is checked at commit, so two rows may share it until then. A row whose key is taken is displaced until the
/// row that has the key goes: what is told of each change fits the state at any time.
pub(crate) fn apply_spool(
    state: &mut TableState,
    pipeline: &Pipeline,
    spool: &mut Spool,
    committed_at: CommitTime,
    each: impl FnMut(Applied<'_>) -> io::Result<()>,
) -> Result<(), ApplyError> {
    let (displaced, scratch) = (Displaced::default(), TupleBuf::new());
    let mut applier = Applier { state, pipeline, at: committed_at, displaced, scratch, each };
    spool.read(|entry| match entry {
        // The caller has made sure that every shape is the schema's.
        SpoolEntry::Shape(_) => Ok(()),
        SpoolEntry::Change(change) => applier.apply(change),
    })?;
    if applier.displaced.is_empty() { Ok(()) } else { Err(StateError::KeyExists.into()) }
}

/// A transaction that is being applied.
struct Applier<'a, E> {
    state: &'a mut TableState,
    pipeline: &'a Pipeline,
    at: CommitTime,
    displaced: Displaced,
    scratch: TupleBuf,
    each: E,
}

impl<E: FnMut(Applied<'_>) -> io::Result<()>> Applier<'_, E> {
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
                Ok((self.each)(Applied::Row { old: Some(&old), new: Some(&row), is_whole: true })?)
            }
            RawChange::Update { old, new } => self.update(old, new),
            RawChange::Delete { old } => self.remove(old).map(drop),
            RawChange::Truncate => {
                self.state.clear();
                self.displaced.clear();
                Ok((self.each)(Applied::Truncate)?)
            }
        }
    }

    /// Adds a row. One whose key is taken is displaced.
    fn insert(&mut self, row: Tuple, is_whole: bool) -> Result<(), ApplyError> {
        match self.state.put(row.clone()) {
            None => (self.each)(Applied::Row { old: None, new: Some(&row), is_whole })?,
            Some(other) => {
                self.state.put(other);
                self.displaced.push(self.state.schema().key().key_of(row.as_ref()), DisplacedRow { row, is_whole });
            }
        }
        Ok(())
    }

    /// Changes a row.
    ///
    /// An old key does not mean that the key changed (a large key value brings one too), and a large key value that stayed
    /// may be left out of the new row: so it is filled from the old row first, and only then are the two compared.
    fn update(&mut self, old: Option<TupleRef<'_>>, new: TupleRef<'_>) -> Result<(), ApplyError> {
        let is_whole = !new.has_unchanged();
        let key = self.state.schema().key().key_of(old.unwrap_or(new));
        let place = self.place_of(&key, old)?;
        let current = match place {
            Place::State => self.state.get(&key),
            Place::Displaced(at) => self.displaced.get(&key, at),
        };
        let current = current.ok_or(StateError::KeyMissing)?;
        let whole: TupleBuf = new
            .cells()
            .zip(current.as_ref().cells())
            .map(|(sent, kept)| if sent == Cell::Unchanged { kept } else { sent })
            .collect();
        let row = self.pipeline.state_row(whole.as_ref(), self.at, &mut self.scratch).to_tuple();
        if place == Place::State && self.state.schema().key().row_has_key(row.as_ref(), key.as_ref()) {
            let old = self.state.put(row.clone()).ok_or(StateError::KeyMissing)?;
            return Ok((self.each)(Applied::Row { old: Some(&old), new: Some(&row), is_whole })?);
        }
        self.remove_from(place, &key)?;
        self.insert(row, is_whole)
    }

    fn remove(&mut self, old: TupleRef<'_>) -> Result<(), ApplyError> {
        let key = self.state.schema().key().key_of(old);
        let place = self.place_of(&key, Some(old))?;
        self.remove_from(place, &key)
    }

    /// Removes a row. One that was displaced by a row of the state takes its place.
    fn remove_from(&mut self, place: Place, key: &Key) -> Result<(), ApplyError> {
        if let Place::Displaced(at) = place {
            // No change was published for it.
            self.displaced.remove(key, at);
            return Ok(());
        }
        match self.displaced.pop(key) {
            Some(DisplacedRow { row, is_whole }) => {
                let old = self.state.put(row.clone()).ok_or(StateError::KeyMissing)?;
                (self.each)(Applied::Row { old: Some(&old), new: Some(&row), is_whole })?;
            }
            None => {
                let old = self.state.remove(key.as_ref()).ok_or(StateError::KeyMissing)?;
                (self.each)(Applied::Row { old: Some(&old), new: None, is_whole: true })?;
            }
        }
        Ok(())
    }

    /// Finds the row that a change is of. Where several have its key, the whole old row tells: a key that may be shared is no
    /// replica identity, so the source sends old rows as a whole.
    fn place_of(&self, key: &Key, old: Option<TupleRef<'_>>) -> Result<Place, StateError> {
        if !self.displaced.has(key) {
            return Ok(Place::State);
        }
        let old = old.ok_or(StateError::KeyExists)?;
        let is_it = |row: &Tuple| {
            let count = self.pipeline.source().columns().len();
            let same = |(sent, kept): (Cell<'_>, Cell<'_>)| sent == Cell::Unchanged || sent == kept;
            std::iter::zip(old.cells(), row.as_ref().cells()).take(count).all(same)
        };
        if let Some(at) = self.displaced.position(key, is_it) {
            return Ok(Place::Displaced(at));
        }
        self.state.get(key).filter(|row| is_it(row)).map(|_| Place::State).ok_or(StateError::KeyMissing)
    }
}

#[cfg(test)]
mod tests;
