//! The comparison of a client's rows with the database's, cell by cell.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use laredo_client::{RowRef, View};
use laredo_core::{Schema, Tuple};
use laredo_testkit::oracle::{OracleRows, key_bytes};
use laredo_values::project_row;

use super::simple::{JsonRow, key_of};

/// The number of differences that are shown. More would hide them.
const SHOWN: usize = 5;

/// Returns the differences between a view and the database's rows. Each line names the key, the
/// column and both values.
pub fn view_differences(view: &View<'_>, oracle: &OracleRows, key: &[&str]) -> String {
    rows_differences(view.schema(), view.rows().map(RowRef::tuple), oracle, key)
}

/// Returns the differences between some rows and the database's.
pub fn rows_differences<'a>(
    schema: &Schema,
    rows: impl Iterator<Item = &'a Tuple>,
    oracle: &OracleRows,
    key: &[&str],
) -> String {
    let names: Vec<&str> = schema.columns().iter().map(|column| column.name.as_str()).collect();
    if names != oracle.columns {
        return format!("columns: {:?} in the database, {names:?} in the client\n", oracle.columns);
    }
    let places: Vec<usize> = key.iter().filter_map(|name| names.iter().position(|column| column == name)).collect();
    let keyed = |row: &Tuple| (key_bytes(row.as_ref(), &places), row.clone());
    let rows: Vec<_> = rows.map(keyed).collect();
    let count = rows.len();
    let ours: BTreeMap<Vec<u8>, Tuple> = rows.into_iter().collect();
    let mut found = Vec::new();
    if ours.len() != count {
        found.push("the client has two rows of one key".to_owned());
    }
    for (key, theirs) in &oracle.rows {
        match ours.get(key) {
            None => found.push(format!("the client lacks {}", shown(key))),
            Some(row) if row != theirs => {
                let cells = names.iter().zip(theirs.as_ref().cells().zip(row.as_ref().cells()));
                for (column, (theirs, ours)) in cells.filter(|(_, (theirs, ours))| theirs != ours) {
                    let (theirs, ours) = (cell(theirs.value()), cell(ours.value()));
                    found.push(format!("{}, {column}: {theirs} in the database, {ours} in the client", shown(key)));
                }
            }
            Some(_) => {}
        }
    }
    let more = ours.keys().filter(|key| !oracle.rows.contains_key(*key));
    found.extend(more.map(|key| format!("the client still has {}", shown(key))));
    lines(&found)
}

/// Returns the differences between a Struct client's rows and the database's.
pub fn struct_differences(
    ours: &BTreeMap<String, JsonRow>,
    oracle: &OracleRows,
    schema: &Schema,
    key: &[&str],
) -> String {
    let mut theirs = BTreeMap::new();
    for row in oracle.rows.values() {
        // The client's present schema may not be the database's yet.
        let fields = match project_row(schema, row.as_ref()) {
            Ok(fields) => fields,
            Err(error) => return format!("the client's schema is not the database's: {error}"),
        };
        let row: JsonRow = fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_json())).collect();
        theirs.insert(key_of(key, &row), row);
    }
    json_differences(ours, &theirs)
}

/// Returns the differences in the columns that the database's rows have.
pub fn json_differences(ours: &BTreeMap<String, JsonRow>, theirs: &BTreeMap<String, JsonRow>) -> String {
    let mut found = Vec::new();
    for (key, theirs) in theirs {
        let Some(row) = ours.get(key) else {
            found.push(format!("the client lacks {}", start(key)));
            continue;
        };
        for (column, value) in theirs.iter().filter(|(column, value)| row.get(*column) != Some(value)) {
            let (theirs, ours) = (start(&value.to_string()), start(&format!("{:?}", row.get(column))));
            found.push(format!("{}, {column}: {theirs} in the database, {ours} in the client", start(key)));
        }
    }
    let more = ours.keys().filter(|key| !theirs.contains_key(*key));
    found.extend(more.map(|key| format!("the client still has {}", start(key))));
    lines(&found)
}

fn lines(found: &[String]) -> String {
    let mut text = String::new();
    for line in found.iter().take(SHOWN) {
        let _ = writeln!(text, "  {line}");
    }
    if found.len() > SHOWN {
        let _ = writeln!(text, "  and {} more", found.len() - SHOWN);
    }
    text
}

fn shown(key: &[u8]) -> String {
    let cells = laredo_core::TupleRef::trusted(key).cells().map(|part| cell(part.value()));
    format!("({})", cells.collect::<Vec<_>>().join(", "))
}

/// Returns the start of a cell, with bytes that are not text escaped.
fn cell(value: Option<&[u8]>) -> String {
    match value {
        None => "NULL".to_owned(),
        Some(bytes) => format!("{}:\"{}\"", bytes.len(), bytes[..bytes.len().min(60)].escape_ascii()),
    }
}

fn start(text: &str) -> String {
    text.chars().take(200).collect()
}
