//! Full-text search documents and queries.

use std::fmt::Write;

use bytes::Buf;
use laredo_core::Oid;

use super::{CellContext, TypeFamily, UNKNOWN_EQUALITY, ValueEquality};
use crate::problem::{CellProblem, ValueMismatch};
use crate::text_form::parse_number;
use crate::wire;

const DOCUMENT: ValueMismatch = ValueMismatch::Text("a text search document");
const QUERY: ValueMismatch = ValueMismatch::Text("a text search query");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SearchType {
    /// The type `tsvector`.
    Document,
    /// The type `tsquery`.
    Query,
}

impl TypeFamily for SearchType {
    const BUILTIN: &'static [(Oid, SearchType)] = &[(3614, SearchType::Document), (3615, SearchType::Query)];

    fn to_text(self, context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        match self {
            SearchType::Document => document_text(cell),
            SearchType::Query => query_text(cell, context.is_key),
        }
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            SearchType::Document => parse_document(text),
            SearchType::Query => parse_query(text),
        }
    }

    fn equality(self) -> ValueEquality {
        ValueEquality::Unknown(UNKNOWN_EQUALITY)
    }
}

/// Returns the text of a `tsvector`: each lexeme with its positions and weights. The lowest weight,
/// D, is not written.
fn document_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let mut text = String::new();
    for number in 0..wire::count(&mut input, 3)? {
        if number > 0 {
            text.push(' ');
        }
        push_quoted_lexeme(&mut text, wire::zero_ended(&mut input)?);
        for position in 0..input.try_get_u16()? {
            let packed = input.try_get_u16()?;
            text.push(if position == 0 { ':' } else { ',' });
            let weight = ["", "C", "B", "A"][usize::from(packed >> 14)];
            let _ = write!(text, "{}{weight}", packed & 0x3FFF);
        }
    }
    wire::end(input)?;
    Ok(text)
}

/// A part of a `tsquery`. Operands are indexes of other parts.
enum TsQueryNode<'a> {
    Lexeme { text: &'a str, weights: u8, prefix: bool },
    Not(usize),
    Both { operator: TsQueryOperator, left: usize, right: usize },
}

/// An operator that joins two operands of a `tsquery`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TsQueryOperator {
    Or,
    And,
    Phrase(u16),
}

/// A part of a query that has not been written yet.
enum TsQueryOutputItem {
    Part { part: usize, parent_rank: u8, side: OperandSide },
    Operator(TsQueryOperator),
    Close,
}

/// The side of an operand under its operator.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OperandSide {
    Left,
    Right,
    RightOfPhrase,
}

/// The set of all four weights of a lexeme, one bit for each.
const WEIGHTS_ALL: u8 = 0b1111;

/// The rank of NOT, which binds more tightly than every [`TsQueryOperator`].
const NOT_RANK: u8 = 4;

impl TsQueryOperator {
    /// Returns the rank. An operator with a higher rank binds more tightly.
    fn rank(self) -> u8 {
        match self {
            TsQueryOperator::Or => 1,
            TsQueryOperator::And => 2,
            TsQueryOperator::Phrase(_) => 3,
        }
    }
}

