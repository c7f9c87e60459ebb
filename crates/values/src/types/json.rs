//! The types `json`, `jsonb` and `jsonpath`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::{self, Write};

use laredo_core::Oid;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{CellContext, TypeFamily, ValueEquality};
use crate::decimal::Decimal;
use crate::problem::{CellProblem, NESTING_MAX, ValueMismatch};
use crate::value::{Value, string};
use crate::wire;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonType {
    Json,
    Jsonb,
    Jsonpath,
}

impl TypeFamily for JsonType {
    const BUILTIN: &'static [(Oid, JsonType)] =
        &[(114, JsonType::Json), (3802, JsonType::Jsonb), (4072, JsonType::Jsonpath)];

    fn project(self, context: &mut CellContext, cell: &[u8]) -> Result<Value, CellProblem> {
        match self {
            JsonType::Json if context.is_key => Ok(Value::String(wire::utf8(cell)?.to_owned())),
            JsonType::Jsonb if context.is_key => parse_exactly(wire::versioned(cell)?, context.depth),
            JsonType::Json => parse(wire::utf8(cell)?, context.depth),
            JsonType::Jsonb => parse(wire::versioned(cell)?, context.depth),
            JsonType::Jsonpath => self.to_text(context, cell).map(Value::String),
        }
    }

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        match self {
            JsonType::Json => Ok(wire::utf8(cell)?.to_owned()),
            JsonType::Jsonb | JsonType::Jsonpath => Ok(wire::versioned(cell)?.to_owned()),
        }
    }

    fn unproject(self, is_key: bool, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            JsonType::Json => Ok(match value {
                Value::String(text) if is_key => text.clone(),
                value => value.to_json().to_string(),
            }
            .into_bytes()),
            JsonType::Jsonb => Ok(wire::to_versioned(&match value {
                Value::String(text) if is_key && is_document(text) => text.clone(),
                value => jsonb_text(value),
            })),
            JsonType::Jsonpath => self.parse_text(string(value)?),
        }
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            JsonType::Json => Ok(text.as_bytes().to_vec()),
            JsonType::Jsonb | JsonType::Jsonpath => Ok(wire::to_versioned(text)),
        }
    }

    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            JsonType::Jsonb => document_literal(value).map(|text| wire::to_versioned(&text)),
            JsonType::Json | JsonType::Jsonpath => self.parse_text(string(value)?),
        }
    }

    fn equality(self) -> ValueEquality {
        match self {
            JsonType::Jsonb => ValueEquality::OfCanonicalForms,
            JsonType::Json | JsonType::Jsonpath => {
                ValueEquality::Unknown("PostgreSQL has no equality for it; jsonb has one")
            }
        }
    }

    fn canonical(self, cell: &[u8]) -> Result<Cow<'_, [u8]>, CellProblem> {
        match self {
            JsonType::Jsonb => Ok(with_plain_numbers(wire::versioned(cell)?).into_bytes().into()),
            JsonType::Json | JsonType::Jsonpath => Ok(cell.into()),
        }
    }

    fn is_always_text(self) -> bool {
        self == JsonType::Jsonpath
    }

    fn is_distinct_from_hex(self) -> bool {
        self == JsonType::Jsonpath
    }
}

/// Parses a document that is `depth` levels deep in its cell.
///
/// A part that a [`Value`] cannot represent becomes a string. A number that no double prints
/// exactly becomes the string of its digits. An array or object that is nested too deeply becomes
/// its text. If an object has a name twice, the last value counts, as in `jsonb`. An unpaired
/// surrogate, which `json` allows and text cannot contain, becomes U+FFFD.
fn parse(text: &str, depth: usize) -> Result<Value, CellProblem> {
    let raw: &RawValue = serde_json::from_str(text).map_err(not_json)?;
    nested(raw.get(), depth)
}

