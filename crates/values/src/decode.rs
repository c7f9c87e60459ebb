//! Projections of cells: the values that people and other languages read in Struct rows, in filters
//! and in JSON.
//!
//! The value depends on the type:
//!
//! * `bool`, `int2`, `int4`, `float4`, `float8`: native. A `float4` becomes the double with exactly
//!   the same value. `NaN`, `Infinity` and `-Infinity` are strings.
//! * `int8`: native up to ±2^53. Larger numbers are strings of their digits.
//! * `numeric`: a string, with the display scale.
//! * `date`, `time`, `timetz`, `timestamp`, `timestamptz`: ISO 8601, with `timestamptz` in UTC
//!   (`+00:00`). Years before 1 end in ` BC`. Infinite values are `infinity` and `-infinity`.
//! * `interval`: an ISO 8601 duration, each part with its own sign: `P1Y2M-3DT4H5M6.7S`.
//! * `json`, `jsonb`: nested values. A number that no double prints exactly is the string of its
//!   digits. A value nested deeper than 30 levels is the string of its text.
//! * `bytea`: base64.
//! * array: nested lists. PostgreSQL's text form is used where subscripts do not begin at 1
//!   (`[5:5]={1}`). It is also used for several dimensions if the elements may be lists themselves.
//! * composite: an object.
//! * enum, `citext`, `ltree`: a string.
//! * domain: the same as the base type.
//! * `oid`, `xid`, `cid`, `xid8`, `regclass` and the other `reg` types: the number as a string,
//!   because names would require the catalog.
//! * `money`: the amount without currency and separators, with the number of decimals that the
//!   server's `lc_monetary` has.
//! * range, multirange, every other built-in type: PostgreSQL's text form, with times in UTC and
//!   intervals as above.
//! * a type that laredo does not know: the binary form in hex, `\x0a1b`.
//! * a column whose cells are text: that text.
//! * a cell whose bytes are invalid for its type: those bytes in hex, `\x0a1b`. Text and JSON are
//!   excepted ([`show_row`]).
//!
//! Every projection can be converted back if the column's type is known
//! ([`crate::unproject_cell`]). The exception is a JSON document that is not part of the key. The
//! projection loses its spelling: white space, `1.10`, a duplicate name. It also does not say if a
//! string was originally a number or a deep value without a native form.
//!
//! # Keys
//!
//! Keys of different bytes are different values, in every row of a table. So the projection of a
//! key column keeps the complete information of three types:
//!
//! * `jsonb` is nested only if that restores the same bytes, and is the string of its text
//!   otherwise. A JSON string that is itself the text of a document is shown with its quotes, as in
//!   its text: `"5"`.
//! * `json` is always the string of its text.
//! * `tsquery` always has brackets. PostgreSQL's text form omits those that show that `a & (b & c)`
//!   nests to the right.

#[path = "equality.rs"]
pub(crate) mod canonical;
#[path = "digits.rs"]
mod digits;
#[path = "nested/form.rs"]
mod form;
#[path = "types/geometry.rs"]
mod geometry;
#[path = "types/json.rs"]
pub(crate) mod json;
#[path = "json_rows.rs"]
mod json_rows;
#[path = "lenient.rs"]
mod lenient;
#[path = "nested/arrays.rs"]
pub(crate) mod nested;
#[path = "project/network.rs"]
mod network;
#[path = "types/numbers/float.rs"]
mod numeric;
#[path = "types/search.rs"]
pub(crate) mod search;
#[path = "shape.rs"]
mod shape;
#[path = "types/time.rs"]
mod time;
#[path = "value.rs"]
mod value;
#[path = "wire.rs"]
mod wire;

#[cfg(test)]
#[path = "decode/tests.rs"]
pub(crate) mod tests;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Buf;
use postgres_types::Type;

pub use form::NestedForm;
pub use json_rows::JsonRows;
use laredo_core::{Cell, Lsn, Oid, Schema, TupleRef};
pub use lenient::{HexCells, show_row};
pub(crate) use lenient::{is_told_by_hex, show_cell};
pub(crate) use shape::{TextKind, TypeShape, is_object_number};
use time::TimestampStyle;
use value::EXACT_INTEGER_MAX;
pub use value::Value;

/// The maximum nesting depth of values. Each level of an object takes three protobuf messages, and
/// protobuf readers customarily accept 100 nested messages.
const NESTING_MAX: usize = 30;
/// The maximum number of characters of `numeric` text in one cell. Ten bytes can encode a number of
/// 140,000 digits, so the text of an array could exceed any memory.
const NUMERIC_TEXT_MAX: usize = 64 << 20;

