//! Full-text search documents and queries from their text forms.

use super::ValueMismatch;
use super::text::number;
use crate::project::search::{NOT_RANK, TsQueryOperator};

const DOCUMENT: ValueMismatch = ValueMismatch::Text("a text search document");
const QUERY: ValueMismatch = ValueMismatch::Text("a text search query");

/// Reads a `tsvector`: each lexeme in quotes, with its positions and their weights.
pub(super) fn document(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let (mut count, mut bytes, mut rest) = (0_i32, Vec::new(), input);
    while !rest.is_empty() {
        let (lexeme, after) = quoted(rest).ok_or(DOCUMENT)?;
        let (positions, after) = match after.strip_prefix(':') {
            Some(after) => after.split_at(after.find(' ').unwrap_or(after.len())),
            None => ("", after),
        };
        push_zero_ended(&mut bytes, &lexeme)?;
        let places =
            positions.split(',').filter(|place| !place.is_empty()).map(place).collect::<Result<Vec<_>, _>>()?;
        bytes.extend(u16::try_from(places.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes());
        places.iter().for_each(|place| bytes.extend(place.to_be_bytes()));
        count = count.checked_add(1).ok_or(ValueMismatch::Range)?;
        rest = match after.strip_prefix(' ') {
            Some(next) => next,
            None if after.is_empty() => after,
            None => return Err(DOCUMENT),
        };
    }
    Ok([&count.to_be_bytes(), bytes.as_slice()].concat())
}

fn place(text: &str) -> Result<u16, ValueMismatch> {
    let (digits, weight) = match text.as_bytes().last() {
        Some(b'A') => (&text[..text.len() - 1], 3),
        Some(b'B') => (&text[..text.len() - 1], 2),
        Some(b'C') => (&text[..text.len() - 1], 1),
        _ => (text, 0),
    };
    match number::<u16>(digits)? {
        place @ 0..=0x3FFF => Ok(weight << 14 | place),
        _ => Err(ValueMismatch::Range),
    }
}

/// A part of a query. Operands are indexes of earlier parts.
enum ParsedTsQueryNode {
    Lexeme { text: String, weights: u8, prefix: bool },
    Not(usize),
    Both { operator: TsQueryOperator, left: usize, right: usize },
}

/// An operator that waits for its right operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WaitingOperator {
    Open,
    Not,
    Both(TsQueryOperator),
}

impl WaitingOperator {
    fn rank(self) -> u8 {
        match self {
            WaitingOperator::Open => 0,
            WaitingOperator::Both(operator) => operator.rank(),
            WaitingOperator::Not => NOT_RANK,
        }
    }
}

/// Reads a `tsquery`. It can be nested as deeply as it is long, so reading and writing keep their
/// own stacks.
pub(super) fn query(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let (mut parts, mut done, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rest, mut expects_operand) = (input.trim_start_matches(' '), true);
    while let Some(next) = rest.as_bytes().first() {
        match (next, expects_operand) {
            (b'!', true) => {
                waiting.push(WaitingOperator::Not);
                rest = &rest[1..];
            }
            (b'(', true) => {
                waiting.push(WaitingOperator::Open);
                rest = &rest[1..];
            }
            (b'\'', true) => {
                let (text, after) = quoted(rest).ok_or(QUERY)?;
                let (flags, after) = match after.strip_prefix(':') {
                    Some(after) => after.split_at(after.find([' ', ')']).unwrap_or(after.len())),
                    None => ("", after),
                };
                done.push(parts.len());
                parts.push(lexeme(text, flags)?);
                (rest, expects_operand) = (after, false);
            }
            (b')', false) => {
                while waiting.last().ok_or(QUERY)? != &WaitingOperator::Open {
                    reduce(&mut parts, &mut done, &mut waiting)?;
                }
                waiting.pop();
                rest = &rest[1..];
            }
            (_, false) => {
                let (operator, after) = operator(rest)?;
                let rank = WaitingOperator::Both(operator).rank();
                while waiting.last().is_some_and(|top| top.rank() >= rank) {
                    reduce(&mut parts, &mut done, &mut waiting)?;
                }
                waiting.push(WaitingOperator::Both(operator));
                (rest, expects_operand) = (after, true);
            }
            (_, true) => return Err(QUERY),
        }
        rest = rest.trim_start_matches(' ');
    }
    while !waiting.is_empty() {
        reduce(&mut parts, &mut done, &mut waiting)?;
    }
    match done.as_slice() {
        [] if parts.is_empty() => Ok(vec![0; 4]),
        [root] => encode_query(&parts, *root),
        _ => Err(QUERY),
    }
}

