//! Arrays, composites, ranges and multiranges.

use std::fmt::Write;

use bytes::Buf;

use postgres_types::Type;

use super::{CellDecoder, CellProblem, TypeShape, Value, wire};
use laredo_core::Oid;

/// The maximum number of dimensions in PostgreSQL.
const DIMENSIONS_MAX: usize = 6;

/// An array with its elements in binary form and in storage order, in which the last dimension
/// changes fastest.
pub(super) struct BinaryArray<'a> {
    /// The length and lower bound of each dimension. An empty array has none.
    pub(super) dimensions: Vec<(usize, i32)>,
    pub(super) elements: Vec<Option<&'a [u8]>>,
}

impl<'a> BinaryArray<'a> {
    pub(super) fn parse(mut input: &'a [u8], element: Oid) -> Result<BinaryArray<'a>, CellProblem> {
        let dimension_count = wire::count(&mut input, 0)?;
        let _has_null = input.try_get_i32()?;
        let sent_element = input.try_get_u32()?;
        if sent_element != element {
            return Err(CellProblem::Impossible("element type"));
        }
        if dimension_count > DIMENSIONS_MAX {
            return Err(CellProblem::Impossible("number of dimensions"));
        }
        let mut dimensions = Vec::with_capacity(dimension_count);
        let mut total = usize::from(dimension_count > 0);
        for _ in 0..dimension_count {
            let length = wire::count(&mut input, 0)?;
            dimensions.push((length, input.try_get_i32()?));
            total = total.checked_mul(length).ok_or(CellProblem::Torn)?;
        }
        // An empty `int2vector` has one dimension of length zero.
        if total == 0 {
            dimensions.clear();
        }
        // Each element takes at least the four bytes of its length.
        if total > input.len() / 4 {
            return Err(CellProblem::Torn);
        }
        let elements = (0..total).map(|_| wire::sized(&mut input)).collect::<Result<_, _>>()?;
        wire::end(input)?;
        Ok(BinaryArray { dimensions, elements })
    }
}

impl CellDecoder<'_> {
    /// Shows an array as nested lists. Uses PostgreSQL's text form if lists would be ambiguous.
    pub(super) fn array(&mut self, oid: Oid, element: Oid, input: &[u8]) -> Result<Value, CellProblem> {
        let array = BinaryArray::parse(input, element)?;
        let usual = lower_bound(oid);
        let is_plain = array.dimensions.iter().all(|&(_, lower)| lower == usual);
        if !is_plain || (array.dimensions.len() > 1 && may_be_list(&self.enter(element)?)) {
            return self.array_text(element, input).map(Value::String);
        }
        let mut items = Vec::with_capacity(array.elements.len());
        for bytes in array.elements {
            items.push(self.optional_value(element, bytes)?);
        }
        for &(length, _) in array.dimensions.iter().skip(1).rev() {
            items = grouped(items, length);
        }
        Ok(Value::List(items))
    }

    /// Shows a composite as an object.
    pub(super) fn composite(&mut self, fields: &[(String, Oid)], mut input: &[u8]) -> Result<Value, CellProblem> {
        check_field_count(fields, &mut input)?;
        let mut values = Vec::with_capacity(fields.len());
        for (name, oid) in fields {
            let bytes = next_field(*oid, &mut input)?;
            values.push((name.clone(), self.optional_value(*oid, bytes)?));
        }
        wire::end(input)?;
        Ok(Value::Object(values))
    }

    /// Returns a range in PostgreSQL's text form.
    pub(super) fn range(&mut self, subtype: Oid, mut input: &[u8]) -> Result<String, CellProblem> {
        const EMPTY: u8 = 0x01;
        const LOWER_INCLUSIVE: u8 = 0x02;
        const UPPER_INCLUSIVE: u8 = 0x04;
        const LOWER_INFINITE: u8 = 0x08;
        const UPPER_INFINITE: u8 = 0x10;
        let flags = input.try_get_u8()?;
        if flags & EMPTY != 0 {
            wire::end(input)?;
            return Ok("empty".to_owned());
        }
        let mut text = if flags & LOWER_INCLUSIVE != 0 { "[" } else { "(" }.to_owned();
        if flags & LOWER_INFINITE == 0 {
            self.push_bound(&mut text, subtype, &mut input)?;
        }
        text.push(',');
        if flags & UPPER_INFINITE == 0 {
            self.push_bound(&mut text, subtype, &mut input)?;
        }
        text.push(if flags & UPPER_INCLUSIVE != 0 { ']' } else { ')' });
        wire::end(input)?;
        Ok(text)
    }

