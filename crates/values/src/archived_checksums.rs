//! Checksums of rows that survive projection, for copies that are written as JSON or as Structs.

use std::sync::Arc;

use laredo_core::{Cell, Checksum, Column, Schema, TupleBuf, TupleRef};

use crate::decode::ProjectError;
use crate::lenient::{HexCells, show_cell};
use crate::shape::TypeShape;

/// A calculator of checksums for rows of one schema. A row that was read back from its projection
/// has the same checksum as before.
///
/// A row's checksum is that of its bytes, except for cells whose projection may not restore every
/// byte (see the exceptions of the projection). Each such cell is replaced by the bytes of its
/// value as JSON, without white space and with the names of each object in order.
#[derive(Clone, Debug)]
pub struct ArchivedChecksums {
    schema: Arc<Schema>,
    /// True, by column, if cells are replaced by JSON.
    by_value: Vec<bool>,
}

impl ArchivedChecksums {
    /// Returns the calculator for rows of a schema.
    #[must_use]
    pub fn new(schema: Arc<Schema>) -> ArchivedChecksums {
        let by_value = schema.columns().iter().map(|column| !is_exact(&schema, column)).collect();
        ArchivedChecksums { schema, by_value }
    }

    /// Returns true if each row's checksum is that of its bytes. The table's checksum is then that
    /// of its table state.
    #[must_use]
    pub fn are_of_bytes(&self) -> bool {
        !self.by_value.contains(&true)
    }

    /// Returns the checksum of one row.
    ///
    /// # Errors
    /// Returns an error if a cell is not a value of its column's type, and archives have no form
    /// for it.
    pub fn of_row(&self, row: TupleRef<'_>) -> Result<Checksum, ProjectError> {
        if self.are_of_bytes() {
            return Ok(Checksum::of_row(row));
        }
        let mut comparable = TupleBuf::new();
        for (number, cell) in row.cells().enumerate() {
            if self.by_value.get(number) == Some(&true) {
                let value = show_cell(&self.schema, number, cell, &HexCells::default())?;
                comparable.push(Cell::Value(value.to_json().to_string().as_bytes()));
            } else {
                comparable.push(cell);
            }
        }
        Ok(Checksum::of_row(comparable.as_ref()))
    }
}

/// Returns true if the projection restores every byte of every cell of a column.
fn is_exact(schema: &Schema, column: &Column) -> bool {
    column.is_text
        || match TypeShape::of(schema, column.type_oid) {
            Ok(TypeShape::Base(base)) => base.is_exact(),
            // Types that are not known to be exact are taken by value, which is slower but always
            // correct.
            Ok(TypeShape::Array(_) | TypeShape::Composite(_) | TypeShape::Range(_) | TypeShape::Multirange(_))
            | Err(_) => false,
        }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encode::unproject_row;
    use crate::fixtures::{any_type, likely_bytes, numeric, schema};
    use crate::value::Value;

    fn row(cell: Cell<'_>) -> TupleBuf {
        [cell].into_iter().collect()
    }

    /// Returns the row that is read back from its projection, through the text of JSON.
    fn restored(schema: &Schema, row: &TupleBuf) -> Option<TupleBuf> {
        let value = show_cell(schema, 0, row.as_ref().cell(0), &HexCells::default()).ok()?;
        let text = value.to_json().to_string();
        let value = Value::from_json(serde_json::from_str(&text).ok()?);
        unproject_row(schema, &[("c".to_owned(), value)]).ok()
    }

    #[test]
    fn common_types_are_taken_by_their_bytes() {
        let by_bytes = |oid| ArchivedChecksums::new(Arc::new(schema(oid, false))).are_of_bytes();
        for oid in [16, 17, 20, 21, 23, 25, 1043, 1082, 1114, 1184, 1700, 2950] {
            assert!(by_bytes(oid), "{oid}");
        }
        for oid in [114, 3802, 701, 1007, 3904, 3615, 600] {
            assert!(!by_bytes(oid), "{oid}");
        }
        assert!(ArchivedChecksums::new(Arc::new(schema(600, true))).are_of_bytes(), "a column of texts");
    }

    #[test]
    fn a_document_has_one_checksum_however_it_is_spelled() {
        let sums = ArchivedChecksums::new(Arc::new(schema(114, false)));
        let of = |text: &str| sums.of_row(row(Cell::Value(text.as_bytes())).as_ref()).unwrap();
        assert_eq!(of(r#"{"b": [1, 2],  "a": null}"#), of(r#"{"a":null,"b":[1,2]}"#));
        assert_ne!(of(r#"{"a":null}"#), of(r#"{"a":0}"#));
        assert_ne!(of("[1,2]"), of("[2,1]"));
    }

    #[test]
    fn texts_come_back_to_the_byte() {
        for oid in [19, 25, 142, 1042, 1043] {
            let (schema, row) = (schema(oid, false), row(Cell::Value("ab é\"\\ \u{1} ".as_bytes())));
            assert_eq!(restored(&schema, &row).as_ref(), Some(&row), "{oid}");
        }
    }

    #[test]
    fn numerics_come_back_to_the_byte() {
        let schema = schema(1700, false);
        let cases = [
            numeric(0, 0, 0, &[]),
            numeric(0, 0, 5, &[]),
            numeric(1, 0x4000, 2, &[1, 2345, 6700]),
            numeric(-1, 0, 4, &[1]),
            numeric(-2, 0, 9, &[12, 3000]),
            numeric(3, 0, 0, &[9999]),
            numeric(0, 0xC000, 0, &[]),
            numeric(0, 0xD000, 32, &[]),
            numeric(0, 0xF000, 32, &[]),
        ];
        for bytes in cases {
            let row = row(Cell::Value(&bytes));
            assert_eq!(restored(&schema, &row).as_ref(), Some(&row));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// A row that was read back has the same checksum, for any cell.
        #[test]
        fn a_row_that_is_read_back_has_the_checksum_that_it_had(oid in any_type(), bytes in likely_bytes()) {
            let schema = Arc::new(schema(oid, false));
            let sums = ArchivedChecksums::new(schema.clone());
            let row = row(Cell::Value(&bytes));
            // Bytes that PostgreSQL never sends for a type are left out: values of exact types have
            // a single form.
            if !sums.are_of_bytes() && let Some(back) = restored(&schema, &row) {
                prop_assert_eq!(sums.of_row(back.as_ref()), sums.of_row(row.as_ref()), "{}", oid);
            }
        }
    }
}
