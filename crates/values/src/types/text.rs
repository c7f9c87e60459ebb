//! Values as SQL literals, with every spelling of a value that SQL accepts. Projections have a
//! single spelling.
//!
//! Spellings whose meaning depends on a session are not supported: its time zone, its order of day
//! and month, its search path. Words like `today` are not supported either.

#[path = "time/literal.rs"]
mod datetime;
#[path = "time/interval.rs"]
mod interval;
#[path = "network.rs"]
mod network;
#[path = "numbers.rs"]
mod number;
#[path = "../nested/ranges.rs"]
mod range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use postgres_types::Type;

use super::text::{escaped_hex, hex, versioned};
use super::{CellEncoder, ValueMismatch, string, text};
use crate::project::{TypeShape, Value, is_object_number, json};
use laredo_core::{Oid, Schema};

/// Reads a literal of a type into a cell. Only types whose values can be compared are supported.
///
/// # Errors
/// Returns an error if the literal is not a value of the type, or its meaning is not certain.
pub(crate) fn read_literal(schema: &Schema, oid: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    CellEncoder { schema, is_key: true, is_literal: true, depth: 0 }.value(oid, value)
}

impl CellEncoder<'_> {
    pub(super) fn literal(&mut self, oid: Oid, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        match self.enter(oid)? {
            TypeShape::Text(_) if oid == Type::NAME.oid() => Ok(name(string(value)?).as_bytes().to_vec()),
            TypeShape::Text(_) => Ok(string(value)?.as_bytes().to_vec()),
            // A label may be added at any time without a new copy, so the schema may not have all
            // labels.
            TypeShape::Enum(_) => match string(value)? {
                label if label.len() <= NAME_BYTES_MAX => Ok(label.as_bytes().to_vec()),
                _ => Err(ValueMismatch::Text("a label (63 bytes at most)")),
            },
            TypeShape::Ltree => label_path(string(value)?).map(versioned),
            TypeShape::Money(decimals) => number::money(value, decimals),
            TypeShape::Builtin(Type::JSONB) => document(value).map(|text| versioned(&text)),
            TypeShape::Builtin(builtin) => builtin_literal(&builtin, value),
            TypeShape::Array(element) => self.deeper(|inner| inner.array(oid, element, value)),
            TypeShape::Composite(fields) => self.deeper(|inner| match value {
                Value::String(text) => inner.composite_text(fields, text),
                value => inner.composite(fields, value),
            }),
            TypeShape::Range(subtype) => {
                let text = string(value)?;
                let bytes = self.deeper(|inner| inner.range(subtype, text.trim()))?;
                range::canonical(subtype, &bytes)
            }
            TypeShape::Multirange(_) | TypeShape::Unknown => Err(ValueMismatch::Kind("what only PostgreSQL reads")),
        }
    }
}

fn builtin_literal(builtin: &Type, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    match *builtin {
        Type::BOOL => boolean(value).map(|value| vec![u8::from(value)]),
        Type::INT2 => number::integer::<i16>(value).map(|value| value.to_be_bytes().to_vec()),
        Type::INT4 => number::integer::<i32>(value).map(|value| value.to_be_bytes().to_vec()),
        Type::INT8 => number::integer::<i64>(value).map(|value| value.to_be_bytes().to_vec()),
        Type::XID8 => number::integer::<u64>(value).map(|value| value.to_be_bytes().to_vec()),
        Type::FLOAT4 => number::single(value).map(|value| value.to_be_bytes().to_vec()),
        Type::FLOAT8 => number::double(value).map(|value| value.to_be_bytes().to_vec()),
        Type::NUMERIC => number::numeric(value),
        ref other if is_object_number(other) => number::integer::<u32>(value).map(|value| value.to_be_bytes().to_vec()),
        ref other => text_literal(other, string(value)?),
    }
}

