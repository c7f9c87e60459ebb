use laredo_core::{Oid, TableName};

use super::wait::Wait;
use crate::transport::{Connection, TransportError};

/// Waits until the transactions are over that have written these tables, or their partitions, by now. `table` is for the log.
///
/// What they wrote before the slot, or before the publication had the table, is never streamed. A snapshot taken before
/// their commits are visible would not have it either. Whoever writes later is streamed as a whole.
pub(super) async fn wait_for_writers(
    connection: &mut Connection,
    table: &TableName,
    oids: &[Oid],
) -> Result<(), TransportError> {
    let mut waiting = writers(connection, oids, None).await?;
    let mut wait = Wait::new();
    while !waiting.is_empty() {
        if wait.pause().await {
            let whom: Vec<&str> = waiting.iter().map(|writer| writer.who.as_str()).collect();
            tracing::warn!(%table, writers = whom.join("; "), "the copy can begin when these transactions have ended");
        }
        waiting = writers(connection, oids, Some(&waiting)).await?;
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
    oids: &[Oid],
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
                  AND r.relation IN (
                      WITH RECURSIVE tree (oid) AS (
                          SELECT unnest(ARRAY[{oids}]::oid[])
                          UNION SELECT i.inhrelid FROM tree JOIN pg_class c ON c.oid = tree.oid AND c.relkind = 'p'
                          JOIN pg_inherits i ON i.inhparent = tree.oid)
                      SELECT oid FROM tree))",
            oids = oids.iter().map(Oid::to_string).collect::<Vec<_>>().join(", ")
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