/// Parses a `jsonb` document of a key. The value is nested if that restores the document exactly,
/// and is otherwise the string of its text. A string that could be mistaken for such a text is
/// projected as its text, in quotes.
fn parse_exactly(text: &str, depth: usize) -> Result<Value, CellProblem> {
    let value = parse(text, depth)?;
    let is_clear = match &value {
        // SQL's NULL has the same projection.
        Value::Null => false,
        Value::String(text) => !is_document(text),
        Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Object(_) => true,
    };
    let is_exact = is_clear && jsonb_text(&value) == text;
    Ok(if is_exact { value } else { Value::String(text.to_owned()) })
}

/// Returns true for the text of a JSON document.
fn is_document(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Writes a value as `jsonb` does. PostgreSQL orders an object's fields by the length of their
/// names first.
fn jsonb_text(value: &Value) -> String {
    let mut text = String::new();
    push_jsonb(value, &mut text);
    text
}

/// Rewrites a document in the form of `jsonb`, with its numbers unchanged.
pub(crate) fn document_text(text: &str) -> Result<String, CellProblem> {
    let raw: &RawValue = serde_json::from_str(text).map_err(not_json)?;
    let mut to = String::new();
    push_document(raw.get(), 0, &mut to)?;
    Ok(to)
}

/// The maximum depth of documents in filters. Documents in cells do not need it, because PostgreSQL
/// wrote them.
const DOCUMENT_DEPTH_MAX: usize = 100;

fn push_document(text: &str, depth: usize, to: &mut String) -> Result<(), CellProblem> {
    let push_text = |text: &str, to: &mut String| to.push_str(&serde_json::Value::from(text).to_string());
    match text.as_bytes().first() {
        Some(b'[' | b'{') if depth >= DOCUMENT_DEPTH_MAX => return Err(CellProblem::TooDeep),
        Some(b'"') => push_text(&serde_json::from_str::<LossyJsonString>(text).map_err(not_json)?.0, to),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
            to.push('[');
            for (index, item) in items.into_iter().enumerate() {
                to.push_str(if index > 0 { ", " } else { "" });
                push_document(item.get(), depth + 1, to)?;
            }
            to.push(']');
        }
        Some(b'{') => {
            let JsonObjectFields(fields) = serde_json::from_str(text).map_err(not_json)?;
            let mut fields = last_of_each(fields);
            fields.sort_by(|(one, _), (other, _)| (one.len(), one).cmp(&(other.len(), other)));
            to.push('{');
            for (index, (name, value)) in fields.iter().enumerate() {
                to.push_str(if index > 0 { ", " } else { "" });
                push_text(name, to);
                to.push_str(": ");
                push_document(value.get(), depth + 1, to)?;
            }
            to.push('}');
        }
        _ => to.push_str(text),
    }
    Ok(())
}

/// Rewrites equal numbers in the text of a `jsonb` document with equal spelling. Deep nesting uses
/// no stack.
fn with_plain_numbers(text: &str) -> String {
    let mut to = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let end = match next {
            '"' => string_end(rest),
            '-' | '0'..='9' => {
                let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
                rest.find(|c: char| !is_part(c)).unwrap_or(rest.len())
            }
            other => other.len_utf8(),
        };
        let (part, after) = rest.split_at(end);
        match Decimal::parse(part) {
            Some(Decimal::Finite { negative, digits, exponent }) if next != '"' => {
                let _ = write!(to, "{}{digits}e{exponent}", if negative { "-" } else { "" });
            }
            _ => to.push_str(part),
        }
        rest = after;
    }
    to
}

