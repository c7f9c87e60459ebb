//! The rows and columns of a table that a reader receives.

use std::sync::Arc;

use laredo_core::{Schema, TupleBuf, TupleRef};
use laredo_values::{Filter, Predicate};

use super::ViewError;

/// The conditions and the hidden columns of a view, bound to one schema.
#[derive(Debug)]
pub(crate) struct RowSelection {
    /// The schema of the table's rows.
    table: Arc<Schema>,
    filter: Option<Filter>,
    /// `None` if readers receive every column.
    columns: Option<VisibleColumns>,
}

/// The columns that readers receive.
#[derive(Debug)]
struct VisibleColumns {
    /// The column numbers in the table.
    numbers: Vec<usize>,
    schema: Arc<Schema>,
}

impl RowSelection {
    /// Binds conditions and hidden columns to a schema. A hidden column that the schema lacks hides
    /// nothing.
    ///
    /// # Errors
    /// Returns an error if a condition has no meaning for its column, or a hidden column is part of
    /// the key.
    pub(crate) fn bind(
        predicates: &[Predicate],
        hidden: &[String],
        table: &Arc<Schema>,
    ) -> Result<RowSelection, ViewError> {
        let filter = match predicates {
            [] => None,
            predicates => Some(Filter::bind(predicates, table)?),
        };
        let is_hidden = |name: &String| hidden.contains(name);
        let columns = table.columns().iter().map(|column| &column.name);
        let numbers: Vec<usize> =
            columns.clone().enumerate().filter(|(_, name)| !is_hidden(name)).map(|(number, _)| number).collect();
        if numbers.len() == table.columns().len() {
            return Ok(RowSelection { table: table.clone(), filter, columns: None });
        }
        let hidden_key = || {
            let key = table.key().columns().iter().filter_map(|number| table.columns().get(*number));
            key.map(|column| &column.name).find(|name| is_hidden(name)).cloned().unwrap_or_default()
        };
        let schema = table.with_columns(&numbers).ok_or_else(|| ViewError::HiddenKey(hidden_key()))?;
        Ok(RowSelection {
            table: table.clone(),
            filter,
            columns: Some(VisibleColumns { numbers, schema: schema.into() }),
        })
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
        self.columns.as_ref().map_or(&self.table, |columns| &columns.schema)
    }

    /// Returns a row as readers receive it.
    pub(crate) fn show<'a>(&self, row: TupleRef<'a>, scratch: &'a mut TupleBuf) -> TupleRef<'a> {
        let Some(columns) = &self.columns else { return row };
        scratch.clear();
        // The numbers ascend, so one pass over the cells is enough.
        let mut numbers = columns.numbers.iter().peekable();
        for (number, cell) in row.cells().enumerate() {
            if numbers.next_if(|next| **next == number).is_some() {
                scratch.push(cell);
            }
        }
        scratch.as_ref()
    }
}
