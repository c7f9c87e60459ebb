//! The differences between two states of a table, whose definition may have changed in between.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use laredo_archive::NetChange;
use laredo_core::{Schema, TableState, Tuple};
use laredo_values::{ProjectError, Value, project_row};

/// Returns the changes that lead from one state to the other, sorted by key.
///
/// Rows of the same definition are compared by their bytes. Rows of different definitions are
/// compared by their values in an archive, column by column. A column that only one state has
/// counts as NULL in the other. If the key has other columns, no row counts as the same: all old
/// rows are deleted, then all new rows inserted.
///
/// # Errors
/// A cell that is not a valid value of its type.
pub(super) fn differences<'a>(
    before: &'a TableState,
    after: &'a TableState,
) -> Result<Vec<NetChange<'a>>, ProjectError> {
    let mut changes = if before.schema() == after.schema() {
        by_bytes(before, after)
    } else if key_names(before.schema()) == key_names(after.schema()) {
        by_values(before, after)?
    } else {
        all_again(before, after)
    };
    changes.sort_by(|one, other| (one.turn, &one.key).cmp(&(other.turn, &other.key)));
    Ok(changes.into_iter().map(|placed| placed.change).collect())
}

/// A change and its sort order among the others.
struct OrderedNetChange<'a> {
    turn: u8,
    key: Vec<u8>,
    change: NetChange<'a>,
}

impl<'a> OrderedNetChange<'a> {
    fn new(schema: &Schema, like: &Tuple, change: NetChange<'a>) -> OrderedNetChange<'a> {
        let key = schema.key().key_of(like.as_ref()).as_ref().bytes().to_vec();
        OrderedNetChange { turn: 0, key, change }
    }
}

fn by_bytes<'a>(before: &'a TableState, after: &'a TableState) -> Vec<OrderedNetChange<'a>> {
    let schema = after.schema();
    let mut changes = Vec::new();
    for new in after.rows() {
        match before.get_like(new.as_ref()) {
            None => changes.push(OrderedNetChange::new(schema, new, NetChange::Insert(new))),
            Some(old) if old.as_ref().bytes() != new.as_ref().bytes() => {
                changes.push(OrderedNetChange::new(schema, new, NetChange::Update { old, new }));
            }
            Some(_) => {}
        }
    }
    let gone = before.rows().filter(|old| after.get_like(old.as_ref()).is_none());
    changes.extend(gone.map(|old| OrderedNetChange::new(schema, old, NetChange::Delete(old))));
    changes
}

fn by_values<'a>(before: &'a TableState, after: &'a TableState) -> Result<Vec<OrderedNetChange<'a>>, ProjectError> {
    let key = key_names(after.schema());
    let mut gone = HashMap::with_capacity(before.len());
    for old in before.rows() {
        gone.insert(key_text(&key, &values(before.schema(), old)?), old);
    }
    let mut changes = Vec::new();
    for new in after.rows() {
        let shown = values(after.schema(), new)?;
        let change = match gone.remove(&key_text(&key, &shown)) {
            None => NetChange::Insert(new),
            Some(old) if values(before.schema(), old)? != shown => NetChange::Update { old, new },
            Some(_) => continue,
        };
        changes.push(OrderedNetChange::new(after.schema(), new, change));
    }
    let deleted = |old| OrderedNetChange::new(before.schema(), old, NetChange::Delete(old));
    changes.extend(gone.into_values().map(deleted));
    Ok(changes)
}

fn all_again<'a>(before: &'a TableState, after: &'a TableState) -> Vec<OrderedNetChange<'a>> {
    let deleted = before.rows().map(|old| OrderedNetChange::new(before.schema(), old, NetChange::Delete(old)));
    let inserted = after.rows().map(|new| {
        let placed = OrderedNetChange::new(after.schema(), new, NetChange::Insert(new));
        OrderedNetChange { turn: 1, ..placed }
    });
    deleted.chain(inserted).collect()
}

fn key_names(schema: &Schema) -> BTreeSet<&str> {
    let columns = schema.key().columns().iter().filter_map(|place| schema.columns().get(*place));
    columns.map(|column| column.name.as_str()).collect()
}

/// Returns the values of a row by column name, without NULLs.
fn values<'s>(schema: &'s Schema, row: &Tuple) -> Result<BTreeMap<&'s str, Value>, ProjectError> {
    Ok(project_row(schema, row.as_ref())?.into_iter().filter(|(_, value)| *value != Value::Null).collect())
}

