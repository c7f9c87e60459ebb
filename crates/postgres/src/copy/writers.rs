use laredo_core::TableName;
use postgres_protocol::escape::escape_literal;

use super::wait::Wait;
use crate::transport::{Connection, TransportError};

/// Waits until the transactions are over that have written a table by now.
///
/// What they wrote before the slot, or before the publication had the table, is never streamed. A snapshot taken before
/// their commits are visible would not have it either. Whoever writes later is streamed as a whole.
pub(super) async fn wait_for_writers(connection: &mut Connection, table: &TableName) -> Result<(), TransportError> {
    let mut waiting = writers(connection, table, None).await?;
    let mut wait = Wait::new();
    while !waiting.is_empty() {
        if wait.pause().await {
            let whom: Vec<&str> = waiting.iter().map(|writer| writer.who.as_str()).collect();
            tracing::warn!(%table, writers = whom.join("; "), "the copy can begin when these transactions have ended");
        }
        waiting = writers(connection, table, Some(&waiting)).await?;
    }
    Ok(())
}

struct Writer {
    /// A transaction keeps its id when it is prepared, and then belongs to no process. One without an id has not written.
    xid: String,
    who: String,
}

/// The transactions that hold a lock for writing, of those `among` if given.
async fn writers(
    connection: &mut Connection,
    table: &TableName,
    among: Option<&[Writer]>,
) -> Result<Vec<Writer>, TransportError> {
    let condition = match among {
        Some(writers) => {
            let xids: Vec<&str> = writers.iter().map(|writer| writer.xid.as_str()).collect();
            format!("t.transactionid::text IN ('{}')", xids.join("', '"))
        }
        None => format!(
            "EXISTS (SELECT FROM pg_locks r
                WHERE r.virtualtransaction = t.virtualtransaction AND r.locktype = 'relation' AND r.granted
                  AND r.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                  AND r.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND (r.relation = to_regclass({table}) OR r.relation IN (
                      SELECT relid FROM pg_partition_tree(to_regclass({table})))))",
            table = escape_literal(&table.quoted())
        ),
    };
    let sql = format!(
        "SELECT t.transactionid::text,
            coalesce(format('process %s of %s since %s', a.pid, a.usename, a.xact_start), 'a prepared transaction')
         FROM pg_locks t LEFT JOIN pg_stat_activity a ON a.pid = t.pid
         WHERE t.locktype = 'transactionid' AND t.mode = 'ExclusiveLock' AND t.granted AND {condition}"
    );
    let rows = connection.simple_query(&sql).await?;
    let writers = rows.into_iter().filter_map(|row| {
        let mut values = row.into_iter().flatten();
        Some(Writer { xid: values.next()?, who: values.next()? })
    });
    Ok(writers.collect())
}
