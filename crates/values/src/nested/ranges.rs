//! Ranges and multiranges.
//!
//! PostgreSQL stores discrete ranges with an inclusive lower and an exclusive upper bound. A range
//! without values is stored as empty.

use std::cmp::Ordering;

use bytes::Buf;
use laredo_core::Oid;
use postgres_types::Type;

use super::quoting::{DelimitedText, QuotingRule, quote, split};
use crate::decode::CellDecoder;
use crate::encode::CellEncoder;
use crate::problem::{CellProblem, ValueMismatch};
use crate::wire;

const EMPTY: u8 = 0x01;
const LOWER_INCLUSIVE: u8 = 0x02;
const UPPER_INCLUSIVE: u8 = 0x04;
const LOWER_INFINITE: u8 = 0x08;
const UPPER_INFINITE: u8 = 0x10;

impl CellDecoder<'_> {
    /// Returns a range in PostgreSQL's text form.
    pub(crate) fn range(&mut self, subtype: Oid, mut input: &[u8]) -> Result<String, CellProblem> {
        let flags = input.try_get_u8()?;
        if flags & EMPTY != 0 {
            wire::end(input)?;
            return Ok("empty".to_owned());
        }
        let mut text = if flags & LOWER_INCLUSIVE != 0 { "[" } else { "(" }.to_owned();
        if flags & LOWER_INFINITE == 0 {
            self.push_bound(&mut text, subtype, &mut input)?;
        }
        text.push(',');
        if flags & UPPER_INFINITE == 0 {
            self.push_bound(&mut text, subtype, &mut input)?;
        }
        text.push(if flags & UPPER_INCLUSIVE != 0 { ']' } else { ')' });
        wire::end(input)?;
        Ok(text)
    }

    /// Returns a multirange in PostgreSQL's text form.
    pub(crate) fn multirange(&mut self, range: Oid, mut input: &[u8]) -> Result<String, CellProblem> {
        let count = wire::count(&mut input, 4)?;
        let mut ranges = Vec::with_capacity(count);
        for _ in 0..count {
            let bytes = wire::sized(&mut input)?.ok_or(CellProblem::Impossible("range"))?;
            ranges.push(self.text(range, bytes)?);
        }
        wire::end(input)?;
        Ok(format!("{{{}}}", ranges.join(",")))
    }

    fn push_bound(&mut self, text: &mut String, subtype: Oid, input: &mut &[u8]) -> Result<(), CellProblem> {
        let bytes = wire::sized(input)?.ok_or(CellProblem::Impossible("bound"))?;
        let bound = self.text(subtype, bytes)?;
        text.push_str(&quote(bound, &['"', '\\', '(', ')', '[', ']', ',']));
        Ok(())
    }
}

impl CellEncoder<'_> {
    /// Reads a range such as `[1,5)`.
    pub(crate) fn range(&mut self, subtype: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        const WRONG: ValueMismatch = ValueMismatch::Text("a range");
        if input == "empty" {
            return Ok(vec![EMPTY]);
        }
        let (lower_flag, inner) = match input.split_at_checked(1).ok_or(WRONG)? {
            ("[", inner) => (LOWER_INCLUSIVE, inner),
            ("(", inner) => (0, inner),
            _ => return Err(WRONG),
        };
        let (upper_flag, inner) = match inner.strip_suffix(']') {
            Some(inner) => (UPPER_INCLUSIVE, inner),
            None => (0, inner.strip_suffix(')').ok_or(WRONG)?),
        };
        let parts = split(inner, ',', QuotingRule::Doubled)?;
        let [lower, upper] = parts.as_slice() else { return Err(WRONG) };
        let mut bytes = vec![lower_flag | upper_flag];
        for (bound, infinite) in [(lower, LOWER_INFINITE), (upper, UPPER_INFINITE)] {
            match bound {
                // A bound is infinite if it is empty, unless it is in quotes.
                DelimitedText { text, is_quoted: false } if text.is_empty() => bytes[0] |= infinite,
                DelimitedText { text, .. } => wire::push_sized(&mut bytes, Some(&self.text(subtype, text)?))?,
            }
        }
        Ok(bytes)
    }

    /// Reads a literal of a range. Returns the form that PostgreSQL stores.
    pub(crate) fn range_literal(&mut self, subtype: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        stored_form(subtype, &self.range(subtype, input.trim())?)
    }

    /// Reads a multirange such as `{[1,5),[7,9)}`.
    pub(crate) fn multirange(&mut self, range: Oid, input: &str) -> Result<Vec<u8>, ValueMismatch> {
        const WRONG: ValueMismatch = ValueMismatch::Text("a multirange");
        let mut rest = input.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or(WRONG)?;
        let (mut count, mut ranges) = (0_i32, Vec::new());
        while !rest.is_empty() {
            let end = if rest.starts_with("empty") { Some(5) } else { range_end(rest) };
            let (one, after) = end.and_then(|end| rest.split_at_checked(end)).ok_or(WRONG)?;
            wire::push_sized(&mut ranges, Some(&self.text(range, one)?))?;
            count = count.checked_add(1).ok_or(ValueMismatch::Range)?;
            rest = match after.strip_prefix(',') {
                Some(next) => next,
                None if after.is_empty() => after,
                None => return Err(WRONG),
            };
        }
        Ok([&count.to_be_bytes(), ranges.as_slice()].concat())
    }
}

