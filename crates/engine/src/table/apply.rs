//! From what a source tells to what happened to the state.

use std::io;

use laredo_core::{Cell, CommitTime, Key, StateError, TableState, Tuple, TupleBuf, TupleRef};

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
pub(crate) fn apply_spool(
    state: &mut TableState,
    pipeline: &Pipeline,
    spool: &mut Spool,
    committed_at: CommitTime,
    mut each: impl FnMut(Applied<'_>) -> io::Result<()>,
) -> Result<(), ApplyError> {
    let mut scratch = TupleBuf::new();
    spool.read(|entry| match entry {
        // The caller has made sure that every shape is the schema's.
        SpoolEntry::Shape(_) => Ok(()),
        SpoolEntry::Change(change) => apply(state, pipeline, change, committed_at, &mut scratch, &mut each),
    })
}

fn apply(
    state: &mut TableState,
    pipeline: &Pipeline,
    change: RawChange<'_>,
    at: CommitTime,
    scratch: &mut TupleBuf,
    each: &mut impl FnMut(Applied<'_>) -> io::Result<()>,
) -> Result<(), ApplyError> {
    match change {
        RawChange::Insert { new } if new.has_unchanged() => return Err(ApplyError::Incomplete),
        RawChange::Insert { new } => {
            let row = pipeline.state_row(new, at, scratch).to_tuple();
            match state.put(row.clone()) {
                None => each(Applied::Row { old: None, new: Some(&row), is_whole: true })?,
                Some(_) => return Err(StateError::KeyExists.into()),
            }
        }
        RawChange::Update { old: None, new } if !new.has_unchanged() => {
            let row = pipeline.state_row(new, at, scratch).to_tuple();
            let old = state.put(row.clone()).ok_or(StateError::KeyMissing)?;
            each(Applied::Row { old: Some(&old), new: Some(&row), is_whole: true })?;
        }
        RawChange::Update { old, new } => {
            let is_whole = !new.has_unchanged();
            let (key, row) = fill(state, pipeline, old, new, at)?;
            if state.schema().key().row_has_key(row.as_ref(), key.as_ref()) {
                let old = state.put(row.clone()).ok_or(StateError::KeyMissing)?;
                each(Applied::Row { old: Some(&old), new: Some(&row), is_whole })?;
            } else {
                let old = state.remove(key.as_ref()).ok_or(StateError::KeyMissing)?;
                each(Applied::Row { old: Some(&old), new: None, is_whole: true })?;
                match state.put(row.clone()) {
                    None => each(Applied::Row { old: None, new: Some(&row), is_whole })?,
                    Some(_) => return Err(StateError::KeyExists.into()),
                }
            }
        }
        RawChange::Delete { old } => {
            let key = state.schema().key().key_of(old);
            let old = state.remove(key.as_ref()).ok_or(StateError::KeyMissing)?;
            each(Applied::Row { old: Some(&old), new: None, is_whole: true })?;
        }
        RawChange::Truncate => {
            state.clear();
            each(Applied::Truncate)?;
        }
    }
    Ok(())
}

/// The key of the row that an update changes, and the whole new row.
///
/// An old key does not mean that the key changed (a large key value brings one too), and a large key value that stayed may be
/// left out of the new row: so it is filled from the old key first, and only then are the two compared.
fn fill(
    state: &TableState,
    pipeline: &Pipeline,
    old: Option<TupleRef<'_>>,
    new: TupleRef<'_>,
    at: CommitTime,
) -> Result<(Key, Tuple), StateError> {
    let columns = state.schema().key();
    let key = columns.key_of(old.unwrap_or(new));
    let current = state.get(&key).ok_or(StateError::KeyMissing)?;
    let whole: TupleBuf = new
        .cells()
        .zip(current.as_ref().cells())
        .map(|(sent, kept)| if sent == Cell::Unchanged { kept } else { sent })
        .collect();
    let mut scratch = TupleBuf::new();
    let row = pipeline.state_row(whole.as_ref(), at, &mut scratch).to_tuple();
    Ok((key, row))
}