fn key_text(key: &BTreeSet<&str>, values: &BTreeMap<&str, Value>) -> String {
    let key = key.iter().map(|name| values.get(name).unwrap_or(&Value::Null).to_json());
    serde_json::Value::from_iter(key).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use laredo_core::{Cell, Column, KeyColumns, TupleBuf};

    use super::*;

    /// Makes a table from the names and types of its columns, and rows of text or numbers as cells.
    fn table(columns: &[(&str, u32)], key: &[usize], rows: &[&[Option<&[u8]>]]) -> TableState {
        let column = |(name, type_oid): &(&str, u32)| Column {
            name: (*name).to_owned(),
            type_oid: *type_oid,
            type_modifier: -1,
            type_name: String::new(),
            not_null: false,
            is_text: false,
        };
        let schema = Schema::new(columns.iter().map(column).collect(), KeyColumns::new(key), BTreeMap::new());
        let mut table = TableState::new(Arc::new(schema), &[], 0).unwrap();
        for row in rows {
            let row: TupleBuf = row.iter().map(|cell| cell.map_or(Cell::Null, Cell::Value)).collect();
            table.put(row.as_ref().to_tuple());
        }
        table
    }

    fn actions(before: &TableState, after: &TableState) -> Vec<&'static str> {
        let name = |change: &NetChange<'_>| match change {
            NetChange::Truncate => "truncate",
            NetChange::Insert(_) => "insert",
            NetChange::Update { .. } => "update",
            NetChange::Delete(_) => "delete",
        };
        differences(before, after).unwrap().iter().map(name).collect()
    }

    const INT4: u32 = 23;
    const INT8: u32 = 20;
    const TEXT: u32 = 25;

    fn int4(value: i32) -> [u8; 4] {
        value.to_be_bytes()
    }

    fn int8(value: i64) -> [u8; 8] {
        value.to_be_bytes()
    }

    #[test]
    fn a_value_of_another_type_is_the_same_where_it_is_written_alike() {
        let before =
            table(&[("id", INT4), ("c", INT4)], &[0], &[&[Some(&int4(1)), Some(&int4(3))], &[Some(&int4(2)), None]]);
        let wider =
            table(&[("id", INT8), ("c", INT8)], &[0], &[&[Some(&int8(1)), Some(&int8(3))], &[Some(&int8(2)), None]]);
        assert_eq!(actions(&before, &wider), [""; 0]);
        let text = table(&[("id", INT4), ("c", TEXT)], &[0], &[&[Some(&int4(1)), Some(b"3")], &[Some(&int4(2)), None]]);
        assert_eq!(actions(&before, &text), ["update"]);
    }

    #[test]
    fn a_column_that_one_state_lacks_counts_as_null() {
        let rows: &[&[Option<&[u8]>]] = &[&[Some(&int4(1)), Some(b"a")], &[Some(&int4(2)), None]];
        let (narrow, wide) = (
            table(&[("id", INT4)], &[0], &[&[Some(&int4(1))], &[Some(&int4(2))]]),
            table(&[("id", INT4), ("name", TEXT)], &[0], rows),
        );
        assert_eq!(actions(&narrow, &wide), ["update"]);
        assert_eq!(actions(&wide, &narrow), ["update"]);
        let moved = table(
            &[("name", TEXT), ("id", INT4)],
            &[1],
            &[&[Some(b"a"), Some(&int4(1))], &[None, Some(&int4(2))], &[None, Some(&int4(3))]],
        );
        assert_eq!(actions(&wide, &moved), ["insert"], "columns may be in another order");
        assert_eq!(actions(&moved, &wide), ["delete"]);
    }

    #[test]
    fn rows_of_another_key_are_other_rows() {
        let rows: &[&[Option<&[u8]>]] = &[&[Some(&int4(1)), Some(b"a")], &[Some(&int4(2)), Some(b"b")]];
        let columns = [("id", INT4), ("name", TEXT)];
        let (by_id, by_name) = (table(&columns, &[0], rows), table(&columns, &[1], rows));
        assert_eq!(actions(&by_id, &by_name), ["delete", "delete", "insert", "insert"]);
        let (one, other) = (table(&columns, &[0, 1], rows), table(&columns, &[1, 0], rows));
        assert_eq!(actions(&one, &other), [""; 0], "the order of a key's columns does not matter");
    }
}
