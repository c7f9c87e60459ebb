//! The net changes since the newest artifact, with one change for each key.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use laredo_core::{Change, Checksum, Key, KeyColumns, StateError, TableState, Transaction, Tuple, TupleBuf};
use laredo_values::{ArchivedChecksums, ProjectError};

/// The net changes since a state. Several changes of one key are combined, such as an insert and an
/// update, or an insert and a delete. The size is bounded by that of the table.
#[derive(Clone, Debug, Default)]
pub struct NetChangeSet {
    /// True if all earlier rows were removed; `rows` then applies to an empty table.
    truncated: bool,
    /// The newest row of each changed key; `None` if the row was removed. The bytes of the key
    /// determine the order, which is also the order of a diff.
    rows: BTreeMap<Vec<u8>, (Key, Option<Tuple>)>,
}

/// A change in a diff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetChange<'a> {
    /// All rows are removed. This change comes first.
    Truncate,
    /// A row with a new key is added.
    Insert(&'a Tuple),
    /// A row replaces another one with the same key.
    Update {
        /// The row before the change.
        old: &'a Tuple,
        /// The row after the change.
        new: &'a Tuple,
    },
    /// A row is removed.
    Delete(&'a Tuple),
}

/// The reason why a transaction was not added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetChangeError {
    /// The transaction changes the schema, so the archive's epoch has to end before it. No part of
    /// it was added.
    Schema,
    /// The transaction does not fit the earlier rows. The state before it is not the table's, and
    /// has to be built again.
    State(StateError),
}

