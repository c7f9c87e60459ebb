//! Numbers from PostgreSQL's text forms.

use super::ValueMismatch;

/// The maximum numbers of digits after and before the decimal point in PostgreSQL.
const SCALE_MAX: usize = 0x3FFF;
const WHOLE_MAX: usize = 131_072;

pub(super) fn double(input: &str) -> Result<f64, ValueMismatch> {
    float(input).then(|| input.parse().ok()).flatten().ok_or(ValueMismatch::Text("a number"))
}

pub(super) fn single(input: &str) -> Result<f32, ValueMismatch> {
    float(input).then(|| input.parse().ok()).flatten().ok_or(ValueMismatch::Text("a number"))
}

/// Returns true for the spellings that PostgreSQL writes. Rust also accepts other words.
fn float(input: &str) -> bool {
    let is_number = |b: u8| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e');
    matches!(input, "NaN" | "Infinity" | "-Infinity") || input.bytes().all(is_number)
}

/// Reads a `money` amount. Decimals beyond those of the type must be zeros.
pub(super) fn money(input: &str, decimals: u8) -> Result<i64, ValueMismatch> {
    let decimals = usize::from(decimals);
    let (whole, rest) = input.split_once('.').unwrap_or((input, ""));
    let kept = rest.get(..decimals.min(rest.len())).unwrap_or(rest);
    if rest[kept.len()..].bytes().any(|digit| digit != b'0') {
        return Err(ValueMismatch::Text("an amount in the decimals of `lc_monetary`"));
    }
    super::text::number(&format!("{whole}{kept:0<decimals$}"))
}

/// Reads a `numeric`, with its display scale.
pub(super) fn numeric(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    match input {
        "NaN" => return Ok(sent(0, 0xC000, 0, &[])),
        // PostgreSQL sends this scale, an artifact of its short internal form.
        "Infinity" => return Ok(sent(0, 0xD000, 32, &[])),
        "-Infinity" => return Ok(sent(0, 0xF000, 32, &[])),
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
    let groups: Vec<u16> = padded.as_bytes().chunks(4).map(group).collect();
    let whole_groups = (whole.len() + fill(whole)) / 4;
    let leading = groups.iter().take_while(|group| **group == 0).count();
    let trailing = groups.iter().rev().take_while(|group| **group == 0).count();
    let scale = u16::try_from(decimals.len()).map_err(|_| ValueMismatch::Range)?;
    let Some(significant) = groups.get(leading..groups.len() - trailing.min(groups.len() - leading)) else {
        return Ok(sent(0, 0, scale, &[]));
    };
    if significant.is_empty() {
        return Ok(sent(0, 0, scale, &[]));
    }
    let weight = i64::try_from(whole_groups).unwrap_or(0) - 1 - i64::try_from(leading).unwrap_or(0);
    Ok(sent(i16::try_from(weight).map_err(|_| ValueMismatch::Range)?, sign, scale, significant))
}

/// Returns the number of digits that are missing to a multiple of four.
fn fill(digits: &str) -> usize {
    (4 - digits.len() % 4) % 4
}

fn group(digits: &[u8]) -> u16 {
    digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
}

fn sent(weight: i16, sign: u16, scale: u16, groups: &[u16]) -> Vec<u8> {
    let count = u16::try_from(groups.len()).unwrap_or(u16::MAX);
    let mut bytes = count.to_be_bytes().to_vec();
    bytes.extend(weight.to_be_bytes());
    bytes.extend(sign.to_be_bytes());
    bytes.extend(scale.to_be_bytes());
    groups.iter().for_each(|group| bytes.extend(group.to_be_bytes()));
    bytes
}
