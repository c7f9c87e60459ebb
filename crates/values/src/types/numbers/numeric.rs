//! The type `numeric`: decimal numbers with their display scale, in groups of four digits.

use bytes::Buf;

use super::{decimal, is_nan};
use crate::problem::{CellProblem, ValueMismatch};
use crate::types::CellContext;
use crate::value::Value;
use crate::{digits, wire};

/// The maximum numbers of digits after and before the decimal point in PostgreSQL.
const SCALE_MAX: usize = 0x3FFF;

const WHOLE_MAX: usize = 131_072;

/// Appends the text of a `numeric`, with its display scale. Eight bytes can encode 140,000 digits,
/// so the length is limited for the whole cell.
pub(super) fn push(context: &mut CellContext, mut input: &[u8], to: &mut Vec<u8>) -> Result<(), CellProblem> {
    let digit_count = usize::from(input.try_get_u16()?);
    let weight = input.try_get_i16()?;
    let sign = input.try_get_u16()?;
    let scale = usize::from(input.try_get_u16()?);
    let groups = wire::take_bytes(&mut input, digit_count * 2)?;
    wire::end(input)?;
    let special: &[u8] = match sign {
        0x0000 | 0x4000 => b"",
        0xC000 => b"NaN",
        0xD000 => b"Infinity",
        0xF000 => b"-Infinity",
        _ => return Err(CellProblem::Impossible("sign")),
    };
    if !special.is_empty() {
        to.extend_from_slice(special);
        return Ok(());
    }
    if scale > 0x3FFF {
        return Err(CellProblem::Impossible("scale"));
    }
    // The group with index `weight` holds the thousands to ones. The next one holds the first four
    // decimals.
    let whole_groups = usize::try_from(i32::from(weight) + 1).unwrap_or(0);
    context.reserve_numeric_text(whole_groups * 4 + scale + 8)?;
    let group = |exponent: i32| group_at(groups, i32::from(weight) - exponent);
    let begin = to.len();
    for exponent in (0..=i32::from(weight)).rev() {
        match group(exponent)? {
            0 if to.len() == begin => {}
            first if to.len() == begin => digits::push(to, first.into()),
            group => digits::push_four(to, group.into()),
        }
    }
    if to.len() == begin {
        to.push(b'0');
    }
    if scale > 0 {
        to.push(b'.');
        let end = to.len() + scale;
        let mut exponent = -1;
        while to.len() < end {
            digits::push_four(to, group(exponent)?.into());
            exponent -= 1;
        }
        to.truncate(end);
    }
    if sign == 0x4000 && to[begin..].iter().any(|digit| (b'1'..=b'9').contains(digit)) {
        to.insert(begin, b'-');
    }
    Ok(())
}

/// Returns a group of four decimal digits. Groups that are not sent are zero.
fn group_at(groups: &[u8], index: i32) -> Result<u16, CellProblem> {
    let bytes = usize::try_from(index).ok().and_then(|index| groups.get(index * 2..index * 2 + 2));
    match bytes {
        None => Ok(0),
        Some(bytes) => match u16::from_be_bytes([bytes[0], bytes[1]]) {
            group @ 0..=9999 => Ok(group),
            _ => Err(CellProblem::Impossible("digit")),
        },
    }
}

/// Reads a `numeric`, with its display scale.
pub(super) fn parse(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    match input {
        "NaN" => return Ok(cell_of(0, 0xC000, 0, &[])),
        // PostgreSQL sends this scale, an artifact of its short internal form.
        "Infinity" => return Ok(cell_of(0, 0xD000, 32, &[])),
        "-Infinity" => return Ok(cell_of(0, 0xF000, 32, &[])),
        _ => {}
    }
    let (sign, digits) = match input.strip_prefix('-') {
        Some(digits) => (0x4000, digits),
        None => (0, input),
    };
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    if whole.is_empty() || !are_digits(whole) || !are_digits(decimals) {
        return Err(ValueMismatch::Text("a number"));
    }
    if whole.len() > WHOLE_MAX || decimals.len() > SCALE_MAX {
        return Err(ValueMismatch::Range);
    }
    // The groups have four digits on both sides of the point.
    let padded = format!("{}{whole}{decimals}{}", "0".repeat(fill(whole)), "0".repeat(fill(decimals)));
    let groups: Vec<u16> = padded.as_bytes().chunks(4).map(digit_group).collect();
    let whole_groups = (whole.len() + fill(whole)) / 4;
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let trailing = groups.iter().rev().take_while(|group| **group == 0).count();
    let scale = u16::try_from(decimals.len()).map_err(|_| ValueMismatch::Range)?;
    let Some(significant) = groups.get(leading..groups.len() - trailing.min(groups.len() - leading)) else {
        return Ok(cell_of(0, 0, scale, &[]));
    };
    if significant.is_empty() {
        return Ok(cell_of(0, 0, scale, &[]));
    }
    let weight = i64::try_from(whole_groups).unwrap_or(0) - 1 - i64::try_from(leading).unwrap_or(0);
    Ok(cell_of(i16::try_from(weight).map_err(|_| ValueMismatch::Range)?, sign, scale, significant))
}

/// Returns the number of digits that are missing to a multiple of four.
fn fill(digits: &str) -> usize {
    (4 - digits.len() % 4) % 4
}

fn digit_group(digits: &[u8]) -> u16 {
    digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
}

fn cell_of(weight: i16, sign: u16, scale: u16, groups: &[u16]) -> Vec<u8> {
    let count = u16::try_from(groups.len()).unwrap_or(u16::MAX);
    let mut bytes = count.to_be_bytes().to_vec();
    bytes.extend(weight.to_be_bytes());
    bytes.extend(sign.to_be_bytes());
    bytes.extend(scale.to_be_bytes());
    groups.iter().for_each(|group| bytes.extend(group.to_be_bytes()));
    bytes
}

/// Reads a literal.
pub(super) fn parse_literal(value: &Value) -> Result<Vec<u8>, ValueMismatch> {
    let is_not_a_number = match value {
        Value::Number(number) => number.is_nan(),
        Value::String(text) => is_nan(text),
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_) => false,
    };
    match is_not_a_number {
        true => parse("NaN"),
        false => parse(&decimal(value)?.to_plain().ok_or(ValueMismatch::Range)?),
    }
}

/// Returns a `numeric` without its display scale: weight, sign and digits.
pub(super) fn unscaled(bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
    let (Some(head), Some(mut digits)) = (bytes.get(2..6), bytes.get(8..)) else { return Err(CellProblem::Torn) };
    while let Some(rest) = digits.strip_suffix(&[0, 0]) {
        digits = rest;
    }
    Ok([head, digits].concat())
}
