use std::collections::BTreeMap;
use std::sync::Arc;

use laredo_core::{Column, KeyColumns, Schema};
use proptest::prelude::*;

use super::*;
use crate::pipeline::PipelineOptions;
use crate::spool::{RelationShape, SpoolOptions, SpoolWriter};

/// Returns a schema whose key is columns 2 and 0, in this order. Column 1 may be left out if it did
/// not change.
fn schema() -> Arc<Schema> {
    let column = |name: &str| Column {
        name: name.to_owned(),
        type_oid: 25,
        type_modifier: -1,
        type_name: "text".to_owned(),
        not_null: false,
        is_text: false,
    };
    Arc::new(Schema::new(["a", "v", "b"].map(column).to_vec(), KeyColumns::new([2, 0]), BTreeMap::new()))
}

/// A row of the database: the two parts of its key, and a value.
type ApplyTestRow = (u8, u8, u8);

fn tuple((a, v, b): ApplyTestRow) -> TupleBuf {
    [Cell::Value(&[a]), Cell::Value(&[v]), Cell::Value(&[b])].into_iter().collect()
}

#[derive(Clone, Debug)]
enum ApplyTestStep {
    Insert(ApplyTestRow),
    /// An update of the row with this number to these values.
    Update(u8, ApplyTestRow),
    /// A change of every row's key, one row after the other.
    Shift(u8),
    Delete(u8),
    Truncate,
}

fn steps() -> impl Strategy<Value = Vec<ApplyTestStep>> {
    let row = (0..3_u8, 0..3_u8, 0..2_u8);
    prop::collection::vec(
        prop_oneof![
            3 => row.clone().prop_map(ApplyTestStep::Insert),
            6 => (any::<u8>(), row).prop_map(|(number, row)| ApplyTestStep::Update(number, row)),
            2 => (1..3_u8).prop_map(ApplyTestStep::Shift),
            3 => any::<u8>().prop_map(ApplyTestStep::Delete),
            1 => Just(ApplyTestStep::Truncate),
        ],
        0..12,
    )
}

/// A table with a deferrable key and `REPLICA IDENTITY FULL`: the rows, and the changes that a
/// transaction streams.
#[derive(Clone, Debug, Default)]
struct DeferrableKeyTable(Vec<ApplyTestRow>);

impl DeferrableKeyTable {
    fn step(&mut self, step: &ApplyTestStep, spool: &mut SpoolWriter) {
        match *step {
            ApplyTestStep::Insert(row) => {
                self.0.push(row);
                spool.push(0, RawChange::Insert { new: tuple(row).as_ref() }).unwrap();
            }
            ApplyTestStep::Update(number, row) if !self.0.is_empty() => {
                self.update(usize::from(number) % self.0.len(), row, spool)
            }
            ApplyTestStep::Shift(by) => {
                for number in 0..self.0.len() {
                    let (a, v, b) = self.0[number];
                    self.update(number, ((a + by) % 3, v, b), spool);
                }
            }
            ApplyTestStep::Delete(number) if !self.0.is_empty() => {
                let old = self.0.remove(usize::from(number) % self.0.len());
                spool.push(0, RawChange::Delete { old: tuple(old).as_ref() }).unwrap();
            }
            ApplyTestStep::Truncate => {
                self.0.clear();
                spool.push(0, RawChange::Truncate).unwrap();
            }
            ApplyTestStep::Update(..) | ApplyTestStep::Delete(_) => {}
        }
    }

    fn update(&mut self, number: usize, row: ApplyTestRow, spool: &mut SpoolWriter) {
        let old = std::mem::replace(&mut self.0[number], row);
        let (a, v, b) = row;
        let value = [v];
        let sent = if old.1 == v { Cell::Unchanged } else { Cell::Value(&value) };
        let new: TupleBuf = [Cell::Value(&[a]), sent, Cell::Value(&[b])].into_iter().collect();
        spool.push(0, RawChange::Update { old: Some(tuple(old).as_ref()), new: new.as_ref() }).unwrap();
    }

    /// Returns true if the transaction may commit.
    fn is_unique(&self) -> bool {
        let keys: std::collections::BTreeSet<_> = self.0.iter().map(|(a, _, b)| (a, b)).collect();
        keys.len() == self.0.len()
    }

