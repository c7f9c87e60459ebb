use std::collections::BTreeMap;

use laredo_core::{Column, KeyColumns, Oid, Schema, TableName, TypeDef, TypeKind};
use laredo_engine::source::TableRequest;

use super::definition::{Partition, TableDefinition, TypeFacts, TypeKindFacts};
use super::facts::TableAccess;
use crate::relation_identity::ReplicaIdentity;

/// Returns the schema of the rows that the copy and the stream send.
///
/// # Errors
/// Sentences that say why the table cannot be followed and how to fix it.
pub(crate) fn schema_of(definition: &TableDefinition, request: &TableRequest) -> Result<Schema, Vec<String>> {
    let name = &request.name;
    let types: BTreeMap<Oid, &TypeFacts> = definition.types.iter().map(|facts| (facts.oid, facts)).collect();
    let mut problems = leaves_outside_wal(definition, name);
    let mut columns = Vec::new();
    for column in definition.sent_columns() {
        let facts = types.get(&column.type_oid).copied();
        if let Some(inner) = facts.filter(|facts| facts.sends).and_then(|facts| find_unsendable_part(facts, &types, 0))
        {
            problems.push(format!(
                "table {name}: column \"{column}\" is of type {type_name}, and PostgreSQL cannot send its part \
                 {inner}, which has no binary form; drop the column with ALTER TABLE {table} DROP \
                 COLUMN {quoted}, or change its type to text",
                column = column.name,
                type_name = column.type_name,
                table = name.quoted(),
                quoted = quoted(&column.name),
            ));
        }
        columns.push(Column {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
            type_name: column.type_name.clone(),
            not_null: column.not_null,
            is_text: facts.is_some_and(|facts| !facts.sends),
        });
    }
    let key = key_columns(definition, request, &columns).map_err(|problem| problems.push(problem));
    match key {
        Ok(key) if problems.is_empty() => {
            let types = definition.types.iter().map(|facts| (facts.oid, type_def(facts)));
            Ok(Schema::new(columns, key, types.collect()))
        }
        _ => Err(problems),
    }
}

/// Returns a doubt about the key that PostgreSQL does not reject, for the log.
pub(crate) fn key_problems(access: &TableAccess, request: &TableRequest) -> Option<String> {
    let fields = &request.key_fields;
    let covered = |index: &Option<Vec<String>>| {
        let columns = index.as_ref().filter(|columns| !columns.is_empty());
        columns.is_some_and(|columns| columns.iter().all(|column| fields.contains(column)))
    };
    (!fields.is_empty() && !access.unique.iter().any(covered)).then(|| {
        format!(
            "table {}: no unique index covers key_fields [{}], so rows with equal keys become one row; create such an index, \
             or choose other key_fields",
            request.name,
            fields.join(", ")
        )
    })
}

/// Returns the name of the part of a type that has no binary form and so cannot be sent.
fn find_unsendable_part(facts: &TypeFacts, types: &BTreeMap<Oid, &TypeFacts>, depth: u32) -> Option<String> {
    // A table's row type cannot contain itself, but the recursion is bounded without relying on
    // that.
    if depth > 64 {
        return None;
    }
    let parts: Vec<Oid> = match &facts.kind {
        TypeKindFacts::Base | TypeKindFacts::Money(_) | TypeKindFacts::Ascii | TypeKindFacts::Enum(_) => Vec::new(),
        TypeKindFacts::Domain(oid)
        | TypeKindFacts::Array(oid)
        | TypeKindFacts::Range(oid)
        | TypeKindFacts::Multirange(oid) => {
            vec![*oid]
        }
        TypeKindFacts::Composite(fields) => fields.iter().map(|(_, oid, _)| *oid).collect(),
    };
    parts.into_iter().find_map(|oid| {
        let part = types.get(&oid)?;
        match part.sends {
            true => find_unsendable_part(part, types, depth + 1),
            false => Some(part.name.clone()),
        }
    })
}

