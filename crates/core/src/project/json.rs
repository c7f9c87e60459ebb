//! `json` and `jsonb` as nested values.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::value::Value;
use super::{NESTING_MAX, Problem};

/// Parses a document that stands `depth` levels deep in its cell.
///
/// What a [`Value`] cannot say becomes a string: a number that no double prints as (its own digits), and an array or
/// object that is nested too deeply (its text). Of a name that an object has twice, the last one counts, as in
/// `jsonb`. Half a surrogate pair, which `json` lets through and text cannot hold, becomes U+FFFD.
pub(super) fn parse(text: &str, depth: usize) -> Result<Value, Problem> {
    let raw: &RawValue = serde_json::from_str(text).map_err(wrong)?;
    nested(raw.get(), depth)
}

fn nested(text: &str, depth: usize) -> Result<Value, Problem> {
    match text.as_bytes().first() {
        Some(b'n') => Ok(Value::Null),
        Some(b't') => Ok(Value::Bool(true)),
        Some(b'f') => Ok(Value::Bool(false)),
        Some(b'"') => Ok(Value::String(serde_json::from_str::<Text>(text).map_err(wrong)?.0)),
        Some(b'[' | b'{') if depth >= NESTING_MAX => Ok(Value::String(text.to_owned())),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
            let items = items.into_iter().map(|item| nested(item.get(), depth + 1));
            items.collect::<Result<_, _>>().map(Value::List)
        }
        Some(b'{') => {
            let Fields(fields) = serde_json::from_str(text).map_err(wrong)?;
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

fn wrong(error: serde_json::Error) -> Problem {
    Problem::Json(error.to_string())
}

/// A JSON string: taken as bytes, because serde refuses half a surrogate pair in text.
#[derive(PartialEq, Eq, Hash)]
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Text, D::Error> {
        input.deserialize_bytes(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Text, E> {
        Ok(Text(match String::from_utf8_lossy(bytes) {
            Cow::Borrowed(text) => text.to_owned(),
            // Half a pair is three bytes, each of which became a U+FFFD.
            Cow::Owned(_) => without_surrogates(bytes),
        }))
    }
}

/// Text from UTF-8 in which half pairs of surrogates are encoded like characters: each becomes one U+FFFD.
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

/// An object's fields in order, their values not yet read.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Fields<'a>, D::Error> {
        input.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some((Text(name), value)) = map.next_entry()? {
            fields.push((name, value));
        }
        Ok(Fields(fields))
    }
}
