//! Canonical forms of cells. Values that are equal by SQL's `=` have the same form.

use std::borrow::Cow;

use bytes::Buf;
use postgres_types::Type;

use super::shape::{TextKind, TypeShape, base_type};
use super::{CellDecoder, CellProblem, json, nested, wire};
use laredo_core::{Oid, Schema};

/// Checks that cells of a type are equal in SQL exactly if their canonical forms are.
///
/// # Errors
/// Returns the reason why there is no such form.
pub(crate) fn check_comparable(schema: &Schema, oid: Oid) -> Result<(), &'static str> {
    check(schema, oid, 0)
}

fn check(schema: &Schema, oid: Oid, depth: usize) -> Result<(), &'static str> {
    const UNKNOWN: &str = "laredo does not know when two of its values are equal";
    if depth > super::NESTING_MAX {
        return Err("its types nest too deeply");
    }
    match TypeShape::of(schema, oid).map_err(|_| "its types nest too deeply")? {
        TypeShape::Text(TextKind::Plain | TextKind::Padded | TextKind::Caseless | TextKind::AsciiCaseless) => Ok(()),
        TypeShape::Text(TextKind::Incomparable) => Err("PostgreSQL has no equality for it"),
        TypeShape::Enum(_) | TypeShape::Ltree | TypeShape::Money(_) => Ok(()),
        TypeShape::Builtin(builtin) => match builtin {
            Type::JSON | Type::JSONPATH => Err("PostgreSQL has no equality for it; jsonb has one"),
            Type::POINT | Type::LSEG | Type::BOX | Type::PATH | Type::POLYGON | Type::LINE | Type::CIRCLE => {
                Err("equality of shapes is none of their values in PostgreSQL")
            }
            Type::TS_VECTOR | Type::TSQUERY | Type::TXID_SNAPSHOT | Type::PG_SNAPSHOT => Err(UNKNOWN),
            // Every built-in type with its own projection. Each cell is canonical, except for the
            // types below.
            Type::BOOL | Type::INT2 | Type::INT4 | Type::INT8 | Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC => Ok(()),
            Type::BYTEA | Type::CHAR | Type::UUID | Type::BIT | Type::VARBIT | Type::JSONB => Ok(()),
            Type::DATE | Type::TIME | Type::TIMETZ | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::INTERVAL => Ok(()),
            Type::INET | Type::CIDR | Type::MACADDR | Type::MACADDR8 => Ok(()),
            Type::TID | Type::PG_LSN | Type::XID8 => Ok(()),
            ref other if super::is_object_number(other) => Ok(()),
            _ => Err(UNKNOWN),
        },
        TypeShape::Array(element) => check(schema, element, depth + 1),
        TypeShape::Composite(fields) => fields.iter().try_for_each(|(_, field)| check(schema, *field, depth + 1)),
        // A user-defined range type may have a canonical form that only the database knows.
        TypeShape::Range(subtype) => match base_type(schema, oid).ok().and_then(Type::from_oid) {
            Some(_) => check(schema, subtype, depth + 1),
            None => Err(UNKNOWN),
        },
        TypeShape::Multirange(_) | TypeShape::Unknown => Err(UNKNOWN),
    }
}

/// Returns true for a type whose cells are all canonical.
pub(crate) fn is_canonical(schema: &Schema, oid: Oid) -> bool {
    match TypeShape::of(schema, oid) {
        Ok(TypeShape::Text(kind)) => kind == TextKind::Plain,
        Ok(TypeShape::Enum(_) | TypeShape::Ltree | TypeShape::Money(_)) => true,
        Ok(TypeShape::Builtin(builtin)) => !matches!(
            builtin,
            Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC | Type::INTERVAL | Type::INET | Type::CIDR | Type::JSONB
        ),
        Ok(
            TypeShape::Array(_)
            | TypeShape::Composite(_)
            | TypeShape::Range(_)
            | TypeShape::Multirange(_)
            | TypeShape::Unknown,
        )
        | Err(_) => false,
    }
}

/// Returns the canonical form of a cell.
///
/// # Errors
/// Returns an error if the bytes are not a value of the type.
pub(crate) fn canonical<'a>(schema: &Schema, oid: Oid, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, CellProblem> {
    CellDecoder::new(schema, true).canonical(oid, bytes)
}

