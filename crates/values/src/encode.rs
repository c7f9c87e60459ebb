//! Conversion of projected values back to cells, for programs that rebuild rows from JSON or
//! Structs.
//!
//! A converted value has the same projection again. The bytes are PostgreSQL's own, except outside
//! of keys. There a projection does not contain the spelling of a JSON document, nor the nesting of
//! a query without brackets.

#[path = "unproject/geometry.rs"]
mod geometry;
#[path = "types/text.rs"]
mod literal;
#[path = "nested/quoting.rs"]
mod nested;
#[path = "unproject/network.rs"]
mod network;
#[path = "types/numbers/numeric.rs"]
mod numeric;
#[path = "unproject/search.rs"]
mod search;
#[path = "text_form.rs"]
mod text;
#[path = "unproject/time.rs"]
mod time;

#[cfg(test)]
#[path = "encode/tests.rs"]
mod tests;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use postgres_types::Type;

use crate::project::{TypeShape, Value, is_told_by_hex, json};
use laredo_core::{Cell, Oid, Schema, TupleBuf};
pub(crate) use literal::read_literal;

/// The maximum nesting depth of types and values, which is more than any projection has.
const DEPTH_MAX: usize = 64;

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

/// A problem with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueMismatch {
    /// A kind of value that is not used for the type. The text names the kind that is.
    #[error("its values are written as {0}")]
    Kind(&'static str),
    /// A text that does not have the type's form.
    #[error("this is not how {0} is written")]
    Text(&'static str),
    /// A number outside the type's range.
    #[error("this is outside of its range")]
    Range,
    /// An array whose lists differ in length, or nest more deeply than PostgreSQL's six dimensions.
    #[error("its lists are not those of an array")]
    Uneven,
    /// A composite that lacks a field, or has one that its type does not have.
    #[error("its fields are not {0}")]
    Fields(String),
    /// Types or values that nest too deeply.
    #[error("it nests deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// A column that the schema does not have.
    #[error("the table has no such column")]
    NoColumn,
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
                Value::String(hex) if hex.starts_with("\\x") && is_told_by_hex(schema, column) => {
                    text::escaped_hex(hex).map(Some)
                }
                _ => {
                    CellEncoder::new(schema, schema.key().contains(column)).value(definition.type_oid, value).map(Some)
                }
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
    matches!(TypeShape::of(schema, oid), Ok(TypeShape::Builtin(Type::JSON | Type::JSONB)))
}

/// Encodes one cell.
struct CellEncoder<'s> {
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

    fn value(&mut self, oid: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        if self.is_literal {
            return self.literal(oid, value);
        }
        match self.enter(oid)? {
            TypeShape::Builtin(Type::JSON) => Ok(match value {
                Value::String(text) if self.is_key => text.clone(),
                value => value.to_json().to_string(),
            }
            .into_bytes()),
            TypeShape::Builtin(Type::JSONB) => Ok(text::versioned(&match value {
                Value::String(text) if self.is_key && json::is_document(text) => text.clone(),
                value => json::jsonb_text(value),
            })),
            TypeShape::Builtin(builtin) => builtin_value(&builtin, value),
            TypeShape::Array(element) => self.deeper(|inner| inner.array(oid, element, value)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite(fields, value)),
            TypeShape::Text(_)
            | TypeShape::Enum(_)
            | TypeShape::Ltree
            | TypeShape::Money(_)
            | TypeShape::Range(_)
            | TypeShape::Multirange(_)
            | TypeShape::Unknown => self.text(oid, string(value)?),
        }
    }

    /// Returns the bytes of a value in PostgreSQL's text form.
    fn text(&mut self, oid: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        if self.is_literal {
            return self.literal(oid, &Value::String(input.to_owned()));
        }
        match self.enter(oid)? {
            TypeShape::Text(_) | TypeShape::Enum(_) => Ok(input.as_bytes().to_vec()),
            TypeShape::Ltree if input.starts_with("\\x") => text::escaped_hex(input),
            TypeShape::Ltree => Ok(text::versioned(input)),
            TypeShape::Money(decimals) => Ok(numeric::money(input, decimals)?.to_be_bytes().to_vec()),
            TypeShape::Builtin(builtin) => text::builtin(&builtin, input),
            TypeShape::Array(element) => self.deeper(|inner| inner.array_text(oid, element, input)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite_text(fields, input)),
            TypeShape::Range(subtype) => self.deeper(|inner| inner.range(subtype, input)),
            TypeShape::Multirange(range) => self.deeper(|inner| inner.multirange(range, input)),
            TypeShape::Unknown => text::escaped_hex(input),
        }
    }

    fn enter(&self, oid: Oid) -> Result<TypeShape<'s>, ValueMismatch> {
        match self.depth {
            0..DEPTH_MAX => TypeShape::of(self.schema, oid).map_err(|_| ValueMismatch::TooDeep),
            _ => Err(ValueMismatch::TooDeep),
        }
    }

    fn deeper<T>(&mut self, write: impl FnOnce(&mut Self) -> Result<T, ValueMismatch>) -> Result<T, ValueMismatch> {
        self.depth += 1;
        let result = write(self);
        self.depth -= 1;
        result
    }
}

fn string(value: &Value) -> Result<&str, ValueMismatch> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(ValueMismatch::Kind("a string")),
    }
}

fn builtin_value(builtin: &Type, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    Ok(match (builtin, value) {
        (&Type::BOOL, Value::Bool(value)) => vec![u8::from(*value)],
        (&Type::BOOL, _) => return Err(ValueMismatch::Kind("a boolean")),
        (&Type::INT2, Value::Number(number)) => {
            i16::try_from(whole(*number)?).map_err(out_of_range)?.to_be_bytes().to_vec()
        }
        (&Type::INT4, Value::Number(number)) => {
            i32::try_from(whole(*number)?).map_err(out_of_range)?.to_be_bytes().to_vec()
        }
        (&Type::INT8, Value::Number(number)) => whole(*number)?.to_be_bytes().to_vec(),
        (&Type::INT2 | &Type::INT4, _) => return Err(ValueMismatch::Kind("a number")),
        #[expect(clippy::cast_possible_truncation, reason = "a float4 was projected as the double of its value")]
        (&Type::FLOAT4, Value::Number(number)) => match *number as f32 {
            narrow if f64::from(narrow) == *number => narrow.to_be_bytes().to_vec(),
            _ => return Err(ValueMismatch::Range),
        },
        (&Type::FLOAT8, Value::Number(number)) => number.to_be_bytes().to_vec(),
        (&Type::BYTEA, Value::String(text)) => BASE64.decode(text).map_err(|_| ValueMismatch::Text("base64"))?,
        (_, value) => text::builtin(builtin, string(value)?)?,
    })
}

fn out_of_range<E>(_: E) -> ValueMismatch {
    ValueMismatch::Range
}

fn whole(number: f64) -> Result<i64, ValueMismatch> {
    #[expect(clippy::cast_possible_truncation, reason = "it is whole, and far below 2^63")]
    match number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0 {
        true => Ok(number as i64),
        false => Err(ValueMismatch::Range),
    }
}
