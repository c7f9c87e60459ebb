//! Types that are bytes: `bytea`, `"char"`, `uuid`, and the types that laredo does not know.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use laredo_core::Oid;

use super::{CellContext, TypeFamily, UNKNOWN_EQUALITY, ValueEquality, push_quoted, text_of};
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::{escaped_hex, hex_digits, parse_escaped_hex, parse_hex};
use crate::value::{Value, string};
use crate::wire;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteType {
    Bytea,
    Char,
    Uuid,
    /// A built-in type without a family.
    Opaque,
    /// Any other type that laredo does not know.
    Unknown,
}

impl TypeFamily for ByteType {
    const BUILTIN: &'static [(Oid, ByteType)] = &[(17, ByteType::Bytea), (18, ByteType::Char), (2950, ByteType::Uuid)];

    fn project(self, context: &mut CellContext, cell: &[u8]) -> Result<Value, CellProblem> {
        match self {
            ByteType::Bytea => Ok(Value::String(BASE64.encode(cell))),
            ByteType::Char | ByteType::Uuid | ByteType::Opaque | ByteType::Unknown => {
                self.to_text(context, cell).map(Value::String)
            }
        }
    }

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        match self {
            ByteType::Bytea | ByteType::Opaque | ByteType::Unknown => Ok(escaped_hex(cell)),
            ByteType::Char => char_text(cell),
            ByteType::Uuid => text_of(|to| push_uuid(cell, to)),
        }
    }

    fn push_json(self, _context: &mut CellContext, cell: &[u8], to: &mut Vec<u8>) -> Result<bool, CellProblem> {
        match self {
            ByteType::Uuid => push_quoted(to, |to| push_uuid(cell, to)),
            ByteType::Bytea | ByteType::Char | ByteType::Opaque | ByteType::Unknown => Ok(false),
        }
    }

    fn unproject(self, _is_key: bool, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        let text = string(value)?;
        match self {
            ByteType::Bytea => BASE64.decode(text).map_err(|_| ValueMismatch::Text("base64")),
            ByteType::Char | ByteType::Uuid | ByteType::Opaque | ByteType::Unknown => self.parse_text(text),
        }
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            ByteType::Bytea | ByteType::Opaque | ByteType::Unknown => parse_escaped_hex(text),
            ByteType::Char => parse_char(text).map(|byte| vec![byte]),
            ByteType::Uuid => parse_uuid(text),
        }
    }

    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        if self == ByteType::Unknown {
            return Err(ValueMismatch::Kind("a text that only PostgreSQL can read"));
        }
        let text = string(value)?;
        match self {
            ByteType::Bytea if text.starts_with("\\x") => parse_escaped_hex(text),
            ByteType::Bytea => {
                BASE64.decode(text).map_err(|_| ValueMismatch::Text("bytes in base64 or, after \\x, in hex"))
            }
            ByteType::Uuid => parse_uuid_literal(text),
            ByteType::Char | ByteType::Opaque | ByteType::Unknown => self.parse_text(text),
        }
    }

    fn equality(self) -> ValueEquality {
        match self {
            ByteType::Bytea | ByteType::Char | ByteType::Uuid => ValueEquality::OfCells,
            ByteType::Opaque | ByteType::Unknown => ValueEquality::Unknown(UNKNOWN_EQUALITY),
        }
    }

    fn is_always_text(self) -> bool {
        self != ByteType::Unknown
    }

    fn is_exact(self) -> bool {
        matches!(self, ByteType::Bytea | ByteType::Uuid)
    }

    fn prints_as_postgresql(self) -> bool {
        match self {
            ByteType::Bytea | ByteType::Char | ByteType::Uuid => true,
            ByteType::Opaque | ByteType::Unknown => false,
        }
    }
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

/// Reads a `"char"`.
fn parse_char(input: &str) -> Result<u8, ValueMismatch> {
    let wrong = ValueMismatch::Text("a single byte");
    match input.as_bytes() {
        [] => Ok(0),
        [byte] if byte.is_ascii() => Ok(*byte),
        [b'\\', ..] if input.len() == 4 => u8::from_str_radix(input.get(1..).unwrap_or_default(), 8).map_err(|_| wrong),
        _ => Err(wrong),
    }
}

fn push_uuid(bytes: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (number, byte) in wire::exactly::<16>(bytes)?.into_iter().enumerate() {
        if let 4 | 6 | 8 | 10 = number {
            at += 1;
        }
        text[at..at + 2].copy_from_slice(&hex_digits(byte));
        at += 2;
    }
    to.extend_from_slice(&text);
    Ok(())
}

fn parse_uuid(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = parse_hex(&input.replace('-', ""))?;
    if bytes.len() == 16 { Ok(bytes) } else { Err(ValueMismatch::Text("a UUID")) }
}

/// Reads a UUID. The digits may have either case, with or without a hyphen after each group of
/// four, and with or without braces.
fn parse_uuid_literal(input: &str) -> Result<Vec<u8>, ValueMismatch> {
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
    if digits.len() == 32 && !is_after_hyphen { parse_hex(&digits) } else { Err(WRONG) }
}
