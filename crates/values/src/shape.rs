//! Types grouped by the structure of their cells.

use laredo_core::{Column, Oid, Schema, TypeKind};
use postgres_types::{Kind, Type};

use crate::problem::{CellProblem, NESTING_MAX};
use crate::types::BaseType;
use crate::types::bytes::ByteType;
use crate::types::numbers::NumberType;
use crate::types::text::TextType;

/// The structure of a type. A domain has the structure of its base type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TypeShape<'s> {
    Base(BaseType),
    Array(Oid),
    Composite(&'s [(String, Oid)]),
    Range(Oid),
    Multirange(Oid),
}

/// Returns the base type of a domain, through all its domains. Any other type is returned
/// unchanged.
pub(crate) fn base_type(schema: &Schema, mut oid: Oid) -> Result<Oid, CellProblem> {
    for _ in 0..NESTING_MAX {
        match schema.type_def(oid).map(|definition| &definition.kind) {
            Some(TypeKind::Domain(base)) => oid = *base,
            _ => return Ok(oid),
        }
    }
    Err(CellProblem::TooDeep)
}

impl TypeShape<'_> {
    pub(crate) const UNKNOWN: TypeShape<'static> = TypeShape::Base(BaseType::Bytes(ByteType::Unknown));

    pub(crate) fn of(schema: &Schema, oid: Oid) -> Result<TypeShape<'_>, CellProblem> {
        let oid = base_type(schema, oid)?;
        let Some(definition) = schema.type_def(oid) else {
            return Ok(TypeShape::of_builtin(oid).unwrap_or(TypeShape::UNKNOWN));
        };
        Ok(match &definition.kind {
            // `base_type` leaves no domain.
            TypeKind::Domain(_) => TypeShape::UNKNOWN,
            TypeKind::Base => TypeShape::of_builtin(oid)
                .or_else(|| BaseType::of_extension(&definition.name).map(TypeShape::Base))
                .unwrap_or(TypeShape::UNKNOWN),
            TypeKind::Money(decimals) => TypeShape::Base(BaseType::Number(NumberType::Money(*decimals))),
            TypeKind::Ascii => TypeShape::Base(BaseType::Text(TextType::AsciiCaseless)),
            TypeKind::Enum(_) => TypeShape::Base(BaseType::Text(TextType::Label)),
            TypeKind::Composite(fields) => TypeShape::Composite(fields),
            TypeKind::Array(element) => TypeShape::Array(*element),
            TypeKind::Range(subtype) => TypeShape::Range(*subtype),
            TypeKind::Multirange(range) => TypeShape::Multirange(*range),
        })
    }

    /// Returns the structure of a built-in type.
    fn of_builtin(oid: Oid) -> Option<TypeShape<'static>> {
        if let Some(base) = BaseType::of_oid(oid) {
            return Some(TypeShape::Base(base));
        }
        let builtin = Type::from_oid(oid)?;
        Some(match builtin.kind() {
            Kind::Array(element) => TypeShape::Array(element.oid()),
            Kind::Range(subtype) => TypeShape::Range(subtype.oid()),
            Kind::Multirange(_) => {
                range_of(&builtin).map_or(TypeShape::UNKNOWN, |range| TypeShape::Multirange(range.oid()))
            }
            Kind::Simple => TypeShape::Base(BaseType::Bytes(ByteType::Opaque)),
            _ => TypeShape::UNKNOWN,
        })
    }
}

/// Returns the range type of a built-in multirange.
fn range_of(multirange: &Type) -> Option<Type> {
    match *multirange {
        Type::INT4MULTI_RANGE => Some(Type::INT4_RANGE),
        Type::INT8MULTI_RANGE => Some(Type::INT8_RANGE),
        Type::NUMMULTI_RANGE => Some(Type::NUM_RANGE),
        Type::TSMULTI_RANGE => Some(Type::TS_RANGE),
        Type::TSTZMULTI_RANGE => Some(Type::TSTZ_RANGE),
        Type::DATEMULTI_RANGE => Some(Type::DATE_RANGE),
        _ => None,
    }
}

/// Returns true if a cell that is invalid for its column's type is shown as its bytes in hex. No
/// value of such a type is shown as a string that begins with `\x`.
pub(crate) fn shows_errors_in_hex(schema: &Schema, column: &Column) -> bool {
    if column.is_text {
        return false;
    }
    match TypeShape::of(schema, column.type_oid) {
        Ok(TypeShape::Base(base)) => base.is_distinct_from_hex(),
        Ok(TypeShape::Array(_) | TypeShape::Composite(_) | TypeShape::Range(_) | TypeShape::Multirange(_)) => true,
        Err(_) => true,
    }
}
