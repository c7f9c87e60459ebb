//! The task that keeps the rows for queries current. It reads a base and the journal after it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use laredo_core::Lsn;
use laredo_engine::TableHandle;
use laredo_engine::base::{Base, BaseError};
use laredo_engine::journal::{CursorError, Journal};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::sleep;

use super::rows::QueryRowsError;
use super::{QueryRows, QueryState, QueryTable};
use crate::options::QueryIndexOptions;

/// The time until the rows are read again after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// The time after which a table whose journal was replaced is looked at again.
const REPLACED: Duration = Duration::from_millis(20);

/// The reason why the rows have to be read again.
#[derive(Debug, thiserror::Error)]
enum QueryFollowError {
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Rows(#[from] QueryRowsError),
    #[error(transparent)]
    Cursor(#[from] CursorError),
    #[error("applying changes: {0}")]
    Task(#[from] JoinError),
    #[error("the journal has ended")]
    Ended,
}

/// Keeps the rows for queries current until the engine stops. While they are read again, the rows
/// before remain.
pub(crate) async fn follow_table(table: &QueryTable, handle: &TableHandle) {
    while let Some(journal) = handle.wait_journal().await {
        tokio::select! {
            biased;
            () = journal.closed() => sleep(REPLACED).await,
            ended = follow_journal(table, handle, &journal) => {
                let Err(error) = ended;
                if !journal.is_closed() {
                    tracing::warn!(event = "queries_read_again", table = %handle.name(), %error, "the rows for queries are read again");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

async fn follow_journal(
    table: &QueryTable,
    handle: &TableHandle,
    journal: &Journal,
) -> Result<Infallible, QueryFollowError> {
    let mut pinned = Some(journal.pin_base());
    let base = pinned.as_ref().map(|pinned| pinned.base().clone()).ok_or(QueryFollowError::Ended)?;
    let (after, indexes) = (base.sequence(), table.options.indexes.clone());
    let mut position = base.position();
    let mut rows = spawn_blocking(move || read_base(&base, &indexes)).await??;
    let mut cursor = journal.cursor(after);
    let mut heads = journal.watch_head();
    // Rows that are older than those before are not shown.
    let goal = heads.borrow().sequence;
    loop {
        let head = *heads.borrow_and_update();
        while let Some(piece) = cursor.next_piece_async().await? {
            let (ends, end) = (piece.ends, piece.position);
            rows = spawn_blocking(move || rows.apply_piece(piece).map(|()| rows)).await??;
            if ends {
                position = position.max(end);
                if cursor.after() >= goal {
                    publish(table, handle, state(&rows, position, journal), pinned.take().is_some());
                }
            }
        }
        // Everything up to this head was applied, and perhaps more.
        if head.position > position || pinned.is_some() {
            position = position.max(head.position);
            publish(table, handle, state(&rows, position, journal), pinned.take().is_some());
        }
        heads.changed().await.map_err(|_| QueryFollowError::Ended)?;
    }
}

fn state(rows: &QueryRows, position: Lsn, journal: &Journal) -> QueryState {
    QueryState { rows: rows.clone(), position, journal: Some(journal.clone()) }
}

fn publish(table: &QueryTable, handle: &TableHandle, state: QueryState, is_first: bool) {
    let QueryState { rows, position, .. } = state.clone();
    table.publish(state);
    if !is_first {
        return;
    }
    table.fills.fetch_add(1, Ordering::Relaxed);
    tracing::info!(event = "queries_answered", table = %handle.name(), rows = rows.len(), %position, "queries are answered");
    for index in rows.indexes() {
        if let Err(problem) = &index.rows {
            let (index, problem) = (&index.options.name, &**problem);
            tracing::error!(event = "index_refused", table = %handle.name(), index, problem, "the table cannot have this index (`indexes`)");
        }
    }
}

fn read_base(base: &Base, indexes: &[Arc<QueryIndexOptions>]) -> Result<QueryRows, BaseError> {
    let mut rows = QueryRows::new(base.schema().clone(), indexes);
    base.for_each_row(|row| {
        rows.put(row);
        Ok::<(), BaseError>(())
    })?;
    Ok(rows)
}