    fn rows(&self) -> Vec<Vec<u8>> {
        let mut rows: Vec<_> = self.0.iter().map(|row| tuple(*row).as_ref().bytes().to_vec()).collect();
        rows.sort();
        rows
    }
}

fn spool() -> SpoolWriter {
    let mut spool =
        SpoolWriter::new(Arc::new(SpoolOptions { memory_bytes_max: 1 << 20, folder: std::env::temp_dir() }));
    let columns = schema().columns().iter().map(|c| (c.name.clone(), c.type_oid, c.type_modifier)).collect();
    spool.push_shape(&Arc::new(RelationShape { columns }));
    spool
}

fn rows_of(state: &TableState) -> Vec<Vec<u8>> {
    let mut rows: Vec<_> = state.rows().map(|row| row.as_ref().bytes().to_vec()).collect();
    rows.sort();
    rows
}

/// Applies a published change to a reader's rows. Every change has to fit them.
fn apply_effect(reader: &mut TableState, applied: ChangeEffect<'_>) {
    match applied {
        ChangeEffect::Row { old: None, new: Some(new), .. } => {
            assert!(reader.put(new.clone()).is_none(), "inserted twice")
        }
        ChangeEffect::Row { old: Some(old), new: Some(new), .. } => {
            let before = reader.put(new.clone()).expect("an update of a row that is there");
            assert_eq!(before.as_ref(), old.as_ref());
        }
        ChangeEffect::Row { old: Some(old), new: None, .. } => {
            let key = reader.schema().key().key_of(old.as_ref());
            assert_eq!(reader.remove(key.as_ref()).expect("a delete of a row that is there").as_ref(), old.as_ref());
        }
        ChangeEffect::Row { old: None, new: None, .. } => panic!("nothing happened"),
        ChangeEffect::Truncate => reader.clear(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A transaction may do anything to a deferrable key before it commits. After the commit, the
    /// rows are the database's, and each published change fits the rows that a reader has by then.
    #[test]
    fn a_transaction_is_applied_as_it_commits(transactions in prop::collection::vec(steps(), 1..5)) {
        let pipeline = Pipeline::bind(&PipelineOptions::default(), &schema()).unwrap();
        let mut state = TableState::new(schema(), &[], 0).unwrap();
        let mut reader = TableState::new(schema(), &[], 0).unwrap();
        let mut database = DeferrableKeyTable::default();
        for steps in transactions {
            let (mut after, mut changes) = (database.clone(), spool());
            steps.iter().for_each(|step| after.step(step, &mut changes));
            let mut changes = changes.finish().unwrap();
            if !after.is_unique() {
                // PostgreSQL rolls the transaction back. It must not be accepted as one that fits.
                let applied = apply_spool(&mut state.clone(), &pipeline, &mut changes, CommitTime(0), |_| Ok(()));
                prop_assert!(matches!(applied, Err(ApplyError::Diverged(StateError::KeyExists))), "{applied:?}");
                continue;
            }
            database = after;
            let applied = apply_spool(&mut state, &pipeline, &mut changes, CommitTime(0), |applied| {
                apply_effect(&mut reader, applied);
                Ok(())
            });
            prop_assert!(applied.is_ok(), "{applied:?} {steps:?}");
            prop_assert_eq!(rows_of(&state), database.rows());
            prop_assert_eq!(rows_of(&reader), database.rows());
            prop_assert_eq!(state.checksum(), reader.checksum());
        }
    }
}

#[test]
fn a_row_that_shares_its_key_is_not_guessed_by_its_key_alone() {
    let pipeline = Pipeline::bind(&PipelineOptions::default(), &schema()).unwrap();
    let mut state = TableState::new(schema(), &[], 0).unwrap();
    state.put(tuple((1, 1, 1)).as_ref().to_tuple());
    let mut changes = spool();
    changes.push(0, RawChange::Insert { new: tuple((1, 2, 1)).as_ref() }).unwrap();
    changes.push(0, RawChange::Update { old: None, new: tuple((1, 3, 1)).as_ref() }).unwrap();
    let applied = apply_spool(&mut state, &pipeline, &mut changes.finish().unwrap(), CommitTime(0), |_| Ok(()));
    assert!(matches!(applied, Err(ApplyError::Diverged(_))), "{applied:?}");
}
