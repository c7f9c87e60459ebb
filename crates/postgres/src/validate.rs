//! The checks before following begins. They report all problems at once, and nothing is changed
//! until there are none.

use std::collections::BTreeSet;
use std::sync::Arc;

use laredo_core::{Schema, TableName};
use laredo_engine::source::{SourceError, TableRequest};
use serde::Deserialize;

use crate::catalog::{self, TableFacts, quoted};
use crate::provider::{DatabaseProvider, PROVIDER_ROLE};
use crate::publication::{self, Publication};
use crate::relation_identity::ReplicaIdentity;
use crate::slot::{self, ReplicationSlot};
use crate::source_options::PostgresOptions;
use crate::transport::{SqlConnection, TransportError};

const VERSION_MIN: u32 = 14;

/// Checks everything, changes nothing, and returns the schemas of the tables.
pub(crate) async fn check(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    requests: &[TableRequest],
) -> Result<Vec<Arc<Schema>>, SourceError> {
    let found = find_valid(connection, options, requests).await?;
    let schemas = requests.iter().zip(&found.tables).map(|(request, facts)| match facts {
        Some(facts) => catalog::schema_of(&facts.definition, request).map(Arc::new).map_err(SourceError::Definite),
        None => Err(SourceError::Definite(vec![missing(&request.name, &found.server.database)])),
    });
    schemas.collect()
}

/// Reads the state of the source, and fails if it has any problem.
async fn find_valid(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    requests: &[TableRequest],
) -> Result<SourceFacts, SourceError> {
    let found = read_source_facts(connection, options, requests).await?;
    let problems = problems(options, requests, &found);
    if problems.is_empty() { Ok(found) } else { Err(SourceError::Definite(problems)) }
}

/// Reads the state of the source. Fails only if the server is too old.
async fn read_source_facts(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    requests: &[TableRequest],
) -> Result<SourceFacts, SourceError> {
    let version = connection.major_version();
    if version < VERSION_MIN {
        return Err(SourceError::Definite(vec![format!(
            "PostgreSQL {version} is too old: laredo needs {VERSION_MIN} or newer"
        )]));
    }
    let names: Vec<TableName> = requests.iter().map(|request| request.name.clone()).collect();
    Ok(SourceFacts {
        server: server(connection).await?,
        slot: slot::read_slot(connection, &options.slot).await?,
        publication: publication::read_publication(connection, &options.publication.name).await?,
        tables: catalog::read_facts(connection, &options.publication.name, &names).await?,
    })
}

/// Checks everything, then makes the publication contain the tables if that is allowed.
pub(crate) async fn prepare(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    requests: &[TableRequest],
) -> Result<(), SourceError> {
    let found = find_valid(connection, options, requests).await?;
    for (request, facts) in requests.iter().zip(&found.tables) {
        let doubt = facts.as_ref().and_then(|facts| catalog::key_problems(&facts.access, request));
        if let Some(doubt) = doubt {
            tracing::warn!(event = "key_not_unique", table = %request.name, "{doubt}");
        }
    }
    if let Some(sql) =
        publication::completion_statement(&options.publication, found.publication.as_ref(), &found.known(requests))
    {
        tracing::info!(event = "publication_changed", %sql, "changing the publication");
        connection.simple_query(&sql).await.map_err(|error| refused(&sql, error))?;
    }
    let names: Vec<TableName> = requests.iter().map(|request| request.name.clone()).collect();
    let unpublished = unpublished(connection, options, &names).await?;
    match unpublished.is_empty() {
        true => Ok(()),
        false => Err(SourceError::Definite(unpublished)),
    }
}