    /// Returns a multirange in PostgreSQL's text form.
    pub(super) fn multirange(&mut self, range: Oid, mut input: &[u8]) -> Result<String, CellProblem> {
        let count = wire::count(&mut input, 4)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = wire::sized(&mut input)?.ok_or(CellProblem::Impossible("range"))?;
            ranges.push(self.text(range, bytes)?);
        }
        wire::end(input)?;
        Ok(format!("{{{}}}", ranges.join(",")))
    }

    /// Returns an array in PostgreSQL's text form.
    pub(super) fn array_text(&mut self, element: Oid, input: &[u8]) -> Result<String, CellProblem> {
        let array = BinaryArray::parse(input, element)?;
        let delimiter = if element == BOX { ";" } else { "," };
        let mut items = Vec::with_capacity(array.elements.len());
        for bytes in array.elements {
            items.push(match bytes {
                Some(bytes) => quoted_element(self.text(element, bytes)?, delimiter),
                None => "NULL".to_owned(),
            });
        }
        for &(length, _) in array.dimensions.iter().skip(1).rev() {
            let inner = items.chunks(length);
            items = inner.map(|items| format!("{{{}}}", items.join(delimiter))).collect();
        }
        let mut text = String::new();
        if array.dimensions.iter().any(|&(_, lower)| lower != 1) {
            for &(length, lower) in &array.dimensions {
                let upper = i64::from(lower) + i64::try_from(length).unwrap_or(i64::MAX / 2) - 1;
                let _ = write!(text, "[{lower}:{upper}]");
            }
            text.push('=');
        }
        let _ = write!(text, "{{{}}}", items.join(delimiter));
        Ok(text)
    }

    /// Returns a composite in PostgreSQL's text form.
    pub(super) fn composite_text(&mut self, fields: &[(String, Oid)], mut input: &[u8]) -> Result<String, CellProblem> {
        check_field_count(fields, &mut input)?;
        let mut texts = Vec::with_capacity(fields.len());
        for (_, oid) in fields {
            texts.push(match next_field(*oid, &mut input)? {
                Some(bytes) => quoted(self.text(*oid, bytes)?, &['"', '\\', '(', ')', ',']),
                None => String::new(),
            });
        }
        wire::end(input)?;
        Ok(format!("({})", texts.join(",")))
    }

    fn push_bound(&mut self, text: &mut String, subtype: Oid, input: &mut &[u8]) -> Result<(), CellProblem> {
        let bytes = wire::sized(input)?.ok_or(CellProblem::Impossible("bound"))?;
        let bound = self.text(subtype, bytes)?;
        text.push_str(&quoted(bound, &['"', '\\', '(', ')', '[', ']', ',']));
        Ok(())
    }

    fn optional_value(&mut self, oid: Oid, bytes: Option<&[u8]>) -> Result<Value, CellProblem> {
        bytes.map_or(Ok(Value::Null), |bytes| self.value(oid, bytes))
    }
}

/// The type whose array elements are delimited by semicolons.
const BOX: Oid = 603;

/// Returns the usual first subscript of an array: 0 in vector types of the catalog, 1 in all
/// others.
pub(crate) fn lower_bound(oid: Oid) -> i32 {
    i32::from(!matches!(Type::from_oid(oid), Some(Type::INT2_VECTOR | Type::OID_VECTOR)))
}

/// Returns true for a type whose values may be lists themselves.
pub(crate) fn may_be_list(shape: &TypeShape<'_>) -> bool {
    matches!(shape, TypeShape::Array(_) | TypeShape::Builtin(Type::JSON | Type::JSONB))
}

pub(super) fn check_field_count(fields: &[(String, Oid)], input: &mut &[u8]) -> Result<(), CellProblem> {
    match wire::count(input, 8)? {
        count if count == fields.len() => Ok(()),
        _ => Err(CellProblem::Impossible("number of fields")),
    }
}

pub(super) fn next_field<'a>(oid: Oid, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, CellProblem> {
    if input.try_get_u32()? != oid {
        return Err(CellProblem::Impossible("field type"));
    }
    wire::sized(input)
}

/// Groups items into lists of `length` items each.
fn grouped(items: Vec<Value>, length: usize) -> Vec<Value> {
    let mut groups = Vec::with_capacity(items.len() / length);
    let mut items = items.into_iter();
    while items.len() > 0 {
        groups.push(Value::List(items.by_ref().take(length).collect()));
    }
    groups
}

/// Quotes a text as in ranges and composites: quotes and backslashes inside quotes are doubled.
fn quoted(text: String, special: &[char]) -> String {
    let plain = !text.is_empty() && !text.contains(|c| special.contains(&c) || is_space(c));
    if plain {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
}

/// Quotes a text as in arrays: quotes and backslashes get a backslash, and a text like NULL gets
/// quotes.
fn quoted_element(text: String, delimiter: &str) -> String {
    let special = |c| matches!(c, '"' | '\\' | '{' | '}') || is_space(c);
    let plain =
        !text.is_empty() && !text.contains(special) && !text.contains(delimiter) && !text.eq_ignore_ascii_case("null");
    if plain {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Returns true for white space by C's `isspace`.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}
