//! Rows as JSON, written directly and without intermediate values, for programs that write millions
//! of them.

use std::sync::Arc;

use postgres_types::Type;
use serde::Serialize;

use super::lenient::{HexCells, show_cell};
use super::shape::TypeShape;
use super::time::TimestampStyle;
use super::value::EXACT_INTEGER_MAX;
use super::{CellDecoder, CellProblem, ProjectError, boolean, digits, float_value, wire};
use laredo_core::{Cell, Column, Schema, TupleRef};

/// A writer of rows of one schema as JSON objects. The bytes are identical to those that
/// `serde_json` makes from the result of [`super::show_row`].
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
    form: JsonMemberForm,
}

#[derive(Clone, Debug, PartialEq)]
enum JsonMemberForm {
    Text,
    Builtin(Type),
    /// Any other form, which is written through a value.
    Other,
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
    /// Returns the errors of [`super::show_row`]. The part of the row that was appended then stays.
    pub fn push(&self, row: TupleRef<'_>, to: &mut Vec<u8>, hex: &HexCells) -> Result<(), ProjectError> {
        let mut cells = row.cells();
        if self.columns.is_empty() {
            to.push(b'{');
        }
        for (number, JsonRowMember { before, form }) in self.columns.iter().enumerate() {
            to.extend_from_slice(before);
            let (begin, cell) = (to.len(), cells.next().unwrap_or(Cell::Null));
            let pushed = match (cell, form) {
                (Cell::Null, _) => {
                    to.extend_from_slice(b"null");
                    Ok(true)
                }
                (Cell::Value(bytes), JsonMemberForm::Text) => push_text(bytes, to).map(|()| true),
                (Cell::Value(bytes), JsonMemberForm::Builtin(builtin)) => self.push_builtin(builtin, bytes, to),
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

    /// Appends a cell of a built-in type. Returns false without appending anything if the type or
    /// value needs another form.
    fn push_builtin(&self, builtin: &Type, bytes: &[u8], to: &mut Vec<u8>) -> Result<bool, CellProblem> {
        match *builtin {
            Type::BOOL => to.extend_from_slice(if boolean(bytes)? { b"true" } else { b"false" }),
            Type::INT2 => digits::push_signed(to, i16::from_be_bytes(wire::exactly(bytes)?).into()),
            Type::INT4 => digits::push_signed(to, i32::from_be_bytes(wire::exactly(bytes)?).into()),
            Type::INT8 => {
                let value = i64::from_be_bytes(wire::exactly(bytes)?);
                let is_exact = value.unsigned_abs() <= EXACT_INTEGER_MAX;
                if is_exact {
                    digits::push_signed(to, value);
                }
                return Ok(is_exact);
            }
            Type::FLOAT4 => push_json(&float_value(f32::from_be_bytes(wire::exactly(bytes)?).into()), to),
            Type::FLOAT8 => push_json(&float_value(f64::from_be_bytes(wire::exactly(bytes)?)), to),
            _ => {
                let begin = to.len();
                to.push(b'"');
                if !CellDecoder::new(&self.schema, false).push_plain(builtin, TimestampStyle::Iso, bytes, to)? {
                    to.truncate(begin);
                    return Ok(false);
                }
                to.push(b'"');
            }
        }
        Ok(true)
    }
}

impl JsonRowMember {
    fn new(schema: &Schema, number: usize, column: &Column) -> JsonRowMember {
        let mut before = vec![if number == 0 { b'{' } else { b',' }];
        push_json(&column.name, &mut before);
        before.push(b':');
        let form = match TypeShape::of(schema, column.type_oid) {
            _ if column.is_text => JsonMemberForm::Text,
            Ok(TypeShape::Text(_) | TypeShape::Enum(_)) => JsonMemberForm::Text,
            Ok(TypeShape::Builtin(builtin)) => JsonMemberForm::Builtin(builtin),
            _ => JsonMemberForm::Other,
        };
        JsonRowMember { before, form }
    }
}

/// Appends a string. ASCII text without escapes, which is the usual case, is copied.
fn push_text(bytes: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let is_other = |byte: &u8| (*byte < b' ') | (*byte == b'"') | (*byte == b'\\') | !byte.is_ascii();
    // The loop has no early exit, so that it processes many bytes at a time.
    if bytes.iter().fold(false, |found, byte| found | is_other(byte)) {
        push_json(wire::utf8(bytes)?, to);
        return Ok(());
    }
    to.push(b'"');
    to.extend_from_slice(bytes);
    to.push(b'"');
    Ok(())
}

fn push_json(value: &(impl Serialize + ?Sized), to: &mut Vec<u8>) {
    // Writing to a Vec cannot fail, and JSON can represent all values and strings here.
    let _ = serde_json::to_writer(to, value);
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::project::project_row;
    use laredo_core::TupleBuf;

    #[test]
    fn strings_are_escaped_where_they_have_to_be() {
        for text in [
            "",
            "plain ü \u{1F600} /",
            "\"",
            "\\",
            "a\nb",
            "\u{7f}",
            "\u{1}",
            "sixteen characters and a \"quote\" and more",
        ] {
            let mut to = Vec::new();
            push_text(text.as_bytes(), &mut to).unwrap();
            assert_eq!(String::from_utf8(to).unwrap(), serde_json::to_string(text).unwrap());
        }
    }

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
