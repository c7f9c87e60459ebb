//! The types `float4` and `float8`.

use std::fmt::LowerExp;
use std::str::FromStr;

use super::{NUMBER, is_nan};
use crate::decimal::Decimal;
use crate::problem::ValueMismatch;
use crate::value::Value;

/// The number of significant digits that distinguishes every double from all others.
const DECIMALS_MAX: usize = 17;

/// Returns the projection of a float.
pub(super) fn value(value: f64) -> Value {
    match value.is_finite() {
        true => Value::Number(value),
        false => Value::String(double_text(value)),
    }
}

/// Returns the text of a `float8`.
pub(crate) fn double_text(value: f64) -> String {
    float_text(value, value, 15)
}

/// Returns the text of a `float4`, which needs fewer digits to differ from its neighbors.
pub(super) fn single_text(value: f32) -> String {
    float_text(value, value.into(), 6)
}

/// Returns the shortest digits, with an exponent where C's `%g` has one.
fn float_text<T: LowerExp + FromStr + PartialEq>(value: T, wide: f64, fixed_digits: i32) -> String {
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

/// Reads the text form of a `float8`.
pub(crate) fn parse_double(input: &str) -> Result<f64, ValueMismatch> {
    is_float_text(input).then(|| input.parse().ok()).flatten().ok_or(ValueMismatch::Text("a number"))
}

/// Reads the text form of a `float4`.
pub(super) fn parse_single(input: &str) -> Result<f32, ValueMismatch> {
    is_float_text(input).then(|| input.parse().ok()).flatten().ok_or(ValueMismatch::Text("a number"))
}

/// Returns true for the spellings that PostgreSQL writes. Rust also accepts other words.
fn is_float_text(input: &str) -> bool {
    let is_number = |b: u8| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e');
    matches!(input, "NaN" | "Infinity" | "-Infinity") || input.bytes().all(is_number)
}

/// Reads a literal of a `float8`.
pub(super) fn double_literal(value: &Value) -> Result<f64, ValueMismatch> {
    float_literal(value, |text| text.parse().ok(), |double| double)
}

/// Reads a literal of a `float4`.
#[expect(clippy::cast_possible_truncation, reason = "PostgreSQL rounds a literal of this type, too")]
pub(super) fn single_literal(value: &Value) -> Result<f32, ValueMismatch> {
    float_literal(value, |text| text.parse().ok(), |double| double as f32)
}

/// Reads a float. A number that becomes infinite or zero only because the type cannot hold it is
/// out of range.
fn float_literal<T: Into<f64> + Copy>(
    value: &Value,
    parse: impl Fn(&str) -> Option<T>,
    narrow: impl Fn(f64) -> T,
) -> Result<T, ValueMismatch> {
    let (read, decimal) = match value {
        Value::Number(number) => (Some(narrow(*number)), Decimal::of_double(*number)),
        Value::String(text) if is_nan(text) => return Ok(narrow(f64::NAN)),
        Value::String(text) => {
            let decimal = Decimal::parse(text.trim()).ok_or(NUMBER)?;
            (parse(text.trim()), Some(decimal))
        }
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Object(_) => {
            return Err(ValueMismatch::Kind("a number"));
        }
    };
    let read = read.ok_or(NUMBER)?;
    let wide: f64 = read.into();
    match decimal {
        Some(Decimal::Finite { .. }) if wide.is_infinite() => Err(ValueMismatch::Range),
        Some(Decimal::Finite { digits, .. }) if wide == 0.0 && !digits.is_empty() => Err(ValueMismatch::Range),
        Some(_) | None => Ok(read),
    }
}

/// Gives positive and negative zero the same form, and every NaN. In PostgreSQL, NaN is equal to
/// itself.
pub(super) fn canonical_double(value: f64) -> Vec<u8> {
    let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
    value.to_be_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shortest_floats_read_back(bits: u64, narrow: u32) {
            let wide = f64::from_bits(bits);
            prop_assert!(wide.is_nan() || double_text(wide).parse::<f64>().unwrap().to_bits() == bits);
            let single = f32::from_bits(narrow);
            prop_assert!(single.is_nan() || single_text(single).parse::<f32>().unwrap().to_bits() == narrow);
        }
    }
}
