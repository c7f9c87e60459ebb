//! Geometric types from their text forms.

use super::ValueMismatch;
use super::numeric::double;

const WRONG: ValueMismatch = ValueMismatch::Text("a geometric value");

pub(super) fn point(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    points(input, Some(1))
}

pub(super) fn segment(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    points(inside(input, '[', ']')?, Some(2))
}

pub(super) fn rectangle(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    points(input, Some(2))
}

pub(super) fn polygon(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    counted(inside(input, '(', ')')?)
}

pub(super) fn path(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let is_closed = input.starts_with('(');
    let inner = if is_closed { inside(input, '(', ')')? } else { inside(input, '[', ']')? };
    Ok([&[u8::from(is_closed)], counted(inner)?.as_slice()].concat())
}

/// Reads a line `{A,B,C}`.
pub(super) fn line(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let parts: Vec<f64> = inside(input, '{', '}')?.split(',').map(double).collect::<Result<_, _>>()?;
    if parts.len() != 3 {
        return Err(WRONG);
    }
    Ok(parts.iter().flat_map(|part| part.to_be_bytes()).collect())
}

/// Reads a circle `<(x,y),r>`.
pub(super) fn circle(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let (center, radius) = inside(input, '<', '>')?.rsplit_once(',').ok_or(WRONG)?;
    Ok([point(center)?.as_slice(), &double(radius)?.to_be_bytes()].concat())
}

fn inside(input: &str, open: char, close: char) -> Result<&str, ValueMismatch> {
    input.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)).ok_or(WRONG)
}

/// Reads points, and writes their number before them.
fn counted(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = points(input, None)?;
    let count = i32::try_from(bytes.len() / 16).map_err(|_| ValueMismatch::Range)?;
    Ok([&count.to_be_bytes(), bytes.as_slice()].concat())
}

/// Reads `(x,y),(x,y)`, with the expected number of points if it is known.
fn points(input: &str, expected: Option<usize>) -> Result<Vec<u8>, ValueMismatch> {
    let (mut bytes, mut count, mut rest) = (Vec::new(), 0, input);
    while !rest.is_empty() {
        let (one, after) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or(WRONG)?;
        let (x, y) = one.split_once(',').ok_or(WRONG)?;
        bytes.extend(double(x)?.to_be_bytes());
        bytes.extend(double(y)?.to_be_bytes());
        count += 1;
        rest = match after.strip_prefix(',') {
            Some("") => return Err(WRONG),
            Some(next) => next,
            None if after.is_empty() => after,
            None => return Err(WRONG),
        };
    }
    if expected.is_none_or(|expected| expected == count) { Ok(bytes) } else { Err(WRONG) }
}
