//! Text forms of geometric types.

use bytes::Buf;

use super::numeric::double;
use super::{CellProblem, wire};

const POINT_BYTES: usize = 16;

pub(super) fn point(mut input: &[u8]) -> Result<String, CellProblem> {
    let text = next_point(&mut input)?;
    wire::end(input)?;
    Ok(text)
}

pub(super) fn segment(input: &[u8]) -> Result<String, CellProblem> {
    Ok(format!("[{}]", points(input, 2)?))
}

pub(super) fn rectangle(input: &[u8]) -> Result<String, CellProblem> {
    points(input, 2)
}

pub(super) fn polygon(mut input: &[u8]) -> Result<String, CellProblem> {
    let count = wire::count(&mut input, POINT_BYTES)?;
    Ok(format!("({})", points(input, count)?))
}

pub(super) fn path(mut input: &[u8]) -> Result<String, CellProblem> {
    let closed = input.try_get_u8()? != 0;
    let count = wire::count(&mut input, POINT_BYTES)?;
    let points = points(input, count)?;
    Ok(if closed { format!("({points})") } else { format!("[{points}]") })
}

/// Returns the text of a line `{A,B,C}`: Ax + By + C = 0.
pub(super) fn line(mut input: &[u8]) -> Result<String, CellProblem> {
    let (a, b, c) = (input.try_get_f64()?, input.try_get_f64()?, input.try_get_f64()?);
    wire::end(input)?;
    Ok(format!("{{{},{},{}}}", double(a), double(b), double(c)))
}

pub(super) fn circle(mut input: &[u8]) -> Result<String, CellProblem> {
    let center = next_point(&mut input)?;
    let radius = input.try_get_f64()?;
    wire::end(input)?;
    Ok(format!("<{center},{}>", double(radius)))
}

fn points(mut input: &[u8], count: usize) -> Result<String, CellProblem> {
    let points = (0..count).map(|_| next_point(&mut input)).collect::<Result<Vec<_>, _>>()?;
    wire::end(input)?;
    Ok(points.join(","))
}

fn next_point(input: &mut &[u8]) -> Result<String, CellProblem> {
    let (x, y) = (input.try_get_f64()?, input.try_get_f64()?);
    Ok(format!("({},{})", double(x), double(y)))
}
