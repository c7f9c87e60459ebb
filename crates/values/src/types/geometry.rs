//! Geometric types.

use bytes::Buf;
use laredo_core::Oid;

use super::numbers::float::{double_text, parse_double};
use super::{CellContext, TypeFamily, ValueEquality};
use crate::problem::{CellProblem, ValueMismatch};
use crate::wire;

const POINT_BYTES: usize = 16;
const WRONG: ValueMismatch = ValueMismatch::Text("a geometric value");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GeometricType {
    Point,
    Segment,
    Path,
    Box,
    Polygon,
    Line,
    Circle,
}

impl TypeFamily for GeometricType {
    const BUILTIN: &'static [(Oid, GeometricType)] = &[
        (600, GeometricType::Point),
        (601, GeometricType::Segment),
        (602, GeometricType::Path),
        (603, GeometricType::Box),
        (604, GeometricType::Polygon),
        (628, GeometricType::Line),
        (718, GeometricType::Circle),
    ];

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        match self {
            GeometricType::Point => point_text(cell),
            GeometricType::Segment => segment_text(cell),
            GeometricType::Box => rectangle_text(cell),
            GeometricType::Path => path_text(cell),
            GeometricType::Polygon => polygon_text(cell),
            GeometricType::Line => line_text(cell),
            GeometricType::Circle => circle_text(cell),
        }
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        match self {
            GeometricType::Point => parse_point(text),
            GeometricType::Segment => parse_segment(text),
            GeometricType::Box => parse_rectangle(text),
            GeometricType::Path => parse_path(text),
            GeometricType::Polygon => parse_polygon(text),
            GeometricType::Line => parse_line(text),
            GeometricType::Circle => parse_circle(text),
        }
    }

    fn equality(self) -> ValueEquality {
        ValueEquality::Unknown("PostgreSQL's `=` does not compare all coordinates of shapes")
    }
}

fn point_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let text = next_point(&mut input)?;
    wire::end(input)?;
    Ok(text)
}

fn segment_text(input: &[u8]) -> Result<String, CellProblem> {
    Ok(format!("[{}]", points_text(input, 2)?))
}

fn rectangle_text(input: &[u8]) -> Result<String, CellProblem> {
    points_text(input, 2)
}

fn polygon_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let count = wire::count(&mut input, POINT_BYTES)?;
    Ok(format!("({})", points_text(input, count)?))
}

fn path_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let closed = input.try_get_u8()? != 0;
    let count = wire::count(&mut input, POINT_BYTES)?;
    let points = points_text(input, count)?;
    Ok(if closed { format!("({points})") } else { format!("[{points}]") })
}

/// Returns the text of a line `{A,B,C}`: Ax + By + C = 0.
fn line_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let (a, b, c) = (input.try_get_f64()?, input.try_get_f64()?, input.try_get_f64()?);
    wire::end(input)?;
    Ok(format!("{{{},{},{}}}", double_text(a), double_text(b), double_text(c)))
}

fn circle_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let center = next_point(&mut input)?;
    let radius = input.try_get_f64()?;
    wire::end(input)?;
    Ok(format!("<{center},{}>", double_text(radius)))
}

fn points_text(mut input: &[u8], count: usize) -> Result<String, CellProblem> {
    let points = (0..count).map(|_| next_point(&mut input)).collect::<Result<Vec<_>, _>>()?;
    wire::end(input)?;
    Ok(points.join(","))
}

fn next_point(input: &mut &[u8]) -> Result<String, CellProblem> {
    let (x, y) = (input.try_get_f64()?, input.try_get_f64()?);
    Ok(format!("({},{})", double_text(x), double_text(y)))
}

fn parse_point(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    parse_points(input, Some(1))
}

fn parse_segment(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    parse_points(inside(input, '[', ']')?, Some(2))
}

fn parse_rectangle(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    parse_points(input, Some(2))
}

fn parse_polygon(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    parse_counted(inside(input, '(', ')')?)
}

fn parse_path(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let is_closed = input.starts_with('(');
    let inner = if is_closed { inside(input, '(', ')')? } else { inside(input, '[', ']')? };
    Ok([&[u8::from(is_closed)], parse_counted(inner)?.as_slice()].concat())
}

/// Reads a line `{A,B,C}`.
fn parse_line(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let parts: Vec<f64> = inside(input, '{', '}')?.split(',').map(parse_double).collect::<Result<_, _>>()?;
    if parts.len() != 3 {
        return Err(WRONG);
    }
    Ok(parts.iter().flat_map(|part| part.to_be_bytes()).collect())
}

/// Reads a circle `<(x,y),r>`.
fn parse_circle(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let (center, radius) = inside(input, '<', '>')?.rsplit_once(',').ok_or(WRONG)?;
    Ok([parse_point(center)?.as_slice(), &parse_double(radius)?.to_be_bytes()].concat())
}

fn inside(input: &str, open: char, close: char) -> Result<&str, ValueMismatch> {
    input.strip_prefix(open).and_then(|rest| rest.strip_suffix(close)).ok_or(WRONG)
}

/// Reads points, and writes their number before them.
fn parse_counted(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let bytes = parse_points(input, None)?;
    let count = i32::try_from(bytes.len() / 16).map_err(|_| ValueMismatch::Range)?;
    Ok([&count.to_be_bytes(), bytes.as_slice()].concat())
}

/// Reads `(x,y),(x,y)`, with the expected number of points if it is known.
fn parse_points(input: &str, expected: Option<usize>) -> Result<Vec<u8>, ValueMismatch> {
    let (mut bytes, mut count, mut rest) = (Vec::new(), 0, input);
    while !rest.is_empty() {
        let (one, after) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or(WRONG)?;
        let (x, y) = one.split_once(',').ok_or(WRONG)?;
        bytes.extend(parse_double(x)?.to_be_bytes());
        bytes.extend(parse_double(y)?.to_be_bytes());
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
