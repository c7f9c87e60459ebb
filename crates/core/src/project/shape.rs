//! Types by what their binary form is like.

use postgres_types::{Kind, Type};

use super::{NESTING_MAX, Problem};
use crate::schema::{Oid, Schema, TypeKind};

/// What a type's binary form looks like, domains seen through.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape<'s> {
    /// The text itself.
    Text,
    /// A built-in base type.
    Builtin(Type),
    Array(Oid),
    Composite(&'s [(String, Oid)]),
    Range(Oid),
    Multirange(Oid),
    Unknown,
}

impl Shape<'_> {
    pub(crate) fn of(schema: &Schema, mut oid: Oid) -> Result<Shape<'_>, Problem> {
        for _ in 0..NESTING_MAX {
            let builtin = Type::from_oid(oid);
            let Some(definition) = schema.type_def(oid) else {
                return Ok(builtin.map_or(Shape::Unknown, Shape::of_builtin));
            };
            return Ok(match &definition.kind {
                TypeKind::Domain(base) => {
                    oid = *base;
                    continue;
                }
                TypeKind::Base => match builtin {
                    Some(builtin) => Shape::of_builtin(builtin),
                    // The one extension type that is everywhere, and nothing but text.
                    None if definition.name == "citext" => Shape::Text,
                    None => Shape::Unknown,
                },
                TypeKind::Enum(_) => Shape::Text,
                TypeKind::Composite(fields) => Shape::Composite(fields),
                TypeKind::Array(element) => Shape::Array(*element),
                TypeKind::Range(subtype) => Shape::Range(*subtype),
                TypeKind::Multirange(range) => Shape::Multirange(*range),
            });
        }
        Err(Problem::TooDeep)
    }

    fn of_builtin(builtin: Type) -> Shape<'static> {
        match *builtin.kind() {
            Kind::Array(ref element) => Shape::Array(element.oid()),
            Kind::Range(ref subtype) => Shape::Range(subtype.oid()),
            Kind::Multirange(_) => range_of(&builtin).map_or(Shape::Unknown, |range| Shape::Multirange(range.oid())),
            Kind::Simple => match builtin {
                Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::XML => Shape::Text,
                Type::REFCURSOR | Type::PG_NODE_TREE => Shape::Text,
                _ => Shape::Builtin(builtin),
            },
            _ => Shape::Unknown,
        }
    }
}

/// The range type of a built-in multirange.
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

/// Whether a type's binary form is an unsigned number of 32 bits that names an object, a transaction or a command.
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
