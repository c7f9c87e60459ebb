//! Quotes in the text forms of arrays, composites and ranges.

use crate::problem::ValueMismatch;

/// Quotes a text as in ranges and composites: quotes and backslashes inside quotes are doubled.
pub(super) fn quote(text: String, special: &[char]) -> String {
    let plain = !text.is_empty() && !text.contains(|c| special.contains(&c) || is_space(c));
    if plain {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
}

/// Quotes a text as in arrays: quotes and backslashes get a backslash, and a text like NULL gets
/// quotes.
pub(super) fn quote_element(text: String, delimiter: &str) -> String {
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

/// The text between two delimiters, without its quotes.
#[derive(Debug, Default)]
pub(super) struct DelimitedText {
    pub(super) text: String,
    pub(super) is_quoted: bool,
}

/// The rule for quotes and backslashes inside quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum QuotingRule {
    /// They are doubled, as in ranges and composites.
    Doubled,
    /// They follow a backslash, as in arrays.
    Escaped,
}

/// Splits at delimiters outside of quotes.
pub(super) fn split(input: &str, delimiter: char, quoting: QuotingRule) -> Result<Vec<DelimitedText>, ValueMismatch> {
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