/// Returns the end of the string that begins here.
fn string_end(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn push_jsonb(value: &Value, to: &mut String) {
    match value {
        // `jsonb` writes numbers without an exponent.
        Value::Number(number) if number.is_finite() => {
            let _ = write!(to, "{number}");
        }
        Value::List(items) => {
            to.push('[');
            for (index, item) in items.iter().enumerate() {
                to.push_str(if index > 0 { ", " } else { "" });
                push_jsonb(item, to);
            }
            to.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<&(String, Value)> = fields.iter().collect();
            fields.sort_by(|(one, _), (other, _)| (one.len(), one).cmp(&(other.len(), other)));
            to.push('{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                to.push_str(if index > 0 { ", " } else { "" });
                push_jsonb(&Value::String(name.clone()), to);
                to.push_str(": ");
                push_jsonb(value, to);
            }
            to.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => to.push_str(&value.to_json().to_string()),
    }
}

fn nested(text: &str, depth: usize) -> Result<Value, CellProblem> {
    match text.as_bytes().first() {
        Some(b'n') => Ok(Value::Null),
        Some(b't') => Ok(Value::Bool(true)),
        Some(b'f') => Ok(Value::Bool(false)),
        Some(b'"') => Ok(Value::String(serde_json::from_str::<LossyJsonString>(text).map_err(not_json)?.0)),
        Some(b'[' | b'{') if depth >= NESTING_MAX => Ok(Value::String(text.to_owned())),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
            let items = items.into_iter().map(|item| nested(item.get(), depth + 1));
            items.collect::<Result<_, _>>().map(Value::List)
        }
        Some(b'{') => {
            let JsonObjectFields(fields) = serde_json::from_str(text).map_err(not_json)?;
            last_of_each(fields)
                .into_iter()
                .map(|(name, value)| Ok((name, nested(value.get(), depth + 1)?)))
                .collect::<Result<_, _>>()
                .map(Value::Object)
        }
        _ => Ok(Value::from_number(text)),
    }
}

fn last_of_each<T>(fields: Vec<(String, T)>) -> Vec<(String, T)> {
    let last: HashMap<&str, usize> = fields.iter().enumerate().map(|(i, f)| (f.0.as_str(), i)).collect();
    if last.len() == fields.len() {
        return fields;
    }
    let keep: Vec<bool> = fields.iter().enumerate().map(|(i, f)| last[f.0.as_str()] == i).collect();
    fields.into_iter().zip(keep).filter_map(|(field, keep)| keep.then_some(field)).collect()
}

fn not_json(error: serde_json::Error) -> CellProblem {
    CellProblem::Json(error.to_string())
}

/// A JSON string, read as bytes, because serde rejects unpaired surrogates in text.
#[derive(PartialEq, Eq, Hash)]
struct LossyJsonString(String);

impl<'de> Deserialize<'de> for LossyJsonString {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<LossyJsonString, D::Error> {
        input.deserialize_bytes(LossyJsonStringVisitor)
    }
}

struct LossyJsonStringVisitor;

impl Visitor<'_> for LossyJsonStringVisitor {
    type Value = LossyJsonString;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<LossyJsonString, E> {
        Ok(LossyJsonString(text.to_owned()))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<LossyJsonString, E> {
        Ok(LossyJsonString(match String::from_utf8_lossy(bytes) {
            Cow::Borrowed(text) => text.to_owned(),
            // An unpaired surrogate is three bytes, each of which became a U+FFFD.
            Cow::Owned(_) => without_surrogates(bytes),
        }))
    }
}

/// Returns text from UTF-8 in which unpaired surrogates are encoded like characters. Each becomes
/// one U+FFFD.
fn without_surrogates(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // The first of the three bytes is a chunk of its own.
        if chunk.invalid().first() == Some(&0xED) {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

/// An object's fields in order, with unparsed values.
struct JsonObjectFields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonObjectFields<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<JsonObjectFields<'a>, D::Error> {
        input.deserialize_map(JsonObjectFieldsVisitor)
    }
}

struct JsonObjectFieldsVisitor;

impl<'de> Visitor<'de> for JsonObjectFieldsVisitor {
    type Value = JsonObjectFields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonObjectFields<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some((LossyJsonString(name), value)) = map.next_entry()? {
            fields.push((name, value));
        }
        Ok(JsonObjectFields(fields))
    }
}

/// Writes the text of a JSON document. A string is that text, or a JSON string if it is not a
/// document.
fn document_literal(value: &Value) -> Result<String, ValueMismatch> {
    match value {
        Value::String(text) if is_document(text) => document_text(text).map_err(|_| ValueMismatch::TooDeep),
        value => Ok(jsonb_text(value)),
    }
}
