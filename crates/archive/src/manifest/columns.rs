//! A table's columns in a manifest.

use std::collections::BTreeMap;

use laredo_core::{Column, KeyColumns, Oid, Schema, TypeDef};
use serde::{Deserialize, Serialize};

use super::Broken;

/// A column as existing readers know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ColumnEntry {
    /// Its name.
    pub name: String,
    /// Its type, as `format_type` spells it.
    pub r#type: String,
    /// Whether it takes NULL.
    pub nullable: bool,
    /// Whether it is part of the key.
    pub primary_key: bool,
    /// Its place, from 1.
    pub ordinal_position: u32,
    /// Its place in the key, from 1; 0 outside of it.
    #[serde(default)]
    pub primary_key_ordinal: u32,
    /// Not known.
    #[serde(default)]
    pub default_value: Option<String>,
    /// Not known.
    #[serde(default)]
    pub max_length: Option<i64>,
    /// Its type's number.
    #[serde(rename = "TypeOID", default)]
    pub type_oid: Oid,
}

/// A schema with all that reading values back needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SchemaEntry {
    columns: Vec<Column>,
    /// Names, in key order.
    key: Vec<String>,
    types: BTreeMap<Oid, TypeDef>,
}

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

/// PostgreSQL's own types have lower numbers.
const USER_DEFINED: Oid = 16_384;
const JSON: Oid = 114;

/// What is known of a schema that another writer left. Nobody knows what a user-defined type is made of: its values stay the JSON that
/// they are written as.
pub(super) fn schema_of(entries: &[ColumnEntry]) -> Result<Schema, Broken> {
    let columns = entries.iter().map(|entry| Column {
        name: entry.name.clone(),
        type_oid: if (1..USER_DEFINED).contains(&entry.type_oid) { entry.type_oid } else { JSON },
        type_modifier: -1,
        type_name: entry.r#type.clone(),
        not_null: !entry.nullable,
        is_text: false,
    });
    let mut key: Vec<(u32, usize)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.primary_key)
        .map(|(place, entry)| (entry.primary_key_ordinal, place))
        .collect();
    if key.is_empty() {
        return Err(Broken::Columns("none of them is part of a primary key".to_owned()));
    }
    key.sort_unstable();
    let key = KeyColumns::new(key.into_iter().map(|(_, place)| place).collect::<Vec<_>>());
    Ok(Schema::new(columns.collect(), key, BTreeMap::new()))
}

impl SchemaEntry {
    pub(super) fn of(schema: &Schema) -> SchemaEntry {
        let name = |place: &usize| schema.columns().get(*place).map(|column| column.name.clone());
        SchemaEntry {
            columns: schema.columns().to_vec(),
            key: schema.key().columns().iter().filter_map(name).collect(),
            types: schema.types().clone(),
        }
    }

    pub(super) fn to_schema(&self) -> Result<Schema, Broken> {
        let unkeyed = Schema::new(self.columns.clone(), KeyColumns::new([]), BTreeMap::new());
        let key = unkeyed.positions_of(&self.key);
        let key = key.map_err(|name| Broken::Columns(format!("the key names {name}, which is none of them")))?;
        Ok(Schema::new(self.columns.clone(), key, self.types.clone()))
    }
}
