//! The types `bit` and `varbit`.

use laredo_core::Oid;

use super::{CellContext, TypeFamily, ValueEquality};
use crate::problem::{CellProblem, ValueMismatch};
use crate::wire;

/// A string of bits, of fixed or varying length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitString;

impl TypeFamily for BitString {
    const BUILTIN: &'static [(Oid, BitString)] = &[(1560, BitString), (1562, BitString)];

    fn to_text(self, _context: &mut CellContext, cell: &[u8]) -> Result<String, CellProblem> {
        bits_text(cell)
    }

    fn parse_text(self, text: &str) -> Result<Vec<u8>, ValueMismatch> {
        parse_bits(text)
    }

    fn equality(self) -> ValueEquality {
        ValueEquality::OfCells
    }
}

fn bits_text(mut input: &[u8]) -> Result<String, CellProblem> {
    let count = wire::count(&mut input, 0)?;
    if count.div_ceil(8) > input.len() {
        return Err(CellProblem::Torn);
    }
    let bytes = wire::take_bytes(&mut input, count.div_ceil(8))?;
    wire::end(input)?;
    let bit = |number: usize| bytes[number / 8] & (0x80 >> (number % 8)) != 0;
    Ok((0..count).map(|number| if bit(number) { '1' } else { '0' }).collect())
}

fn parse_bits(input: &str) -> Result<Vec<u8>, ValueMismatch> {
    let count = i32::try_from(input.len()).map_err(|_| ValueMismatch::Range)?;
    let mut bytes = vec![0; input.len().div_ceil(8)];
    for (number, digit) in input.bytes().enumerate() {
        match (digit, bytes.get_mut(number / 8)) {
            (b'0', _) => {}
            (b'1', Some(byte)) => *byte |= 0x80 >> (number % 8),
            _ => return Err(ValueMismatch::Text("a bit string")),
        }
    }
    Ok([&count.to_be_bytes(), bytes.as_slice()].concat())
}
