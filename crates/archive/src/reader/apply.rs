//! What an object's entries make of a table.

use laredo_core::{TableState, Tuple};

use super::object::Entries;
use crate::format::{FormatError, ReadChange};

/// Puts a snapshot's rows into a table, and tells how many keys they have.
pub(super) fn fill(mut table: TableState, entries: &mut Entries<'_>) -> Result<(TableState, u64), FormatError> {
    while let Some(row) = entries.row()? {
        table.put(row);
    }
    let count = table.len() as u64;
    Ok((table, count))
}

/// Does what a diff says, and tells how many changes it has.
///
/// Other writers put the changes in any order, one for each key: a TRUNCATE goes before all of them wherever it stands. An update from a row
/// of another key, which ours are not, takes that row away, before another one may come to its place.
pub(super) fn change(mut table: TableState, entries: &mut Entries<'_>) -> Result<(TableState, u64), FormatError> {
    let mut changes = Vec::new();
    while let Some(change) = entries.change()? {
        changes.push(change);
    }
    if changes.contains(&ReadChange::Truncate) {
        table.clear();
    }
    for change in &changes {
        if let ReadChange::Move { from, .. } = change {
            remove(&mut table, from);
        }
    }
    let count = changes.len() as u64;
    for change in changes {
        match change {
            ReadChange::Truncate => {}
            ReadChange::Put(row) | ReadChange::Move { to: row, .. } => drop(table.put(row)),
            ReadChange::Delete(row) => remove(&mut table, &row),
        }
    }
    Ok((table, count))
}

fn remove(table: &mut TableState, like: &Tuple) {
    let key = table.schema().key().key_of(like.as_ref());
    table.remove(key.as_ref());
}
