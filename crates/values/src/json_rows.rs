//! Rows as JSON, written directly and without intermediate values, for programs that write millions
//! of them.

use std::sync::Arc;

use laredo_core::{Cell, Column, Schema, TupleRef};

use crate::decode::ProjectError;
use crate::lenient::{HexCells, show_cell};
use crate::shape::TypeShape;
use crate::types::text::TextType;
use crate::types::{BaseType, CellContext};
use crate::value::push_json;

/// A writer of rows of one schema as JSON objects. The bytes are identical to those that
/// `serde_json` makes from the result of [`crate::show_row`].
#[derive(Clone, Debug)]
pub struct JsonRows {
    schema: Arc<Schema>,
    columns: Vec<JsonRowMember>,
}

/// The member of each object for one column.
#[derive(Clone, Debug)]
struct JsonRowMember {
    /// The bytes before its value: the bracket or the comma, the name, and the colon.
    before: Vec<u8>,
    /// The type of its cells, if they need no intermediate value.
    base: Option<BaseType>,
}

impl JsonRows {
    /// Returns a writer for rows of this schema.
    #[must_use]
    pub fn new(schema: Arc<Schema>) -> JsonRows {
        let columns = schema.columns().iter().enumerate();
        let columns = columns.map(|(number, column)| JsonRowMember::new(&schema, number, column)).collect();
        JsonRows { schema, columns }
    }

    /// Returns the rows' schema.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Appends a row to `to`. Cells that a short row lacks are NULL.
    ///
    /// # Errors
    /// Returns the errors of [`crate::show_row`]. The part of the row that was appended then stays.
    pub fn push(&self, row: TupleRef<'_>, to: &mut Vec<u8>, hex: &HexCells) -> Result<(), ProjectError> {
        let mut cells = row.cells();
        if self.columns.is_empty() {
            to.push(b'{');
        }
        for (number, JsonRowMember { before, base }) in self.columns.iter().enumerate() {
            to.extend_from_slice(before);
            let (begin, cell) = (to.len(), cells.next().unwrap_or(Cell::Null));
            let pushed = match (cell, base) {
                (Cell::Null, _) => {
                    to.extend_from_slice(b"null");
                    Ok(true)
                }
                (Cell::Value(bytes), Some(base)) => base.push_json(&mut CellContext::new(false), bytes, to),
                _ => Ok(false),
            };
            // An invalid cell may have been appended in part.
            if pushed != Ok(true) {
                to.truncate(begin);
                push_json(&show_cell(&self.schema, number, cell, hex)?, to);
            }
        }
        to.push(b'}');
        Ok(())
    }
}

impl JsonRowMember {
    fn new(schema: &Schema, number: usize, column: &Column) -> JsonRowMember {
        let mut before = vec![if number == 0 { b'{' } else { b',' }];
        push_json(&column.name, &mut before);
        before.push(b':');
        let base = match TypeShape::of(schema, column.type_oid) {
            _ if column.is_text => Some(BaseType::Text(TextType::Plain)),
            Ok(TypeShape::Base(base)) => Some(base),
            Ok(TypeShape::Array(_) | TypeShape::Composite(_) | TypeShape::Range(_) | TypeShape::Multirange(_))
            | Err(_) => None,
        };
        JsonRowMember { before, base }
    }
}

#[cfg(test)]
mod tests {
    use laredo_core::TupleBuf;
    use postgres_types::Type;
    use serde_json::Value as Json;

    use super::*;
    use crate::decode::project_row;

    #[test]
    fn a_row_is_an_object_with_all_its_columns() {
        let column = |name: &str, builtin: Type| Column {
            name: name.to_owned(),
            type_oid: builtin.oid(),
            type_modifier: -1,
            type_name: builtin.name().to_owned(),
            not_null: false,
            is_text: false,
        };
        let columns = vec![column("id", Type::INT4), column("a \"name\"", Type::TEXT), column("d", Type::JSONB)];
        let key = laredo_core::KeyColumns::new([0]);
        let schema = Arc::new(Schema::new(columns, key, std::collections::BTreeMap::new()));
        let rows = JsonRows::new(schema.clone());
        let all = [Cell::Value(&[0, 0, 0, 7]), Cell::Value(b"x"), Cell::Value(b"\x01{\"b\": 1.50}")];
        for count in 0..=all.len() {
            let row: TupleBuf = all[..count].iter().copied().collect();
            let mut line = Vec::new();
            rows.push(row.as_ref(), &mut line, &HexCells::default()).unwrap();
            let expected: serde_json::Map<String, Json> = project_row(&schema, row.as_ref())
                .unwrap()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_json()))
                .collect();
            assert_eq!(serde_json::from_slice::<Json>(&line).unwrap(), Json::Object(expected));
        }
        let mut none = Vec::new();
        JsonRows::new(Arc::new(Schema::new(
            Vec::new(),
            laredo_core::KeyColumns::new([]),
            std::collections::BTreeMap::new(),
        )))
        .push(TupleBuf::new().as_ref(), &mut none, &HexCells::default())
        .unwrap();
        assert_eq!(none, b"{}");
    }
}
