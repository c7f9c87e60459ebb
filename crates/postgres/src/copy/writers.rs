use laredo_core::Oid;

use super::polling::PollingWait;
use crate::transport::{SqlConnection, TransportError};

/// A transaction that has written a table and has not ended.
#[derive(Clone, Debug)]
pub(crate) struct WritingTransaction {
    /// The transaction ID. It stays when a transaction is prepared and no longer belongs to a
    /// process. A transaction without an ID has not written.
    xid: String,
    /// A description of the transaction for people.
    pub(super) who: String,
}

/// Returns the open transactions that have written these tables or their partitions.
///
/// Changes that they made before the slot existed, or before the publication contained the table,
/// are never streamed. A snapshot taken before their commits are visible lacks these changes too.
/// Transactions that write later are streamed completely.
pub(crate) async fn open_writers(
    connection: &mut SqlConnection,
    oids: &[Oid],
) -> Result<Vec<WritingTransaction>, TransportError> {
    let condition = format!(
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
    );
    holding_locks(connection, &condition).await
}

/// Waits until these transactions have ended, for as long as [`PollingWait`] allows. Returns those
/// that have not ended.
pub(super) async fn wait_for(
    connection: &mut SqlConnection,
    mut writers: Vec<WritingTransaction>,
) -> Result<Vec<WritingTransaction>, TransportError> {
    let mut wait = PollingWait::new();
    while !writers.is_empty() {
        let is_long = wait.pause().await;
        writers = still_open(connection, &writers).await?;
        if is_long {
            break;
        }
    }
    Ok(writers)
}

/// Returns those of these transactions that have not ended.
pub(crate) async fn still_open(
    connection: &mut SqlConnection,
    writers: &[WritingTransaction],
) -> Result<Vec<WritingTransaction>, TransportError> {
    if writers.is_empty() {
        return Ok(Vec::new());
    }
    let xids: Vec<&str> = writers.iter().map(|writer| writer.xid.as_str()).collect();
    holding_locks(connection, &format!("t.transactionid::text IN ('{}')", xids.join("', '"))).await
}

/// Returns the transactions that meet a condition.
async fn holding_locks(
    connection: &mut SqlConnection,
    condition: &str,
) -> Result<Vec<WritingTransaction>, TransportError> {
    let sql = format!(
        "SELECT t.transactionid::text,
            coalesce(format('process %s of %s since %s', a.pid, a.usename, a.xact_start), 'a prepared transaction')
         FROM pg_locks t LEFT JOIN pg_stat_activity a ON a.pid = t.pid
         WHERE t.locktype = 'transactionid' AND t.mode = 'ExclusiveLock' AND t.granted AND {condition}"
    );
    let rows = connection.simple_query(&sql).await?;
    let writers = rows.into_iter().filter_map(|row| {
        let mut values = row.into_iter().flatten();
        Some(WritingTransaction { xid: values.next()?, who: values.next()? })
    });
    Ok(writers.collect())
}
