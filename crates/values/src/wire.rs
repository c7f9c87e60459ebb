//! Reading and writing of PostgreSQL's binary forms. Missing bytes are an error, and no allocation
//! relies on an unchecked length.

use bytes::Buf;

use crate::problem::{CellProblem, ValueMismatch};

/// Takes the next `count` bytes.
pub(crate) fn take_bytes<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], CellProblem> {
    input.split_off(..count).ok_or(CellProblem::Torn)
}

/// Takes the next value, which follows its length. Returns `None` for NULL (-1).
pub(crate) fn sized<'a>(input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, CellProblem> {
    match input.try_get_i32()? {
        -1 => Ok(None),
        length => {
            let length = usize::try_from(length).map_err(|_| CellProblem::Impossible("length"))?;
            take_bytes(input, length).map(Some)
        }
    }
}

/// Reads a count of items of at least `each_bytes` bytes. The count is checked, so that it is safe
/// as a capacity.
pub(crate) fn count(input: &mut &[u8], each_bytes: usize) -> Result<usize, CellProblem> {
    let count = usize::try_from(input.try_get_i32()?).map_err(|_| CellProblem::Impossible("count"))?;
    match count.checked_mul(each_bytes) {
        Some(bytes) if bytes <= input.len() => Ok(count),
        _ => Err(CellProblem::Torn),
    }
}

/// Takes the text up to the next zero byte.
pub(crate) fn zero_ended<'a>(input: &mut &'a [u8]) -> Result<&'a str, CellProblem> {
    let end = input.iter().position(|&byte| byte == 0).ok_or(CellProblem::Torn)?;
    let text = take_bytes(input, end)?;
    input.advance(1);
    utf8(text)
}

/// Returns all bytes as text.
pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, CellProblem> {
    std::str::from_utf8(bytes).map_err(|_| CellProblem::NotUtf8)
}

/// Checks that no bytes are left.
pub(crate) fn end(input: &[u8]) -> Result<(), CellProblem> {
    match input.len() {
        0 => Ok(()),
        left => Err(CellProblem::LeftOver(left)),
    }
}

/// Reads a value of exactly `N` bytes.
pub(crate) fn exactly<const N: usize>(input: &[u8]) -> Result<[u8; N], CellProblem> {
    let (value, rest) = input.split_first_chunk::<N>().ok_or(CellProblem::Torn)?;
    end(rest)?;
    Ok(*value)
}

/// Returns the text after the version byte, which has always been 1.
pub(crate) fn versioned(input: &[u8]) -> Result<&str, CellProblem> {
    match input.split_first() {
        Some((1, text)) => utf8(text),
        Some(_) => Err(CellProblem::Impossible("version")),
        None => Err(CellProblem::Torn),
    }
}

/// Returns a text after the version byte.
pub(crate) fn to_versioned(text: &str) -> Vec<u8> {
    [&[1], text.as_bytes()].concat()
}

/// Appends a value after its length, or NULL.
pub(crate) fn push_sized(bytes: &mut Vec<u8>, value: Option<&[u8]>) -> Result<(), ValueMismatch> {
    let length = value.map_or(Ok(-1), |value| i32::try_from(value.len())).map_err(|_| ValueMismatch::Range)?;
    bytes.extend(length.to_be_bytes());
    bytes.extend(value.unwrap_or_default());
    Ok(())
}

/// Appends a text and a zero byte.
pub(crate) fn push_zero_ended(bytes: &mut Vec<u8>, text: &str) -> Result<(), ValueMismatch> {
    if text.contains('\0') {
        return Err(ValueMismatch::Text("a text without zero bytes"));
    }
    bytes.extend(text.as_bytes());
    bytes.push(0);
    Ok(())
}