/// Reads a literal of a type that is written as text.
fn text_literal(builtin: &Type, input: &str) -> Result<Vec<u8>, ValueMismatch> {
    match *builtin {
        Type::BYTEA if input.starts_with("\\x") => escaped_hex(input),
        Type::BYTEA => BASE64.decode(input).map_err(|_| ValueMismatch::Text("bytes in base64 or, after \\x, in hex")),
        Type::UUID => uuid(input),
        Type::DATE => datetime::date(input).map(|days| days.to_be_bytes().to_vec()),
        Type::TIME => datetime::time(input).map(|micros| micros.to_be_bytes().to_vec()),
        Type::TIMETZ => datetime::time_with_zone(input),
        Type::TIMESTAMP => datetime::timestamp(input).map(|micros| micros.to_be_bytes().to_vec()),
        Type::TIMESTAMPTZ => datetime::timestamp_with_zone(input).map(|micros| micros.to_be_bytes().to_vec()),
        Type::INTERVAL => interval::interval(input),
        Type::INET => network::inet(input),
        Type::CIDR => network::cidr(input),
        Type::MACADDR => network::hardware(input, false),
        Type::MACADDR8 => network::hardware(input, true),
        _ => text::builtin(builtin, input),
    }
}

/// The maximum length of a PostgreSQL name in bytes.
const NAME_BYTES_MAX: usize = 63;

/// Truncates a name as PostgreSQL does, at the end of a character.
fn name(text: &str) -> &str {
    text.get(..text.floor_char_boundary(NAME_BYTES_MAX)).unwrap_or(text)
}

/// Checks an `ltree` path: labels between dots.
fn label_path(text: &str) -> Result<&str, ValueMismatch> {
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|next| next.is_alphanumeric() || matches!(next, '_' | '-'))
    };
    match text.is_empty() || text.split('.').all(is_label) {
        true => Ok(text),
        false => Err(ValueMismatch::Text("a path of labels (Top.Science)")),
    }
}

/// Reads PostgreSQL's words for booleans, and their unique prefixes.
fn boolean(value: &Value) -> Result<bool, ValueMismatch> {
    const WRONG: ValueMismatch = ValueMismatch::Text("a boolean (true or false)");
    let text = match value {
        Value::Bool(value) => return Ok(*value),
        value => string(value).map_err(|_| ValueMismatch::Kind("a boolean"))?.trim().to_ascii_lowercase(),
    };
    match text.as_str() {
        "" => Err(WRONG),
        "1" | "on" => Ok(true),
        "0" | "of" | "off" => Ok(false),
        word if "true".starts_with(word) || "yes".starts_with(word) => Ok(true),
        word if "false".starts_with(word) || "no".starts_with(word) => Ok(false),
        _ => Err(WRONG),
    }
}

/// Reads a UUID. The digits may have either case, with or without a hyphen after each group of
/// four, and with or without braces.
fn uuid(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    const WRONG: ValueMismatch = ValueMismatch::Text("a UUID (a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11)");
    let inner = match input.strip_prefix('{') {
        Some(rest) => rest.strip_suffix('}').ok_or(WRONG)?,
        None => input,
    };
    let mut digits = String::with_capacity(32);
    let mut is_after_hyphen = true;
    for next in inner.chars() {
        let may_be_hyphen = digits.len().is_multiple_of(4) && !is_after_hyphen;
        match next {
            '-' if may_be_hyphen && digits.len() < 32 => is_after_hyphen = true,
            digit if digit.is_ascii_hexdigit() => {
                digits.push(digit);
                is_after_hyphen = false;
            }
            _ => return Err(WRONG),
        }
    }
    if digits.len() == 32 && !is_after_hyphen { hex(&digits) } else { Err(WRONG) }
}

/// Writes the text of a JSON document. A string is that text, or a JSON string if it is not a
/// document.
fn document(value: &Value) -> Result<String, ValueMismatch> {
    match value {
        Value::String(text) if json::is_document(text) => json::document_text(text).map_err(|_| ValueMismatch::TooDeep),
        value => Ok(json::jsonb_text(value)),
    }
}
