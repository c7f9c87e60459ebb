//! The rows and columns of a table that a reader receives.

use std::sync::Arc;

use laredo_core::{Cell, Column, Schema, TupleBuf, TupleRef};
use laredo_engine::{CellReplacement, ReplacedColumn, with_replaced_columns};
use laredo_values::{Filter, Predicate};

use super::ViewError;

/// The columns that a reader does not receive as they are. A column that a table lacks is ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ColumnRules {
    /// The columns that are left out, sorted.
    hidden: Vec<String>,
    /// The columns whose values are replaced, sorted. None of them is hidden.
    masked: Vec<(String, CellReplacement)>,
}

impl ColumnRules {
    /// Returns the rules. A column that is hidden as well as masked is hidden, and the first of
    /// several masks of a column is used.
    pub(crate) fn new(mut hidden: Vec<String>, mut masked: Vec<(String, CellReplacement)>) -> ColumnRules {
        hidden.sort_unstable();
        hidden.dedup();
        masked.retain(|(column, _)| !hidden.contains(column));
        masked.sort_by(|(one, _), (other, _)| one.cmp(other));
        masked.dedup_by(|(one, _), (other, _)| one == other);
        ColumnRules { hidden, masked }
    }

    /// Returns true if the reader receives every column as it is.
    pub(crate) fn is_empty(&self) -> bool {
        self.hidden.is_empty() && self.masked.is_empty()
    }

    /// Returns the columns that are left out.
    pub(crate) fn hidden(&self) -> &[String] {
        &self.hidden
    }

    /// Returns the columns whose values are replaced.
    pub(crate) fn masked(&self) -> &[(String, CellReplacement)] {
        &self.masked
    }

    pub(crate) fn hides(&self, column: &str) -> bool {
        self.hidden.iter().any(|hidden| hidden == column)
    }

    /// Returns the replacement of a column's values, if there is one.
    pub(crate) fn mask_of(&self, column: &str) -> Option<&CellReplacement> {
        self.masked.iter().find(|(masked, _)| masked == column).map(|(_, replacement)| replacement)
    }
}

/// The conditions and the column rules of a view, bound to one schema.
#[derive(Debug)]
pub(crate) struct RowSelection {
    /// The schema of the table's rows.
    table: Arc<Schema>,
    filter: Option<Filter>,
    cells: CellSelection,
    /// The schema of the rows that readers receive.
    shown: Arc<Schema>,
}

/// The cells of a row that readers receive. The numbers are those of the table's columns, and
/// ascend.
#[derive(Debug)]
enum CellSelection {
    /// Every cell as it is.
    Whole,
    /// Some of the cells as they are.
    Part(Vec<usize>),
    /// Some of the cells, or all, of which some are replaced.
    Replaced(Vec<(usize, Option<ReplacedColumn>)>),
}

impl RowSelection {
    /// Binds conditions and column rules to a schema. The conditions are tested on the table's own
    /// values.
    ///
    /// # Errors
    /// Returns an error if a condition has no meaning for its column, if a hidden or masked column
    /// is part of the key, or if the mask of a column does not fit its type.
    pub(crate) fn bind(
        predicates: &[Predicate],
        rules: &ColumnRules,
        table: &Arc<Schema>,
    ) -> Result<RowSelection, ViewError> {
        let filter = match predicates {
            [] => None,
            predicates => Some(Filter::bind(predicates, table)?),
        };
        let (mut columns, mut numbers, mut masked) = (Vec::new(), Vec::new(), Vec::new());
        for (number, column) in table.columns().iter().enumerate().filter(|(_, column)| !rules.hides(&column.name)) {
            let replaced = rules.mask_of(&column.name).map(|mask| bind_mask(mask, table, number)).transpose()?;
            masked.extend(replaced.is_some().then_some(number));
            numbers.push(number);
            columns.push((number, replaced));
        }
        if masked.is_empty() && numbers.len() == table.columns().len() {
            let (cells, shown) = (CellSelection::Whole, table.clone());
            return Ok(RowSelection { table: table.clone(), filter, cells, shown });
        }
        let (cells, shown) = match masked.is_empty() {
            true => (CellSelection::Part(numbers.clone()), table.with_columns(&numbers)),
            false => (CellSelection::Replaced(columns), with_replaced_columns(table, &masked).with_columns(&numbers)),
        };
        let shown = shown.ok_or_else(|| ViewError::HiddenKey(hidden_key(rules, table)))?;
        Ok(RowSelection { table: table.clone(), filter, cells, shown: shown.into() })
    }

    /// Returns true if the selection is for rows of this schema.
    pub(super) fn is_of(&self, table: &Arc<Schema>) -> bool {
        Arc::ptr_eq(&self.table, table) || self.table == *table
    }

    pub(crate) fn filter(&self) -> Option<&Filter> {
        self.filter.as_ref()
    }

    /// Returns true if readers receive a row.
    pub(crate) fn matches(&self, row: TupleRef<'_>) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.matches(row))
    }

    /// Returns the schema of the rows that readers receive.
    pub(crate) fn schema(&self) -> &Arc<Schema> {
        &self.shown
    }

    /// Returns a row as readers receive it.
    pub(crate) fn show<'a>(&self, row: TupleRef<'a>, scratch: &'a mut TupleBuf) -> TupleRef<'a> {
        match &self.cells {
            CellSelection::Whole => return row,
            CellSelection::Part(numbers) => {
                scratch.clear();
                // The numbers ascend, so one pass over the cells is enough.
                let mut numbers = numbers.iter().peekable();
                for (number, cell) in row.cells().enumerate() {
                    if numbers.next_if(|next| **next == number).is_some() {
                        scratch.push(cell);
                    }
                }
            }
            CellSelection::Replaced(columns) => show_replaced(columns, row, scratch),
        }
        scratch.as_ref()
    }
}

/// Binds the mask of a column to a schema, by the column's number.
fn bind_mask(mask: &CellReplacement, table: &Arc<Schema>, number: usize) -> Result<ReplacedColumn, ViewError> {
    let facts = |column: &Column| (column.name.clone(), column.type_name.clone());
    let (column, type_name) = table.columns().get(number).map(facts).unwrap_or_default();
    if table.key().contains(number) {
        return Err(ViewError::MaskedKey(column));
    }
    mask.clone().bind(table, number).map_err(|problem| ViewError::Unprintable { column, type_name, problem })
}

/// Returns the name of the first hidden column that is part of the key.
fn hidden_key(rules: &ColumnRules, table: &Schema) -> String {
    let key = table.key().columns().iter().filter_map(|number| table.columns().get(*number));
    key.map(|column| &column.name).find(|name| rules.hides(name)).cloned().unwrap_or_default()
}

/// Writes the selected cells of a row, with replaced values. NULL is not replaced.
fn show_replaced(columns: &[(usize, Option<ReplacedColumn>)], row: TupleRef<'_>, scratch: &mut TupleBuf) {
    scratch.clear();
    let mut columns = columns.iter().peekable();
    for (number, cell) in row.cells().enumerate() {
        let Some((_, replaced)) = columns.next_if(|(next, _)| *next == number) else { continue };
        match (cell, replaced) {
            (Cell::Value(bytes), Some(replaced)) => scratch.push(Cell::Value(replaced.replace(bytes).as_bytes())),
            (cell @ (Cell::Null | Cell::Unchanged), Some(_)) | (cell, None) => scratch.push(cell),
        }
    }
}
