//! The facts of a table in the catalog: all that a schema, a check or a comparison needs, read in
//! one query.

mod definition;
mod facts;
mod schema;

pub(crate) use definition::{
    DefinitionImpact, HarmlessConditions, TableDefinition, TableFile, TablePublication, TypeFacts,
};
pub(crate) use facts::TableFacts;
pub(crate) use schema::{key_problems, quoted, schema_of, type_def};

use laredo_core::{Oid, TableName};
use postgres_protocol::escape::escape_literal;

use crate::transport::{SqlConnection, TextRow, TransportError};

/// The reason for a copy after PostgreSQL was restarted. See [`TableFacts::changed_after`].
pub(crate) const UNPROVEN_CHANGE: &str = "PostgreSQL was restarted, and no commit proves that the newest change of the definition \
     is the one that was followed";

/// Reads the facts of `tables`, in their order, with the publication's settings for each. `None`
/// for a table that does not exist.
pub(crate) async fn read_facts(
    connection: &mut SqlConnection,
    publication: &str,
    tables: &[TableName],
) -> Result<Vec<Option<TableFacts>>, TransportError> {
    prepare_session(connection).await?;
    let mut found = Vec::with_capacity(tables.len());
    for table in tables {
        found.push(read_table_facts(connection, publication, table).await?);
    }
    Ok(found)
}

/// Prepares a session for [`read_table_facts`].
pub(crate) async fn prepare_session(connection: &mut SqlConnection) -> Result<(), TransportError> {
    let query = query(connection.major_version());
    // Planning the query takes longer than running it, and JIT compilation takes far longer.
    let sql = format!(
        "SET jit = off; SET plan_cache_mode = force_generic_plan; DEALLOCATE ALL; \
         PREPARE laredo_facts (name, name, name) AS {query}"
    );
    connection.simple_query(&sql).await.map(drop)
}

/// Reads the facts of one table in a prepared session. Waits for no lock.
pub(crate) async fn read_table_facts(
    connection: &mut SqlConnection,
    publication: &str,
    table: &TableName,
) -> Result<Option<TableFacts>, TransportError> {
    let [schema, table, publication] = [&table.schema, &table.table, publication].map(escape_literal);
    let sql = format!("EXECUTE laredo_facts ({schema}, {table}, {publication})");
    connection.simple_query(&sql).await?.first().map(facts_of).transpose()
}

/// Reads the row filter of a table that is published with one, as an SQL condition. The query opens
/// the table, so the caller must hold a lock on it.
pub(crate) async fn row_filter(
    connection: &mut SqlConnection,
    publication: &str,
    table: Oid,
) -> Result<Option<String>, TransportError> {
    let sql = format!(
        "SELECT pg_get_expr(r.prqual, r.prrelid) FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
         WHERE p.pubname = {} AND r.prrelid = {table}",
        escape_literal(publication)
    );
    Ok(connection.simple_query(&sql).await?.into_iter().flatten().flatten().next())
}

/// Returns the query of [`read_table_facts`] for the catalog of this major version of PostgreSQL.
fn query(version: u32) -> String {
    // Column lists, row filters and schemas are published from 15 on; generated columns from 18 on.
    let generated = if version >= 18 { "true" } else { "a.attgenerated = ''" };
    let stored = if version >= 18 { "OR p.pubgencols = 's' AND a.attgenerated = 's'" } else { "" };
    let columns = format!(
        "(SELECT json_agg(a.attname ORDER BY a.attnum) FROM attributes a
          WHERE CASE WHEN m.attrs IS NOT NULL AND m.by_schema IS NULL AND NOT p.puballtables
              THEN a.attnum = ANY (m.attrs::int2[]) AND {generated}
              ELSE a.attgenerated = '' {stored} END)"
    );
    let by_schema = "(SELECT s.oid FROM pg_publication_namespace s
        WHERE s.pnpubid = p.oid AND s.pnnspid = c.relnamespace)";
    let [attrs, qual, by_schema, columns] = match version {
        ..15 => ["NULL::int2vector", "NULL::text", "NULL::oid", "NULL::json"],
        _ => ["r.prattrs", "r.prqual", by_schema, &columns],
    };
    include_str!("catalog/facts.sql")
        .replace("{schema}", "$1")
        .replace("{table}", "$2")
        .replace("{publication}", "$3")
        .replace("{attrs}", attrs)
        .replace("{qual}", qual)
        .replace("{by_schema}", by_schema)
        .replace("{columns}", columns)
}

fn facts_of(row: &TextRow) -> Result<TableFacts, TransportError> {
    let unexpected = |problem: String| TransportError::Protocol(format!("the catalog's answer: {problem}"));
    let [Some(json)] = row.as_slice() else {
        return Err(unexpected(format!("{row:?}")));
    };
    serde_json::from_str(json).map_err(|error| unexpected(format!("{error} in {json}")))
}