/// Gives the last waiting operator its operands.
fn reduce(
    parts: &mut Vec<ParsedTsQueryNode>,
    done: &mut Vec<usize>,
    waiting: &mut Vec<WaitingOperator>,
) -> Result<(), ValueMismatch> {
    let part = match waiting.pop() {
        Some(WaitingOperator::Not) => ParsedTsQueryNode::Not(done.pop().ok_or(QUERY)?),
        Some(WaitingOperator::Both(operator)) => {
            let (right, left) = (done.pop().ok_or(QUERY)?, done.pop().ok_or(QUERY)?);
            ParsedTsQueryNode::Both { operator, left, right }
        }
        Some(WaitingOperator::Open) | None => return Err(QUERY),
    };
    done.push(parts.len());
    parts.push(part);
    Ok(())
}

fn operator(input: &str) -> Result<(TsQueryOperator, &str), ValueMismatch> {
    if let Some(rest) = input.strip_prefix('|') {
        return Ok((TsQueryOperator::Or, rest));
    }
    if let Some(rest) = input.strip_prefix('&') {
        return Ok((TsQueryOperator::And, rest));
    }
    let (distance, rest) = input.strip_prefix('<').and_then(|rest| rest.split_once('>')).ok_or(QUERY)?;
    Ok((TsQueryOperator::Phrase(if distance == "-" { 1 } else { number(distance)? }), rest))
}

fn lexeme(text: String, flags: &str) -> Result<ParsedTsQueryNode, ValueMismatch> {
    let (mut weights, mut prefix) = (0, false);
    for flag in flags.chars() {
        match flag {
            '*' => prefix = true,
            'A' => weights |= 8,
            'B' => weights |= 4,
            'C' => weights |= 2,
            'D' => weights |= 1,
            _ => return Err(QUERY),
        }
    }
    Ok(ParsedTsQueryNode::Lexeme { text, weights, prefix })
}

/// Writes the parts, with operators first and right operands before left ones.
fn encode_query(parts: &[ParsedTsQueryNode], root: usize) -> Result<Vec<u8>, ValueMismatch> {
    let mut bytes = i32::try_from(parts.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes().to_vec();
    let mut pending = vec![root];
    while let Some(part) = pending.pop().and_then(|part| parts.get(part)) {
        match part {
            ParsedTsQueryNode::Lexeme { text, weights, prefix } => {
                bytes.extend([1, *weights, u8::from(*prefix)]);
                push_zero_ended(&mut bytes, text)?;
            }
            ParsedTsQueryNode::Not(inner) => {
                bytes.extend([2, 1]);
                pending.push(*inner);
            }
            ParsedTsQueryNode::Both { operator, left, right } => {
                match operator {
                    TsQueryOperator::And => bytes.extend([2, 2]),
                    TsQueryOperator::Or => bytes.extend([2, 3]),
                    TsQueryOperator::Phrase(distance) => {
                        bytes.extend([2, 4]);
                        bytes.extend(distance.to_be_bytes());
                    }
                }
                pending.extend([*left, *right]);
            }
        }
    }
    Ok(bytes)
}

/// Reads a lexeme in quotes, in which quotes and backslashes are doubled, and returns the rest too.
fn quoted(input: &str) -> Option<(String, &str)> {
    let inner = input.strip_prefix('\'')?;
    let (mut text, mut characters) = (String::new(), inner.char_indices());
    while let Some((at, next)) = characters.next() {
        match next {
            '\'' | '\\' if inner[at + 1..].starts_with(next) => {
                characters.next();
                text.push(next);
            }
            '\'' => return Some((text, &inner[at + 1..])),
            _ => text.push(next),
        }
    }
    None
}

fn push_zero_ended(bytes: &mut Vec<u8>, text: &str) -> Result<(), ValueMismatch> {
    if text.contains('\0') {
        return Err(ValueMismatch::Text("a text without zero bytes"));
    }
    bytes.extend(text.as_bytes());
    bytes.push(0);
    Ok(())
}
