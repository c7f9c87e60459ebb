//! Retiring a source: what it has left in its database, and dropping that when an operator asks
//! for it.

use laredo_core::TableName;
use postgres_protocol::escape::escape_literal;

use crate::catalog::quoted;
use crate::ddl;
use crate::options::{ConnectionOptions, SessionWork};
use crate::slot::{self, SlotMode};
use crate::transport::{SqlConnection, TransportError};

/// The objects of a source that its database still has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRemains {
    /// The permanent slot. `None` if it does not exist, or if the source has none.
    pub slot: Option<RetirableSlot>,
    /// The publication. `None` if it does not exist.
    pub publication: Option<RetirablePublication>,
    /// True if the event trigger of `laredo ddl install` exists. Other sources may use it, too.
    pub has_event_trigger: bool,
}

/// A slot that no process uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetirableSlot {
    /// The WAL that PostgreSQL keeps for it, in bytes. `None` if it has lost its WAL.
    pub wal_bytes: Option<u64>,
}

/// A publication and its other readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetirablePublication {
    /// True if it publishes every table of the database.
    pub has_all_tables: bool,
    /// The tables that it publishes.
    pub tables: Vec<TableName>,
    /// The other slots of the database that can read it. PostgreSQL does not know which of them do.
    pub other_slots: Vec<String>,
}

/// A connection that retires a source.
pub struct SourceRetirement {
    connection: SqlConnection,
    slot: SlotMode,
    publication: String,
}

/// A reason why a source cannot be retired.
#[derive(Debug, thiserror::Error)]
pub enum RetirementError {
    /// The database cannot be reached, or has refused a statement.
    #[error(transparent)]
    Database(#[from] TransportError),
    /// A process that uses a slot of the source.
    #[error("{0}; stop the server that follows the source, and all that stand by for it")]
    Active(String),
    /// A slot of this name that is not the source's.
    #[error("{0}")]
    Foreign(String),
}

impl SourceRetirement {
    /// Connects to the database of a source with this slot and publication.
    ///
    /// # Errors
    /// Fails if the database cannot be reached.
    pub async fn connect(
        options: &ConnectionOptions,
        slot: SlotMode,
        publication: String,
    ) -> Result<SourceRetirement, RetirementError> {
        let connection = SqlConnection::connect(&options.for_work(SessionWork::Check)).await?;
        Ok(SourceRetirement { connection, slot, publication })
    }

    /// Returns what the source has left in the database. Changes nothing.
    ///
    /// # Errors
    /// Fails if the database cannot be asked, if a process uses a slot of the source, or if the
    /// slot is not one of laredo in this database.
    pub async fn inspect(&mut self) -> Result<DatabaseRemains, RetirementError> {
        self.check_slots_in_use().await?;
        let slot = self.read_slot().await?;
        let publication = self.read_publication().await?;
        let has_event_trigger = ddl::exists(&mut self.connection).await?;
        Ok(DatabaseRemains { slot, publication, has_event_trigger })
    }

    /// Drops the slot. Returns false if it does not exist.
    ///
    /// # Errors
    /// Fails if PostgreSQL refuses, for example because a process has begun to use the slot.
    pub async fn drop_slot(&mut self) -> Result<bool, RetirementError> {
        let SlotMode::Stateful { name } = &self.slot else { return Ok(false) };
        let sql = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {}",
            escape_literal(name)
        );
        Ok(!self.connection.simple_query(&sql).await?.is_empty())
    }

    /// Drops the publication. Returns false if it does not exist.
    ///
    /// # Errors
    /// Fails if PostgreSQL refuses, for example because the publication belongs to another role.
    pub async fn drop_publication(&mut self) -> Result<bool, RetirementError> {
        let exists = !self.connection.simple_query(&publication_query(&self.publication)).await?.is_empty();
        let sql = format!("DROP PUBLICATION IF EXISTS {}", quoted(&self.publication));
        self.connection.simple_query(&sql).await?;
        Ok(exists)
    }

    /// Fails if a process uses the slot of the source, or a temporary slot that the source's server
    /// has made.
    async fn check_slots_in_use(&mut self) -> Result<(), RetirementError> {
        let condition = match &self.slot {
            SlotMode::Stateful { name } => format!("s.slot_name = {}", escape_literal(name)),
            // The rest of the name is the ID of the process.
            SlotMode::Ephemeral { name_prefix } => format!(
                "s.database = current_database() AND s.slot_name = {} || '_' || s.active_pid",
                escape_literal(name_prefix)
            ),
        };
        let rows = self.connection.simple_query(&slot::user_query(&condition)).await?;
        match rows.first().and_then(slot::user_of) {
            Some((_, sentence)) => Err(RetirementError::Active(sentence)),
            None => Ok(()),
        }
    }

    async fn read_slot(&mut self) -> Result<Option<RetirableSlot>, RetirementError> {
        let database = "SELECT current_database()";
        let database = self.connection.simple_query(database).await?.into_iter().flatten().flatten().next();
        let found = slot::read_slot(&mut self.connection, &self.slot).await?;
        let problems = slot::problems(&self.slot, found.as_ref(), &database.unwrap_or_default());
        if !problems.is_empty() {
            return Err(RetirementError::Foreign(problems.join("; ")));
        }
        let SlotMode::Stateful { name } = &self.slot else { return Ok(None) };
        let sql = format!(
            "SELECT pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                restart_lsn) FROM pg_replication_slots WHERE slot_name = {}",
            escape_literal(name)
        );
        let rows = self.connection.simple_query(&sql).await?;
        let wal_bytes = |text: &str| text.parse::<i64>().ok().and_then(|bytes| u64::try_from(bytes).ok());
        Ok(rows
            .first()
            .map(|row| RetirableSlot { wal_bytes: row.first().and_then(Option::as_deref).and_then(wal_bytes) }))
    }

    async fn read_publication(&mut self) -> Result<Option<RetirablePublication>, RetirementError> {
        let rows = self.connection.simple_query(&publication_query(&self.publication)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let has_all_tables = row.first().is_some_and(|value| value.as_deref() == Some("t"));
        let name = escape_literal(&self.publication);
        let sql =
            format!("SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = {name} ORDER BY 1, 2");
        let rows = self.connection.simple_query(&sql).await?;
        let tables = rows.into_iter().filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(schema), Some(table)]) => Some(TableName::new(schema, table)),
            _ => None,
        });
        let tables = tables.collect();
        let own = match &self.slot {
            SlotMode::Stateful { name } => escape_literal(name),
            SlotMode::Ephemeral { .. } => "''".to_owned(),
        };
        let sql = format!(
            "SELECT slot_name FROM pg_replication_slots
             WHERE plugin = 'pgoutput' AND database = current_database() AND slot_name <> {own} ORDER BY 1"
        );
        let other_slots = self.connection.simple_query(&sql).await?.into_iter().flatten().flatten().collect();
        Ok(Some(RetirablePublication { has_all_tables, tables, other_slots }))
    }
}

fn publication_query(name: &str) -> String {
    format!("SELECT puballtables FROM pg_publication WHERE pubname = {}", escape_literal(name))
}
