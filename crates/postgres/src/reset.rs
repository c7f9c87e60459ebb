//! Dropping and creating the publication again, when an operator asks for it.

use std::sync::Arc;

use laredo_core::TableName;
use laredo_engine::source::SourceError;

use crate::copy::SourceTable;
use crate::options::SessionWork;
use crate::source_options::PostgresOptions;
use crate::transport::SqlConnection;
use crate::validate::refused;
use crate::{catalog, publication};

/// The number of attempts. If other sessions lock several tables all the time, some attempts end in
/// a deadlock.
const TRIES: usize = 10;
const DEADLOCK: &str = "40P01";

/// Drops the publication and creates it with the tables that are followed, in one transaction.
/// There is no moment without the publication: another slot that reads it would fail at a change
/// made in between.
pub(crate) async fn reset_publication(
    options: &PostgresOptions,
    tables: &[Arc<SourceTable>],
) -> Result<(), SourceError> {
    let name = &options.publication.name;
    if !options.publication.create {
        return Err(SourceError::Definite(vec![format!(
            "laredo may not create publication {name}, so it does not drop it either; set publication.create = true, or \
             reset without dropping it"
        )]));
    }
    let mut connection = SqlConnection::connect(&options.connection.for_work(SessionWork::Check)).await?;
    let names: Vec<TableName> = tables.iter().map(|table| table.request.name.clone()).collect();
    let found = catalog::read_facts(&mut connection, name, &names).await?;
    // A table that no longer exists has failed, and cannot be published.
    let known: Vec<_> = names.iter().zip(&found).filter_map(|(name, facts)| Some((name, facts.as_ref()?))).collect();
    let sql = publication::recreation_statements(name, &known);
    tracing::warn!(
        event = "publication_reset", %sql,
        "an operator requested that the publication is dropped and created again"
    );
    for _ in 1..TRIES {
        match connection.simple_query(&sql).await {
            Ok(_) => return Ok(()),
            // The statement locks several tables, as another session's TRUNCATE may. The session
            // that gives way to a deadlock can simply try again.
            Err(error) if error.server().is_some_and(|error| error.code == DEADLOCK) => {
                tracing::info!(
                    event = "publication_deadlock", %error,
                    "a deadlock stopped the statement for the publication; trying again"
                );
            }
            Err(error) => return Err(refused(&sql, error)),
        }
    }
    connection.simple_query(&sql).await.map(drop).map_err(|error| refused(&sql, error))
}
