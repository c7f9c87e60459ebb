//! Tests that compare a base, merged in one part and in several, with a state that has the same
//! changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use laredo_core::{Cell, Change, Column, Key, Schema, Sequence, TableState, Tuple, TupleBuf, TupleRef};
use laredo_proto::batch::EntryAction;
use laredo_testkit::SimDatabase;
use proptest::prelude::*;

use super::merge::{merge_in, partitions};
use super::{Base, BaseError};
use crate::journal::tests::{self, begin, journal, options};
use crate::journal::{Journal, JournalWriter};

#[derive(Clone, Debug)]
enum MergeOperation {
    Put(i64, u8),
    Delete(i64),
    Truncate,
    /// A change of the table's columns to these, in addition to the key.
    Columns(BTreeSet<u8>),
    Commit,
    Merge(usize),
}

fn ops() -> impl Strategy<Value = Vec<MergeOperation>> {
    let op = prop_oneof![
        20 => (0..30_i64, any::<u8>()).prop_map(|(id, text)| MergeOperation::Put(id, text)),
        10 => (0..30_i64).prop_map(MergeOperation::Delete),
        1 => Just(MergeOperation::Truncate),
        1 => prop::collection::btree_set(0..4_u8, 0..4).prop_map(MergeOperation::Columns),
        5 => Just(MergeOperation::Commit),
        2 => (1..6_usize).prop_map(MergeOperation::Merge),
    ];
    prop::collection::vec(op, 1..150)
}

/// Returns a schema with text columns, and with `id` in the middle of them.
fn schema(columns: &BTreeSet<u8>) -> Arc<Schema> {
    let simple = SimDatabase::schema();
    let id = simple.columns()[0].clone();
    let mut all: Vec<Column> =
        columns.iter().map(|c| Column { name: format!("c{c}"), ..simple.columns()[1].clone() }).collect();
    let at = all.len() / 2;
    all.insert(at, id);
    Arc::new(Schema::new(all, laredo_core::KeyColumns::new([at]), BTreeMap::new()))
}

fn row(schema: &Schema, id: i64, text: u8) -> TupleBuf {
    let (id, text) = (id.to_be_bytes(), [b'a' + text % 26]);
    let cell = |column| if schema.key().contains(column) { Cell::Value(&id) } else { Cell::Value(&text) };
    (0..schema.columns().len()).map(cell).collect()
}

fn key(id: i64) -> Key {
    Key::new([Cell::Value(&id.to_be_bytes())])
}

/// A journal, and the state with the same changes.
struct JournalAndState {
    journal: Journal,
    writer: JournalWriter,
    state: TableState,
    is_open: bool,
}

impl JournalAndState {
    fn new() -> JournalAndState {
        let (journal, writer) = journal(options());
        let state = TableState::new(SimDatabase::schema(), &[], 0).unwrap();
        JournalAndState { journal, writer, state, is_open: false }
    }

    fn apply(&mut self, op: MergeOperation) {
        if !self.is_open && !matches!(op, MergeOperation::Commit | MergeOperation::Merge(_)) {
            begin(&mut self.writer);
            self.is_open = true;
        }
        match op {
            MergeOperation::Put(id, text) => {
                let new = row(self.state.schema(), id, text);
                let old = self.state.put(new.as_ref().to_tuple());
                let action = if old.is_some() { EntryAction::Update } else { EntryAction::Insert };
                self.writer.push(action, new.as_ref(), old.as_ref().map(Tuple::as_ref)).unwrap();
            }
            MergeOperation::Delete(id) => {
                let key = key(id);
                if let Some(old) = self.state.remove(key.as_ref()) {
                    self.writer.push(EntryAction::Delete, key.as_ref(), Some(old.as_ref())).unwrap();
                }
            }
            MergeOperation::Truncate => {
                self.state.clear();
                self.writer.push(EntryAction::Truncate, TupleRef::trusted(&[]), None).unwrap();
            }
            MergeOperation::Columns(columns) => {
                self.state.cast_to(schema(&columns)).unwrap();
                self.writer.change_schema(&schema(&columns));
            }
            MergeOperation::Commit | MergeOperation::Merge(_) => {
                if std::mem::take(&mut self.is_open) {
                    self.writer.commit().unwrap();
                    self.writer.publish().unwrap();
                }
            }
        }
    }

    /// Makes the next base and replaces the current one with it.
    fn merge(&self, partitions: usize) -> Arc<Base> {
        let crate::journal::BaseMergeInput { base, after, head, .. } = self.journal.base_and_after();
        let writer = super::BaseWriter::new(&std::env::temp_dir()).unwrap();
        let next = Arc::new(merge_in(&base, &after, head, &std::env::temp_dir(), writer, partitions).unwrap());
        self.journal.replace_base(next.clone(), tokio::time::Instant::now());
        next
    }
}