/// An error for a cell that cannot be projected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` holds what is not a value of type {type_name}: {problem}")]
pub struct ProjectError {
    /// The column's name.
    pub column: String,
    /// The type's name.
    pub type_name: String,
    /// The problem with the cell.
    pub problem: CellProblem,
}

/// A problem with a cell's bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CellProblem {
    /// The bytes end before the value does.
    #[error("its bytes end too early")]
    Torn,
    /// The value ends before the bytes do.
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    /// Text that is not UTF-8.
    #[error("its text is not UTF-8")]
    NotUtf8,
    /// A part with a value that PostgreSQL never uses.
    #[error("its {0} is impossible")]
    Impossible(&'static str),
    /// A document that is not JSON.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// Types that nest too deeply.
    #[error("its types nest deeper than {NESTING_MAX} levels")]
    TooDeep,
    /// Numbers whose text is too large.
    #[error("its numbers have more than {NUMERIC_TEXT_MAX} digits")]
    TooLarge,
    /// A value that the source did not send.
    #[error("it was not sent")]
    Unsent,
    /// A column that the schema does not have.
    #[error("the table has no such column")]
    NoColumn,
}

/// Returns the projection of one cell.
///
/// # Errors
/// Returns an error if the bytes are not a value of the column's type, or the schema has no such
/// column.
pub fn project_cell(schema: &Schema, column: usize, cell: Cell<'_>) -> Result<Value, ProjectError> {
    let Some(definition) = schema.columns().get(column) else {
        return Err(ProjectError {
            column: column.to_string(),
            type_name: "unknown".to_owned(),
            problem: CellProblem::NoColumn,
        });
    };
    let value = match cell {
        Cell::Null => Ok(Value::Null),
        Cell::Unchanged => Err(CellProblem::Unsent),
        Cell::Value(bytes) if definition.is_text => text_value(bytes),
        Cell::Value(bytes) => CellDecoder::new(schema, schema.key().contains(column)).value(definition.type_oid, bytes),
    };
    value.map_err(|problem| ProjectError {
        column: definition.name.clone(),
        type_name: definition.type_name.clone(),
        problem,
    })
}

/// Returns the projections of a row by column name, in the schema's order. Cells that a short row
/// lacks are NULL.
///
/// # Errors
/// Returns an error if the bytes of a cell are not a value of the column's type.
pub fn project_row<'s>(schema: &'s Schema, row: TupleRef<'_>) -> Result<Vec<(&'s str, Value)>, ProjectError> {
    let mut cells = row.cells();
    schema
        .columns()
        .iter()
        .enumerate()
        .map(|(number, column)| {
            let cell = cells.next().unwrap_or(Cell::Null);
            Ok((column.name.as_str(), project_cell(schema, number, cell)?))
        })
        .collect()
}

/// Decodes one cell, within limits of depth and size.
struct CellDecoder<'s> {
    schema: &'s Schema,
    /// True if the cell is part of the key. Keys are distinguished by their bytes.
    is_key: bool,
    depth: usize,
    numeric_room: usize,
}