fn key_columns(definition: &TableDefinition, request: &TableRequest, columns: &[Column]) -> Result<KeyColumns, String> {
    let name = &request.name;
    let table = name.quoted();
    let fields = &request.key_fields;
    let names: &[String] = match (definition.identity, &definition.key) {
        (ReplicaIdentity::Nothing, _) => {
            return Err(format!(
                "table {name} has REPLICA IDENTITY NOTHING, so updates and deletes do not identify their row; run ALTER \
                 TABLE {table} REPLICA IDENTITY DEFAULT where it has a primary key, otherwise ALTER TABLE {table} \
                 REPLICA IDENTITY FULL and name its key_fields"
            ));
        }
        (ReplicaIdentity::Full, _) if !fields.is_empty() => fields,
        (ReplicaIdentity::Full, Some(key)) => key,
        (ReplicaIdentity::Full, None) => {
            return Err(format!(
                "table {name} has REPLICA IDENTITY FULL and no primary key; name the columns that \
                 identify its rows: key_fields = [ … ]"
            ));
        }
        (ReplicaIdentity::Default | ReplicaIdentity::Index, Some(key)) => {
            if !fields.is_empty() && !same_set(fields, key) {
                return Err(format!(
                    "table {name}: key_fields [{}] differ from its replica identity [{}], which is all that \
                     deletes contain; omit key_fields, or run ALTER TABLE {table} REPLICA IDENTITY FULL",
                    fields.join(", "),
                    key.join(", ")
                ));
            }
            key
        }
        (ReplicaIdentity::Default, None) => {
            return Err(format!(
                "table {name} has no primary key, so updates and deletes do not identify their row; run ALTER TABLE \
                 {table} ADD PRIMARY KEY (…), or ALTER TABLE {table} REPLICA IDENTITY USING INDEX … with a unique \
                 index of NOT NULL columns, or ALTER TABLE {table} REPLICA IDENTITY FULL and name its key_fields"
            ));
        }
        (ReplicaIdentity::Index, None) => {
            return Err(format!(
                "table {name}: the index of its replica identity was dropped; run ALTER TABLE {table} REPLICA \
                 IDENTITY DEFAULT, or USING INDEX another one"
            ));
        }
    };
    leaves_cover(definition, request, names)?;
    let position = |field: &String| columns.iter().position(|column| column.name == *field);
    let positions: Result<Vec<usize>, String> = names
        .iter()
        .map(|field| position(field).ok_or_else(|| missing_key_column(definition, request, field)))
        .collect();
    positions.map(KeyColumns::new)
}

fn same_set(one: &[String], other: &[String]) -> bool {
    one.len() == other.len() && one.iter().all(|name| other.contains(name))
}

fn missing_key_column(definition: &TableDefinition, request: &TableRequest, field: &str) -> String {
    let name = &request.name;
    let column = definition.columns.iter().find(|column| column.name == field);
    match column {
        None => {
            let known: Vec<&str> = definition.columns.iter().map(|column| column.name.as_str()).collect();
            format!("table {name}: key_fields names \"{field}\", which is not one of its columns: {}", known.join(", "))
        }
        Some(column) if column.generated => {
            format!("table {name}: key_fields names \"{field}\", a generated column, and those are not sent")
        }
        Some(_) => format!(
            "table {name}: the publication's column list leaves out \"{field}\" of the key, so PostgreSQL refuses \
             the table's updates and deletes; add it to the list with ALTER PUBLICATION … SET TABLE"
        ),
    }
}

/// Returns a problem for each partition whose rows would be copied but whose changes are never
/// sent.
fn leaves_outside_wal(definition: &TableDefinition, name: &TableName) -> Vec<String> {
    let outside = definition.leaves().filter(|leaf| leaf.kind != 'r' || leaf.persistence != 'p');
    let problem = |leaf: &Partition| {
        format!(
            "table {name}: its partition {} is a foreign or unlogged table, so its changes are not in the WAL; run ALTER \
             TABLE {} DETACH PARTITION {}",
            leaf.name(),
            name.quoted(),
            leaf.name().quoted()
        )
    };
    outside.map(problem).collect()
}

/// Checks that each partition's replica identity contains the key. The old rows in a partitioned
/// table's changes are those of the partition's own replica identity.
fn leaves_cover(definition: &TableDefinition, request: &TableRequest, key: &[String]) -> Result<(), String> {
    let poor = definition.leaves().find(|leaf| match (leaf.identity, &leaf.key) {
        (ReplicaIdentity::Full, _) => false,
        (ReplicaIdentity::Nothing, _) | (ReplicaIdentity::Default | ReplicaIdentity::Index, None) => true,
        (ReplicaIdentity::Default | ReplicaIdentity::Index, Some(columns)) => {
            !key.iter().all(|column| columns.contains(column))
        }
    });
    match poor {
        None => Ok(()),
        Some(leaf) => Err(format!(
            "table {}: its partition {} has another replica identity, so its deletes do not contain the key [{}]; run \
             ALTER TABLE {} REPLICA IDENTITY FULL",
            request.name,
            leaf.name(),
            key.join(", "),
            leaf.name().quoted()
        )),
    }
}

pub(crate) fn type_def(facts: &TypeFacts) -> TypeDef {
    TypeDef {
        name: facts.name.clone(),
        kind: match &facts.kind {
            TypeKindFacts::Base => TypeKind::Base,
            TypeKindFacts::Money(decimals) => TypeKind::Money(*decimals),
            TypeKindFacts::Ascii => TypeKind::Ascii,
            TypeKindFacts::Enum(labels) => TypeKind::Enum(labels.iter().map(|label| label.label.clone()).collect()),
            TypeKindFacts::Domain(oid) => TypeKind::Domain(*oid),
            TypeKindFacts::Composite(fields) => {
                TypeKind::Composite(fields.iter().map(|(name, oid, _)| (name.clone(), *oid)).collect())
            }
            TypeKindFacts::Array(oid) => TypeKind::Array(*oid),
            TypeKindFacts::Range(oid) => TypeKind::Range(*oid),
            TypeKindFacts::Multirange(oid) => TypeKind::Multirange(*oid),
        },
    }
}

/// Quotes a name as an SQL identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
