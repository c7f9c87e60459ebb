//! Text forms of numbers, as PostgreSQL writes them.

use std::fmt::LowerExp;
use std::str::FromStr;

use bytes::Buf;

use super::{CellProblem, digits, wire};

/// The number of significant digits that distinguishes every double from all others.
const DECIMALS_MAX: usize = 17;

/// Appends the text of a `numeric`, with its display scale. Eight bytes can encode 140,000 digits,
/// so the length is subtracted from `room`, the limit for the whole cell.
pub(super) fn numeric(mut input: &[u8], room: &mut usize, to: &mut Vec<u8>) -> Result<(), CellProblem> {
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
    *room = room.checked_sub(whole_groups * 4 + scale + 8).ok_or(CellProblem::TooLarge)?;
    let group = |place: i32| group_at(groups, i32::from(weight) - place);
    let begin = to.len();
    for place in (0..=i32::from(weight)).rev() {
        match group(place)? {
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
        let mut place = -1;
        while to.len() < end {
            digits::push_four(to, group(place)?.into());
            place -= 1;
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

/// Writes a `money` amount with its decimals, without the decoration of the server's `lc_monetary`.
pub(super) fn money(input: &[u8], decimals: u8) -> Result<String, CellProblem> {
    let amount = i64::from_be_bytes(wire::exactly(input)?);
    let (sign, decimals) = (if amount < 0 { "-" } else { "" }, usize::from(decimals));
    let digits = format!("{:0>width$}", amount.unsigned_abs(), width = decimals + 1);
    let (whole, rest) = digits.split_at(digits.len() - decimals);
    let point = if rest.is_empty() { "" } else { "." };
    Ok(format!("{sign}{whole}{point}{rest}"))
}

/// Returns the text of a `float8`.
pub(super) fn double(value: f64) -> String {
    float(value, value, 15)
}

/// Returns the text of a `float4`, which needs fewer digits to differ from its neighbors.
pub(super) fn single(value: f32) -> String {
    float(value, value.into(), 6)
}

/// Returns the shortest digits, with an exponent where C's `%g` has one.
fn float<T: LowerExp + FromStr + PartialEq>(value: T, wide: f64, fixed_digits: i32) -> String {
    if wide.is_nan() {
        return "NaN".to_owned();
    }
    let sign = if wide.is_sign_negative() { "-" } else { "" };
    if wide.is_infinite() {
        return format!("{sign}Infinity");
    }
    let scientific = shortest(&value);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..fixed_digits).contains(&exponent) {
        return fixed(sign, mantissa, exponent);
    }
    let exponent_sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{exponent_sign}{:02}", exponent.abs())
}

/// Returns the shortest decimal that is nearer to this number than to any other, in the form
/// `d.ddde0`. Rust's own may lie exactly between two numbers, where parsing relies on rounding to
/// even. Of two equally near decimals, Rust takes the larger one and PostgreSQL the even one.
fn shortest<T: LowerExp + FromStr + PartialEq>(value: &T) -> String {
    let inclusive = format!("{value:e}");
    let mantissa = inclusive.split('e').next().unwrap_or_default();
    (decimals_of(mantissa)..DECIMALS_MAX)
        .map(|decimals| format!("{value:.decimals$e}"))
        .find(|text| is_strictly_nearest(text, value))
        .unwrap_or(inclusive)
}

/// Returns true if a decimal still parses as this number after a small shift in either direction. A
/// decimal of 17 digits that is not exactly between two numbers is farther than this shift from the
/// middle.
fn is_strictly_nearest<T: FromStr + PartialEq>(text: &str, value: &T) -> bool {
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return false;
    };
    let (sign, digits) = match mantissa.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", mantissa),
    };
    let (Ok(digits), Ok(exponent)) = (digits.replace('.', "").parse::<u64>(), exponent.parse::<i64>()) else {
        return false;
    };
    let Some(below) = digits.checked_sub(1) else {
        return true;
    };
    let exponent = exponent - i64::try_from(decimals_of(mantissa)).unwrap_or(0) - 40;
    let reads_back = |text: String| text.parse::<T>().is_ok_and(|read| read == *value);
    reads_back(format!("{sign}{digits}{:040}e{exponent}", 1))
        && reads_back(format!("{sign}{below}{:9<40}e{exponent}", 9))
}

fn decimals_of(mantissa: &str) -> usize {
    mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len())
}

fn fixed(sign: &str, mantissa: &str, exponent: i32) -> String {
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    match usize::try_from(exponent) {
        Err(_) => {
            let zeros = "0".repeat(usize::try_from(-1 - exponent).unwrap_or(0));
            format!("{sign}0.{zeros}{digits}")
        }
        Ok(exponent) if digits.len() <= exponent + 1 => {
            let zeros = "0".repeat(exponent + 1 - digits.len());
            format!("{sign}{digits}{zeros}")
        }
        Ok(exponent) => {
            let (whole, decimals) = digits.split_at(exponent + 1);
            format!("{sign}{whole}.{decimals}")
        }
    }
}
