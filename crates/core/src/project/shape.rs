//! Types by what their binary form is like.

use postgres_types::{Kind, Type};

use super::{NESTING_MAX, Problem};
use crate::schema::{MONEY_DECIMALS, Oid, Schema, TypeKind};

/// What a type's binary form looks like, domains seen through.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape<'s> {
    /// The text itself.
    Text(TextKind),
    /// One of these labels, as text.
    Enum(&'s [String]),
    /// The extension type `ltree`: text after a version byte.
    Ltree,
    /// An amount with so many decimals.
    Money(u8),
    /// A built-in base type.
    Builtin(Type),
    Array(Oid),
    Composite(&'s [(String, Oid)]),
    Range(Oid),
    Multirange(Oid),
    Unknown,
}

/// Text types by what makes two of their values equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextKind {
    /// The same bytes.
    Plain,
    /// The same bytes but for blanks at the end: `char(n)`.
    Padded,
    /// The same letters, upper or lower case: the extension type `citext`.
    Caseless,
    /// The same of ASCII letters, and otherwise the same bytes.
    AsciiCaseless,
    /// Nothing: `xml` and its kin have no equality.
    Incomparable,
}

/// Returns the type that a domain is over, through all domains, and any other type itself.
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
            // None is left.
            TypeKind::Domain(_) => Shape::Unknown,
            TypeKind::Base => match builtin {
                Some(builtin) => Shape::of_builtin(builtin),
                // Extension types are known by their names; their numbers differ from database to database.
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
