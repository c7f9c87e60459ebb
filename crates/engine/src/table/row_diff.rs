//! The differences between the table as readers know it and a new copy of it, as one transaction.

use std::collections::HashSet;

use laredo_core::{ChecksumBuckets, Column, DefinitionVersion, Key, Schema, Tuple, TupleBuf, TupleRef};
use laredo_proto::batch::EntryAction;
use laredo_values::VisibleEffect;

use super::TableError;
use super::apply::ChangeEffect;
use super::copy::CompleteCopy;
use super::published::{EmittedRowBuffers, PublishedTable, RowOrigin, emit_change, readers_checksum};
use crate::journal::JournalWriter;

/// Publishes a new copy as one transaction, in place of everything since the last known position.
///
/// # Errors
/// When the journal cannot be written. Readers may have the copy nevertheless, so the next copy
/// sends all rows.
pub(super) fn publish_differences(
    served: &mut PublishedTable,
    done: CompleteCopy,
    definition: DefinitionVersion,
) -> Result<(), TableError> {
    match write(served, &done, definition) {
        Ok(shown) => {
            (served.state, served.pipeline, served.origin, served.shown) =
                (done.state, done.pipeline, RowOrigin::Source, shown);
            Ok(())
        }
        Err(error) => {
            served.writer.abort();
            served.origin = RowOrigin::Nothing;
            Err(error)
        }
    }
}

/// Writes the transaction. Returns the checksums of the rows that readers then have; `None` if
/// those are the rows of the state.
fn write(
    served: &mut PublishedTable,
    done: &CompleteCopy,
    definition: DefinitionVersion,
) -> Result<Option<ChecksumBuckets>, TableError> {
    let from = done.from.unwrap_or(served.writer.committed().position);
    served.writer.begin(done.to, done.committed_at, Some(from))?;
    served.writer.begin_definition(definition);
    let has_cast = served.origin == RowOrigin::Source && cast_known(served, done);
    match served.origin {
        RowOrigin::Source if has_cast => write_differences(&mut served.writer, &served.state, done)?,
        RowOrigin::Readers if served.state.schema() == done.pipeline.out() => {
            write_differences_to_readers(&mut served.writer, &served.state, done)?;
        }
        RowOrigin::Source | RowOrigin::Readers | RowOrigin::Nothing => write_everything(&mut served.writer, done)?,
    }
    let shown = done.pipeline.checksums_of(&done.state);
    if served.is_compared {
        served.writer.note_checksum(readers_checksum(&done.state, shown.as_ref()));
    }
    served.writer.commit()?;
    served.writer.advance(done.to, done.mark);
    served.writer.publish()?;
    Ok(shown)
}

/// Converts the known rows to the new schema, as readers do. Returns false if all rows have to be
/// sent: the key has changed, or a filter may judge converted rows differently.
///
/// The filter may be the pipeline's or a reader's own. A row that it matched before would stay with
/// a reader that never receives its removal.
fn cast_known(served: &mut PublishedTable, done: &CompleteCopy) -> bool {
    let (old, new) = (served.pipeline.out().clone(), done.pipeline.out());
    if served.pipeline.state() == done.pipeline.state() {
        return true;
    }
    if key_names(&old) != key_names(new) || served.pipeline.has_filter() || !keeps_columns(&old, new) {
        return false;
    }
    if !served.pipeline.keeps_replaced_values(&done.pipeline) {
        return false;
    }
    if served.state.cast_to(done.pipeline.state().clone()).is_err() {
        return false;
    }
    if old != *new {
        served.writer.change_schema(new);
    }
    true
}

/// Returns true if columns were only added or moved. Each old column still exists, and its cells
/// are read as before.
///
/// A composite that has other fields is read differently. Its old cells must not become old rows
/// under the new schema. That is true even if their bytes would be the same, as after the renaming
/// of a field.
fn keeps_columns(old: &Schema, new: &Schema) -> bool {
    let facts = |c: &Column| (c.name.clone(), c.type_oid, c.type_modifier, c.is_text);
    let is_kept = |was: &Column| new.columns().iter().any(|is| facts(is) == facts(was));
    old.columns().iter().all(|was| is_kept(was) && old.reads_alike(new, was.type_oid))
}

