//! Built-in ranges as PostgreSQL stores them. Discrete ranges have an inclusive lower and an
//! exclusive upper bound. A range without values is stored as empty.

use std::cmp::Ordering;

use postgres_types::Type;

use super::super::ValueMismatch;
use laredo_core::Oid;

const EMPTY: u8 = 0x01;
const LOWER_INCLUSIVE: u8 = 0x02;
const UPPER_INCLUSIVE: u8 = 0x04;
const LOWER_INFINITE: u8 = 0x08;
const UPPER_INFINITE: u8 = 0x10;

/// Returns the stored form of a range whose bounds are as they were written.
pub(super) fn canonical(subtype: Oid, bytes: &[u8]) -> Result<Vec<u8>, ValueMismatch> {
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
        && order(subtype, lower, upper) == Ordering::Greater
    {
        return Err(ValueMismatch::Text("a range, its lower bound first"));
    }
    if let Some(lower) = &mut lower
        && flags & LOWER_INCLUSIVE == 0
        && next(subtype, lower)?
    {
        flags |= LOWER_INCLUSIVE;
    }
    if let Some(upper) = &mut upper
        && flags & UPPER_INCLUSIVE != 0
        && next(subtype, upper)?
    {
        flags &= !UPPER_INCLUSIVE;
    }
    if let (Some(lower), Some(upper)) = (&lower, &upper) {
        let is_closed = flags & (LOWER_INCLUSIVE | UPPER_INCLUSIVE) == LOWER_INCLUSIVE | UPPER_INCLUSIVE;
        match order(subtype, lower, upper) {
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
fn next(subtype: Oid, bound: &mut Vec<u8>) -> Result<bool, ValueMismatch> {
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

fn order(subtype: Oid, lower: &[u8], upper: &[u8]) -> Ordering {
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
    let word = |place: usize| bound.get(place * 2..place * 2 + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let weight = i32::from(word(1).cast_signed());
    let digits: Vec<i32> = (4..bound.len() / 2).map(|place| word(place).into()).collect();
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
