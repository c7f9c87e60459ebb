//! Arrays, composites, ranges and multiranges.

use super::{CellEncoder, ValueMismatch};
use crate::project::Value;
use crate::project::nested::{lower_bound, may_be_list};
use laredo_core::Oid;

/// The maximum number of dimensions in PostgreSQL.
const DIMENSIONS_MAX: usize = 6;
/// The type whose array elements are delimited by semicolons.
const BOX: Oid = 603;

impl CellEncoder<'_> {
    /// Reads an array from nested lists, or from PostgreSQL's text form.
    pub(super) fn array(&mut self, oid: Oid, element: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
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
        sent_array(oid, element, &dimensions, &elements)
    }

    /// Reads a composite from an object of its fields.
    pub(super) fn composite(&mut self, fields: &[(String, Oid)], value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        let Value::Object(values) = value else { return Err(ValueMismatch::Kind("an object")) };
        let names =
            || ValueMismatch::Fields(fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "));
        if values.len() != fields.len() {
            return Err(names());
        }
        let mut parts = Vec::with_capacity(fields.len());
        for (name, oid) in fields {
            let (_, value) = values.iter().find(|(found, _)| found == name).ok_or_else(names)?;
            parts.push((*oid, self.optional(*oid, value)?));
        }
        sent_composite(&parts)
    }

    fn optional(&mut self, oid: Oid, value: &Value) -> Result<Option<Vec<u8>>, ValueMismatch> {
        match value {
            Value::Null => Ok(None),
            value => self.value(oid, value).map(Some),
        }
    }

    /// Returns true if a value of the type may be a list.
    fn is_list(&self, oid: Oid) -> Result<bool, ValueMismatch> {
        Ok(may_be_list(&self.enter(oid)?))
    }

    /// Reads a range such as `[1,5)`.
    pub(super) fn range(&mut self, subtype: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        const WRONG: ValueMismatch = ValueMismatch::Text("a range");
        if input == "empty" {
            return Ok(vec![0x01]);
        }
        let (lower_flag, inner) = match input.split_at_checked(1).ok_or(WRONG)? {
            ("[", inner) => (0x02, inner),
            ("(", inner) => (0, inner),
            _ => return Err(WRONG),
        };
        let (upper_flag, inner) = match inner.strip_suffix(']') {
            Some(inner) => (0x04, inner),
            None => (0, inner.strip_suffix(')').ok_or(WRONG)?),
        };
        let parts = split(inner, ',', QuotingRule::Doubled)?;
        let [lower, upper] = parts.as_slice() else { return Err(WRONG) };
        let mut bytes = vec![lower_flag | upper_flag];
        for (bound, infinite) in [(lower, 0x08), (upper, 0x10)] {
            match bound {
                // A bound is infinite if it is empty, unless it is in quotes.
                DelimitedText { text, is_quoted: false } if text.is_empty() => bytes[0] |= infinite,
                DelimitedText { text, .. } => push_sized(&mut bytes, Some(&self.text(subtype, text)?))?,
            }
        }
        Ok(bytes)
    }

    /// Reads a multirange such as `{[1,5),[7,9)}`.
    pub(super) fn multirange(&mut self, range: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        const WRONG: ValueMismatch = ValueMismatch::Text("a multirange");
        let mut rest = input.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or(WRONG)?;
        let (mut count, mut ranges) = (0_i32, Vec::new());
        while !rest.is_empty() {
            let end = if rest.starts_with("empty") { Some(5) } else { range_end(rest) };
            let (one, after) = end.and_then(|end| rest.split_at_checked(end)).ok_or(WRONG)?;
            push_sized(&mut ranges, Some(&self.text(range, one)?))?;
            count = count.checked_add(1).ok_or(ValueMismatch::Range)?;
            rest = match after.strip_prefix(',') {
                Some(next) => next,
                None if after.is_empty() => after,
                None => return Err(WRONG),
            };
        }
        Ok([&count.to_be_bytes(), ranges.as_slice()].concat())
    }

    /// Reads an array in PostgreSQL's text form.
    pub(super) fn array_text(&mut self, oid: Oid, element: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
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
            *lower = super::text::number(bound.split(':').next().unwrap_or_default())?;
        }
        let mut elements = Vec::with_capacity(items.len());
        for item in &items {
            let is_null = !item.is_quoted && item.text.eq_ignore_ascii_case("null");
            elements.push(if is_null { None } else { Some(self.text(element, &item.text)?) });
        }
        let dimensions: Vec<(usize, i32)> = lengths.into_iter().zip(lowers).collect();
        sent_array(oid, element, &dimensions, &elements)
    }

    /// Reads a composite in PostgreSQL's text form.
    pub(super) fn composite_text(&mut self, fields: &[(String, Oid)], input: &str) -> Result<Vec<u8>, ValueMismatch> {
        const WRONG: ValueMismatch = ValueMismatch::Text("a composite");
        let inner = input.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).ok_or(WRONG)?;
        let parts = if fields.is_empty() { Vec::new() } else { split(inner, ',', QuotingRule::Doubled)? };
        if parts.len() != fields.len() {
            return Err(WRONG);
        }
        let mut sent = Vec::with_capacity(fields.len());
        for ((_, oid), part) in fields.iter().zip(parts) {
            let is_null = !part.is_quoted && part.text.is_empty();
            sent.push((*oid, if is_null { None } else { Some(self.text(*oid, &part.text)?) }));
        }
        sent_composite(&sent)
    }
}

