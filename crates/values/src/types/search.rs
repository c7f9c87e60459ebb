//! Text forms of full-text search documents and queries.

use std::fmt::Write;

use bytes::Buf;

use super::{CellProblem, wire};

/// Returns the text of a `tsvector`: each lexeme with its positions and weights. The lowest weight,
/// D, is not written.
pub(super) fn document(mut input: &[u8]) -> Result<String, CellProblem> {
    let mut text = String::new();
    for number in 0..wire::count(&mut input, 3)? {
        if number > 0 {
            text.push(' ');
        }
        push_quoted(&mut text, wire::zero_ended(&mut input)?);
        for position in 0..input.try_get_u16()? {
            let place = input.try_get_u16()?;
            text.push(if position == 0 { ':' } else { ',' });
            let weight = ["", "C", "B", "A"][usize::from(place >> 14)];
            let _ = write!(text, "{}{weight}", place & 0x3FFF);
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
pub(crate) enum TsQueryOperator {
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

/// The place of an operand under its operator.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OperandSide {
    Left,
    Right,
    RightOfPhrase,
}

/// The rank of NOT, which binds more tightly than every [`TsQueryOperator`].
pub(crate) const NOT_RANK: u8 = 4;

impl TsQueryOperator {
    /// Returns the rank. An operator with a higher rank binds more tightly.
    pub(crate) fn rank(self) -> u8 {
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
pub(super) fn query(input: &[u8], all_brackets: bool) -> Result<String, CellProblem> {
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
    push_quoted(text, lexeme);
    if weights != 0 || prefix {
        text.push(':');
    }
    if prefix {
        text.push('*');
    }
    let letters = [(8, 'A'), (4, 'B'), (2, 'C'), (1, 'D')];
    text.extend(letters.iter().filter(|(bit, _)| weights & bit != 0).map(|(_, letter)| letter));
}

fn push_quoted(text: &mut String, lexeme: &str) {
    text.push('\'');
    for character in lexeme.chars() {
        if matches!(character, '\'' | '\\') {
            text.push(character);
        }
        text.push(character);
    }
    text.push('\'');
}
