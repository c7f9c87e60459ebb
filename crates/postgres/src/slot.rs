//! The replication slot: its state in the catalog, and the transactions that its creation waits
//! for.

use std::time::Duration;

use laredo_core::Lsn;
use postgres_protocol::escape::escape_literal;

use crate::options::{ConnectionOptions, SessionWork};
use crate::transport::{SqlConnection, TextRow, TransportError};

/// The time after which a slow slot creation is explained, and then again every [`AGAIN`].
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(30);

/// The replication slot that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotMode {
    /// A slot with this name that stays in the database and keeps what was not acknowledged.
    Stateful {
        /// The name of the slot: lower-case letters, digits and underscores.
        name: String,
    },
    /// A slot that exists as long as its connection. After a lost connection every table is copied
    /// again.
    Ephemeral {
        /// The start of the slot's name. The rest makes it unique.
        name_prefix: String,
    },
}

/// An existing replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplicationSlot {
    pub(crate) plugin: Option<String>,
    pub(crate) database: Option<String>,
    pub(crate) temporary: bool,
}

/// Reads the slot that `mode` names. Returns `None` if it does not exist or is ephemeral.
pub(crate) async fn read_slot(
    connection: &mut SqlConnection,
    mode: &SlotMode,
) -> Result<Option<ReplicationSlot>, TransportError> {
    let SlotMode::Stateful { name } = mode else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT plugin, database, temporary FROM pg_replication_slots WHERE slot_name = {}",
        escape_literal(name)
    );
    let rows = connection.simple_query(&sql).await?;
    Ok(rows.into_iter().next().map(|row| {
        let mut values = row.into_iter();
        let mut next = || values.next().flatten();
        ReplicationSlot { plugin: next(), database: next(), temporary: next().as_deref() == Some("t") }
    }))
}

/// The part of the WAL that a slot can still send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotAvailability {
    /// The confirmed position. The slot sends no commit before it.
    pub(crate) confirmed: Lsn,
    /// True if PostgreSQL has removed WAL that the slot needs.
    pub(crate) is_lost: bool,
}

/// Reads the state of the slot that `mode` names. Returns `None` if it does not exist or is
/// ephemeral.
pub(crate) async fn read_availability(
    connection: &mut SqlConnection,
    mode: &SlotMode,
) -> Result<Option<SlotAvailability>, TransportError> {
    let SlotMode::Stateful { name } = mode else {
        return Ok(None);
    };
    let sql = format!(
        "SELECT confirmed_flush_lsn, wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = {}",
        escape_literal(name)
    );
    let rows = connection.simple_query(&sql).await?;
    Ok(rows.into_iter().next().map(|row| {
        let mut values = row.into_iter();
        let mut next = || values.next().flatten();
        // A lost slot may have no position.
        let confirmed = next().and_then(|text| text.parse().ok()).unwrap_or(Lsn::ZERO);
        SlotAvailability { confirmed, is_lost: next().as_deref() == Some("t") }
    }))
}

/// Returns a sentence about the process that streams from the slot, if there is one.
pub(crate) async fn holder(connection: &mut SqlConnection, mode: &SlotMode) -> Result<Option<String>, TransportError> {
    let SlotMode::Stateful { name } = mode else {
        return Ok(None);
    };
    let rows = connection.simple_query(&holder_query(name)).await?;
    Ok(rows.first().and_then(holder_of).map(|(_, sentence)| sentence))
}

/// Returns the query for the process that streams from a slot.
pub(crate) fn holder_query(name: &str) -> String {
    user_query(&format!("s.slot_name = {}", escape_literal(name)))
}

/// Parses an answer to [`holder_query`]: the process ID, and a sentence about the process.
pub(crate) fn holder_of(row: &TextRow) -> Option<(i32, String)> {
    let (pid, sentence) = user_of(row)?;
    Some((pid, format!("{sentence}; this server takes over when that connection ends")))
}

/// Returns the query for the processes that use a slot `s`, with their applications and addresses
/// if this role may see them.
pub(crate) fn user_query(condition: &str) -> String {
    format!(
        "SELECT s.active_pid, coalesce(nullif(a.application_name, ''), 'unknown'), coalesce(host(a.client_addr), 'a local socket'),
            s.slot_name
         FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
         WHERE {condition} AND s.active_pid IS NOT NULL"
    )
}

/// Parses an answer to [`user_query`]: the process ID, and a sentence about the process.
pub(crate) fn user_of(row: &TextRow) -> Option<(i32, String)> {
    let text = |column: usize| row.get(column)?.as_deref();
    let (pid, application, address, slot) = (text(0)?.parse().ok()?, text(1)?, text(2)?, text(3)?);
    let sentence = format!(
        "replication slot {slot} is used by process {pid} of PostgreSQL (application {application}, from {address})"
    );
    Some((pid, sentence))
}

