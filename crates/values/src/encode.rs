//! Conversion of values back to cells, for programs that rebuild rows from JSON or Structs.
//!
//! A converted value has the same projection again. The bytes are PostgreSQL's own, except outside
//! of keys. There a projection does not contain the spelling of a JSON document, nor the nesting of
//! a query without brackets.

#[cfg(test)]
mod tests;

use laredo_core::{Cell, Oid, Schema, TupleBuf};

use crate::problem::{ENCODED_NESTING_MAX, VALUE_BYTES_MAX, ValueMismatch};
use crate::shape::{TypeShape, shows_errors_in_hex};
use crate::text_form::parse_escaped_hex;
use crate::types::{BaseType, text};
use crate::value::{Value, string};

/// An error for a value that is not a value of its column's type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` cannot be {found}: it is of type {type_name}, and {problem}")]
pub struct UnprojectError {
    /// The column's name.
    pub column: String,
    /// The name of the column's type.
    pub type_name: String,
    /// The beginning of the value, as JSON.
    pub found: String,
    /// The problem with the value.
    pub problem: ValueMismatch,
}

/// Returns the bytes of the cell that has this projection; `None` for NULL.
///
/// # Errors
/// Returns an error if the value is not a value of the column's type.
pub fn unproject_cell(schema: &Schema, column: usize, value: &Value) -> Result<Option<Vec<u8>>, UnprojectError> {
    let (name, type_name, bytes) = match schema.columns().get(column) {
        None => (column.to_string(), "unknown", Err(ValueMismatch::NoColumn)),
        Some(definition) => {
            let bytes = match value {
                Value::Null if !is_json(schema, definition.type_oid) || !definition.not_null => Ok(None),
                Value::String(text) if definition.is_text => Ok(Some(text.as_bytes().to_vec())),
                _ if definition.is_text => Err(ValueMismatch::Kind("a string")),
                // This is a cell whose bytes were invalid for its type.
                Value::String(hex) if hex.starts_with("\\x") && shows_errors_in_hex(schema, definition) => {
                    parse_escaped_hex(hex).map(Some)
                }
                _ => {
                    CellEncoder::new(schema, schema.key().contains(column)).value(definition.type_oid, value).map(Some)
                }
            };
            let bytes = match bytes {
                Ok(Some(bytes)) if bytes.len() > VALUE_BYTES_MAX => Err(ValueMismatch::TooLarge),
                bytes => bytes,
            };
            (definition.name.clone(), definition.type_name.as_str(), bytes)
        }
    };
    bytes.map_err(|problem| {
        let found: String = value.to_json().to_string().chars().take(100).collect();
        UnprojectError { column: name, type_name: type_name.to_owned(), found, problem }
    })
}

/// Returns the row that has this projection, given by column name. Columns that are not named are
/// NULL.
///
/// # Errors
/// Returns an error if a value is not a value of its column's type, or no column has a name.
pub fn unproject_row(schema: &Schema, fields: &[(String, Value)]) -> Result<TupleBuf, UnprojectError> {
    let is_column = |name: &str| schema.columns().iter().any(|column| column.name == name);
    if let Some((name, value)) = fields.iter().find(|(name, _)| !is_column(name)) {
        let found = value.to_json().to_string().chars().take(100).collect();
        let (column, type_name) = (name.clone(), "unknown".to_owned());
        return Err(UnprojectError { column, type_name, found, problem: ValueMismatch::NoColumn });
    }
    let mut row = TupleBuf::new();
    for (number, column) in schema.columns().iter().enumerate() {
        let value = fields.iter().find(|(name, _)| *name == column.name).map_or(&Value::Null, |(_, value)| value);
        let bytes = unproject_cell(schema, number, value)?;
        row.push(bytes.as_deref().map_or(Cell::Null, Cell::Value));
    }
    Ok(row)
}

/// Returns true for `json` and `jsonb`. In a NOT NULL column of these types, a null is JSON's own.
fn is_json(schema: &Schema, oid: Oid) -> bool {
    matches!(TypeShape::of(schema, oid), Ok(TypeShape::Base(base)) if base.is_document())
}