impl<'s> CellDecoder<'s> {
    fn new(schema: &'s Schema, is_key: bool) -> CellDecoder<'s> {
        CellDecoder { schema, is_key, depth: 0, numeric_room: NUMERIC_TEXT_MAX }
    }

    /// Returns the projection of a value, by the rules in the documentation of this module.
    fn value(&mut self, oid: Oid, bytes: &[u8]) -> Result<Value, CellProblem> {
        match self.enter(oid)? {
            TypeShape::Text(_) | TypeShape::Enum(_) => text_value(bytes),
            TypeShape::Builtin(builtin) => self.builtin_value(&builtin, bytes),
            TypeShape::Array(element) => self.deeper(|inner| inner.array(oid, element, bytes)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite(fields, bytes)),
            TypeShape::Ltree
            | TypeShape::Money(_)
            | TypeShape::Range(_)
            | TypeShape::Multirange(_)
            | TypeShape::Unknown => self.text(oid, bytes).map(Value::String),
        }
    }

    /// Returns PostgreSQL's text form of a value.
    fn text(&mut self, oid: Oid, bytes: &[u8]) -> Result<String, CellProblem> {
        match self.enter(oid)? {
            TypeShape::Text(_) | TypeShape::Enum(_) => Ok(wire::utf8(bytes)?.to_owned()),
            // A type that has this name without being the extension's has another binary form.
            TypeShape::Ltree => Ok(wire::versioned(bytes).map_or_else(|_| escaped_hex(bytes), str::to_owned)),
            TypeShape::Money(decimals) => numeric::money(bytes, decimals),
            TypeShape::Builtin(builtin) => self.builtin_text(&builtin, TimestampStyle::Text, bytes),
            TypeShape::Array(element) => self.deeper(|inner| inner.array_text(element, bytes)),
            TypeShape::Composite(fields) => self.deeper(|inner| inner.composite_text(fields, bytes)),
            TypeShape::Range(subtype) => self.deeper(|inner| inner.range(subtype, bytes)),
            TypeShape::Multirange(range) => self.deeper(|inner| inner.multirange(range, bytes)),
            TypeShape::Unknown => Ok(escaped_hex(bytes)),
        }
    }

    fn enter(&self, oid: Oid) -> Result<TypeShape<'s>, CellProblem> {
        if self.depth > NESTING_MAX {
            return Err(CellProblem::TooDeep);
        }
        TypeShape::of(self.schema, oid)
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, CellProblem>) -> Result<T, CellProblem> {
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn builtin_value(&mut self, builtin: &Type, bytes: &[u8]) -> Result<Value, CellProblem> {
        Ok(match *builtin {
            Type::BOOL => Value::Bool(boolean(bytes)?),
            Type::INT2 => Value::Number(i16::from_be_bytes(wire::exactly(bytes)?).into()),
            Type::INT4 => Value::Number(i32::from_be_bytes(wire::exactly(bytes)?).into()),
            Type::INT8 => {
                let value = i64::from_be_bytes(wire::exactly(bytes)?);
                #[expect(clippy::cast_precision_loss, reason = "up to 2^53 none is lost")]
                match value.unsigned_abs() {
                    0..=EXACT_INTEGER_MAX => Value::Number(value as f64),
                    _ => Value::String(value.to_string()),
                }
            }
            Type::FLOAT4 => float_value(f32::from_be_bytes(wire::exactly(bytes)?).into()),
            Type::FLOAT8 => float_value(f64::from_be_bytes(wire::exactly(bytes)?)),
            Type::BYTEA => Value::String(BASE64.encode(bytes)),
            Type::JSON if self.is_key => text_value(bytes)?,
            Type::JSONB if self.is_key => json::parse_exactly(wire::versioned(bytes)?, self.depth)?,
            Type::JSON => json::parse(wire::utf8(bytes)?, self.depth)?,
            Type::JSONB => json::parse(wire::versioned(bytes)?, self.depth)?,
            _ => Value::String(self.builtin_text(builtin, TimestampStyle::Iso, bytes)?),
        })
    }

    /// Appends the value's text if it has only digits, letters and characters that JSON does not
    /// escape. Returns false for all other types.
    fn push_plain(
        &mut self,
        builtin: &Type,
        style: TimestampStyle,
        bytes: &[u8],
        to: &mut Vec<u8>,
    ) -> Result<bool, CellProblem> {
        match *builtin {
            Type::NUMERIC => numeric::numeric(bytes, &mut self.numeric_room, to)?,
            Type::UUID => uuid(bytes, to)?,
            Type::DATE => time::date(bytes, to)?,
            Type::TIME => time::time(bytes, to)?,
            Type::TIMETZ => time::time_with_zone(bytes, style, to)?,
            Type::TIMESTAMP => time::timestamp(bytes, style, false, to)?,
            Type::TIMESTAMPTZ => time::timestamp(bytes, style, true, to)?,
            Type::INTERVAL => time::interval(bytes, to)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn builtin_text(&mut self, builtin: &Type, style: TimestampStyle, bytes: &[u8]) -> Result<String, CellProblem> {
        let mut plain = Vec::new();
        if self.push_plain(builtin, style, bytes, &mut plain)? {
            return String::from_utf8(plain).map_err(|_| CellProblem::NotUtf8);
        }
        Ok(match *builtin {
            Type::BOOL => if boolean(bytes)? { "t" } else { "f" }.to_owned(),
            Type::INT2 => i16::from_be_bytes(wire::exactly(bytes)?).to_string(),
            Type::INT4 => i32::from_be_bytes(wire::exactly(bytes)?).to_string(),
            Type::INT8 => i64::from_be_bytes(wire::exactly(bytes)?).to_string(),
            Type::FLOAT4 => numeric::single(f32::from_be_bytes(wire::exactly(bytes)?)),
            Type::FLOAT8 => numeric::double(f64::from_be_bytes(wire::exactly(bytes)?)),
            Type::BYTEA => escaped_hex(bytes),
            Type::JSON => wire::utf8(bytes)?.to_owned(),
            Type::JSONB | Type::JSONPATH => wire::versioned(bytes)?.to_owned(),
            Type::CHAR => char_text(bytes)?,
            Type::INET | Type::CIDR => network::address(bytes)?,
            Type::MACADDR => network::hardware::<6>(bytes)?,
            Type::MACADDR8 => network::hardware::<8>(bytes)?,
            Type::BIT | Type::VARBIT => bits(bytes)?,
            Type::POINT => geometry::point(bytes)?,
            Type::LSEG => geometry::segment(bytes)?,
            Type::BOX => geometry::rectangle(bytes)?,
            Type::PATH => geometry::path(bytes)?,
            Type::POLYGON => geometry::polygon(bytes)?,
            Type::LINE => geometry::line(bytes)?,
            Type::CIRCLE => geometry::circle(bytes)?,
            Type::TS_VECTOR => search::document(bytes)?,
            Type::TSQUERY => search::query(bytes, self.is_key)?,
            Type::TID => tid(bytes)?,
            Type::PG_LSN => Lsn(u64::from_be_bytes(wire::exactly(bytes)?)).to_string(),
            Type::TXID_SNAPSHOT | Type::PG_SNAPSHOT => visible_transactions(bytes)?,
            Type::XID8 => u64::from_be_bytes(wire::exactly(bytes)?).to_string(),
            _ if is_object_number(builtin) => u32::from_be_bytes(wire::exactly(bytes)?).to_string(),
            _ => escaped_hex(bytes),
        })
    }
}

fn text_value(bytes: &[u8]) -> Result<Value, CellProblem> {
    Ok(Value::String(wire::utf8(bytes)?.to_owned()))
}

fn boolean(bytes: &[u8]) -> Result<bool, CellProblem> {
    Ok(wire::exactly::<1>(bytes)? != [0])
}

fn float_value(value: f64) -> Value {
    match value.is_finite() {
        true => Value::Number(value),
        false => Value::String(numeric::double(value)),
    }
}

fn escaped_hex(bytes: &[u8]) -> String {
    format!("\\x{}", wire::hex(bytes))
}

/// Returns the text of a `"char"`: one byte, in octal if it is not ASCII. A zero byte is the empty
/// string.
fn char_text(bytes: &[u8]) -> Result<String, CellProblem> {
    Ok(match wire::exactly(bytes)? {
        [0] => String::new(),
        [byte @ 1..0x80] => char::from(byte).to_string(),
        [byte] => format!("\\{byte:03o}"),
    })
}

fn uuid(bytes: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let mut text = [b'-'; 36];
    let mut place = 0;
    for (number, byte) in wire::exactly::<16>(bytes)?.into_iter().enumerate() {
        if let 4 | 6 | 8 | 10 = number {
            place += 1;
        }
        text[place..place + 2].copy_from_slice(&wire::hex_digits(byte));
        place += 2;
    }
    to.extend_from_slice(&text);
    Ok(())
}

fn bits(mut input: &[u8]) -> Result<String, CellProblem> {
    let count = wire::count(&mut input, 0)?;
    if count.div_ceil(8) > input.len() {
        return Err(CellProblem::Torn);
    }
    let bytes = wire::take_bytes(&mut input, count.div_ceil(8))?;
    wire::end(input)?;
    let bit = |number: usize| bytes[number / 8] & (0x80 >> (number % 8)) != 0;
    Ok((0..count).map(|number| if bit(number) { '1' } else { '0' }).collect())
}

fn tid(mut input: &[u8]) -> Result<String, CellProblem> {
    let (block, offset) = (input.try_get_u32()?, input.try_get_u16()?);
    wire::end(input)?;
    Ok(format!("({block},{offset})"))
}

fn visible_transactions(mut input: &[u8]) -> Result<String, CellProblem> {
    let count = wire::count(&mut input, 8)?;
    let (xmin, xmax) = (input.try_get_u64()?, input.try_get_u64()?);
    let mut running = Vec::with_capacity(count);
    for _ in 0..count {
        running.push(input.try_get_u64()?.to_string());
    }
    wire::end(input)?;
    Ok(format!("{xmin}:{xmax}:{}", running.join(",")))
}
