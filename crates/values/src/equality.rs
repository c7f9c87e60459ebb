//! The equality of values by SQL's `=`, and the canonical forms of their cells. Equal values have
//! the same form.

use std::borrow::Cow;

use bytes::Buf;
use laredo_core::{Oid, Schema};
use postgres_types::Type;

use crate::decode::CellDecoder;
use crate::nested::arrays::BinaryArray;
use crate::nested::composites::{check_field_count, next_field};
use crate::problem::{CellProblem, NESTING_MAX};
use crate::shape::{TypeShape, base_type};
use crate::types::{UNKNOWN_EQUALITY, ValueEquality};
use crate::wire;

/// Checks that cells of a type are equal in SQL exactly if their canonical forms are.
///
/// # Errors
/// Returns the reason why there is no such form.
pub(crate) fn check_comparable(schema: &Schema, oid: Oid) -> Result<(), &'static str> {
    check(schema, oid, 0)
}

fn check(schema: &Schema, oid: Oid, depth: usize) -> Result<(), &'static str> {
    if depth > NESTING_MAX {
        return Err("its types nest too deeply");
    }
    match TypeShape::of(schema, oid).map_err(|_| "its types nest too deeply")? {
        TypeShape::Base(base) => match base.equality() {
            ValueEquality::OfCells | ValueEquality::OfCanonicalForms => Ok(()),
            ValueEquality::Unknown(reason) => Err(reason),
        },
        TypeShape::Array(element) => check(schema, element, depth + 1),
        TypeShape::Composite(fields) => fields.iter().try_for_each(|(_, field)| check(schema, *field, depth + 1)),
        // A user-defined range type may have a canonical form that only the database knows.
        TypeShape::Range(subtype) => match base_type(schema, oid).ok().and_then(Type::from_oid) {
            Some(_) => check(schema, subtype, depth + 1),
            None => Err(UNKNOWN_EQUALITY),
        },
        TypeShape::Multirange(_) => Err(UNKNOWN_EQUALITY),
    }
}

/// Returns true for a type whose cells are all canonical.
pub(crate) fn is_canonical(schema: &Schema, oid: Oid) -> bool {
    match TypeShape::of(schema, oid) {
        Ok(TypeShape::Base(base)) => base.equality() == ValueEquality::OfCells,
        Ok(TypeShape::Array(_) | TypeShape::Composite(_) | TypeShape::Range(_) | TypeShape::Multirange(_)) | Err(_) => {
            false
        }
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
        match self.enter(oid)? {
            TypeShape::Base(base) => base.canonical(bytes),
            TypeShape::Array(element) => self.deeper(|inner| inner.canonical_array(element, bytes)).map(Cow::Owned),
            TypeShape::Composite(fields) => {
                self.deeper(|inner| inner.canonical_composite(fields, bytes)).map(Cow::Owned)
            }
            TypeShape::Range(subtype) => self.deeper(|inner| inner.canonical_range(subtype, bytes)).map(Cow::Owned),
            TypeShape::Multirange(_) => Ok(bytes.into()),
        }
    }

    /// Keeps the dimensions and lower bounds. NULLs are equal here.
    fn canonical_array(&mut self, element: Oid, bytes: &[u8]) -> Result<Vec<u8>, CellProblem> {
        let array = BinaryArray::parse(bytes, element)?;
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
        check_field_count(fields, &mut bytes)?;
        let mut to = Vec::with_capacity(bytes.len());
        for (_, field) in fields {
            let cell = next_field(*field, &mut bytes)?;
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