/// Returns the end of the first range of several.
fn range_end(input: &str) -> Option<usize> {
    let mut in_quotes = false;
    for (at, next) in input.char_indices() {
        match next {
            '"' => in_quotes = !in_quotes,
            ')' | ']' if !in_quotes => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Returns the stored form of a range whose bounds are as they were written.
fn stored_form(subtype: Oid, bytes: &[u8]) -> Result<Vec<u8>, ValueMismatch> {
    let torn = || ValueMismatch::Text("a range");
    let (flags, mut rest) = bytes.split_first().ok_or_else(torn)?;
    let mut flags = *flags;
    if flags & EMPTY != 0 {
        return Ok(vec![EMPTY]);
    }
    let mut bound = |infinite: u8| match flags & infinite {
        0 => {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (bound, after) = after.split_at_checked(usize::try_from(i32::from_be_bytes(*length)).ok()?)?;
            rest = after;
            Some(Some(bound.to_vec()))
        }
        _ => Some(None),
    };
    let (mut lower, mut upper) = (bound(LOWER_INFINITE).ok_or_else(torn)?, bound(UPPER_INFINITE).ok_or_else(torn)?);
    // An infinite bound is not inclusive.
    flags &= !(if lower.is_none() { LOWER_INCLUSIVE } else { 0 } | if upper.is_none() { UPPER_INCLUSIVE } else { 0 });
    if let (Some(lower), Some(upper)) = (&lower, &upper)
        && compare_bounds(subtype, lower, upper) == Ordering::Greater
    {
        return Err(ValueMismatch::Text("a range, its lower bound first"));
    }
    if let Some(lower) = &mut lower
        && flags & LOWER_INCLUSIVE == 0
        && next_value(subtype, lower)?
    {
        flags |= LOWER_INCLUSIVE;
    }
    if let Some(upper) = &mut upper
        && flags & UPPER_INCLUSIVE != 0
        && next_value(subtype, upper)?
    {
        flags &= !UPPER_INCLUSIVE;
    }
    if let (Some(lower), Some(upper)) = (&lower, &upper) {
        let is_closed = flags & (LOWER_INCLUSIVE | UPPER_INCLUSIVE) == LOWER_INCLUSIVE | UPPER_INCLUSIVE;
        match compare_bounds(subtype, lower, upper) {
            Ordering::Greater => return Ok(vec![EMPTY]),
            Ordering::Equal if !is_closed => return Ok(vec![EMPTY]),
            Ordering::Equal | Ordering::Less => {}
        }
    }
    let mut sent = vec![flags];
    for bound in [lower, upper].into_iter().flatten() {
        sent.extend(i32::try_from(bound.len()).map_err(|_| ValueMismatch::Range)?.to_be_bytes());
        sent.extend(bound);
    }
    Ok(sent)
}

/// Moves a bound of a discrete range to the next value. Returns false for a bound without a next
/// value: one of a continuous range, or an infinite date.
fn next_value(subtype: Oid, bound: &mut Vec<u8>) -> Result<bool, ValueMismatch> {
    let Some(value) = discrete(subtype, bound) else { return Ok(false) };
    let is_infinite = subtype == Type::DATE.oid() && [i32::MAX, i32::MIN].map(i64::from).contains(&value);
    if is_infinite {
        return Ok(false);
    }
    let value = value.checked_add(1).ok_or(ValueMismatch::Range)?;
    *bound = match bound.len() {
        4 => i32::try_from(value).map_err(|_| ValueMismatch::Range)?.to_be_bytes().to_vec(),
        _ => value.to_be_bytes().to_vec(),
    };
    Ok(true)
}

fn discrete(subtype: Oid, bound: &[u8]) -> Option<i64> {
    match Type::from_oid(subtype)? {
        Type::INT4 | Type::DATE => Some(i32::from_be_bytes(bound.try_into().ok()?).into()),
        Type::INT8 => Some(i64::from_be_bytes(bound.try_into().ok()?)),
        _ => None,
    }
}

fn compare_bounds(subtype: Oid, lower: &[u8], upper: &[u8]) -> Ordering {
    match Type::from_oid(subtype) {
        Some(Type::NUMERIC) => numeric_rank(lower).cmp(&numeric_rank(upper)),
        _ => signed(lower).cmp(&signed(upper)),
    }
}

/// Reads a signed integer of four or eight bytes.
fn signed(bound: &[u8]) -> i64 {
    match (<[u8; 4]>::try_from(bound), <[u8; 8]>::try_from(bound)) {
        (Ok(bytes), _) => i32::from_be_bytes(bytes).into(),
        (_, Ok(bytes)) => i64::from_be_bytes(bytes),
        _ => 0,
    }
}

/// Returns a value that orders `numeric`s: the kind of number, the weight of the first digits, and
/// the digits. For negative numbers the order is reversed.
fn numeric_rank(bound: &[u8]) -> (i8, i32, Vec<i32>) {
    let word = |index: usize| bound.get(index * 2..index * 2 + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let weight = i32::from(word(1).cast_signed());
    let digits: Vec<i32> = (4..bound.len() / 2).map(|index| word(index).into()).collect();
    match word(2) {
        0xC000 => (3, 0, Vec::new()),
        0xD000 => (2, 0, Vec::new()),
        0xF000 => (-2, 0, Vec::new()),
        _ if digits.is_empty() => (0, 0, Vec::new()),
        // A missing digit sorts before all others, so negative numbers need an end marker that
        // sorts after their digits.
        0x4000 => (-1, -weight, digits.into_iter().map(|digit| -digit).chain([1]).collect()),
        _ => (1, weight, digits),
    }
}
