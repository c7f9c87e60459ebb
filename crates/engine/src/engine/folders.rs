//! The folders of all tables, opened at once.

use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::sleep;
use tracing::{Instrument, Span};

use crate::clock::Clock;
use crate::source::{SourceError, SourceServer};
use crate::store::StoreError;
use crate::table::{TableError, TableFolders, TableOptions, open_table_folders, table_span};

/// The number of attempts to open a table's folders. What passes within them, such as a mount that
/// comes late, costs no copy.
pub(super) const ATTEMPTS: u32 = 5;
/// The delay between two attempts.
pub(super) const DELAY: Duration = Duration::from_secs(1);

/// Opens the folders of all tables, each table's on a thread that may block. The error of a table
/// does not affect the others.
///
/// # Errors
/// When another process holds one of the folders. Opened folders are closed again, because that
/// process may need them. When disk space or descriptors are exhausted: the tables continue where
/// their journals end, once there are some.
pub(super) async fn open_folders(
    tables: &[TableOptions],
    source: &SourceServer,
    clock: &Clock,
) -> Result<Vec<Result<TableFolders, TableError>>, SourceError> {
    let mut opening = Vec::new();
    for options in tables {
        let open = open(options.clone(), source.clone(), clock.clone(), may_pass_soon);
        opening.push(tokio::spawn(open.instrument(table_span(&options.request.name))));
    }
    let (mut opened, mut held, mut exhausted) = (Vec::new(), None, None);
    for (table, options) in opening.into_iter().zip(tables) {
        let name = &options.request.name;
        opened.push(match table.await.and_then(|opened| opened) {
            Ok(Ok(table)) => Ok(table),
            Ok(Err(error)) => {
                if matches!(error, StoreError::Locked { .. }) {
                    held.get_or_insert(SourceError::Held(format!("table {name}: {error}")));
                } else if error.is_exhaustion() {
                    exhausted.get_or_insert(SourceError::Transient(format!("table {name}: {error}")));
                }
                Err(error.into())
            }
            Err(panic) => Err(opening_panicked(&panic)),
        });
    }
    held.or(exhausted).map_or(Ok(opened), Err)
}

/// Opens the folders of a table that is added to a run. Readers of the table that had them before
/// may need a moment to let them go.
pub(super) async fn open_added(
    options: &TableOptions,
    source: &SourceServer,
    clock: &Clock,
) -> Result<TableFolders, TableError> {
    let may_pass = |error: &StoreError| matches!(error, StoreError::Locked { .. }) || may_pass_soon(error);
    match open(options.clone(), source.clone(), clock.clone(), may_pass).await {
        Ok(opened) => opened.map_err(TableError::from),
        Err(panic) => Err(opening_panicked(&panic)),
    }
}

fn opening_panicked(panic: &JoinError) -> TableError {
    TableError::Source(format!("opening its folders failed ({panic}); report this"))
}

/// Opens the folders of a table. Tries again after an error that `may_pass`.
async fn open(
    options: TableOptions,
    source: SourceServer,
    clock: Clock,
    may_pass: impl Fn(&StoreError) -> bool,
) -> Result<Result<TableFolders, StoreError>, JoinError> {
    let mut attempt = 1;
    loop {
        let (options, source, clock) = (options.clone(), source.clone(), clock.clone());
        let span = Span::current();
        match spawn_blocking(move || span.in_scope(|| open_table_folders(&options, &source, &clock))).await? {
            Err(error) if may_pass(&error) && attempt < ATTEMPTS => sleep(DELAY).await,
            opened => return Ok(opened),
        }
        attempt += 1;
    }
}

fn may_pass_soon(error: &StoreError) -> bool {
    error.may_pass() && !error.is_exhaustion() && !matches!(error, StoreError::Locked { .. })
}