/// Returns the text of a `tsquery`. PostgreSQL's text form does not show the nesting of equal
/// operators; with `all_brackets` the text does. The binary form has operators first and right
/// operands before left ones. A query can be nested as deeply as it is long, so reading and writing
/// keep their own stacks.
fn query_text(input: &[u8], all_brackets: bool) -> Result<String, CellProblem> {
    let parts = query_parts(input)?;
    let mut text = String::new();
    let mut pending = Vec::new();
    if let Some(root) = parts.len().checked_sub(1) {
        pending.push(operand(root, 0, OperandSide::Left));
    }
    while let Some(next) = pending.pop() {
        match next {
            TsQueryOutputItem::Close => text.push_str(" )"),
            TsQueryOutputItem::Operator(TsQueryOperator::Or) => text.push_str(" | "),
            TsQueryOutputItem::Operator(TsQueryOperator::And) => text.push_str(" & "),
            TsQueryOutputItem::Operator(TsQueryOperator::Phrase(1)) => text.push_str(" <-> "),
            TsQueryOutputItem::Operator(TsQueryOperator::Phrase(distance)) => {
                let _ = write!(text, " <{distance}> ");
            }
            TsQueryOutputItem::Part { part, parent_rank, side } => match parts[part] {
                TsQueryNode::Lexeme { text: lexeme, weights, prefix } => {
                    push_lexeme(&mut text, lexeme, weights, prefix)
                }
                TsQueryNode::Not(inner) => {
                    open(&mut text, &mut pending, NOT_RANK < parent_rank);
                    text.push('!');
                    pending.push(operand(inner, NOT_RANK, OperandSide::Left));
                }
                TsQueryNode::Both { operator, left, right } => {
                    let rank = operator.rank();
                    let is_phrase = matches!(operator, TsQueryOperator::Phrase(_));
                    let is_in_doubt = match side {
                        OperandSide::Left => false,
                        OperandSide::Right => all_brackets && rank == parent_rank,
                        OperandSide::RightOfPhrase => is_phrase,
                    };
                    open(&mut text, &mut pending, rank < parent_rank || is_in_doubt);
                    pending.push(operand(
                        right,
                        rank,
                        if is_phrase { OperandSide::RightOfPhrase } else { OperandSide::Right },
                    ));
                    pending.push(TsQueryOutputItem::Operator(operator));
                    pending.push(operand(left, rank, OperandSide::Left));
                }
            },
        }
    }
    Ok(text)
}

fn operand(part: usize, parent_rank: u8, side: OperandSide) -> TsQueryOutputItem {
    TsQueryOutputItem::Part { part, parent_rank, side }
}

fn open(text: &mut String, pending: &mut Vec<TsQueryOutputItem>, needed: bool) {
    if needed {
        text.push_str("( ");
        pending.push(TsQueryOutputItem::Close);
    }
}

/// Reads the parts, with the root last. In reverse order, every operator finds its operands on the
/// stack, with the left one below.
fn query_parts(mut input: &[u8]) -> Result<Vec<TsQueryNode<'_>>, CellProblem> {
    let count = wire::count(&mut input, 2)?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push(query_item(&mut input)?);
    }
    wire::end(input)?;
    let mut stack = Vec::new();
    let mut parts = Vec::with_capacity(count);
    for mut item in items.into_iter().rev() {
        match &mut item {
            TsQueryNode::Lexeme { .. } => {}
            TsQueryNode::Not(inner) => *inner = stack.pop().ok_or(CellProblem::Torn)?,
            TsQueryNode::Both { left, right, .. } => {
                *right = stack.pop().ok_or(CellProblem::Torn)?;
                *left = stack.pop().ok_or(CellProblem::Torn)?;
            }
        }
        stack.push(parts.len());
        parts.push(item);
    }
    if stack.len() > 1 {
        return Err(CellProblem::Impossible("number of operands"));
    }
    Ok(parts)
}

/// Reads one item. Its operands are not known yet.
fn query_item<'a>(input: &mut &'a [u8]) -> Result<TsQueryNode<'a>, CellProblem> {
    let both = |operator| TsQueryNode::Both { operator, left: 0, right: 0 };
    match input.try_get_u8()? {
        1 => {
            let (weights, prefix) = (input.try_get_u8()?, input.try_get_u8()? != 0);
            if weights > WEIGHTS_ALL {
                return Err(CellProblem::Impossible("set of weights"));
            }
            let text = wire::zero_ended(input)?;
            Ok(TsQueryNode::Lexeme { text, weights, prefix })
        }
        2 => match input.try_get_u8()? {
            1 => Ok(TsQueryNode::Not(0)),
            2 => Ok(both(TsQueryOperator::And)),
            3 => Ok(both(TsQueryOperator::Or)),
            4 => Ok(both(TsQueryOperator::Phrase(input.try_get_u16()?))),
            _ => Err(CellProblem::Impossible("operator")),
        },
        _ => Err(CellProblem::Impossible("item")),
    }
}

