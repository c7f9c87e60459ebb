//! Types grouped by their binary forms.

use postgres_types::{Kind, Type};

use super::{NESTING_MAX, Problem};
use crate::schema::{MONEY_DECIMALS, Oid, Schema, TypeKind};

/// The binary form of a type. A domain has the form of its base type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape<'s> {
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
pub(crate) fn base_type(schema: &Schema, mut oid: Oid) -> Result<Oid, Problem> {
    for _ in 0..NESTING_MAX {
        match schema.type_def(oid).map(|definition| &definition.kind) {
            Some(TypeKind::Domain(base)) => oid = *base,
            _ => return Ok(oid),
        }
    }
    Err(Problem::TooDeep)
}

impl Shape<'_> {
    pub(crate) fn of(schema: &Schema, oid: Oid) -> Result<Shape<'_>, Problem> {
        let oid = base_type(schema, oid)?;
        let builtin = Type::from_oid(oid);
        let Some(definition) = schema.type_def(oid) else {
            return Ok(builtin.map_or(Shape::Unknown, Shape::of_builtin));
        };
        Ok(match &definition.kind {
            // `base_type` leaves no domain.
            TypeKind::Domain(_) => Shape::Unknown,
            TypeKind::Base => match builtin {
                Some(builtin) => Shape::of_builtin(builtin),
                // Extension types are recognized by name, because their numbers differ between
                // databases.
                None if definition.name == "citext" => Shape::Text(TextKind::Caseless),
                None if definition.name == "ltree" => Shape::Ltree,
                None => Shape::Unknown,
            },
            TypeKind::Money(decimals) => Shape::Money(*decimals),
            TypeKind::Ascii => Shape::Text(TextKind::AsciiCaseless),
            TypeKind::Enum(labels) => Shape::Enum(labels),
            TypeKind::Composite(fields) => Shape::Composite(fields),
            TypeKind::Array(element) => Shape::Array(*element),
            TypeKind::Range(subtype) => Shape::Range(*subtype),
            TypeKind::Multirange(range) => Shape::Multirange(*range),
        })
    }

    fn of_builtin(builtin: Type) -> Shape<'static> {
        match *builtin.kind() {
            Kind::Array(ref element) => Shape::Array(element.oid()),
            Kind::Range(ref subtype) => Shape::Range(subtype.oid()),
            Kind::Multirange(_) => range_of(&builtin).map_or(Shape::Unknown, |range| Shape::Multirange(range.oid())),
            Kind::Simple => match builtin {
                Type::TEXT | Type::VARCHAR | Type::NAME => Shape::Text(TextKind::Plain),
                Type::BPCHAR => Shape::Text(TextKind::Padded),
                Type::XML | Type::REFCURSOR | Type::PG_NODE_TREE => Shape::Text(TextKind::Incomparable),
                Type::MONEY => Shape::Money(MONEY_DECIMALS),
                _ => Shape::Builtin(builtin),
            },
            _ => Shape::Unknown,
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