impl CellDecoder<'_> {
    fn canonical<'a>(&mut self, oid: Oid, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, CellProblem> {
        Ok(match self.enter(oid)? {
            TypeShape::Text(TextKind::Padded) => without_padding(bytes).into(),
            TypeShape::Text(TextKind::Caseless) => Cow::Owned(caseless(wire::utf8(bytes)?).into_bytes()),
            TypeShape::Text(TextKind::AsciiCaseless) => Cow::Owned(bytes.to_ascii_lowercase()),
            TypeShape::Builtin(builtin) => builtin_canonical(&builtin, bytes)?,
            TypeShape::Array(element) => Cow::Owned(self.deeper(|inner| inner.canonical_array(element, bytes))?),
            TypeShape::Composite(fields) => Cow::Owned(self.deeper(|inner| inner.canonical_composite(fields, bytes))?),
            TypeShape::Range(subtype) => Cow::Owned(self.deeper(|inner| inner.canonical_range(subtype, bytes))?),
            TypeShape::Text(TextKind::Plain | TextKind::Incomparable)
            | TypeShape::Enum(_)
            | TypeShape::Ltree
            | TypeShape::Money(_)
            | TypeShape::Multirange(_)
            | TypeShape::Unknown => bytes.into(),
        })
    }

    /// Keeps the dimensions and lower bounds. NULLs are equal here.
    fn canonical_array(&mut self, element: Oid, bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
        let array = nested::BinaryArray::parse(bytes, element)?;
        let mut to = Vec::with_capacity(bytes.len());
        for (length, lower) in &array.dimensions {
            to.extend(length.to_be_bytes());
            to.extend(lower.to_be_bytes());
        }
        for bytes in array.elements {
            self.push_canonical(element, bytes, &mut to)?;
        }
        Ok(to)
    }

    fn canonical_composite(&mut self, fields: &[(String, Oid)], mut bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
        nested::check_field_count(fields, &mut bytes)?;
        let mut to = Vec::with_capacity(bytes.len());
        for (_, field) in fields {
            let cell = nested::next_field(*field, &mut bytes)?;
            self.push_canonical(*field, cell, &mut to)?;
        }
        wire::end(bytes)?;
        Ok(to)
    }

    fn canonical_range(&mut self, subtype: Oid, mut bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
        let mut to = vec![bytes.try_get_u8()?];
        while !bytes.is_empty() {
            let bound = wire::sized(&mut bytes)?;
            self.push_canonical(subtype, bound, &mut to)?;
        }
        Ok(to)
    }

    fn push_canonical(&mut self, oid: Oid, cell: Option<&[u8]>, to: &mut Vec<u8>) -> Result<(), CellProblem> {
        let cell = cell.map(|bytes| self.canonical(oid, bytes)).transpose()?;
        to.extend(cell.as_ref().map_or(u64::MAX, |cell| cell.len() as u64).to_be_bytes());
        to.extend(cell.as_deref().unwrap_or_default());
        Ok(())
    }
}

fn builtin_canonical<'a>(builtin: &Type, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, CellProblem> {
    Ok(match *builtin {
        Type::FLOAT4 => double(f32::from_be_bytes(wire::exactly(bytes)?).into()).into(),
        Type::FLOAT8 => double(f64::from_be_bytes(wire::exactly(bytes)?)).into(),
        Type::NUMERIC => unscaled(bytes)?.into(),
        Type::INTERVAL => span(bytes)?.into(),
        Type::INET | Type::CIDR => {
            // The flag that distinguishes `cidr` from `inet` does not count.
            let [family, mask, _, rest @ ..] = bytes else { return Err(CellProblem::Torn) };
            [&[*family, *mask][..], rest].concat().into()
        }
        Type::JSONB => json::with_plain_numbers(wire::versioned(bytes)?).into_bytes().into(),
        _ => bytes.into(),
    })
}

/// Gives positive and negative zero the same form, and every NaN. In PostgreSQL, NaN is equal to
/// itself.
fn double(value: f64) -> Vec<u8> {
    let value = if value.is_nan() { f64::NAN } else { value + 0.0 };
    value.to_be_bytes().to_vec()
}

/// Returns a `numeric` without its display scale: weight, sign and digits.
fn unscaled(bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
    let (Some(head), Some(mut digits)) = (bytes.get(2..6), bytes.get(8..)) else { return Err(CellProblem::Torn) };
    while let Some(rest) = digits.strip_suffix(&[0, 0]) {
        digits = rest;
    }
    Ok([head, digits].concat())
}

/// Returns the length of an interval in microseconds, where a month has 30 days and a day has 24
/// hours.
fn span(mut bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
    const DAY_US: i128 = 24 * 60 * 60 * 1_000_000;
    let (micros, days, months) = (bytes.try_get_i64()?, bytes.try_get_i32()?, bytes.try_get_i32()?);
    wire::end(bytes)?;
    let days = i128::from(months) * 30 + i128::from(days);
    Ok((days * DAY_US + i128::from(micros)).to_be_bytes().to_vec())
}

/// Maps text to lower case, character by character, as `citext` does for comparisons.
pub(crate) fn caseless(text: &str) -> String {
    let lower = |character: char| {
        let mut lower = character.to_lowercase();
        // A character that would become two stays unchanged in the C library.
        match (lower.next(), lower.next()) {
            (Some(only), None) => only,
            _ => character,
        }
    };
    text.chars().map(lower).collect()
}

/// Removes the padding blanks at the end of a `char(n)`.
fn without_padding(bytes: &[u8]) -> &[u8] {
    let kept = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    &bytes[..kept]
}
