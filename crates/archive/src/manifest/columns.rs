//! The columns of a table in a manifest.

use std::collections::{BTreeMap, BTreeSet};

use laredo_core::{Column, KeyColumns, Oid, Schema, TypeDef};
use serde::{Deserialize, Serialize};

use super::ManifestViolation;
use crate::layout::COLUMNS_MAX;

/// A column in the form that existing readers know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ColumnEntry {
    /// The column's name.
    pub name: String,
    /// The column's type, as `format_type` spells it.
    pub r#type: String,
    /// True if the column accepts NULL.
    pub nullable: bool,
    /// True if the column is part of the key.
    pub primary_key: bool,
    /// The column's place in the table, from 1.
    pub ordinal_position: u32,
    /// The column's place in the key, from 1; 0 if it is not in the key.
    #[serde(default)]
    pub primary_key_ordinal: u32,
    /// The column's default value. laredo does not know it and writes `null`.
    #[serde(default)]
    pub default_value: Option<String>,
    /// The column's maximum length. laredo does not know it and writes `null`.
    #[serde(default)]
    pub max_length: Option<i64>,
    /// The OID of the column's type.
    #[serde(rename = "TypeOID", default)]
    pub type_oid: Oid,
}

/// A schema with everything that is needed to read values back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SchemaEntry {
    columns: Vec<Column>,
    /// The names of the key's columns, in key order.
    key: Vec<String>,
    types: BTreeMap<Oid, TypeDef>,
}

#[cfg(feature = "writer")]
pub(super) fn entries(schema: &Schema) -> Vec<ColumnEntry> {
    let ordinal = |place: usize| u32::try_from(place + 1).unwrap_or(u32::MAX);
    let entry = |(place, column): (usize, &Column)| {
        let in_key = schema.key().columns().iter().position(|key| *key == place);
        ColumnEntry {
            name: column.name.clone(),
            r#type: column.type_name.clone(),
            nullable: !column.not_null,
            primary_key: in_key.is_some(),
            ordinal_position: ordinal(place),
            primary_key_ordinal: in_key.map_or(0, ordinal),
            default_value: None,
            max_length: None,
            type_oid: column.type_oid,
        }
    };
    schema.columns().iter().enumerate().map(entry).collect()
}

/// The lowest OID of user-defined types.
const USER_DEFINED: Oid = 16_384;
const JSON: Oid = 114;
const JSONB: Oid = 3802;
const NUMERIC: Oid = 1700;
const NUMERIC_ARRAY: Oid = 1231;

/// Returns the schema that another writer's columns describe. The parts of a user-defined type are
/// unknown, so its values stay the JSON that they are written as. `key` names the key's columns in
/// case no column is marked as part of it.
pub(super) fn schema_of(entries: &[ColumnEntry], key: &[String]) -> Result<Schema, ManifestViolation> {
    let columns = entries.iter().map(|entry| Column {
        name: entry.name.clone(),
        type_oid: type_of(entry, entry.primary_key || key.contains(&entry.name)),
        type_modifier: -1,
        type_name: entry.r#type.clone(),
        not_null: !entry.nullable,
        is_text: false,
    });
    let columns: Vec<Column> = columns.collect();
    let mut in_key: Vec<(u32, usize)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.primary_key)
        .map(|(place, entry)| (entry.primary_key_ordinal, place))
        .collect();
    if in_key.is_empty() && key.is_empty() {
        let problem = "none of them is part of a primary key; name the key's columns with --key-fields";
        return Err(ManifestViolation::Columns(problem.to_owned()));
    }
    if in_key.is_empty() {
        return with_key(columns, key);
    }
    check_columns(&columns)?;
    in_key.sort_unstable();
    let key = KeyColumns::new(in_key.into_iter().map(|(_, place)| place).collect::<Vec<_>>());
    Ok(Schema::new(columns, key, BTreeMap::new()))
}