fn push_lexeme(text: &mut String, lexeme: &str, weights: u8, prefix: bool) {
    push_quoted_lexeme(text, lexeme);
    if weights != 0 || prefix {
        text.push(':');
    }
    if prefix {
        text.push('*');
    }
    let letters = [(8, 'A'), (4, 'B'), (2, 'C'), (1, 'D')];
    text.extend(letters.iter().filter(|(bit, _)| weights & bit != 0).map(|(_, letter)| letter));
}

fn push_quoted_lexeme(text: &mut String, lexeme: &str) {
    text.push('\'');
    for character in lexeme.chars() {
        if matches!(character, '\'' | '\\') {
            text.push(character);
        }
        text.push(character);
    }
    text.push('\'');
}

/// Reads a `tsvector`: each lexeme in quotes, with its positions and their weights.
fn parse_document(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let (mut count, mut bytes, mut rest) = (0_i32, Vec::new(), input);
    while !rest.is_empty() {
        let (lexeme, after) = parse_quoted_lexeme(rest).ok_or(DOCUMENT)?;
        let (positions, after) = match after.strip_prefix(':') {
            Some(after) => after.split_at(after.find(' ').unwrap_or(after.len())),
            None => ("", after),
        };
        wire::push_zero_ended(&mut bytes, &lexeme)?;
        let packed = positions
            .split(',')
            .filter(|position| !position.is_empty())
            .map(parse_position)
            .collect::<Result<Vec<_>, _>>()?;
        bytes.extend(u16::try_from(packed.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes());
        packed.iter().for_each(|position| bytes.extend(position.to_be_bytes()));
        count = count.checked_add(1).ok_or(ValueMismatch::Range)?;
        rest = match after.strip_prefix(' ') {
            Some(next) => next,
            None if after.is_empty() => after,
            None => return Err(DOCUMENT),
        };
    }
    Ok([&count.to_be_bytes(), bytes.as_slice()].concat())
}

fn parse_position(text: &str) -> Result<u16, ValueMismatch> {
    let (digits, weight) = match text.as_bytes().last() {
        Some(b'A') => (&text[..text.len() - 1], 3),
        Some(b'B') => (&text[..text.len() - 1], 2),
        Some(b'C') => (&text[..text.len() - 1], 1),
        _ => (text, 0),
    };
    match parse_number::<u16>(digits)? {
        position @ 0..=0x3FFF => Ok(weight << 14 | position),
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
fn parse_query(input: &str) -> Result<Vec<u8>, ValueMismatch> {
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
                let (text, after) = parse_quoted_lexeme(rest).ok_or(QUERY)?;
                let (flags, after) = match after.strip_prefix(':') {
                    Some(after) => after.split_at(after.find([' ', ')']).unwrap_or(after.len())),
                    None => ("", after),
                };
                done.push(parts.len());
                parts.push(parse_lexeme(text, flags)?);
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
                let (operator, after) = parse_operator(rest)?;
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

fn parse_operator(input: &str) -> Result<(TsQueryOperator, &str), ValueMismatch> {
    if let Some(rest) = input.strip_prefix('|') {
        return Ok((TsQueryOperator::Or, rest));
    }
    if let Some(rest) = input.strip_prefix('&') {
        return Ok((TsQueryOperator::And, rest));
    }
    let (distance, rest) = input.strip_prefix('<').and_then(|rest| rest.split_once('>')).ok_or(QUERY)?;
    Ok((TsQueryOperator::Phrase(if distance == "-" { 1 } else { parse_number(distance)? }), rest))
}

fn parse_lexeme(text: String, flags: &str) -> Result<ParsedTsQueryNode, ValueMismatch> {
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
                wire::push_zero_ended(&mut bytes, text)?;
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
fn parse_quoted_lexeme(input: &str) -> Option<(String, &str)> {
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