/// Reads a literal of a type into a cell, in every spelling that SQL accepts. Projections have a
/// single spelling. Only types whose values can be compared are supported.
///
/// Spellings whose meaning depends on a session are not supported: its time zone, its order of day
/// and month, its search path. Words like `today` are not supported either.
///
/// # Errors
/// Returns an error if the literal is not a value of the type, or its meaning is not certain.
pub(crate) fn read_literal(schema: &Schema, oid: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    CellEncoder { schema, is_key: true, is_literal: true, depth: 0 }.value(oid, value)
}

/// An encoder of one cell.
pub(crate) struct CellEncoder<'s> {
    schema: &'s Schema,
    /// True if the cell is part of the key, for which projections keep more information.
    is_key: bool,
    /// True if values may be written as SQL literals, and not only as they are projected.
    is_literal: bool,
    depth: usize,
}

impl<'s> CellEncoder<'s> {
    fn new(schema: &'s Schema, is_key: bool) -> CellEncoder<'s> {
        CellEncoder { schema, is_key, is_literal: false, depth: 0 }
    }

    pub(crate) fn value(&mut self, oid: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        if self.is_literal {
            return self.literal(oid, value);
        }
        match self.enter(oid)? {
            TypeShape::Base(base) => base.unproject(self.is_key, value),
            TypeShape::Array(element) => self.deeper(|inner| inner.array(oid, element, value)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite(fields, value)),
            TypeShape::Range(_) | TypeShape::Multirange(_) => self.text(oid, string(value)?),
        }
    }

    /// Returns the bytes of a value that may be NULL.
    pub(crate) fn optional(&mut self, oid: Oid, value: &Value) -> Result<Option<Vec<u8>>, ValueMismatch> {
        match value {
            Value::Null => Ok(None),
            value => self.value(oid, value).map(Some),
        }
    }

    /// Returns the bytes of a value in PostgreSQL's text form.
    pub(crate) fn text(&mut self, oid: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        if self.is_literal {
            return self.literal(oid, &Value::String(input.to_owned()));
        }
        match self.enter(oid)? {
            TypeShape::Base(base) => base.parse_text(input),
            TypeShape::Array(element) => self.deeper(|inner| inner.array_text(oid, element, input)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite_text(fields, input)),
            TypeShape::Range(subtype) => self.deeper(|inner| inner.range(subtype, input)),
            TypeShape::Multirange(range) => self.deeper(|inner| inner.multirange(range, input)),
        }
    }

    fn literal(&mut self, oid: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        match self.enter(oid)? {
            TypeShape::Base(BaseType::Text(_)) if oid == text::NAME => text::parse_name_literal(value),
            TypeShape::Base(base) => base.parse_literal(value),
            TypeShape::Array(element) => self.deeper(|inner| inner.array(oid, element, value)),
            TypeShape::Composite(fields) => self.deeper(|inner| match value {
                Value::String(text) => inner.composite_text(fields, text),
                value => inner.composite(fields, value),
            }),
            TypeShape::Range(subtype) => {
                let text = string(value)?;
                self.deeper(|inner| inner.range_literal(subtype, text))
            }
            TypeShape::Multirange(_) => Err(ValueMismatch::Kind("a text that only PostgreSQL can read")),
        }
    }

    /// Returns the structure of a type, unless it nests too deeply.
    pub(crate) fn enter(&self, oid: Oid) -> Result<TypeShape<'s>, ValueMismatch> {
        match self.depth {
            0..ENCODED_NESTING_MAX => TypeShape::of(self.schema, oid).map_err(|_| ValueMismatch::TooDeep),
            _ => Err(ValueMismatch::TooDeep),
        }
    }

    pub(crate) fn deeper<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, ValueMismatch>,
    ) -> Result<T, ValueMismatch> {
        self.depth += 1;
        let result = write(self);
        self.depth -= 1;
        result
    }
}