/// Returns the problems of the slot, each with a way to fix it.
pub(crate) fn problems(mode: &SlotMode, found: Option<&ReplicationSlot>, database: &str) -> Vec<String> {
    let (key, name) = match mode {
        SlotMode::Stateful { name } => ("slot_name", name),
        SlotMode::Ephemeral { name_prefix } => ("slot_name", name_prefix),
    };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    // The name of an ephemeral slot ends with a process ID.
    let length_max = if matches!(mode, SlotMode::Stateful { .. }) { 63 } else { 50 };
    if name.is_empty() || name.len() > length_max || !name.chars().all(plain) {
        return vec![format!(
            "{key} `{name}` is not a valid slot name; use up to {length_max} lower-case letters, digits and underscores"
        )];
    }
    let Some(slot) = found else { return Vec::new() };
    let drop = format!("SELECT pg_drop_replication_slot('{name}')");
    let problem = match (slot.plugin.as_deref(), slot.database.as_deref()) {
        (Some("pgoutput"), Some(of)) if of == database && slot.temporary => {
            "is a temporary slot of another session".to_owned()
        }
        (Some("pgoutput"), Some(of)) if of == database => return Vec::new(),
        (Some("pgoutput"), of) => format!("belongs to database {}", of.unwrap_or_default()),
        (plugin, _) => format!("uses the plugin {}, not pgoutput", plugin.unwrap_or("(none: it is physical)")),
    };
    vec![format!("replication slot {name} {problem}; choose another slot_name, or run {drop}")]
}

/// Logs the transactions that a walsender waits for while it creates a slot. It waits for all
/// transactions that were open in any database. Never returns.
pub(crate) async fn explain_creation(options: &ConnectionOptions, process_id: i32) -> std::convert::Infallible {
    tokio::time::sleep(PATIENCE).await;
    loop {
        match blockers(options, process_id).await {
            Ok(blockers) => {
                tracing::warn!(
                    event = "slot_creation_waits", %blockers,
                    "the replication slot is created once older transactions have ended"
                )
            }
            Err(error) => tracing::warn!(
                event = "slot_wait_unknown", %error,
                "cannot read which transactions the replication slot waits for"
            ),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn blockers(options: &ConnectionOptions, process_id: i32) -> Result<String, TransportError> {
    let sql = format!(
        "SELECT coalesce(string_agg(what, '; '), 'nothing that this role can see') FROM (
            SELECT format('process %s of %s in database %s since %s', a.pid, a.usename, a.datname, a.xact_start) AS what
            FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids({process_id}))
            UNION ALL
            SELECT format('prepared transaction %L of %s in database %s since %s', p.gid, p.owner, p.database, p.prepared)
            FROM pg_prepared_xacts p) blockers"
    );
    let rows = SqlConnection::connect(&options.for_work(SessionWork::Check)).await?.simple_query(&sql).await?;
    Ok(rows.into_iter().flatten().flatten().collect())
}

#[cfg(test)]
mod tests {
    use laredo_testkit::{Cluster, ClusterOptions, eventually};

    use super::*;
    use crate::transport::ReplicationConnection;

    #[tokio::test]
    async fn what_the_creation_of_a_slot_waits_for_is_said() {
        let cluster = Cluster::start(ClusterOptions::default()).unwrap();
        cluster.psql("CREATE DATABASE elsewhere").unwrap();
        let open = cluster.connect_to("elsewhere").await.unwrap();
        open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        cluster.psql("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'it''s'").unwrap();

        let options = ConnectionOptions::parse(&cluster.url("postgres")).unwrap();
        let mut walsender = ReplicationConnection::connect(&options).await.unwrap();
        let process_id = walsender.process_id();
        let sql = "CREATE_REPLICATION_SLOT s LOGICAL pgoutput NOEXPORT_SNAPSHOT";
        let making = tokio::spawn(async move { walsender.simple_query(sql).await });
        // The walsender waits for one after the other, so each shows up in its turn.
        let prepared = "prepared transaction 'it''s' of postgres in database postgres since ";
        let said = eventually(Duration::from_secs(60), async || {
            let said = blockers(&options, process_id).await.unwrap();
            said.contains(" of postgres in database elsewhere since ") && said.contains(prepared)
        });
        said.await.unwrap();
        open.batch_execute("COMMIT").await.unwrap();
        cluster.psql("COMMIT PREPARED 'it''s'").unwrap();
        making.await.unwrap().unwrap();
    }
}
