//! What the catalogue says of a table: all that a schema, a check, or a comparison needs, read in one query.

mod facts;
mod schema;

pub(crate) use facts::{Definition, Facts, Identity, Published};
pub(crate) use schema::{key_problems, quoted, schema_of, type_def};

use laredo_core::TableName;
use postgres_protocol::escape::escape_literal;

use crate::transport::{Connection, Row, TransportError};

/// Reads the facts of `tables`, in their order; `None` where there is no such table. What the publication says of them
/// is part of them.
pub(crate) async fn read(
    connection: &mut Connection,
    publication: &str,
    tables: &[TableName],
) -> Result<Vec<Option<Facts>>, TransportError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let wanted: Vec<String> = tables
        .iter()
        .enumerate()
        .map(|(place, name)| {
            let (schema, table) = (escape_literal(&name.schema), escape_literal(&name.table));
            format!("({place}, {schema}::name, {table}::name)")
        })
        .collect();
    let publication = escape_literal(publication);
    // Column lists and row filters exist from 15 on; from 18 on a generated column may be published by name.
    let published = match connection.major_version() {
        ..15 => format!(
            "SELECT schemaname, tablename, NULL::json, NULL::text, NULL::text FROM pg_publication_tables WHERE pubname = {publication}"
        ),
        version => format!(
            "SELECT schemaname, tablename, (SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = ANY (p.attnames) AND ({generated} OR a.attgenerated = '')),
                rowfilter,
                (SELECT s.oid::text FROM pg_publication_namespace s JOIN pg_publication u ON u.oid = s.pnpubid
                 WHERE u.pubname = p.pubname AND s.pnnspid = n.oid)
             FROM pg_publication_tables p
             JOIN pg_namespace n ON n.nspname = p.schemaname
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
             WHERE pubname = {publication}",
            generated = version >= 18
        ),
    };
    let sql = include_str!("catalog/facts.sql")
        .replace("{wanted}", &wanted.join(", "))
        .replace("{published}", &published)
        .replace("{publication}", &publication);
    let mut found = vec![None; tables.len()];
    for row in connection.simple_query(&sql).await? {
        let (place, facts) = facts_row(&row)?;
        if let Some(slot) = found.get_mut(place) {
            *slot = Some(facts);
        }
    }
    Ok(found)
}

fn facts_row(row: &Row) -> Result<(usize, Facts), TransportError> {
    let unexpected = |problem: String| TransportError::Protocol(format!("the catalogue's answer: {problem}"));
    let [Some(place), Some(json)] = row.as_slice() else {
        return Err(unexpected(format!("{row:?}")));
    };
    let place = place.parse().map_err(|_| unexpected(place.clone()))?;
    let facts = serde_json::from_str(json).map_err(|error| unexpected(format!("{error} in {json}")))?;
    Ok((place, facts))
}
