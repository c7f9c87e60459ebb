//! Checks of cells against the form that their schema requires.
//!
//! PostgreSQL sends a composite with the fields that its type has now, regardless of the fields
//! when the row was written. Such a type can change without any notice on the stream. So rows that
//! contain composites are checked before they are used.

use std::sync::Arc;

use bytes::Buf;
use laredo_core::{Cell, Oid, Schema, TupleRef};

use super::arrays::BinaryArray;
use super::composites::{check_field_count, next_field};
use crate::problem::{CellProblem, NESTING_MAX};
use crate::shape::TypeShape;
use crate::wire;

/// The columns of a schema whose values contain composites.
#[derive(Clone, Debug)]
pub struct NestedForm {
    schema: Arc<Schema>,
    columns: Vec<(usize, Oid)>,
}

impl NestedForm {
    /// Finds the columns of a schema that contain composites.
    #[must_use]
    pub fn new(schema: Arc<Schema>) -> NestedForm {
        let columns = schema.columns().iter().enumerate();
        let nested = columns.filter(|(_, column)| !column.is_text && contains_composite(&schema, column.type_oid, 0));
        let columns = nested.map(|(number, column)| (number, column.type_oid)).collect();
        NestedForm { schema, columns }
    }

    /// Returns the schema.
    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Returns true if no column contains composites, so that every row has the form of the schema.
    #[must_use]
    pub fn is_trivial(&self) -> bool {
        self.columns.is_empty()
    }

    /// Returns true if all composites in a row have the fields of the schema's types. NULL and
    /// cells that were not sent are always valid.
    #[must_use]
    pub fn fits(&self, row: TupleRef<'_>) -> bool {
        if self.is_trivial() {
            return true;
        }
        let mut wanted = self.columns.iter().peekable();
        for (number, cell) in row.cells().enumerate() {
            let Some((column, oid)) = wanted.peek() else { break };
            if *column != number {
                continue;
            }
            if let Cell::Value(bytes) = cell
                && check(&self.schema, *oid, bytes, 0).is_err()
            {
                return false;
            }
            wanted.next();
        }
        true
    }
}

fn contains_composite(schema: &Schema, oid: Oid, depth: usize) -> bool {
    if depth > NESTING_MAX {
        return false;
    }
    match TypeShape::of(schema, oid) {
        Ok(TypeShape::Composite(_)) => true,
        Ok(TypeShape::Array(inner) | TypeShape::Range(inner) | TypeShape::Multirange(inner)) => {
            contains_composite(schema, inner, depth + 1)
        }
        Ok(TypeShape::Base(_)) | Err(_) => false,
    }
}

/// Checks the composites in a value. Values that are nested too deeply to be projected are not
/// checked.
fn check(schema: &Schema, oid: Oid, bytes: &[u8], depth: usize) -> Result<(), CellProblem> {
    if depth > NESTING_MAX || !contains_composite(schema, oid, depth) {
        return Ok(());
    }
    match TypeShape::of(schema, oid)? {
        TypeShape::Base(_) => Ok(()),
        TypeShape::Array(element) => {
            let mut elements = BinaryArray::parse(bytes, element)?.elements.into_iter().flatten();
            elements.try_for_each(|bytes| check(schema, element, bytes, depth + 1))
        }
        TypeShape::Composite(fields) => {
            let mut input = bytes;
            check_field_count(fields, &mut input)?;
            for (_, oid) in fields {
                if let Some(bytes) = next_field(*oid, &mut input)? {
                    check(schema, *oid, bytes, depth + 1)?;
                }
            }
            wire::end(input)
        }
        TypeShape::Range(subtype) => {
            let mut input = bytes;
            // The flags say which bounds exist. Each bound comes with its length.
            input.try_get_u8()?;
            while !input.is_empty() {
                let bound = wire::sized(&mut input)?.ok_or(CellProblem::Impossible("bound"))?;
                check(schema, subtype, bound, depth + 1)?;
            }
            Ok(())
        }
        TypeShape::Multirange(range) => {
            let mut input = bytes;
            for _ in 0..wire::count(&mut input, 4)? {
                let bytes = wire::sized(&mut input)?.ok_or(CellProblem::Impossible("range"))?;
                check(schema, range, bytes, depth + 1)?;
            }
            wire::end(input)
        }
    }
}

#[cfg(test)]
mod tests {
    use laredo_core::TupleBuf;
    use postgres_types::Type;

    use super::*;
    use crate::fixtures::{MOOD, PAIR, PAIR_RANGE, PAIRS, schema};

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&i32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    /// Returns a composite with fields of type int4.
    fn composite(oids: &[Oid]) -> Vec<u8> {
        let mut bytes = i32::try_from(oids.len()).unwrap().to_be_bytes().to_vec();
        for oid in oids {
            bytes.extend(oid.to_be_bytes());
            bytes.extend(sized(b"1234"));
        }
        bytes
    }

    fn array(element: &[u8]) -> Vec<u8> {
        let header = [1, 0, PAIR.cast_signed(), 1, 1];
        let header: Vec<u8> = header.into_iter().flat_map(i32::to_be_bytes).collect();
        [header, sized(element)].concat()
    }

    fn range(bound: &[u8]) -> Vec<u8> {
        [vec![0x02], sized(bound), sized(bound)].concat()
    }

    fn fits(oid: Oid, cell: Cell<'_>) -> bool {
        let row: TupleBuf = [cell].into_iter().collect();
        NestedForm::new(Arc::new(schema(oid, false))).fits(row.as_ref())
    }

    #[test]
    fn composites_must_have_the_fields_of_their_type_wherever_they_are() {
        let (int4, text) = (Type::INT4.oid(), Type::TEXT.oid());
        let good = composite(&[int4, text]);
        let more = composite(&[int4, text, int4]);
        let fewer = composite(&[int4]);
        let other = composite(&[text, int4]);
        for (oid, wrap) in
            [(PAIR, (|bytes| bytes.to_vec()) as fn(&[u8]) -> Vec<u8>), (PAIRS, array), (PAIR_RANGE, range)]
        {
            assert!(fits(oid, Cell::Value(&wrap(&good))), "{oid}");
            for bad in [&more, &fewer, &other] {
                assert!(!fits(oid, Cell::Value(&wrap(bad))), "{oid}: {bad:?}");
            }
            assert!(!fits(oid, Cell::Value(&wrap(&good)[..wrap(&good).len() - 1])), "{oid}: torn");
            assert!(fits(oid, Cell::Null) && fits(oid, Cell::Unchanged), "{oid}");
        }
        assert!(fits(PAIR_RANGE, Cell::Value(&[1])), "an empty range");
    }

    #[test]
    fn columns_without_composites_are_not_looked_at() {
        for oid in [MOOD, Type::INT4.oid(), Type::INT4_ARRAY.oid(), 99_999] {
            assert!(NestedForm::new(Arc::new(schema(oid, false))).is_trivial(), "{oid}");
            assert!(fits(oid, Cell::Value(b"anything")), "{oid}");
        }
        assert!(NestedForm::new(Arc::new(schema(PAIR, true))).is_trivial(), "cells that are text");
        assert!(!NestedForm::new(Arc::new(schema(PAIRS, false))).is_trivial());
    }
}