/// Checks what all tables need, then makes the publication contain the tables that it can. A table
/// that cannot be followed does not stop the others. Its copy reports the reason.
pub(crate) async fn prepare_what_can_be(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    requests: &[TableRequest],
) -> Result<(), SourceError> {
    let found = read_source_facts(connection, options, requests).await?;
    let mut problems = server_problems(&found.server, found.slot.is_some());
    problems.extend(slot::problems(&options.slot, found.slot.as_ref(), &found.server.database));
    problems.extend(duplicate_table_problems(requests));
    let pairs = requests.iter().zip(&found.tables).filter_map(|(request, facts)| Some((request, facts.as_ref()?)));
    let good: Vec<(&TableName, &TableFacts)> = pairs
        .filter(|(request, facts)| {
            let is_ours = facts.definition.published.is_some() || facts.access.owned;
            is_ours && table_problems(facts, request, requests, &found.server.role).is_empty()
        })
        .map(|(request, facts)| (&request.name, facts))
        .collect();
    let publication = found.publication.as_ref();
    if publication.is_none() {
        // Without a publication nothing is sent at all.
        let known = if good.is_empty() { found.known(requests) } else { good.clone() };
        problems.extend(publication::problems(&options.publication, None, &known, found.server.may_create));
    }
    if !problems.is_empty() {
        return Err(SourceError::Definite(problems));
    }
    let may_change = options.publication.create && publication.is_none_or(|publication| publication.owned);
    let sql = publication::completion_statement(&options.publication, publication, &good);
    if let Some(sql) = sql.filter(|_| may_change && !good.is_empty()) {
        tracing::info!(event = "publication_changed", %sql, "changing the publication");
        match connection.simple_query(&sql).await.map_err(|error| refused(&sql, error)) {
            Err(SourceError::Definite(problems)) if publication.is_some() => {
                tracing::warn!(
                    event = "publication_incomplete",
                    problem = problems.join("; "),
                    "the publication does not contain all tables"
                );
            }
            changed => drop(changed?),
        }
    }
    Ok(())
}

/// Checks tables that are to be followed in addition to `others`, and returns their schemas. With
/// `publishes`, the publication is then made to contain them, if that is allowed.
pub(crate) async fn check_more(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    more: &[TableRequest],
    others: &[TableRequest],
    publishes: bool,
) -> Result<Vec<Arc<Schema>>, SourceError> {
    let all = [more, others].concat();
    let found = read_source_facts(connection, options, more).await?;
    let known = found.known(more);
    let mut problems = Vec::new();
    if !known.is_empty() {
        let (publication, may_create) = (found.publication.as_ref(), found.server.may_create);
        problems.extend(publication::problems(&options.publication, publication, &known, may_create));
    }
    problems.extend(duplicate_table_problems(&all));
    let mut schemas = Vec::new();
    for (request, facts) in more.iter().zip(&found.tables) {
        let Some(facts) = facts else {
            problems.push(missing(&request.name, &found.server.database));
            continue;
        };
        problems.extend(table_problems(facts, request, &all, &found.server.role));
        schemas.extend(catalog::schema_of(&facts.definition, request).map(Arc::new));
    }
    if !problems.is_empty() {
        return Err(SourceError::Definite(problems));
    }
    let sql = publication::completion_statement(&options.publication, found.publication.as_ref(), &known);
    if let Some(sql) = sql.filter(|_| publishes && !known.is_empty()) {
        tracing::info!(event = "publication_changed", %sql, "changing the publication");
        connection.simple_query(&sql).await.map_err(|error| refused(&sql, error))?;
        let names: Vec<TableName> = more.iter().map(|request| request.name.clone()).collect();
        let unpublished = unpublished(connection, options, &names).await?;
        if !unpublished.is_empty() {
            return Err(SourceError::Definite(unpublished));
        }
    }
    Ok(schemas)
}

/// Returns a problem for each table that is configured twice.
fn duplicate_table_problems(requests: &[TableRequest]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let repeated = requests.iter().filter(|request| !seen.insert(&request.name));
    repeated.map(|request| format!("table {} is configured twice", request.name)).collect()
}

/// Returns a problem for each table whose changes are not published under its name. A partition may
/// be in the publication but published as its root.
async fn unpublished(
    connection: &mut SqlConnection,
    options: &PostgresOptions,
    names: &[TableName],
) -> Result<Vec<String>, TransportError> {
    let publication = &options.publication.name;
    let found = catalog::read_facts(connection, publication, names).await?;
    let missing = names.iter().zip(found).filter(|(_, facts)| {
        let definition = facts.as_ref().map(|facts| &facts.definition);
        definition.is_none_or(|definition| definition.published.is_none())
    });
    Ok(missing
        .map(|(name, _)| {
            format!(
                "publication {publication} does not send the changes of {name} under that name; if it is a partition, \
                 follow the partitioned table above it"
            )
        })
        .collect())
}

