//! Columns that rows are looked up by. Values that are equal by SQL's `=` have the same key, in
//! every spelling.

use laredo_core::{Cell, Oid, Schema};

use crate::encode::read_literal;
use crate::equality::{canonical, check_comparable, is_canonical};
use crate::problem::ValueMismatch;
use crate::value::Value;

/// The columns that rows are looked up by, bound to a schema.
#[derive(Clone, Debug)]
pub struct LookupColumns {
    schema: Schema,
    columns: Vec<LookupColumn>,
}

#[derive(Clone, Debug)]
struct LookupColumn {
    number: usize,
    form: CellForm,
}

/// The bytes of a cell that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CellForm {
    /// The cell itself, for types whose cells are canonical.
    Cell,
    /// The text of a column whose cells are text.
    Text,
    /// The canonical form of a cell of this type.
    Canonical(Oid),
}

/// An error for a column whose values cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` is of type {type_name}: {problem}")]
pub struct LookupColumnError {
    /// The column's name.
    pub column: String,
    /// The name of the column's type.
    pub type_name: String,
    /// The cause.
    pub problem: &'static str,
}

/// An error for values that rows cannot be looked up by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupValueError {
    /// A number of values that differs from the number of columns.
    #[error("there are {found} values for the columns {columns}")]
    Count {
        /// The number of values.
        found: usize,
        /// The columns with their types, in order.
        columns: String,
    },
    /// A value that is not a value of its column's type.
    #[error("{value} is no value of column `{column}` of type {type_name}: {mismatch}")]
    Value {
        /// The index of the value in the list.
        index: usize,
        /// The beginning of the value, as JSON.
        value: String,
        /// The column's name.
        column: String,
        /// The name of the column's type.
        type_name: String,
        /// The cause.
        mismatch: ValueMismatch,
    },
}

impl LookupColumns {
    /// Binds columns, by their numbers in the schema.
    ///
    /// # Errors
    /// Returns an error if the equality of a column's values is not known.
    pub fn bind(schema: &Schema, numbers: &[usize]) -> Result<LookupColumns, LookupColumnError> {
        let bind_column = |number: &usize| {
            let number = *number;
            let Some(column) = schema.columns().get(number) else {
                let (column, type_name) = (number.to_string(), "unknown".to_owned());
                return Err(LookupColumnError { column, type_name, problem: "the table has no such column" });
            };
            let form = match column.is_text {
                true => CellForm::Text,
                false => {
                    check_comparable(schema, column.type_oid).map_err(|problem| LookupColumnError {
                        column: column.name.clone(),
                        type_name: column.type_name.clone(),
                        problem,
                    })?;
                    match is_canonical(schema, column.type_oid) {
                        true => CellForm::Cell,
                        false => CellForm::Canonical(column.type_oid),
                    }
                }
            };
            Ok(LookupColumn { number, form })
        };
        let columns = numbers.iter().map(bind_column).collect::<Result<_, _>>()?;
        Ok(LookupColumns { schema: schema.clone(), columns })
    }

    /// Returns true if equal values always have equal cells. A key is then the cells of the
    /// columns, as a row has them.
    #[must_use]
    pub fn are_canonical(&self) -> bool {
        !self.columns.iter().any(|column| matches!(column.form, CellForm::Canonical(_)))
    }

    /// Appends the key of these cells, which are those of the columns in their order. NULL is a
    /// value like any other. A cell that is invalid for its type is equal only to itself.
    pub fn push_cells<'a>(&self, cells: impl Iterator<Item = Cell<'a>>, key: &mut Vec<u8>) {
        for (column, cell) in self.columns.iter().zip(cells) {
            match (cell.value(), column.form) {
                (None, _) => push(None, key),
                (Some(bytes), CellForm::Cell | CellForm::Text) => push(Some(bytes), key),
                (Some(bytes), CellForm::Canonical(oid)) => match canonical(&self.schema, oid, bytes) {
                    Ok(form) => push(Some(&form), key),
                    Err(_) => push(Some(bytes), key),
                },
            }
        }
    }

    /// Returns the key of values, one for each column. They are read as SQL reads literals of the
    /// columns' types. Numbers may be given as numbers or as strings of their digits.
    ///
    /// # Errors
    /// Returns an error if their number differs from that of the columns, or one is not a value of
    /// its column's type.
    pub fn key_of_values(&self, values: &[Value]) -> Result<Vec<u8>, LookupValueError> {
        if values.len() != self.columns.len() {
            let columns = self.columns.iter().filter_map(|column| self.schema.columns().get(column.number));
            let columns: Vec<String> =
                columns.map(|column| format!("`{}` {}", column.name, column.type_name)).collect();
            return Err(LookupValueError::Count { found: values.len(), columns: columns.join(", ") });
        }
        let mut key = Vec::new();
        for (index, (column, value)) in self.columns.iter().zip(values).enumerate() {
            let form = self.form_of_value(column, value).map_err(|mismatch| {
                let definition = self.schema.columns().get(column.number);
                let of = |read: fn(&laredo_core::Column) -> &String| definition.map(read).cloned().unwrap_or_default();
                LookupValueError::Value {
                    index,
                    value: value.to_json().to_string().chars().take(100).collect(),
                    column: of(|column| &column.name),
                    type_name: of(|column| &column.type_name),
                    mismatch,
                }
            })?;
            push(form.as_deref(), &mut key);
        }
        Ok(key)
    }

    /// Returns the compared bytes of a value; `None` for NULL.
    fn form_of_value(&self, column: &LookupColumn, value: &Value) -> Result<Option<Vec<u8>>, ValueMismatch> {
        let oid = self.schema.columns().get(column.number).ok_or(ValueMismatch::NoColumn)?.type_oid;
        Ok(Some(match (value, column.form) {
            (Value::Null, _) => return Ok(None),
            (Value::String(text), CellForm::Text) => text.as_bytes().to_vec(),
            (_, CellForm::Text) => return Err(ValueMismatch::Kind("a string")),
            (value, CellForm::Cell) => read_literal(&self.schema, oid, value)?,
            (value, CellForm::Canonical(oid)) => {
                let cell = read_literal(&self.schema, oid, value)?;
                canonical(&self.schema, oid, &cell).map(std::borrow::Cow::into_owned).unwrap_or(cell)
            }
        }))
    }
}

