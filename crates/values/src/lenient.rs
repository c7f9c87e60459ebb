//! Lenient projection: a cell that is invalid for its type is shown as its bytes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use laredo_core::{Cell, Schema, TupleRef};

use crate::decode::{ProjectError, project_cell};
use crate::problem::CellProblem;
use crate::shape::shows_errors_in_hex;
use crate::text_form::escaped_hex;
use crate::value::Value;

/// A counter of cells that were shown in hex because they are invalid for their types.
#[derive(Debug, Default)]
pub struct HexCells {
    count: AtomicU64,
    first: OnceLock<ProjectError>,
}

impl HexCells {
    /// Returns the number of such cells.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Returns the error of the first such cell.
    #[must_use]
    pub fn first(&self) -> Option<&ProjectError> {
        self.first.get()
    }

    fn note(&self, error: ProjectError) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let _ = self.first.set(error);
    }
}

/// Returns the values of a row like [`crate::project_row`]. A cell that is invalid for its type is
/// shown as its bytes in hex, `\x0a1b`, and counted. [`crate::unproject_cell`] converts the hex
/// back to the same bytes.
///
/// # Errors
/// Returns an error for malformed text and JSON, for which hex could be a value. Also returns an
/// error for a cell that was not sent.
pub fn show_row<'s>(
    schema: &'s Schema,
    row: TupleRef<'_>,
    hex: &HexCells,
) -> Result<Vec<(&'s str, Value)>, ProjectError> {
    let mut cells = row.cells();
    let columns = schema.columns().iter().enumerate();
    let shown = columns.map(|(number, column)| {
        let cell = cells.next().unwrap_or(Cell::Null);
        Ok((column.name.as_str(), show_cell(schema, number, cell, hex)?))
    });
    shown.collect()
}

/// Returns the value of one cell, as [`show_row`] shows it.
pub(crate) fn show_cell(schema: &Schema, column: usize, cell: Cell<'_>, hex: &HexCells) -> Result<Value, ProjectError> {
    let error = match project_cell(schema, column, cell) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match (cell, &error.problem) {
        (Cell::Null | Cell::Unchanged, _) | (_, CellProblem::Unsent | CellProblem::NoColumn) => Err(error),
        (Cell::Value(bytes), _) if schema.columns().get(column).is_some_and(|c| shows_errors_in_hex(schema, c)) => {
            hex.note(error);
            Ok(Value::String(escaped_hex(bytes)))
        }
        (Cell::Value(_), _) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use laredo_core::{Oid, TupleBuf};
    use postgres_types::Type;

    use super::*;
    use crate::decode::project_row;
    use crate::encode::unproject_row;
    use crate::fixtures::{PAIR, PAIR_RANGE, PAIRS, schema};
    use crate::json_rows::JsonRows;

    fn row(bytes: &[u8]) -> TupleBuf {
        [Cell::Value(bytes)].into_iter().collect()
    }

    #[test]
    fn a_cell_of_another_form_is_shown_in_hex_and_read_back_as_it_was() {
        let three_fields = [&[0, 0, 0, 3][..], &[0, 0, 0, 23, 255, 255, 255, 255].repeat(3)].concat();
        let cases: [(Oid, &[u8]); 6] = [
            (PAIR, &three_fields),
            (PAIRS, b"not an array"),
            (PAIR_RANGE, &[2, 0]),
            (Type::INT4.oid(), b"12345"),
            (Type::TIMESTAMPTZ.oid(), b"1"),
            (Type::BYTEA_ARRAY.oid(), b""),
        ];
        for (oid, bytes) in cases {
            let (schema, row, hex) = (Arc::new(schema(oid, false)), row(bytes), HexCells::default());
            assert!(project_row(&schema, row.as_ref()).is_err(), "{oid}");
            let shown = show_row(&schema, row.as_ref(), &hex).unwrap();
            assert!(matches!(&shown[0].1, Value::String(text) if text.starts_with("\\x")), "{shown:?}");
            assert_eq!((hex.count(), hex.first().map(|error| error.column.as_str())), (1, Some("c")));
            let mut line = Vec::new();
            JsonRows::new(schema.clone()).push(row.as_ref(), &mut line, &hex).unwrap();
            let json = shown[0].1.to_json();
            assert_eq!(String::from_utf8(line).unwrap(), format!("{{\"c\":{json}}}"), "{oid}");
            let read = unproject_row(&schema, &[("c".to_owned(), shown[0].1.clone())]).unwrap();
            assert_eq!(read.as_ref().bytes(), row.as_ref().bytes(), "{oid}");
        }
    }

    #[test]
    fn text_and_json_are_never_shown_in_hex() {
        for (oid, is_text) in [(Type::TEXT.oid(), false), (Type::JSONB.oid(), false), (PAIR, true)] {
            let (schema, hex) = (schema(oid, is_text), HexCells::default());
            assert!(show_row(&schema, row(&[0xff]).as_ref(), &hex).is_err(), "{oid}");
            assert_eq!(hex.count(), 0);
        }
        let text = Value::String("\\x41".to_owned());
        let read = unproject_row(&schema(Type::TEXT.oid(), false), &[("c".to_owned(), text)]).unwrap();
        assert_eq!(read.as_ref().cell(0), Cell::Value(b"\\x41"), "a text of its own");
    }

    #[test]
    fn cells_that_fit_are_shown_as_ever() {
        let (schema, hex) = (schema(Type::INT4.oid(), false), HexCells::default());
        let row = row(&[0, 0, 0, 7]);
        assert_eq!(show_row(&schema, row.as_ref(), &hex), project_row(&schema, row.as_ref()));
        assert_eq!((hex.count(), hex.first()), (0, None));
    }
}
