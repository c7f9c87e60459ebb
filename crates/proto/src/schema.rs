//! A table's schema on the wire, in two forms: the typed form for readers of binary cells, and the
//! plain list of columns.

use std::collections::BTreeMap;

use laredo_core::{Column, KeyColumns, Schema, TypeDef, TypeKind};

use crate::replication::type_definition::Kind;
use crate::replication::{
    ColumnDefinition, CompositeField, CompositeFields, EnumLabels, TypeDefinition, TypedColumn, TypedSchema,
};

/// An error for an invalid schema from a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's schema names key column {0}, but has {1} columns")]
pub struct SchemaError(u32, usize);

/// Converts a schema to the typed form.
#[must_use]
pub fn to_wire(schema: &Schema) -> TypedSchema {
    let column = |c: &Column| TypedColumn {
        name: c.name.clone(),
        type_oid: c.type_oid,
        type_modifier: c.type_modifier,
        type_name: c.type_name.clone(),
        not_null: c.not_null,
        is_text: c.is_text,
    };
    TypedSchema {
        columns: schema.columns().iter().map(column).collect(),
        key: schema.key().columns().iter().map(|&i| u32::try_from(i).unwrap_or(u32::MAX)).collect(),
        types: schema.types().iter().map(|(&oid, def)| type_to_wire(oid, def)).collect(),
    }
}

/// Converts the typed form to a schema.
///
/// # Errors
/// Returns an error if the key names a column that does not exist.
pub fn from_wire(wire: TypedSchema) -> Result<Schema, SchemaError> {
    let count = wire.columns.len();
    let key = wire.key.iter().map(|&i| match usize::try_from(i) {
        Ok(column) if column < count => Ok(column),
        _ => Err(SchemaError(i, count)),
    });
    let key = KeyColumns::new(key.collect::<Result<Vec<_>, _>>()?);
    let column = |c: TypedColumn| Column {
        name: c.name,
        type_oid: c.type_oid,
        type_modifier: c.type_modifier,
        type_name: c.type_name,
        not_null: c.not_null,
        is_text: c.is_text,
    };
    let types: BTreeMap<_, _> = wire.types.into_iter().map(type_from_wire).collect();
    Ok(Schema::new(wire.columns.into_iter().map(column).collect(), key, types))
}

/// Returns the plain list of columns, which every client receives.
#[must_use]
pub fn column_definitions(schema: &Schema) -> Vec<ColumnDefinition> {
    let definition = |(index, column): (usize, &Column)| {
        let key_ordinal = schema.key().columns().iter().position(|&k| k == index);
        ColumnDefinition {
            ordinal_position: ordinal(index),
            column_name: column.name.clone(),
            data_type: column.type_name.clone(),
            not_null: column.not_null,
            is_primary_key: key_ordinal.is_some(),
            primary_key_ordinal: key_ordinal.map_or(0, ordinal),
        }
    };
    schema.columns().iter().enumerate().map(definition).collect()
}

/// Returns the ordinal on the wire, which counts from 1. There, 0 means that a column is not part
/// of the key.
fn ordinal(index: usize) -> i32 {
    i32::try_from(index + 1).unwrap_or(i32::MAX)
}

fn type_to_wire(oid: u32, def: &TypeDef) -> TypeDefinition {
    let field = |(name, type_oid): &(String, u32)| CompositeField { name: name.clone(), type_oid: *type_oid };
    let kind = match &def.kind {
        TypeKind::Base => None,
        TypeKind::Enum(labels) => Some(Kind::EnumLabels(EnumLabels { labels: labels.clone() })),
        TypeKind::Domain(base) => Some(Kind::DomainBase(*base)),
        TypeKind::Composite(fields) => {
            Some(Kind::Composite(CompositeFields { fields: fields.iter().map(field).collect() }))
        }
        TypeKind::Array(element) => Some(Kind::ArrayElement(*element)),
        TypeKind::Range(subtype) => Some(Kind::RangeSubtype(*subtype)),
        TypeKind::Multirange(range) => Some(Kind::MultirangeRange(*range)),
        TypeKind::Money(decimals) => Some(Kind::MoneyDecimals((*decimals).into())),
        TypeKind::Ascii => Some(Kind::AsciiCaseless(true)),
    };
    TypeDefinition { oid, name: def.name.clone(), kind }
}

fn type_from_wire(wire: TypeDefinition) -> (u32, TypeDef) {
    let kind = match wire.kind {
        None => TypeKind::Base,
        Some(Kind::EnumLabels(labels)) => TypeKind::Enum(labels.labels),
        Some(Kind::DomainBase(base)) => TypeKind::Domain(base),
        Some(Kind::Composite(composite)) => {
            TypeKind::Composite(composite.fields.into_iter().map(|f| (f.name, f.type_oid)).collect())
        }
        Some(Kind::ArrayElement(element)) => TypeKind::Array(element),
        Some(Kind::RangeSubtype(subtype)) => TypeKind::Range(subtype),
        Some(Kind::MultirangeRange(range)) => TypeKind::Multirange(range),
        Some(Kind::AsciiCaseless(true)) => TypeKind::Ascii,
        Some(Kind::AsciiCaseless(false)) => TypeKind::Base,
        // PostgreSQL has at most ten.
        Some(Kind::MoneyDecimals(decimals)) => TypeKind::Money(u8::try_from(decimals).unwrap_or(u8::MAX)),
    };
    (wire.oid, TypeDef { name: wire.name, kind })
}
