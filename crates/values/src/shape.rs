//! Types grouped by their binary forms.

use postgres_types::{Kind, Type};

use super::{CellProblem, NESTING_MAX};
use laredo_core::{Oid, Schema, TypeKind};

/// The binary form of a type. A domain has the form of its base type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TypeShape<'s> {
    /// The text itself.
    Text(TextKind),
    /// A label of this list, as text.
    Enum(&'s [String]),
    /// The extension type `ltree`: text after a version byte.
    Ltree,
    /// An amount with this number of decimals.
    Money(u8),
    /// A built-in base type.
    Builtin(Type),
    Array(Oid),
    Composite(&'s [(String, Oid)]),
    Range(Oid),
    Multirange(Oid),
    Unknown,
}

/// Text types grouped by the equality of their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextKind {
    /// Equality of bytes.
    Plain,
    /// Equality of bytes, except for blanks at the end: `char(n)`.
    Padded,
    /// Equality of letters regardless of case: the extension type `citext`.
    Caseless,
    /// Equality of ASCII letters regardless of case, and of all other bytes.
    AsciiCaseless,
    /// No equality: `xml` and similar types.
    Incomparable,
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
    pub(crate) fn of(schema: &Schema, oid: Oid) -> Result<TypeShape<'_>, CellProblem> {
        let oid = base_type(schema, oid)?;
        let builtin = Type::from_oid(oid);
        let Some(definition) = schema.type_def(oid) else {
            return Ok(builtin.map_or(TypeShape::Unknown, TypeShape::of_builtin));
        };
        Ok(match &definition.kind {
            // `base_type` leaves no domain.
            TypeKind::Domain(_) => TypeShape::Unknown,
            TypeKind::Base => match builtin {
                Some(builtin) => TypeShape::of_builtin(builtin),
                // Extension types are recognized by name, because their numbers differ between
                // databases.
                None if definition.name == "citext" => TypeShape::Text(TextKind::Caseless),
                None if definition.name == "ltree" => TypeShape::Ltree,
                None => TypeShape::Unknown,
            },
            TypeKind::Money(decimals) => TypeShape::Money(*decimals),
            TypeKind::Ascii => TypeShape::Text(TextKind::AsciiCaseless),
            TypeKind::Enum(labels) => TypeShape::Enum(labels),
            TypeKind::Composite(fields) => TypeShape::Composite(fields),
            TypeKind::Array(element) => TypeShape::Array(*element),
            TypeKind::Range(subtype) => TypeShape::Range(*subtype),
            TypeKind::Multirange(range) => TypeShape::Multirange(*range),
        })
    }

    fn of_builtin(builtin: Type) -> TypeShape<'static> {
        match *builtin.kind() {
            Kind::Array(ref element) => TypeShape::Array(element.oid()),
            Kind::Range(ref subtype) => TypeShape::Range(subtype.oid()),
            Kind::Multirange(_) => {
                range_of(&builtin).map_or(TypeShape::Unknown, |range| TypeShape::Multirange(range.oid()))
            }
            Kind::Simple => match builtin {
                Type::TEXT | Type::VARCHAR | Type::NAME => TypeShape::Text(TextKind::Plain),
                Type::BPCHAR => TypeShape::Text(TextKind::Padded),
                Type::XML | Type::REFCURSOR | Type::PG_NODE_TREE => TypeShape::Text(TextKind::Incomparable),
                Type::MONEY => TypeShape::Money(Schema::USUAL_MONEY_DECIMALS),
                _ => TypeShape::Builtin(builtin),
            },
            _ => TypeShape::Unknown,
        }
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

/// Returns true if a type's binary form is an unsigned 32-bit number that identifies an object, a
/// transaction or a command.
pub(crate) fn is_object_number(builtin: &Type) -> bool {
    matches!(
        *builtin,
        Type::OID
            | Type::XID
            | Type::CID
            | Type::REGPROC
            | Type::REGPROCEDURE
            | Type::REGOPER
            | Type::REGOPERATOR
            | Type::REGCLASS
            | Type::REGCOLLATION
            | Type::REGTYPE
            | Type::REGCONFIG
            | Type::REGDICTIONARY
            | Type::REGNAMESPACE
            | Type::REGROLE
    )
}