/// Returns a schema of columns of which only the names are known. Their values stay the JSON that
/// they are written as.
pub(crate) fn untyped(names: impl IntoIterator<Item = String>, key: &[String]) -> Result<Schema, ManifestViolation> {
    let column = |name: String| Column {
        type_oid: json_type(key.contains(&name)),
        name,
        type_modifier: -1,
        type_name: UNKNOWN.to_owned(),
        not_null: false,
        is_text: false,
    };
    with_key(names.into_iter().map(column).collect(), key)
}

/// The type name of a column of which only the name is known.
const UNKNOWN: &str = "unknown";

/// Checks that a schema's key equals `key`, unless that is empty.
///
/// # Errors
/// If the key is a different one.
pub(super) fn check_key(schema: &Schema, key: &[String]) -> Result<(), ManifestViolation> {
    let of = schema.key().columns().iter().filter_map(|place| schema.columns().get(*place));
    let is: Vec<&str> = of.map(|column| column.name.as_str()).collect();
    match key.is_empty() || key.iter().map(String::as_str).eq(is.iter().copied()) {
        true => Ok(()),
        false => Err(ManifestViolation::Columns(format!("its key is ({}); leave --key-fields out", is.join(", ")))),
    }
}

/// Checks that columns are those of a table.
fn check_columns(columns: &[Column]) -> Result<(), ManifestViolation> {
    if columns.len() > COLUMNS_MAX {
        let problem = format!("there are {}, and a table has at most {COLUMNS_MAX}", columns.len());
        return Err(ManifestViolation::Columns(problem));
    }
    let mut names = BTreeSet::new();
    match columns.iter().find(|column| !names.insert(&column.name)) {
        Some(column) => Err(ManifestViolation::Columns(format!("two of them are named {:?}", column.name))),
        None => Ok(()),
    }
}

fn with_key(columns: Vec<Column>, key: &[String]) -> Result<Schema, ManifestViolation> {
    check_columns(&columns)?;
    let unkeyed = Schema::new(columns.clone(), KeyColumns::new([]), BTreeMap::new());
    let key = unkeyed.positions_of(key);
    let key =
        key.map_err(|name| ManifestViolation::Columns(format!("the key names {name}, which is not one of them")))?;
    Ok(Schema::new(columns, key, BTreeMap::new()))
}

/// Returns the type with which a column's values are read. Some writers know a type's name but not
/// its OID. For `numeric` the name is enough, because its values are digits.
fn type_of(entry: &ColumnEntry, is_key: bool) -> Oid {
    if (1..USER_DEFINED).contains(&entry.type_oid) {
        return entry.type_oid;
    }
    let name = entry.r#type.to_ascii_lowercase();
    match (entry.type_oid, name.split('(').next().map(str::trim), name.trim_end().ends_with("[]")) {
        (0, Some("numeric" | "decimal"), false) => NUMERIC,
        (0, Some("numeric" | "decimal" | "numeric[]" | "decimal[]"), true) => NUMERIC_ARRAY,
        _ => json_type(is_key),
    }
}

/// Returns the type of values that stay JSON. In a key this is `jsonb`: `json` would be shown as
/// the string of its text.
fn json_type(is_key: bool) -> Oid {
    if is_key { JSONB } else { JSON }
}

impl SchemaEntry {
    #[cfg(feature = "writer")]
    pub(super) fn of(schema: &Schema) -> SchemaEntry {
        let name = |place: &usize| schema.columns().get(*place).map(|column| column.name.clone());
        SchemaEntry {
            columns: schema.columns().to_vec(),
            key: schema.key().columns().iter().filter_map(name).collect(),
            types: schema.types().clone(),
        }
    }

    pub(super) fn to_schema(&self) -> Result<Schema, ManifestViolation> {
        let schema = with_key(self.columns.clone(), &self.key)?;
        Ok(Schema::new(self.columns.clone(), schema.key().clone(), self.types.clone()))
    }
}
