//! Parts of PostgreSQL's text forms that types of several families have: whole numbers and hex.

use std::str::FromStr;

use crate::problem::ValueMismatch;

/// Reads a whole number written in decimal digits.
pub(crate) fn parse_number<T: FromStr>(input: &str) -> Result<T, ValueMismatch> {
    let digits = input.strip_prefix('-').unwrap_or(input);
    match !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()) {
        true => input.parse().map_err(|_| ValueMismatch::Range),
        false => Err(ValueMismatch::Text("a whole number")),
    }
}

/// Returns bytes in lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| hex_digits(*byte)).map(char::from).collect()
}

/// Returns the two hex digits of a byte.
pub(crate) fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// Returns `\x` and the bytes in hex.
pub(crate) fn escaped_hex(bytes: &[u8]) -> String {
    format!("\\x{}", hex(bytes))
}

/// Reads hex digits of either case.
pub(crate) fn parse_hex(digits: &str) -> Result<Vec<u8>, ValueMismatch> {
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(ValueMismatch::Text("bytes in hex"));
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return Err(ValueMismatch::Text("bytes in hex"));
    }
    pairs
        .iter()
        .map(|[high, low]| u8::try_from(digit(*high)? * 16 + digit(*low)?).map_err(|_| ValueMismatch::Range))
        .collect()
}

/// Reads `\x` and hex digits.
pub(crate) fn parse_escaped_hex(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    parse_hex(input.strip_prefix("\\x").ok_or(ValueMismatch::Text("bytes in hex"))?)
}
