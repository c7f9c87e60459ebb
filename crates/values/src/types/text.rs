//! Text in all its types, the labels of enums, and the extension types `citext` and `ltree`.

use std::borrow::Cow;

use laredo_core::Oid;

use super::{CellContext, TypeFamily, ValueEquality};
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::{escaped_hex, parse_escaped_hex};
use crate::value::{Value, push_json, string};
use crate::wire;

/// The type `name`.
pub(crate) const NAME: Oid = 19;

/// Text types, by the equality of their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextType {
    /// Equality of bytes.
    Plain,
    /// Equality of bytes, except for blanks at the end: `char(n)`.
    Padded,
    /// Equality of letters regardless of case: the extension type `citext`.
    Caseless,
    /// Equality of ASCII letters regardless of case, and of all other bytes.
    AsciiCaseless,
    /// No equality: `xml` and similar types.
    Incomparable,
    /// A label of an enum. A label may be added at any time without a new copy, so the schema may
    /// not have all labels.
    Label,
    /// The extension type `ltree`: text after a version byte.
    Ltree,
}

impl TypeFamily for TextType {
    const BUILTIN: &'static [(Oid, TextType)] = &[
        (NAME, TextType::Plain),
        (25, TextType::Plain),
        // `xml`, `pg_node_tree` and `refcursor`.
        (142, TextType::Incomparable),
        (194, TextType::Incomparable),
        (1790, TextType::Incomparable),
        (1042, TextType::Padded),
        // `varchar`.
        (1043, TextType::Plain),
    ];
    const EXTENSIONS: &'static [(&'static str, TextType)] =
        &[("citext", TextType::Caseless), ("ltree", TextType::Ltree)];

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        match self {
            // A type that has this name without being the extension's has another binary form.
            TextType::Ltree => Ok(wire::versioned(cell).map_or_else(|_| escaped_hex(cell), str::to_owned)),
            TextType::Plain
            | TextType::Padded
            | TextType::Caseless
            | TextType::AsciiCaseless
            | TextType::Incomparable
            | TextType::Label => wire::utf8(cell).map(str::to_owned),
        }
    }

    fn push_json(self, _context: &mut CellContext, cell: &[u8], to: &mut Vec<u8>) -> Result<bool, CellProblem> {
        match self {
            TextType::Ltree => Ok(false),
            TextType::Plain
            | TextType::Padded
            | TextType::Caseless
            | TextType::AsciiCaseless
            | TextType::Incomparable
            | TextType::Label => push_text(cell, to).map(|()| true),
        }
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            TextType::Ltree if text.starts_with("\\x") => parse_escaped_hex(text),
            TextType::Ltree => Ok(wire::to_versioned(text)),
            TextType::Plain
            | TextType::Padded
            | TextType::Caseless
            | TextType::AsciiCaseless
            | TextType::Incomparable
            | TextType::Label => Ok(text.as_bytes().to_vec()),
        }
    }

    fn parse_literal(self, value: &Value) -> Result<Vec<u8>, ValueMismatch> {
        match (self, string(value)?) {
            (TextType::Label, label) if label.len() > NAME_BYTES_MAX => {
                Err(ValueMismatch::Text("a label (63 bytes at most)"))
            }
            (TextType::Ltree, text) => label_path(text).map(wire::to_versioned),
            (
                TextType::Plain
                | TextType::Padded
                | TextType::Caseless
                | TextType::AsciiCaseless
                | TextType::Incomparable
                | TextType::Label,
                text,
            ) => Ok(text.as_bytes().to_vec()),
        }
    }

    fn equality(self) -> ValueEquality {
        match self {
            TextType::Plain | TextType::Label | TextType::Ltree => ValueEquality::OfCells,
            TextType::Padded | TextType::Caseless | TextType::AsciiCaseless => ValueEquality::OfCanonicalForms,
            TextType::Incomparable => ValueEquality::Unknown("PostgreSQL has no equality for it"),
        }
    }

    fn canonical(self, cell: &[u8]) -> Result<Cow<'_, [u8]>, CellProblem> {
        Ok(match self {
            TextType::Padded => without_padding(cell).into(),
            TextType::Caseless => Cow::Owned(caseless(wire::utf8(cell)?).into_bytes()),
            TextType::AsciiCaseless => Cow::Owned(cell.to_ascii_lowercase()),
            TextType::Plain | TextType::Incomparable | TextType::Label | TextType::Ltree => cell.into(),
        })
    }

    fn is_exact(self) -> bool {
        self != TextType::Ltree
    }

    fn is_distinct_from_hex(self) -> bool {
        self == TextType::Ltree
    }
}

/// Appends a string. ASCII text without escapes, which is the usual case, is copied.
fn push_text(bytes: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let is_other = |byte: &u8| (*byte < b' ') | (*byte == b'"') | (*byte == b'\\') | !byte.is_ascii();
    // The loop has no early exit, so that it processes many bytes at a time.
    if bytes.iter().fold(false, |found, byte| found | is_other(byte)) {
        push_json(wire::utf8(bytes)?, to);
        return Ok(());
    }
    to.push(b'"');
    to.extend_from_slice(bytes);
    to.push(b'"');
    Ok(())
}

/// Maps text to lower case, character by character, as `citext` does for comparisons.
pub(crate) fn caseless(text: &str) -> String {
    let lower = |character: char| {
        let mut lower = character.to_lowercase();
        // A character that would become two stays unchanged in the C library.
        match (lower.next(), lower.next()) {
            (Some(only), None) => only,
            _ => character,
        }
    };
    text.chars().map(lower).collect()
}

/// Removes the padding blanks at the end of a `char(n)`.
fn without_padding(bytes: &[u8]) -> &[u8] {
    let kept = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &bytes[..kept]
}

/// The maximum length of a PostgreSQL name in bytes.
const NAME_BYTES_MAX: usize = 63;

/// Returns the cell of a literal of the type `name`.
pub(crate) fn parse_name_literal(value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    Ok(shortened_name(string(value)?).as_bytes().to_vec())
}

/// Truncates a name as PostgreSQL does, at the end of a character.
fn shortened_name(text: &str) -> &str {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_escaped_where_they_have_to_be() {
        for text in [
            "",
            "plain ü \u{1F600} /",
            "\"",
            "\\",
            "a\nb",
            "\u{7f}",
            "\u{1}",
            "sixteen characters and a \"quote\" and more",
        ] {
            let mut to = Vec::new();
            push_text(text.as_bytes(), &mut to).unwrap();
            assert_eq!(String::from_utf8(to).unwrap(), serde_json::to_string(text).unwrap());
        }
    }
}