fn rows_of(base: &Base) -> BTreeSet<Vec<u8>> {
    let mut rows = BTreeSet::new();
    base.for_each_row::<BaseError>(|row| {
        assert!(rows.insert(row.bytes().to_vec()), "a row is there twice");
        Ok(())
    })
    .unwrap();
    assert_eq!(rows.len() as u64, base.rows());
    rows
}

fn rows_of_state(state: &TableState) -> BTreeSet<Vec<u8>> {
    state.rows().map(|row| row.as_ref().bytes().to_vec()).collect()
}

/// Returns the state of a new client that receives a base and everything after it.
fn newcomer(journal: &Journal, base: &Base) -> TableState {
    let mut state = TableState::new(base.schema().clone(), &[], 0).unwrap();
    base.for_each_row::<BaseError>(|row| {
        state.put(row.to_tuple());
        Ok(())
    })
    .unwrap();
    let mut cursor = journal.cursor(base.sequence());
    while let Some(piece) = cursor.next_piece().unwrap() {
        for frame in crate::journal::frames(piece.frames) {
            if let Some(schema) = frame.batch.schema {
                let schema = Arc::new(laredo_proto::schema::from_wire(schema).unwrap());
                state.apply_change(&Change::Schema(schema)).unwrap();
            }
            let schema = state.schema().clone();
            for entry in laredo_proto::batch::BatchEntries::new(&frame.batch.entries, &schema) {
                state.apply_change(&entry.unwrap().to_change()).unwrap();
            }
        }
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_merged_base_shows_the_rows_of_the_state(ops in ops(), last in 1..6_usize) {
        let mut both = JournalAndState::new();
        let mut bases = vec![both.journal.pin_base()];
        for op in ops {
            both.apply(op.clone());
            if let MergeOperation::Merge(partitions) = op {
                let base = both.merge(partitions);
                prop_assert_eq!(base.schema(), both.state.schema());
                prop_assert_eq!(rows_of(&base), rows_of_state(&both.state));
                bases.push(both.journal.pin_base());
            }
        }
        both.apply(MergeOperation::Commit);
        for base in &bases {
            let newcomer = newcomer(&both.journal, base.base());
            prop_assert_eq!(newcomer.schema(), both.state.schema());
            prop_assert_eq!(rows_of_state(&newcomer), rows_of_state(&both.state));
        }
        let truth = rows_of_state(&both.state);
        prop_assert_eq!(rows_of(&both.merge(last)), truth);
    }
}

/// Returns a schema with the same columns and another key.
fn with_another_key(schema: &Schema) -> Arc<Schema> {
    let mut columns = schema.columns().to_vec();
    columns[0].type_modifier = 7;
    Arc::new(Schema::new(columns, schema.key().clone(), BTreeMap::new()))
}

#[test]
fn another_key_behind_a_truncate_is_merged_in_parts_as_everything_else() {
    let mut both = JournalAndState::new();
    (1..50).for_each(|id| both.apply(MergeOperation::Put(id, 0)));
    both.apply(MergeOperation::Commit);
    both.merge(1);
    both.apply(MergeOperation::Put(1, 1));
    both.apply(MergeOperation::Truncate);
    let changed = with_another_key(both.state.schema());
    both.state.cast_to(changed.clone()).unwrap();
    both.writer.change_schema(&changed);
    (1..30).for_each(|id| both.apply(MergeOperation::Put(id, 2)));
    both.apply(MergeOperation::Delete(7));
    both.apply(MergeOperation::Commit);
    let next = both.merge(9);
    assert_eq!((rows_of(&next), next.schema()), (rows_of_state(&both.state), &changed));
}

#[test]
fn another_key_of_rows_that_are_there_is_refused() {
    let mut both = JournalAndState::new();
    both.apply(MergeOperation::Put(1, 0));
    both.writer.change_schema(&with_another_key(both.state.schema()));
    both.apply(MergeOperation::Commit);
    for partitions in [1, 9] {
        let crate::journal::BaseMergeInput { base, after, head, .. } = both.journal.base_and_after();
        let writer = super::BaseWriter::new(&std::env::temp_dir()).unwrap();
        let merged = merge_in(&base, &after, head, &std::env::temp_dir(), writer, partitions);
        assert!(matches!(merged, Err(BaseError::KeyChanged)), "{merged:?}");
    }
}

#[test]
fn a_large_journal_is_merged_in_parts() {
    let (journal, mut writer) = journal(options());
    begin(&mut writer);
    for id in 0..60 {
        tests::insert(&mut writer, id, &"x".repeat(1 << 20));
    }
    for id in 0..30 {
        tests::delete(&mut writer, id, "x");
    }
    writer.commit().unwrap();
    let after = journal.base_and_after().after;
    assert_eq!(partitions(&after), 2, "60 MiB and a bit");
    tests::merge_base(&journal);
    let base = journal.pin_base().base().clone();
    assert_eq!(base.sequence(), Sequence(1090));
    assert_eq!(tests::rows_of_base(&base).keys().copied().collect::<Vec<_>>(), Vec::from_iter(30..60));
}