fn key_names(schema: &Schema) -> Vec<(&str, u32)> {
    let column = |&i: &usize| schema.columns().get(i).map(|c| (c.name.as_str(), c.type_oid));
    schema.key().columns().iter().filter_map(column).collect()
}

fn write_differences(
    writer: &mut JournalWriter,
    known: &laredo_core::TableState,
    done: &CompleteCopy,
) -> Result<(), TableError> {
    let mut scratch = EmittedRowBuffers::default();
    let mut write = |old, new| {
        let applied = ChangeEffect::Row { old, new, is_whole: true };
        emit_change(writer, &done.pipeline, applied, &mut scratch, None)
    };
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

/// Writes the differences if the known rows are those of readers, as a journal has kept them.
fn write_differences_to_readers(
    writer: &mut JournalWriter,
    known: &laredo_core::TableState,
    done: &CompleteCopy,
) -> Result<(), TableError> {
    let has = |row: TupleRef<'_>| done.pipeline.classify(None, Some(row)) == VisibleEffect::Insert;
    let mut scratch = TupleBuf::new();
    // Only if keys are hashed, readers know rows by other keys than the state.
    let hashed = done.pipeline.replaces_key().then(|| {
        let visible = done.state.rows().map(Tuple::as_ref).filter(|row| has(*row));
        let key = |row| done.pipeline.out().key().key_of(done.pipeline.out_row(row, &mut scratch));
        visible.map(key).collect::<HashSet<Key>>()
    });
    for old in known.rows() {
        let key = known.schema().key().key_of(old.as_ref());
        let is_there = match &hashed {
            Some(keys) => keys.contains(&key),
            None => done.state.get(&key).is_some_and(|row| has(row.as_ref())),
        };
        if !is_there {
            writer.push(EntryAction::Delete, key.as_ref(), Some(old.as_ref()))?;
        }
    }
    for row in done.state.rows().filter(|row| has(row.as_ref())) {
        let new = done.pipeline.out_row(row.as_ref(), &mut scratch);
        match known.get_like(new) {
            None => writer.push(EntryAction::Insert, new, None)?,
            Some(old) if old.as_ref().bytes() == new.bytes() => {}
            Some(old) => writer.push(EntryAction::Update, new, Some(old.as_ref()))?,
        }
    }
    Ok(())
}

fn write_everything(writer: &mut JournalWriter, done: &CompleteCopy) -> Result<(), TableError> {
    let mut scratch = EmittedRowBuffers::default();
    writer.push(EntryAction::Truncate, TupleRef::trusted(&[]), None)?;
    if writer.journal().schema() != *done.pipeline.out() {
        writer.change_schema(done.pipeline.out());
    }
    for row in done.state.rows() {
        let applied = ChangeEffect::Row { old: None, new: Some(row), is_whole: true };
        emit_change(writer, &done.pipeline, applied, &mut scratch, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use laredo_core::{KeyColumns, TypeDef, TypeKind};

    use super::*;

    fn schema(kind: TypeKind) -> Schema {
        let column = Column {
            name: "c".to_owned(),
            type_oid: 16_400,
            type_modifier: -1,
            type_name: "c".to_owned(),
            not_null: false,
            is_text: false,
        };
        let types = BTreeMap::from([(16_400, TypeDef { name: "c".to_owned(), kind })]);
        Schema::new(vec![column], KeyColumns::new([0]), types)
    }

    #[test]
    fn bytes_that_are_shown_as_another_value_are_not_kept() {
        let field = |name: &str| TypeKind::Composite(vec![(name.to_owned(), 23)]);
        let labels = |labels: &[&str]| TypeKind::Enum(labels.iter().map(|label| (*label).to_owned()).collect());
        for (old, new, keeps) in [
            (TypeKind::Base, TypeKind::Base, true),
            (TypeKind::Base, TypeKind::Money(0), false),
            (TypeKind::Money(3), TypeKind::Base, false),
            (TypeKind::Money(3), TypeKind::Money(0), false),
            (field("a"), field("a"), true),
            (field("a"), field("b"), false),
            (labels(&["a"]), labels(&["a", "b"]), true),
        ] {
            assert_eq!(keeps_columns(&schema(old.clone()), &schema(new.clone())), keeps, "{old:?} {new:?}");
        }
    }
}
