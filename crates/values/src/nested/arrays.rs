//! Arrays.

use std::fmt::Write;

use bytes::Buf;
use laredo_core::Oid;
use postgres_types::Type;

use super::quoting::{DelimitedText, QuotingRule, quote_element, split};
use crate::decode::CellDecoder;
use crate::encode::CellEncoder;
use crate::problem::{CellProblem, ValueMismatch};
use crate::shape::TypeShape;
use crate::text_form::parse_number;
use crate::value::Value;
use crate::wire;

/// The maximum number of dimensions in PostgreSQL.
const DIMENSIONS_MAX: usize = 6;

/// The type whose array elements are delimited by semicolons.
const BOX: Oid = 603;

/// An array with its elements in binary form and in storage order, in which the last dimension
/// changes fastest.
pub(crate) struct BinaryArray<'a> {
    /// The length and lower bound of each dimension. An empty array has none.
    pub(crate) dimensions: Vec<(usize, i32)>,
    pub(crate) elements: Vec<Option<&'a [u8]>>,
}

impl<'a> BinaryArray<'a> {
    pub(crate) fn parse(mut input: &'a [u8], element: Oid) -> Result<BinaryArray<'a>, CellProblem> {
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
    pub(crate) fn array(&mut self, oid: Oid, element: Oid, input: &[u8]) -> Result<Value, CellProblem> {
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

    /// Returns an array in PostgreSQL's text form.
    pub(crate) fn array_text(&mut self, element: Oid, input: &[u8]) -> Result<String, CellProblem> {
        let array = BinaryArray::parse(input, element)?;
        let delimiter = if element == BOX { ";" } else { "," };
        let mut items = Vec::with_capacity(array.elements.len());
        for bytes in array.elements {
            items.push(match bytes {
                Some(bytes) => quote_element(self.text(element, bytes)?, delimiter),
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
}

impl CellEncoder<'_> {
    /// Reads an array from nested lists, or from PostgreSQL's text form.
    pub(crate) fn array(&mut self, oid: Oid, element: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        let items = match value {
            Value::List(items) => items,
            Value::String(text) => return self.array_text(oid, element, text),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                return Err(ValueMismatch::Kind("a list"));
            }
        };
        let (mut lengths, mut level) = (vec![items.len()], items.iter().collect::<Vec<_>>());
        // If elements may be lists, a list at this level is an element and not a further dimension.
        while !self.is_list(element)? && level.iter().any(|item| matches!(item, Value::List(_))) {
            let inner: Option<Vec<&Vec<Value>>> =
                level.iter().map(|item| if let Value::List(items) = item { Some(items) } else { None }).collect();
            let inner = inner.ok_or(ValueMismatch::Uneven)?;
            let length = inner.first().map_or(0, |items| items.len());
            if length == 0 || inner.iter().any(|items| items.len() != length) || lengths.len() == DIMENSIONS_MAX {
                return Err(ValueMismatch::Uneven);
            }
            lengths.push(length);
            level = inner.into_iter().flatten().collect();
        }
        let elements = level.into_iter().map(|item| self.optional(element, item)).collect::<Result<Vec<_>, _>>()?;
        let lower = lower_bound(oid);
        let dimensions: Vec<(usize, i32)> = lengths.into_iter().map(|length| (length, lower)).collect();
        array_cell(oid, element, &dimensions, &elements)
    }

    /// Returns true if a value of the type may be a list.
    fn is_list(&self, oid: Oid) -> Result<bool, ValueMismatch> {
        Ok(may_be_list(&self.enter(oid)?))
    }

    /// Reads an array in PostgreSQL's text form.
    pub(crate) fn array_text(&mut self, oid: Oid, element: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        let delimiter = if element == BOX { ';' } else { ',' };
        let (bounds, body) = match input.strip_prefix('[') {
            Some(_) => input.split_once('=').ok_or(ValueMismatch::Uneven)?,
            None => ("", input),
        };
        let (mut lengths, mut items) = (Vec::new(), Vec::new());
        braces(body, delimiter, 0, &mut lengths, &mut items)?;
        if items.is_empty() {
            lengths.clear();
        }
        let mut lowers = vec![lower_bound(oid); lengths.len()];
        for (lower, bound) in lowers.iter_mut().zip(bounds.split('[').skip(1)) {
            *lower = parse_number(bound.split(':').next().unwrap_or_default())?;
        }
        let mut elements = Vec::with_capacity(items.len());
        for item in &items {
            let is_null = !item.is_quoted && item.text.eq_ignore_ascii_case("null");
            elements.push(if is_null { None } else { Some(self.text(element, &item.text)?) });
        }
        let dimensions: Vec<(usize, i32)> = lengths.into_iter().zip(lowers).collect();
        array_cell(oid, element, &dimensions, &elements)
    }
}

fn array_cell(
    oid: Oid,
    element: Oid,
    dimensions: &[(usize, i32)],
    elements: &[Option<Vec<u8>>],
) -> Result<Vec<u8>, ValueMismatch> {
    // An empty array has no dimensions, except in a vector type of the catalog.
    let dimensions = if elements.is_empty() && lower_bound(oid) == 1 { &[] } else { dimensions };
    let has_null = i32::from(elements.iter().any(Option::is_none));
    let mut bytes = i32::try_from(dimensions.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes().to_vec();
    bytes.extend(has_null.to_be_bytes());
    bytes.extend(element.to_be_bytes());
    for (length, lower) in dimensions {
        bytes.extend(i32::try_from(*length).map_err(|_| ValueMismatch::Range)?.to_be_bytes());
        bytes.extend(lower.to_be_bytes());
    }
    elements.iter().try_for_each(|element| wire::push_sized(&mut bytes, element.as_deref()))?;
    Ok(bytes)
}

/// Returns the usual first subscript of an array: 0 in vector types of the catalog, 1 in all
/// others.
fn lower_bound(oid: Oid) -> i32 {
    i32::from(!matches!(Type::from_oid(oid), Some(Type::INT2_VECTOR | Type::OID_VECTOR)))
}

/// Returns true for a type whose values may be lists themselves.
fn may_be_list(shape: &TypeShape<'_>) -> bool {
    match shape {
        TypeShape::Array(_) => true,
        TypeShape::Base(base) => base.is_document(),
        TypeShape::Composite(_) | TypeShape::Range(_) | TypeShape::Multirange(_) => false,
    }
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

/// Reads `{…}`, which may be nested. Collects the lengths of the dimensions, and the elements in
/// order.
fn braces(
    input: &str,
    delimiter: char,
    depth: usize,
    lengths: &mut Vec<usize>,
    items: &mut Vec<DelimitedText>,
) -> Result<(), ValueMismatch> {
    let inner = input.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or(ValueMismatch::Uneven)?;
    if depth == DIMENSIONS_MAX {
        return Err(ValueMismatch::Uneven);
    }
    let length = if inner.starts_with('{') {
        let parts = outside_braces(inner, delimiter);
        for part in &parts {
            // This reserves the entry of the dimension, until its length is known.
            if lengths.len() <= depth {
                lengths.push(parts.len());
            }
            braces(part, delimiter, depth + 1, lengths, items)?;
        }
        parts.len()
    } else if inner.is_empty() {
        0
    } else {
        let parts = split(inner, delimiter, QuotingRule::Escaped)?;
        if parts.iter().any(|part| part.text.is_empty() && !part.is_quoted) {
            return Err(ValueMismatch::Text("an array (an empty element is \"\")"));
        }
        let length = parts.len();
        items.extend(parts);
        length
    };
    match lengths.get(depth) {
        Some(known) if *known != length => Err(ValueMismatch::Uneven),
        Some(_) => Ok(()),
        None => {
            lengths.push(length);
            Ok(())
        }
    }
}

/// Splits at delimiters outside of inner braces.
fn outside_braces(input: &str, delimiter: char) -> Vec<&str> {
    let (mut parts, mut start, mut depth, mut in_quotes, mut is_escaped) = (Vec::new(), 0, 0_usize, false, false);
    for (at, next) in input.char_indices() {
        match next {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => in_quotes = !in_quotes,
            '{' if !in_quotes => depth += 1,
            '}' if !in_quotes => depth = depth.saturating_sub(1),
            _ if next == delimiter && depth == 0 && !in_quotes => {
                parts.push(&input[start..at]);
                start = at + next.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&input[start..]);
    parts
}
