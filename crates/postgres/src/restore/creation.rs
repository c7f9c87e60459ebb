//! The creation of a table for the rows of an archive.
//!
//! An archive may come from anywhere, so its words never become SQL. Names are quoted. A type's
//! name is only looked up, and the statement contains the spelling that the database returns for
//! the type that it found.

use laredo_core::{Column, Schema, TableName};
use postgres_protocol::escape::escape_literal;

use super::RestoreError;
use crate::catalog::quoted;
use crate::transport::{PostgresError, SqlConnection, TextRow, TransportError};

/// Creates a table with the columns and the key of `schema`.
///
/// # Errors
/// [`RestoreError::NoType`] for a type that the database lacks, and [`RestoreError::Transport`] if
/// PostgreSQL refuses the table.
pub(super) async fn create_table(
    connection: &mut SqlConnection,
    table: &TableName,
    schema: &Schema,
) -> Result<(), RestoreError> {
    let mut parts = Vec::new();
    for column in schema.columns() {
        let type_name = spell_type(connection, column).await?;
        let not_null = if column.not_null { " NOT NULL" } else { "" };
        parts.push(format!("{} {type_name}{not_null}", quoted(&column.name)));
    }
    let key = schema.key().columns().iter().filter_map(|index| schema.columns().get(*index));
    let key: Vec<String> = key.map(|column| quoted(&column.name)).collect();
    if !key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    let sql = format!("CREATE TABLE {} ({})", table.quoted(), parts.join(", "));
    // The extended protocol takes only one statement.
    connection.query(&sql, &[]).await?;
    Ok(())
}

/// Returns the database's own spelling of a column's type.
async fn spell_type(connection: &mut SqlConnection, column: &Column) -> Result<String, RestoreError> {
    let no_type = |cause: Option<PostgresError>| RestoreError::NoType {
        column: column.name.clone(),
        type_name: column.type_name.clone(),
        cause: cause.map(Box::new),
    };
    if column.type_name.contains('\0') {
        return Err(no_type(None));
    }
    // PostgreSQL reads the literal as the name of a type, and as nothing else.
    let sql = format!(
        "SELECT format_type(oid, {}), oid, nullif(typmodin, 0)::regproc FROM pg_type WHERE oid = to_regtype({})",
        column.type_modifier,
        escape_literal(&column.type_name)
    );
    let found = match connection.simple_query(&sql).await {
        Err(TransportError::Server(error)) if !error.is_transient() => return Err(no_type(Some(error))),
        found => found?,
    };
    let value = |row: Option<&TextRow>, number: usize| row.and_then(|row| row.get(number)).cloned().flatten();
    let (spelled, oid) = (value(found.first(), 0), value(found.first(), 1));
    let (Some(spelled), Some(oid)) = (spelled, oid) else { return Err(no_type(None)) };
    let (modifiers, reader) = (modifiers(column), value(found.first(), 2));
    let (Some(modifiers), Some(reader)) = (modifiers, reader) else { return Ok(spelled) };
    let modifiers = escape_literal(&format!("{{{}}}", modifiers.join(",")));
    let sql = format!("SELECT format_type({oid}, {reader}({modifiers}::cstring[]))");
    let found = match connection.simple_query(&sql).await {
        Err(TransportError::Server(error)) if !error.is_transient() => return Err(no_type(Some(error))),
        found => found?,
    };
    value(found.first(), 0).ok_or_else(|| no_type(None))
}

/// Returns the modifiers in a type's name, such as `10` and `2` of `numeric(10,2)`. Archives of
/// other programs have a modifier only there. Returns `None` if the name has none.
fn modifiers(column: &Column) -> Option<Vec<&str>> {
    let name = column.type_name.as_str();
    // The modifier of an interval also contains its fields, which are words of the name.
    let is_interval = name.get(..8).is_some_and(|begin| begin.eq_ignore_ascii_case("interval"));
    if column.type_modifier != -1 || is_interval || name.contains('"') {
        return None;
    }
    let (_, after) = name.split_once('(')?;
    let (inside, _) = after.split_once(')')?;
    let modifiers: Vec<&str> = inside.split(',').map(str::trim).collect();
    let is_plain = |text: &&str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    modifiers.iter().all(is_plain).then_some(modifiers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_are_read_from_a_name_without_a_modifier_of_its_own() {
        let column = |type_name: &str, type_modifier| Column {
            name: "c".to_owned(),
            type_oid: 1700,
            type_modifier,
            type_name: type_name.to_owned(),
            not_null: false,
            is_text: false,
        };
        for (name, modifier, expected) in [
            ("numeric(10, -2)", -1, Some(vec!["10", "-2"])),
            ("timestamp(3) without time zone", -1, Some(vec!["3"])),
            ("public.geometry(Point,4326)[]", -1, Some(vec!["Point", "4326"])),
            ("numeric(10,2)", 655_366, None),
            ("numeric", -1, None),
            ("interval day to second(3)", -1, None),
            ("numeric(10); DROP TABLE t; --)", -1, Some(vec!["10"])),
            ("numeric('1')", -1, None),
            ("numeric({1})", -1, None),
            ("\"a(1)\"", -1, None),
            ("numeric()", -1, None),
        ] {
            assert_eq!(modifiers(&column(name, modifier)), expected, "{name}");
        }
    }
}