impl NetChangeSet {
    /// Adds a transaction. `before` returns the row of a key in the state before all of these
    /// changes. `sum` is the checksum of all rows, which is updated.
    ///
    /// # Errors
    /// [`NetChangeError`] if the transaction changes the schema or does not fit.
    pub fn add<'a>(
        &mut self,
        transaction: &Transaction,
        key: &KeyColumns,
        before: impl Fn(&Key) -> Option<&'a Tuple>,
        sum: &mut Checksum,
    ) -> Result<(), NetChangeError> {
        if transaction.changes.iter().any(|change| matches!(change, Change::Schema(_))) {
            return Err(NetChangeError::Schema);
        }
        for change in &transaction.changes {
            let (of, row) = match change {
                Change::Insert(row) | Change::Update(row) => (key.key_of(row.as_ref()), Some(row.clone())),
                Change::Delete(key) => (key.clone(), None),
                Change::Truncate => {
                    *self = NetChangeSet { truncated: true, rows: BTreeMap::new() };
                    *sum = Checksum::default();
                    continue;
                }
                Change::Schema(_) => return Err(NetChangeError::Schema),
            };
            let of_row = |row: &Tuple| Checksum::of_row(row.as_ref());
            let new = row.as_ref().map(of_row).unwrap_or_default();
            let old = self.put(of, row, &before, of_row);
            let had = old.is_some();
            *sum = sum.plus(new).minus(old.unwrap_or_default());
            match change {
                Change::Insert(_) if had => return Err(NetChangeError::State(StateError::KeyExists)),
                Change::Update(_) | Change::Delete(_) if !had => {
                    return Err(NetChangeError::State(StateError::KeyMissing));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets the row of a key. Returns the result of `of_row` for the previous row.
    fn put<'a, T>(
        &mut self,
        key: Key,
        row: Option<Tuple>,
        before: impl Fn(&Key) -> Option<&'a Tuple>,
        of_row: impl Fn(&Tuple) -> T,
    ) -> Option<T> {
        match self.rows.entry(key.as_ref().bytes().to_vec()) {
            Entry::Occupied(mut place) => place.insert((key, row)).1.as_ref().map(of_row),
            Entry::Vacant(place) => {
                let old = if self.truncated { None } else { before(&key).map(of_row) };
                place.insert((key, row));
                old
            }
        }
    }

    /// Returns the row of a key after these changes: `Some(None)` if it is gone, and `None` if the
    /// key is unchanged.
    #[must_use]
    pub fn row(&self, key: &Key) -> Option<Option<&Tuple>> {
        match self.rows.get(key.as_ref().bytes()) {
            Some((_, row)) => Some(row.as_ref()),
            None => self.truncated.then_some(None),
        }
    }

    /// Combines these changes with the later ones.
    #[must_use]
    pub fn followed_by(mut self, later: NetChangeSet) -> NetChangeSet {
        if later.truncated {
            return later;
        }
        self.rows.extend(later.rows);
        self
    }

    /// Returns the rows of the state that these changes lead to from `before`, in no particular
    /// order.
    pub fn rows<'a>(&'a self, before: &'a TableState) -> impl Iterator<Item = &'a Tuple> {
        let mut key = TupleBuf::new();
        let is_whole = self.is_empty();
        let kept = before.rows().take(if self.truncated { 0 } else { before.len() }).filter(move |row| {
            if is_whole {
                return true;
            }
            key.clear();
            before.schema().key().cells_of(row.as_ref()).for_each(|cell| key.push(cell));
            !self.rows.contains_key(key.as_ref().bytes())
        });
        kept.chain(self.rows.values().filter_map(|(_, row)| row.as_ref()))
    }

    /// Returns the number of changed keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns true if nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.truncated && self.rows.is_empty()
    }

    /// Returns the differences from `before`, the state before these changes.
    pub fn changes<'a>(&'a self, before: &'a TableState) -> impl Iterator<Item = NetChange<'a>> {
        let truncate = self.truncated.then_some(NetChange::Truncate);
        let changes = self.rows.values().filter_map(move |(key, new)| {
            let old = if self.truncated { None } else { before.get(key) };
            match (old, new) {
                (None, None) => None,
                (None, Some(new)) => Some(NetChange::Insert(new)),
                (Some(old), None) => Some(NetChange::Delete(old)),
                (Some(old), Some(new)) if old.as_ref().bytes() == new.as_ref().bytes() => None,
                (Some(old), Some(new)) => Some(NetChange::Update { old, new }),
            }
        });
        truncate.into_iter().chain(changes)
    }

    /// Returns the checksum of the rows after these changes, as archives compute it. `sum` is the
    /// checksum of `before`.
    ///
    /// # Errors
    /// If a row has a value that is invalid for its column.
    pub fn archived_checksum(
        &self,
        before: &TableState,
        sums: &ArchivedChecksums,
        sum: Checksum,
    ) -> Result<Checksum, ProjectError> {
        self.changes(before).try_fold(sum, |sum, change| {
            let of = |row: &Tuple| sums.of_row(row.as_ref());
            Ok(match change {
                NetChange::Truncate => Checksum::default(),
                NetChange::Insert(new) => sum.plus(of(new)?),
                NetChange::Update { old, new } => sum.minus(of(old)?).plus(of(new)?),
                NetChange::Delete(old) => sum.minus(of(old)?),
            })
        })
    }

    /// Applies these changes to the state before them.
    pub fn apply_to(&self, state: &mut TableState) {
        if self.truncated {
            state.clear();
        }
        for (key, row) in self.rows.values() {
            match row {
                Some(row) => drop(state.put(row.clone())),
                None => drop(state.remove(key.as_ref())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use laredo_core::{Cell, Column, CommitTime, Lsn, Schema};
    use proptest::prelude::*;

    use super::*;

    fn schema() -> Arc<Schema> {
        let column = |name: &str, type_oid, type_name: &str| Column {
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            type_name: type_name.to_owned(),
            not_null: true,
            is_text: false,
        };
        let columns = vec![column("id", 23, "integer"), column("body", 25, "text")];
        Arc::new(Schema::new(columns, KeyColumns::new([0]), BTreeMap::new()))
    }

    fn row(id: i32, body: u8) -> Tuple {
        let row: TupleBuf = [Cell::Value(&id.to_be_bytes()), Cell::Value(&[b'a' + body])].into_iter().collect();
        row.as_ref().to_tuple()
    }

    fn transaction(changes: Vec<Change>) -> Transaction {
        Transaction { position: Lsn(1), span_from: None, committed_at: CommitTime(0), changes }
    }

    fn sorted(state: &TableState) -> Vec<Tuple> {
        let mut rows: Vec<Tuple> = state.rows().cloned().collect();
        rows.sort_by_key(|row| row.as_ref().bytes().to_vec());
        rows
    }

    proptest! {
        /// Checks that a diff leads from the state before to the state after, and has no
        /// superfluous changes.
        #[test]
        fn a_diff_leads_from_one_state_to_the_next(steps in prop::collection::vec((0..8_i32, 0..4_u8, 0..12_u8), 0..60), cut in 0..60_usize) {
            let schema = schema();
            let mut state = TableState::new(schema.clone(), &[], 0).unwrap();
            let mut made = Vec::new();
            for (id, body, kind) in steps {
                let is_there = state.get_like(row(id, 0).as_ref()).is_some();
                let change = match (kind, is_there) {
                    (0, _) => Change::Truncate,
                    (1..6, true) => Change::Delete(schema.key().key_of(row(id, 0).as_ref())),
                    (_, true) => Change::Update(row(id, body)),
                    (_, false) => Change::Insert(row(id, body)),
                };
                state.apply_change(&change).unwrap();
                made.push(change);
            }
            let (early, late) = made.split_at(cut.min(made.len()));
            let mut before = TableState::new(schema.clone(), &[], 0).unwrap();
            before.apply(&transaction(early.to_vec())).unwrap();
            let mut net = NetChangeSet::default();
            let there = |key: &Key| before.get(key);
            let (start, end) = (before.checksum(), state.checksum());
            let mut sum = start;
            late.iter().for_each(|change| {
                net.add(&transaction(vec![change.clone()]), schema.key(), there, &mut sum).unwrap();
            });
            prop_assert_eq!(sum, end);
            let (first, second) = late.split_at(late.len() / 2);
            let (mut sealed, mut open) = (NetChangeSet::default(), NetChangeSet::default());
            sum = start;
            sealed.add(&transaction(first.to_vec()), schema.key(), there, &mut sum).unwrap();
            let after = |key: &Key| sealed.row(key).unwrap_or_else(|| there(key));
            open.add(&transaction(second.to_vec()), schema.key(), after, &mut sum).unwrap();
            prop_assert_eq!(sum, end);
            let joined = sealed.clone().followed_by(open);
            prop_assert_eq!(joined.changes(&before).collect::<Vec<_>>(), net.changes(&before).collect::<Vec<_>>());
            let mut rows: Vec<Tuple> = net.rows(&before).cloned().collect();
            rows.sort_by_key(|row| row.as_ref().bytes().to_vec());
            prop_assert_eq!(rows, sorted(&state));
            let mut rebuilt = before.clone();
            for (number, change) in net.changes(&before).enumerate() {
                match change {
                    NetChange::Truncate => {
                        prop_assert_eq!(number, 0);
                        rebuilt.clear();
                    }
                    NetChange::Insert(new) => prop_assert_eq!(rebuilt.put(new.clone()), None),
                    NetChange::Update { old, new } => {
                        prop_assert_ne!(old, new);
                        prop_assert_eq!(rebuilt.put(new.clone()), Some(old.clone()));
                    }
                    NetChange::Delete(old) => {
                        let key = schema.key().key_of(old.as_ref());
                        prop_assert_eq!(rebuilt.remove(key.as_ref()), Some(old.clone()));
                    }
                }
            }
            prop_assert_eq!(sorted(&rebuilt), sorted(&state));
            net.apply_to(&mut before);
            prop_assert_eq!(sorted(&before), sorted(&state));
        }
    }

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let schema = schema();
        let mut before = TableState::new(schema.clone(), &[], 0).unwrap();
        before.put(row(1, 0));
        let taken = |changes: Vec<Change>| {
            let (mut net, mut sum) = (NetChangeSet::default(), before.checksum());
            (net.add(&transaction(changes), schema.key(), |key| before.get(key), &mut sum), net.len())
        };
        let schema_change = vec![Change::Insert(row(2, 0)), Change::Schema(schema.clone())];
        assert_eq!(
            taken(schema_change),
            (Err(NetChangeError::Schema), 0),
            "its epoch ends before the whole transaction"
        );
        assert_eq!(taken(vec![Change::Insert(row(1, 1))]).0, Err(NetChangeError::State(StateError::KeyExists)));
        assert_eq!(taken(vec![Change::Update(row(2, 1))]).0, Err(NetChangeError::State(StateError::KeyMissing)));
        let key = |id| schema.key().key_of(row(id, 0).as_ref());
        assert_eq!(taken(vec![Change::Delete(key(2))]).0, Err(NetChangeError::State(StateError::KeyMissing)));
        assert_eq!(taken(vec![Change::Delete(key(1)), Change::Insert(row(1, 1))]).0, Ok(()));
        assert_eq!(
            taken(vec![Change::Truncate, Change::Update(row(1, 1))]).0,
            Err(NetChangeError::State(StateError::KeyMissing))
        );
    }
}
