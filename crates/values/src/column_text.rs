//! The text of a column's values, as PostgreSQL prints it.

use std::borrow::Cow;
use std::sync::Arc;

use laredo_core::{Oid, Schema};

use crate::decode::CellDecoder;
use crate::problem::NESTING_MAX;
use crate::shape::{TypeShape, base_type};
use crate::text_form::escaped_hex;

/// The text of one column's values, as `COPY` prints it under `TimeZone = UTC`, `DateStyle = ISO`,
/// `IntervalStyle = iso_8601` and `bytea_output = hex`.
///
/// Different cells of a key have different texts. To that end, a `tsquery` in a key always has
/// brackets.
#[derive(Clone, Debug)]
pub struct ColumnText {
    schema: Arc<Schema>,
    type_oid: Oid,
    is_key: bool,
    /// True if a cell's bytes are the text already.
    is_text: bool,
}

/// An error for a type whose text laredo cannot print as PostgreSQL does: a type that laredo does
/// not know, `money`, a `reg` type, or a type that contains one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("laredo cannot print its values as PostgreSQL does")]
pub struct UnprintableType;

impl ColumnText {
    /// Returns the text of a column of the schema, by the column's number from 0.
    ///
    /// # Errors
    /// Returns an error if the text of the column's type is unknown, or there is no such column.
    pub fn new(schema: &Arc<Schema>, column: usize) -> Result<ColumnText, UnprintableType> {
        let definition = schema.columns().get(column).ok_or(UnprintableType)?;
        let type_oid = definition.type_oid;
        if !definition.is_text && !is_printable(schema, type_oid, 0) {
            return Err(UnprintableType);
        }
        let shape = TypeShape::of(schema, type_oid);
        let is_text = definition.is_text || matches!(shape, Ok(TypeShape::Base(base)) if base.is_its_own_text());
        let is_key = schema.key().contains(column);
        Ok(ColumnText { schema: schema.clone(), type_oid, is_key, is_text })
    }

    /// Returns the text of a cell. A cell that is invalid for its type has its bytes in hex as its
    /// text, `\x0a1b`. The result is UTF-8 unless the database has text that is not.
    #[must_use]
    pub fn of<'c>(&self, cell: &'c [u8]) -> Cow<'c, [u8]> {
        if self.is_text {
            return Cow::Borrowed(cell);
        }
        let text = CellDecoder::new(&self.schema, self.is_key).text(self.type_oid, cell);
        Cow::Owned(text.unwrap_or_else(|_| escaped_hex(cell)).into_bytes())
    }
}

/// The types `int2vector` and `oidvector`: arrays whose text is not that of other arrays.
const VECTORS: [Oid; 2] = [22, 30];

fn is_printable(schema: &Schema, oid: Oid, depth: usize) -> bool {
    let is_inner_printable = |oid: Oid| is_printable(schema, oid, depth + 1);
    if depth > NESTING_MAX || base_type(schema, oid).is_ok_and(|oid| VECTORS.contains(&oid)) {
        return false;
    }
    match TypeShape::of(schema, oid) {
        Ok(TypeShape::Base(base)) => base.prints_as_postgresql(),
        Ok(TypeShape::Array(inner) | TypeShape::Range(inner) | TypeShape::Multirange(inner)) => {
            is_inner_printable(inner)
        }
        Ok(TypeShape::Composite(fields)) => fields.iter().all(|(_, field)| is_inner_printable(*field)),
        Err(_) => false,
    }
}