/// Appends one cell's form in the way of rows: its length, or -1 for NULL, and its bytes.
fn push(form: Option<&[u8]>, key: &mut Vec<u8>) {
    let length = form.map_or(u32::MAX, |form| u32::try_from(form.len()).unwrap_or(u32::MAX - 1));
    key.extend_from_slice(&length.to_be_bytes());
    key.extend_from_slice(form.unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use laredo_core::{Column, KeyColumns, TupleBuf};
    use postgres_types::Type;

    use super::*;

    fn schema(types: &[Type]) -> Schema {
        let column = |(number, of): (usize, &Type)| Column {
            name: format!("c{number}"),
            type_oid: of.oid(),
            type_modifier: -1,
            type_name: of.name().to_owned(),
            not_null: false,
            is_text: false,
        };
        Schema::new(types.iter().enumerate().map(column).collect(), KeyColumns::new([0]), Default::default())
    }

    fn key_of_cells(columns: &LookupColumns, cells: &[Option<&[u8]>]) -> Vec<u8> {
        let mut key = Vec::new();
        columns.push_cells(cells.iter().map(|cell| cell.map_or(Cell::Null, Cell::Value)), &mut key);
        key
    }

    #[test]
    fn the_key_of_canonical_columns_is_the_row_of_their_cells() {
        let columns = LookupColumns::bind(&schema(&[Type::INT4, Type::TEXT]), &[0, 1]).unwrap();
        assert!(columns.are_canonical());
        let seven = 7_i32.to_be_bytes();
        let row: TupleBuf = [Cell::Value(&seven), Cell::Value(b"ab")].into_iter().collect();
        assert_eq!(key_of_cells(&columns, &[Some(&seven), Some(b"ab")]), row.as_ref().bytes());
        for value in [Value::Number(7.0), Value::String("7".to_owned())] {
            let values = [value, Value::String("ab".to_owned())];
            assert_eq!(columns.key_of_values(&values).unwrap(), row.as_ref().bytes());
        }
        let with_null: TupleBuf = [Cell::Value(&seven), Cell::Null].into_iter().collect();
        let values = [Value::Number(7.0), Value::Null];
        assert_eq!(columns.key_of_values(&values).unwrap(), with_null.as_ref().bytes());
    }

    #[test]
    fn equal_values_of_other_bytes_have_the_same_key() {
        let columns = LookupColumns::bind(&schema(&[Type::FLOAT8]), &[0]).unwrap();
        assert!(!columns.are_canonical());
        let zeros = [0.0_f64, -0.0].map(|zero| key_of_cells(&columns, &[Some(&zero.to_be_bytes())]));
        assert_eq!(zeros[0], zeros[1]);
        assert_eq!(columns.key_of_values(&[Value::Number(-0.0)]).unwrap(), zeros[0]);
        let numeric = LookupColumns::bind(&schema(&[Type::NUMERIC]), &[0]).unwrap();
        let keys = ["1", "1.0", "1.00"].map(|text| numeric.key_of_values(&[Value::String(text.to_owned())]).unwrap());
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        assert_ne!(numeric.key_of_values(&[Value::Number(1.5)]).unwrap(), keys[0]);
    }

    #[test]
    fn values_that_do_not_fit_are_named() {
        let columns = LookupColumns::bind(&schema(&[Type::INT4, Type::TEXT]), &[0, 1]).unwrap();
        let count = columns.key_of_values(&[Value::Number(1.0)]).unwrap_err();
        assert_eq!(count.to_string(), "there are 1 values for the columns `c0` int4, `c1` text");
        let wrong = columns.key_of_values(&[Value::String("x".to_owned()), Value::Null]).unwrap_err();
        assert!(matches!(wrong, LookupValueError::Value { index: 0, .. }), "{wrong}");
        assert!(wrong.to_string().contains("`c0`"), "{wrong}");
        assert!(LookupColumns::bind(&schema(&[Type::JSON]), &[0]).is_err(), "json has no equality");
    }
}
