//! The folders of all tables, opened at once.

use crate::source::{SourceError, SourceIdentity};
use crate::store::StoreError;
use crate::table::{Clock, TableError, TableFolders, TableOptions, open_table_folders};

/// Opens the folders of all tables, each table's on a thread that may block. The error of a table
/// does not affect the others.
///
/// # Errors
/// When another process holds one of the folders. Opened folders are closed again, because that
/// process may need them.
pub(super) async fn open_folders(
    tables: &[TableOptions],
    source: &SourceIdentity,
    clock: &Clock,
) -> Result<Vec<Result<TableFolders, TableError>>, SourceError> {
    let mut opening = Vec::new();
    for options in tables {
        let (options, source, clock) = (options.clone(), source.clone(), clock.clone());
        opening.push(tokio::task::spawn_blocking(move || open_table_folders(&options, &source, &clock)));
    }
    let (mut opened, mut held) = (Vec::new(), None);
    for (table, options) in opening.into_iter().zip(tables) {
        opened.push(match table.await {
            Ok(Ok(table)) => Ok(table),
            Ok(Err(error)) => {
                if matches!(error, StoreError::Locked { .. }) {
                    held.get_or_insert(format!("table {}: {error}", options.request.name));
                }
                Err(error.into())
            }
            Err(panic) => Err(TableError::Source(format!("opening its folders failed ({panic}); report this"))),
        });
    }
    held.map_or(Ok(opened), |holder| Err(SourceError::Held(holder)))
}