/// Returns the error of a statement that prepares the source. A transient error, such as a deadlock
/// with another session's `TRUNCATE`, needs no operator.
pub(crate) fn refused(sql: &str, error: TransportError) -> SourceError {
    match error.is_transient() {
        true => error.into(),
        false => SourceError::Definite(vec![format!("{error}; as a role with the privilege, run {sql}")]),
    }
}

/// The state of the source that the checks are about.
struct SourceFacts {
    server: ServerFacts,
    slot: Option<ReplicationSlot>,
    publication: Option<Publication>,
    tables: Vec<Option<TableFacts>>,
}

impl SourceFacts {
    fn known<'a>(&'a self, requests: &'a [TableRequest]) -> Vec<(&'a TableName, &'a TableFacts)> {
        let pairs = requests.iter().zip(&self.tables);
        pairs.filter_map(|(request, facts)| Some((&request.name, facts.as_ref()?))).collect()
    }
}

/// The server's settings and our role.
#[derive(Debug, Deserialize)]
struct ServerFacts {
    database: String,
    encoding: String,
    role: String,
    may_replicate: bool,
    may_create: bool,
    is_standby: bool,
    wal_level: String,
    slots: u32,
    slots_max: u32,
    walsenders: u32,
    walsenders_max: u32,
    provider: DatabaseProvider,
}

async fn server(connection: &mut SqlConnection) -> Result<ServerFacts, TransportError> {
    // On Amazon RDS the right to replicate is membership in a role.
    let sql = format!(
        "SELECT json_build_object(
        'database', current_database(),
        'encoding', current_setting('server_encoding'),
        'role', current_user,
        'may_replicate', EXISTS (SELECT FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolreplication))
            OR EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication' AND pg_has_role(oid, 'USAGE')),
        'may_create', has_database_privilege(current_database(), 'CREATE'),
        'is_standby', pg_is_in_recovery(),
        'wal_level', current_setting('wal_level'),
        'slots', (SELECT count(*) FROM pg_replication_slots),
        'slots_max', current_setting('max_replication_slots')::int,
        'walsenders', (SELECT count(*) FROM pg_stat_replication),
        'walsenders_max', current_setting('max_wal_senders')::int,
        'provider', {PROVIDER_ROLE})"
    );
    let rows = connection.simple_query(&sql).await?;
    let json = rows.into_iter().flatten().flatten().next().unwrap_or_default();
    serde_json::from_str(&json).map_err(|error| TransportError::Protocol(format!("{error} in {json}")))
}

fn problems(options: &PostgresOptions, requests: &[TableRequest], found: &SourceFacts) -> Vec<String> {
    let mut problems = server_problems(&found.server, found.slot.is_some());
    problems.extend(slot::problems(&options.slot, found.slot.as_ref(), &found.server.database));
    let known = found.known(requests);
    let (publication, may_create) = (found.publication.as_ref(), found.server.may_create);
    if !known.is_empty() {
        problems.extend(publication::problems(&options.publication, publication, &known, may_create));
    }
    problems.extend(duplicate_table_problems(requests));
    for (request, facts) in requests.iter().zip(&found.tables) {
        match facts {
            None => problems.push(missing(&request.name, &found.server.database)),
            Some(facts) => problems.extend(table_problems(facts, request, requests, &found.server.role)),
        }
    }
    problems
}

fn server_problems(server: &ServerFacts, has_slot: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if server.encoding != "UTF8" {
        problems.push(format!(
            "database {} is encoded in {}, and laredo needs UTF8; dump it and restore it into a database made with \
             CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
            server.database, server.encoding
        ));
    }
    if server.is_standby {
        problems.push("the server is a standby; connect to its primary".to_owned());
    }
    if server.wal_level != "logical" {
        problems.push(format!(
            "wal_level is {} and must be logical; {}",
            server.wal_level,
            server.provider.logical_decoding()
        ));
    }
    if !server.may_replicate {
        problems.push(format!(
            "role {} may not replicate; {}",
            server.role,
            server.provider.replication_right(&server.role)
        ));
    }
    if !has_slot && server.slots >= server.slots_max {
        problems.push(format!(
            "all {max} replication slots are in use; drop one that is not needed (SELECT slot_name, active FROM \
             pg_replication_slots), or {more}",
            max = server.slots_max,
            more = server.provider.setting("max_replication_slots", server.slots_max + 5)
        ));
    }
    if server.walsenders >= server.walsenders_max {
        problems.push(format!(
            "all {max} walsenders are busy; end a replication connection that is not needed (SELECT pid, \
             application_name FROM pg_stat_replication), or {more}",
            max = server.walsenders_max,
            more = server.provider.setting("max_wal_senders", server.walsenders_max + 5)
        ));
    }
    problems
}

