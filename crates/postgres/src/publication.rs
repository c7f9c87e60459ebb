//! The publication: reading it, and making it contain the tables that are followed. Other clients
//! may read it. Only a reset by an operator removes tables from it.

use laredo_core::TableName;
use postgres_protocol::escape::escape_literal;

use crate::catalog::{self, TableFacts, quoted};
use crate::options::ConnectionOptions;
use crate::transport::{SqlConnection, TransportError};

/// The publication that is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationOptions {
    /// The name of the publication.
    pub name: String,
    /// True if laredo may create the publication and add tables to it.
    pub create: bool,
}

/// The catalog's row for a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// True if our role may alter it.
    pub(crate) owned: bool,
    /// True if it publishes inserts, updates, deletes and truncates.
    pub(crate) has_all_operations: bool,
    /// True if partitions' changes are sent as their root's.
    pub(crate) via_root: bool,
}

/// Reads a publication. Returns `None` if it does not exist.
pub(crate) async fn read_publication(
    connection: &mut SqlConnection,
    name: &str,
) -> Result<Option<Publication>, TransportError> {
    let sql = format!(
        "SELECT pg_has_role(pubowner, 'USAGE'), pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot
         FROM pg_publication WHERE pubname = {}",
        escape_literal(name)
    );
    let rows = connection.simple_query(&sql).await?;
    Ok(rows.first().map(|row| {
        let is = |column: usize| row.get(column).is_some_and(|value| value.as_deref() == Some("t"));
        Publication { owned: is(0), has_all_operations: is(1), via_root: is(2) }
    }))
}

/// Returns the statement that makes the publication contain `tables`, all of which exist. `None` if
/// it already does.
pub(crate) fn completion_statement(
    options: &PublicationOptions,
    found: Option<&Publication>,
    tables: &[(&TableName, &TableFacts)],
) -> Option<String> {
    let missing = tables.iter().filter(|(_, facts)| facts.definition.published.is_none());
    let missing = listed(missing);
    let name = quoted(&options.name);
    match found {
        Some(_) => (!missing.is_empty()).then(|| format!("ALTER PUBLICATION {name} ADD TABLE {missing}")),
        None => Some(creation(&name, &missing)),
    }
}

/// Returns the statement that adds a table to an existing publication, if the table is missing
/// there and can be added.
pub(crate) fn addition(options: &PublicationOptions, name: &TableName, facts: &TableFacts) -> Option<String> {
    let definition = &facts.definition;
    let is_missing = definition.published.is_none() && facts.access.publication_via_root.is_some();
    let can_be_added =
        matches!(definition.kind, 'r' | 'p') && definition.persistence == 'p' && definition.ancestors.is_empty();
    let listed = listed([(name, facts)].iter());
    (is_missing && can_be_added).then(|| format!("ALTER PUBLICATION {} ADD TABLE {listed}", quoted(&options.name)))
}

/// Returns the statements that drop the publication and create it again with `tables`, all of which
/// exist.
pub(crate) fn recreation_statements(name: &str, tables: &[(&TableName, &TableFacts)]) -> String {
    let name = quoted(name);
    format!("DROP PUBLICATION IF EXISTS {name}; {}", creation(&name, &listed(tables.iter())))
}

/// Returns the statement that creates a publication with those of the tables that exist.
pub(crate) async fn creation_of(
    options: &ConnectionOptions,
    name: &str,
    tables: &[TableName],
) -> Result<String, TransportError> {
    let mut connection = SqlConnection::connect(options).await?;
    let found = catalog::read_facts(&mut connection, name, tables).await?;
    let known: Vec<_> = tables.iter().zip(&found).filter_map(|(name, facts)| Some((name, facts.as_ref()?))).collect();
    Ok(creation(&quoted(name), &listed(known.iter())))
}

fn creation(name: &str, tables: &str) -> String {
    format!(
        "CREATE PUBLICATION {name} FOR TABLE {tables} WITH (publish = 'insert, update, delete, truncate', \
         publish_via_partition_root = true)"
    )
}

