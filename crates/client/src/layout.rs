//! A schema with the types of its columns, as reading and writing cells needs them.

use std::sync::Arc;

use laredo_core::Schema;

use crate::cell::CellType;

/// A schema with the types of its columns, built once.
#[derive(Debug)]
pub(crate) struct RowLayout {
    schema: Arc<Schema>,
    columns: Vec<CellType>,
}

impl RowLayout {
    pub(crate) fn new(schema: Arc<Schema>) -> RowLayout {
        let columns = CellType::of_columns(&schema);
        RowLayout { schema, columns }
    }

    pub(crate) fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    pub(crate) fn column(&self, index: usize) -> Option<&CellType> {
        self.columns.get(index)
    }
}