fn missing(name: &TableName, database: &str) -> String {
    format!(
        "table {name} does not exist in database {database}; names are case-sensitive here, as in the catalog: see \
         SELECT schemaname, tablename FROM pg_tables"
    )
}

/// Returns the reasons why a table cannot be followed, each with the statement that fixes it.
pub(crate) fn table_problems(
    facts: &TableFacts,
    request: &TableRequest,
    requests: &[TableRequest],
    role: &str,
) -> Vec<String> {
    let (definition, access, name) = (&facts.definition, &facts.access, &request.name);
    let (table, quoted_role) = (name.quoted(), quoted(role));
    let kind = match (definition.kind, definition.persistence) {
        ('r' | 'p', 'p') => None,
        ('v', _) => Some("a view, and only tables have a stream of changes; follow the tables below it".to_owned()),
        ('m', _) => {
            Some("a materialized view, and only tables have a stream of changes; follow the tables below it".to_owned())
        }
        ('f', _) => Some("a foreign table, and its changes happen elsewhere; follow it where it is stored".to_owned()),
        (_, 'u') => Some(format!("unlogged, so its changes are not in the WAL; run ALTER TABLE {table} SET LOGGED")),
        (_, 't') => Some("temporary, so its changes are not in the WAL".to_owned()),
        (kind, persistence) => Some(format!(
            "of a kind that laredo does not know (relkind {kind:?}, relpersistence {persistence:?}), and only tables \
             have a stream of changes"
        )),
    };
    if let Some(kind) = kind {
        return vec![format!("{name} is {kind}")];
    }
    let mut problems = Vec::new();
    if !access.usage {
        let schema = quoted(&name.schema);
        problems.push(format!(
            "table {name}: this role lacks USAGE on its schema; as the schema's owner run GRANT USAGE ON SCHEMA {schema} TO {quoted_role}"
        ));
    }
    if !access.select {
        problems.push(format!(
            "table {name} cannot be read by this role; as its owner run GRANT SELECT ON {table} TO {quoted_role}"
        ));
    } else if access.hides_rows {
        problems.push(hides_rows(facts, name, role));
    }
    if definition.identity == ReplicaIdentity::Default && definition.key.is_none() && access.deferrable_key {
        problems.push(format!(
            "table {name}: its primary key is DEFERRABLE, so it does not identify rows for replication; make it NOT \
             DEFERRABLE, or run ALTER TABLE {table} REPLICA IDENTITY FULL"
        ));
    } else if let Err(more) = catalog::schema_of(definition, request) {
        problems.extend(more);
    }
    problems.extend(partition_problem(facts, request, requests));
    problems
}

/// Returns the problem that row-level security would hide rows from a copy.
fn hides_rows(facts: &TableFacts, name: &TableName, role: &str) -> String {
    format!(
        "table {name}: row-level security would hide rows from this role; as a superuser run ALTER ROLE {role} BYPASSRLS, \
         or where no role may do that, as the table's owner run GRANT {owner} TO {role}",
        role = quoted(role),
        owner = quoted(&facts.access.owner)
    )
}

fn partition_problem(facts: &TableFacts, request: &TableRequest, requests: &[TableRequest]) -> Option<String> {
    let name = &request.name;
    let ancestors = facts.definition.ancestors.iter();
    let mut ancestors = ancestors.map(|ancestor| TableName::new(&ancestor.schema, &ancestor.table));
    let followed = ancestors.find(|ancestor| requests.iter().any(|other| other.name == *ancestor));
    followed.map(|root| {
        format!("table {name} is a partition of {root}, whose rows include its own; follow only one of them")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::PostgresError;

    #[test]
    fn a_deadlock_while_the_publication_is_made_is_tried_again() {
        let said = |code: &str| {
            let code = code.to_owned();
            refused("CREATE PUBLICATION p", PostgresError { code, ..PostgresError::default() }.into())
        };
        assert!(matches!(said("40P01"), SourceError::Transient(_)));
        assert!(
            matches!(said("42501"), SourceError::Definite(problems) if problems[0].contains("CREATE PUBLICATION p"))
        );
    }
}