fn listed<'a>(tables: impl Iterator<Item = &'a (&'a TableName, &'a TableFacts)>) -> String {
    let tables = tables.map(|(name, facts)| match facts.definition.kind {
        // A partitioned table always includes its partitions. Inheritance children are tables of
        // their own.
        'p' => name.quoted(),
        _ => format!("ONLY {}", name.quoted()),
    });
    tables.collect::<Vec<_>>().join(", ")
}

/// Returns the problems of the publication, each with the statement that fixes it.
pub(crate) fn problems(
    options: &PublicationOptions,
    found: Option<&Publication>,
    tables: &[(&TableName, &TableFacts)],
    may_create: bool,
) -> Vec<String> {
    let name = &options.name;
    let mut problems = Vec::new();
    let statement = completion_statement(options, found, tables);
    match (found, statement) {
        (None, Some(sql)) if !options.create => problems.push(format!(
            "publication {name} does not exist; run {sql}, or let laredo do so with publication.create = true"
        )),
        (Some(_), Some(sql)) if !options.create => problems.push(format!(
            "publication {name} lacks tables; run {sql}, or let laredo do so with publication.create = true"
        )),
        (None, Some(sql)) if !may_create => problems.push(format!(
            "publication {name} does not exist, and this role may not create one in the database; grant it CREATE on \
             the database, or as a superuser, or as the tables' owner with that right, run {sql}"
        )),
        (Some(publication), Some(sql)) if !publication.owned => problems
            .push(format!("publication {name} lacks tables and belongs to another role; as its owner run {sql}")),
        (_, Some(sql)) => {
            let foreign: Vec<String> = tables
                .iter()
                .filter(|(_, facts)| facts.definition.published.is_none() && !facts.access.owned)
                .map(|(table, facts)| format!("{table} (of {})", facts.access.owner))
                .collect();
            if !foreign.is_empty() {
                problems.push(format!(
                    "only their owner may publish the tables {}; as that owner or a superuser run {sql}",
                    foreign.join(", ")
                ));
            }
        }
        (_, None) => {}
    }
    problems.extend(found.map_or_else(Vec::new, |found| flag_problems(name, found, tables)));
    problems
}

/// Returns the reason why a table is not published as required, with the statement that fixes it.
/// `None` if there is no problem.
pub(crate) fn table_problem(publication: &str, name: &TableName, facts: &TableFacts) -> Option<String> {
    let definition = &facts.definition;
    if let Some(published) = &definition.published {
        let all = published.insert && published.update && published.delete && published.truncate;
        return (!all).then(|| narrowed(publication));
    }
    Some(match facts.access.publication_via_root {
        None => format!(
            "publication {publication} is gone, and without it the changes of {name} are not sent; create it again \
             (laredo-server does so if publication.create is true)"
        ),
        Some(false) if definition.kind == 'p' => not_via_root(publication, name),
        Some(true) if !definition.ancestors.is_empty() => format!(
            "publication {publication} sends the changes of {name} as those of the partitioned table above it; follow \
             that one"
        ),
        Some(_) => format!(
            "table {name} was removed from publication {publication}; run ALTER PUBLICATION {} ADD TABLE {}",
            quoted(publication),
            name.quoted()
        ),
    })
}

fn flag_problems(name: &str, found: &Publication, tables: &[(&TableName, &TableFacts)]) -> Vec<String> {
    let mut problems = Vec::new();
    if !found.has_all_operations {
        problems.push(narrowed(name));
    }
    let root = tables.iter().find(|(_, facts)| facts.definition.kind == 'p');
    if let (false, Some((root, _))) = (found.via_root, root) {
        problems.push(not_via_root(name, root));
    }
    problems
}

fn narrowed(publication: &str) -> String {
    format!(
        "publication {publication} does not publish every kind of change, so copies would go stale; run ALTER \
         PUBLICATION {} SET (publish = 'insert, update, delete, truncate')",
        quoted(publication)
    )
}

fn not_via_root(publication: &str, root: &TableName) -> String {
    format!(
        "publication {publication} publishes the partitions of {root} one by one; run ALTER PUBLICATION {} SET \
         (publish_via_partition_root = true)",
        quoted(publication)
    )
}