fn sent_array(
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
    elements.iter().try_for_each(|element| push_sized(&mut bytes, element.as_deref()))?;
    Ok(bytes)
}

fn sent_composite(fields: &[(Oid, Option<Vec<u8>>)]) -> Result<Vec<u8>, ValueMismatch> {
    let mut bytes = i32::try_from(fields.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes().to_vec();
    for (oid, value) in fields {
        bytes.extend(oid.to_be_bytes());
        push_sized(&mut bytes, value.as_deref())?;
    }
    Ok(bytes)
}

fn push_sized(bytes: &mut Vec<u8>, value: Option<&[u8]>) -> Result<(), ValueMismatch> {
    let length = value.map_or(Ok(-1), |value| i32::try_from(value.len())).map_err(|_| ValueMismatch::Range)?;
    bytes.extend(length.to_be_bytes());
    bytes.extend(value.unwrap_or_default());
    Ok(())
}

/// The text between two delimiters, without its quotes.
#[derive(Debug, Default)]
struct DelimitedText {
    text: String,
    is_quoted: bool,
}

/// The rule for quotes and backslashes inside quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum QuotingRule {
    /// They are doubled, as in ranges and composites.
    Doubled,
    /// They follow a backslash, as in arrays.
    Escaped,
}

/// Splits at delimiters outside of quotes.
fn split(input: &str, delimiter: char, quoting: QuotingRule) -> Result<Vec<DelimitedText>, ValueMismatch> {
    let (mut parts, mut part, mut rest) = (Vec::new(), DelimitedText::default(), input);
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        match next {
            '"' => {
                rest = unquote(rest, quoting, &mut part.text)?;
                part.is_quoted = true;
            }
            _ if next == delimiter => parts.push(std::mem::take(&mut part)),
            // PostgreSQL writes backslashes only in quotes.
            '\\' => return Err(ValueMismatch::Text("a value whose backslashes are in quotes")),
            _ => part.text.push(next),
        }
    }
    parts.push(part);
    Ok(parts)
}

/// Reads a text up to its closing quote, and returns the rest.
fn unquote<'a>(input: &'a str, quoting: QuotingRule, text: &mut String) -> Result<&'a str, ValueMismatch> {
    let mut characters = input.char_indices();
    while let Some((at, next)) = characters.next() {
        let is_twice = input[at + next.len_utf8()..].starts_with(next);
        match next {
            '"' | '\\' if quoting == QuotingRule::Doubled && is_twice => {
                characters.next();
                text.push(next);
            }
            '\\' if quoting == QuotingRule::Escaped => {
                text.push(characters.next().ok_or(ValueMismatch::Text("a value in quotes"))?.1)
            }
            '"' => return Ok(&input[at + 1..]),
            _ => text.push(next),
        }
    }
    Err(ValueMismatch::Text("a value in quotes"))
}

/// Returns the end of the first range of several.
fn range_end(input: &str) -> Option<usize> {
    let mut in_quotes = false;
    for (at, next) in input.char_indices() {
        match next {
            '"' => in_quotes = !in_quotes,
            ')' | ']' if !in_quotes => return Some(at + 1),
            _ => {}
        }
    }
    None
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
