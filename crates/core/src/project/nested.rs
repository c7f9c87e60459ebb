//! Arrays, composites, ranges and multiranges.

use std::fmt::Write;

use bytes::Buf;

use super::{Decoder, Problem, Value, wire};
use crate::schema::Oid;

/// What PostgreSQL allows.
const DIMENSIONS_MAX: usize = 6;

/// An array, its elements still in binary form and in storage order: the last dimension runs fastest.
pub(super) struct Array<'a> {
    /// Length and lower bound of each dimension; none for an empty array.
    dimensions: Vec<(usize, i32)>,
    pub(super) elements: Vec<Option<&'a [u8]>>,
}

impl<'a> Array<'a> {
    pub(super) fn parse(mut input: &'a [u8], element: Oid) -> Result<Array<'a>, Problem> {
        let dimension_count = wire::count(&mut input, 0)?;
        let _has_null = input.try_get_i32()?;
        let sent_element = input.try_get_u32()?;
        if sent_element != element {
            return Err(Problem::Impossible("element type"));
        }
        if dimension_count > DIMENSIONS_MAX {
            return Err(Problem::Impossible("number of dimensions"));
        }
        let mut dimensions = Vec::with_capacity(dimension_count);
        let mut total = usize::from(dimension_count > 0);
        for _ in 0..dimension_count {
            let length = wire::count(&mut input, 0)?;
            dimensions.push((length, input.try_get_i32()?));
            total = total.checked_mul(length).ok_or(Problem::Torn)?;
        }
        // An empty `int2vector` has one dimension of no length.
        if total == 0 {
            dimensions.clear();
        }
        // Each element takes at least its length's four bytes.
        if total > input.len() / 4 {
            return Err(Problem::Torn);
        }
        let elements = (0..total).map(|_| wire::sized(&mut input)).collect::<Result<_, _>>()?;
        wire::end(input)?;
        Ok(Array { dimensions, elements })
    }
}

impl Decoder<'_> {
    /// An array as nested lists. Lower bounds other than 1 are not shown.
    pub(super) fn array(&mut self, element: Oid, input: &[u8]) -> Result<Value, Problem> {
        let array = Array::parse(input, element)?;
        let mut items = Vec::with_capacity(array.elements.len());
        for bytes in array.elements {
            items.push(self.optional_value(element, bytes)?);
        }
        for &(length, _) in array.dimensions.iter().skip(1).rev() {
            items = grouped(items, length);
        }
        Ok(Value::List(items))
    }

    /// A composite as an object.
    pub(super) fn composite(&mut self, fields: &[(String, Oid)], mut input: &[u8]) -> Result<Value, Problem> {
        check_field_count(fields, &mut input)?;
        let mut values = Vec::with_capacity(fields.len());
        for (name, oid) in fields {
            let bytes = next_field(*oid, &mut input)?;
            values.push((name.clone(), self.optional_value(*oid, bytes)?));
        }
        wire::end(input)?;
        Ok(Value::Object(values))
    }

    /// A range in PostgreSQL's text form.
    pub(super) fn range(&mut self, subtype: Oid, mut input: &[u8]) -> Result<String, Problem> {
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

    /// A multirange in PostgreSQL's text form.
    pub(super) fn multirange(&mut self, range: Oid, mut input: &[u8]) -> Result<String, Problem> {
        let count = wire::count(&mut input, 4)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = wire::sized(&mut input)?.ok_or(Problem::Impossible("range"))?;
            ranges.push(self.text(range, bytes)?);
        }
        wire::end(input)?;
        Ok(format!("{{{}}}", ranges.join(",")))
    }

    /// An array in PostgreSQL's text form, which only the bounds of ranges need.
    pub(super) fn array_text(&mut self, element: Oid, input: &[u8]) -> Result<String, Problem> {
        let array = Array::parse(input, element)?;
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

    /// A composite in PostgreSQL's text form, which only the bounds of ranges need.
    pub(super) fn composite_text(&mut self, fields: &[(String, Oid)], mut input: &[u8]) -> Result<String, Problem> {
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

    fn push_bound(&mut self, text: &mut String, subtype: Oid, input: &mut &[u8]) -> Result<(), Problem> {
        let bytes = wire::sized(input)?.ok_or(Problem::Impossible("bound"))?;
        let bound = self.text(subtype, bytes)?;
        text.push_str(&quoted(bound, &['"', '\\', '(', ')', '[', ']', ',']));
        Ok(())
    }

    fn optional_value(&mut self, oid: Oid, bytes: Option<&[u8]>) -> Result<Value, Problem> {
        bytes.map_or(Ok(Value::Null), |bytes| self.value(oid, bytes))
    }
}

/// The type whose arrays are delimited by semicolons.
const BOX: Oid = 603;

pub(super) fn check_field_count(fields: &[(String, Oid)], input: &mut &[u8]) -> Result<(), Problem> {
    match wire::count(input, 8)? {
        count if count == fields.len() => Ok(()),
        _ => Err(Problem::Impossible("number of fields")),
    }
}

pub(super) fn next_field<'a>(oid: Oid, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Problem> {
    if input.try_get_u32()? != oid {
        return Err(Problem::Impossible("field type"));
    }
    wire::sized(input)
}

/// Lists of `length` items each.
fn grouped(items: Vec<Value>, length: usize) -> Vec<Value> {
    let mut groups = Vec::with_capacity(items.len() / length);
    let mut items = items.into_iter();
    while items.len() > 0 {
        groups.push(Value::List(items.by_ref().take(length).collect()));
    }
    groups
}

/// As in ranges and composites: quotes and backslashes inside quotes are doubled.
fn quoted(text: String, special: &[char]) -> String {
    let plain = !text.is_empty() && !text.contains(|c| special.contains(&c) || is_space(c));
    if plain {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
}

/// As in arrays: quotes and backslashes get a backslash, and what looks like NULL gets quotes.
fn quoted_element(text: String, delimiter: &str) -> String {
    let special = |c| matches!(c, '"' | '\\' | '{' | '}') || is_space(c);
    let plain =
        !text.is_empty() && !text.contains(special) && !text.contains(delimiter) && !text.eq_ignore_ascii_case("null");
    if plain {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// C's `isspace`.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}
