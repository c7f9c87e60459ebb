//! What differs between the table as readers know it and a new copy of it, as one transaction.

use laredo_core::{Column, Schema, Tuple, TupleRef};
use laredo_proto::batch::Action;

use super::copy::Done;
use super::{Applied, Live, Scratch, TableError, emit};
use crate::journal::JournalWriter;

/// Publishes a new copy: a transaction that stands for everything since the last position known.
///
/// # Errors
/// When the journal cannot be written. Readers may have the copy all the same, so the next one is told by all rows.
pub(super) fn publish(live: &mut Live, done: Done) -> Result<(), TableError> {
    if let Err(error) = write(live, &done) {
        live.writer.abort();
        live.diverged = true;
        return Err(error);
    }
    (live.state, live.pipeline, live.diverged) = (done.state, done.pipeline, false);
    Ok(())
}

fn write(live: &mut Live, done: &Done) -> Result<(), TableError> {
    let from = done.from.unwrap_or(live.writer.committed().position);
    live.writer.begin(done.to, done.committed_at, Some(from))?;
    match cast_known(live, done) {
        true => write_differences(&mut live.writer, &live.state, done)?,
        false => write_everything(&mut live.writer, done)?,
    }
    live.writer.commit()?;
    live.writer.publish()?;
    Ok(())
}

/// Brings the known rows to the new schema, as readers do; `false` where only starting anew is right: the state has diverged
/// from what readers have, the key is another, or a filter, ours or a reader's own, would judge cast rows otherwise than it judged
/// them before: a row that matched would stay with a reader who is never told that it went.
fn cast_known(live: &mut Live, done: &Done) -> bool {
    let (old, new) = (live.pipeline.out().clone(), done.pipeline.out());
    if live.diverged {
        return false;
    }
    if live.pipeline.state() == done.pipeline.state() {
        return true;
    }
    if key_names(&old) != key_names(new) || live.pipeline.has_filter() || !keeps_columns(&old, new) {
        return false;
    }
    if live.state.cast_to(done.pipeline.state().clone()).is_err() {
        return false;
    }
    if old != *new {
        live.writer.change_schema(new);
    }
    true
}

/// Whether columns were only added or moved about: each that there was is there, and its cells are what they were.
fn keeps_columns(old: &Schema, new: &Schema) -> bool {
    let facts = |c: &Column| (c.name.clone(), c.type_oid, c.type_modifier, c.is_text);
    old.columns().iter().all(|was| new.columns().iter().any(|is| facts(is) == facts(was)))
}

fn key_names(schema: &Schema) -> Vec<(&str, u32)> {
    let column = |&i: &usize| schema.columns().get(i).map(|c| (c.name.as_str(), c.type_oid));
    schema.key().columns().iter().filter_map(column).collect()
}

fn write_differences(
    writer: &mut JournalWriter,
    known: &laredo_core::TableState,
    done: &Done,
) -> Result<(), TableError> {
    let mut scratch = Scratch::default();
    let mut write =
        |old: Option<&Tuple>, new: Option<&Tuple>| emit(writer, &done.pipeline, Applied::Row(old, new), &mut scratch);
    for old in known.rows() {
        if done.state.get_like(old.as_ref()).is_none() {
            write(Some(old), None)?;
        }
    }
    for new in done.state.rows() {
        let old = known.get_like(new.as_ref());
        if !old.is_some_and(|old| old.is_same(new) || old.as_ref().bytes() == new.as_ref().bytes()) {
            write(old, Some(new))?;
        }
    }
    Ok(())
}

fn write_everything(writer: &mut JournalWriter, done: &Done) -> Result<(), TableError> {
    let mut scratch = Scratch::default();
    writer.push(Action::Truncate, TupleRef::trusted(&[]), None)?;
    if writer.journal().schema() != *done.pipeline.out() {
        writer.change_schema(done.pipeline.out());
    }
    for row in done.state.rows() {
        emit(writer, &done.pipeline, Applied::Row(None, Some(row)), &mut scratch)?;
    }
    Ok(())
}
