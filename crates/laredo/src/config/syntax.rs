//! Checks of a document's syntax that come before the HOCON library builds anything from it, and
//! the library's errors in plain words.

use hocon::parser::{AstField, AstNode, parse_tokens};
use hocon::{HoconError, ParseError, Token, TokenKind};

/// The maximum depth of nested keys. Both the library and this crate recurse by key.
pub(crate) const DEPTH_MAX: usize = 128;
/// The maximum number of substitutions in a file.
const SUBSTITUTIONS_MAX: usize = 1000;

/// Parses a text, if it is sound enough for the library to process further.
pub(crate) fn parse(text: &str, depth: usize) -> Result<AstNode, HoconSyntaxError> {
    let tokens = hocon::tokenize(text)?;
    check_braces(&tokens)?;
    check_substitutions(&tokens)?;
    let document = parse_tokens(&tokens)?;
    if let AstNode::Object { fields, .. } = &document
        && let Some(error) = too_deep(fields, depth)
    {
        return Err(error);
    }
    Ok(document)
}

/// Checks that every `{` is closed and that every `}` closes a block. The library takes any other
/// `}` for the end of the document, and ignores the rest silently.
pub(crate) fn check_braces(tokens: &[Token]) -> Result<(), HoconSyntaxError> {
    let mut open = Vec::new();
    for token in tokens {
        match token.kind {
            TokenKind::LBrace => open.push(token),
            TokenKind::RBrace if open.pop().is_none() => {
                return Err(HoconSyntaxError::new(
                    "this } closes no block; everything after it would be ignored",
                    token.line,
                    token.col,
                ));
            }
            _ => {}
        }
    }
    match open.last() {
        Some(token) => Err(HoconSyntaxError::new("this { is never closed", token.line, token.col)),
        None => Ok(()),
    }
}

/// Checks the number of substitutions. A substitution may refer to the next one, and the library
/// follows them by recursion.
fn check_substitutions(tokens: &[Token]) -> Result<(), HoconSyntaxError> {
    let mut substitutions = tokens.iter().filter(|token| token.kind == TokenKind::Substitution);
    match substitutions.nth(SUBSTITUTIONS_MAX) {
        Some(token) => {
            let message = format!("a file may have at most {SUBSTITUTIONS_MAX} substitutions");
            Err(HoconSyntaxError::new(message, token.line, token.col))
        }
        None => Ok(()),
    }
}

/// Returns an error if a key nests deeper than the recursion over the tree may go.
fn too_deep(fields: &[AstField], depth: usize) -> Option<HoconSyntaxError> {
    fields.iter().find_map(|field| {
        let depth = depth + field.key.len();
        if depth > DEPTH_MAX {
            let message = format!("keys nest deeper than {DEPTH_MAX} levels");
            return Some(HoconSyntaxError::new(&message, field.pos.line, field.pos.col));
        }
        value_too_deep(&field.value, depth)
    })
}

fn value_too_deep(value: &AstNode, depth: usize) -> Option<HoconSyntaxError> {
    match value {
        AstNode::Object { fields, .. } => too_deep(fields, depth),
        AstNode::Array { items, .. } => items.iter().find_map(|i| value_too_deep(i, depth)),
        AstNode::Concat { nodes, .. } => nodes.iter().find_map(|n| value_too_deep(n, depth)),
        AstNode::Substitution { segments, pos, .. } if segments.len() > DEPTH_MAX => {
            Some(HoconSyntaxError::new("this substitution's path is too long", pos.line, pos.col))
        }
        _ => None,
    }
}

/// An error in a document's syntax. The line and column count from 1; they are 0 if the library
/// does not report them.
pub(crate) struct HoconSyntaxError {
    pub(crate) message: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl HoconSyntaxError {
    pub(crate) fn new(message: impl Into<String>, line: usize, column: usize) -> Self {
        HoconSyntaxError { message: message.into(), line, column }
    }
}

impl From<ParseError> for HoconSyntaxError {
    fn from(error: ParseError) -> Self {
        HoconSyntaxError::new(error.message, error.line, error.col)
    }
}

impl From<HoconError> for HoconSyntaxError {
    fn from(error: HoconError) -> Self {
        match error {
            HoconError::Parse(error) => error.into(),
            HoconError::Resolve(error) => {
                HoconSyntaxError::new(format!("{} ({})", error.message, error.path), error.line, error.col)
            }
            error => HoconSyntaxError::new(error.to_string(), 0, 0),
        }
    }
}

/// Replaces the library's names of tokens in a message by words for operators.
pub(crate) fn plain(message: &str) -> String {
    [
        ("Equals", "="),
        ("Colon", ":"),
        ("RBrace", "}"),
        ("LBrace", "{"),
        ("RBracket", "]"),
        ("LBracket", "["),
        ("Comma", "a comma"),
        ("Eof", "the end of the file"),
        ("QuotedString", "a quoted string"),
        ("Unquoted", "a word"),
        ("Substitution", "a substitution"),
        ("Newline", "the end of the line"),
    ]
    .iter()
    .fold(message.to_owned(), |message, (theirs, ours)| match message.strip_suffix(theirs) {
        Some(start) if start.ends_with(' ') => format!("{start}{ours}"),
        _ => message,
    })
}
