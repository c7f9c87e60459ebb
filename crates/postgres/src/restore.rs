//! Restoring rows into a table, all of them or none.

mod cell_conversion;
mod creation;
mod replace;

use laredo_core::{Oid, Schema, TableName, Tuple};
use laredo_values::{ProjectError, UnprojectError};

use postgres_protocol::escape::escape_literal;

use crate::catalog::{self, quoted};
use crate::options::ConnectionOptions;
use crate::transport::{PostgresError, SqlConnection, TransportError};
use cell_conversion::CellConversion;
use replace::TableReplacement;

pub use replace::TouchedTable;

/// The signature of a binary COPY, its flags, and the length of its empty header extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// A restore of rows into a table, in one transaction. No row is visible before
/// [`TableRestore::commit`].
#[derive(Debug)]
pub struct TableRestore {
    connection: SqlConnection,
    table: TableName,
    conversion: CellConversion,
    replacement: Option<TableReplacement>,
    allows_cascade: bool,
    touched: Vec<TouchedTable>,
}

/// The state of the table that gets the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreMode {
    /// The table exists and has no rows.
    Fill,
    /// The table does not exist and is created.
    Create,
    /// The table exists and its rows are replaced.
    Replace {
        /// True if rows of other tables may change as a result, by a foreign key's action, a
        /// trigger or a rule.
        allows_cascade: bool,
    },
}

/// An error that prevents a restore. The table is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// PostgreSQL cannot be reached, or refuses a statement.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The table does not exist.
    #[error("table {0} does not exist; create it, or use --create to create it with the columns of the rows")]
    NoTable(TableName),
    /// The table to create exists already.
    #[error("table {0} already exists; omit --create")]
    TableExists(TableName),
    /// The table to fill has rows.
    #[error("table {0} has rows; empty it first, or use --replace to replace them")]
    HasRows(TableName),
    /// Replacing the rows would change rows of other tables.
    #[error(
        "replacing the rows of {table} would change rows of other tables: {}; restore into another table, drop what connects them \
         temporarily, or allow the changes (--allow-cascade)",
        listed(touched)
    )]
    OtherTables {
        /// The table that gets the rows.
        table: TableName,
        /// The tables that would change.
        touched: Vec<TouchedTable>,
    },
    /// PostgreSQL does not count changed rows, and this role may not turn the counts on.
    #[error(
        "PostgreSQL does not count changed rows here (track_counts is off), so changes to other tables would not be noticed: {0}; \
         turn it on, or restore as a superuser"
    )]
    Uncounted(#[source] TransportError),
    /// A foreign key fails: a row refers to a row that would be missing.
    #[error(
        "a foreign key does not hold for the rows that {table} would have: {error}; restore the tables that it connects as of one position, \
         or remove the rows that refer to missing ones"
    )]
    ForeignKey {
        /// The table that gets the rows.
        table: TableName,
        /// The constraint, in PostgreSQL's words.
        error: Box<PostgresError>,
    },
    /// The table would have another number of rows than were restored.
    #[error(
        "table {table} would have {found} rows instead of {expected}: its triggers, rules or policies keep rows away or add some; disable \
         them temporarily, or restore into another table"
    )]
    Rows {
        /// The table that gets the rows.
        table: TableName,
        /// The number of rows that were restored.
        expected: u64,
        /// The number of rows that the table has.
        found: u64,
    },
    /// The type of a column to create is not one of the database's types.
    #[error(
        "column {column:?}: there is no type {type_name:?} in the database{}; create the type first, or create the table yourself and \
         omit --create",
        cause.as_deref().map(|error| format!(" ({error})")).unwrap_or_default()
    )]
    NoType {
        /// The column's name.
        column: String,
        /// The type's name in the archive.
        type_name: String,
        /// PostgreSQL's error, if the name is not that of a type.
        cause: Option<Box<PostgresError>>,
    },
    /// A column whose type has no binary form.
    #[error("column {0} has a type without a binary form, so COPY cannot load it; write jsonl and load that")]
    NoBinaryForm(String),
    /// A cell that is invalid for its type.
    #[error(transparent)]
    Cell(#[from] ProjectError),
    /// A value that is invalid for the type that the column has in the table.
    #[error("the table's {0}")]
    Value(#[from] UnprojectError),
}

impl TableRestore {
    /// Connects, checks the table, and opens the transaction.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn begin(
        options: &ConnectionOptions,
        table: TableName,
        schema: &Schema,
        mode: RestoreMode,
    ) -> Result<TableRestore, RestoreError> {
        if let Some(column) = schema.columns().iter().find(|column| column.is_text) {
            return Err(RestoreError::NoBinaryForm(column.name.clone()));
        }
        // PostgreSQL reads no rows while a lock or a trigger holds it up. To TCP this looks like a
        // server that is gone.
        let options = ConnectionOptions { tcp_user_timeout: None, ..options.clone() };
        let mut connection = SqlConnection::connect(&options).await?;
        connection.simple_query("BEGIN").await?;
        let name = table.quoted();
        let there = found(&mut connection, &name).await?;
        let mut replacement = None;
        match (there, mode) {
            (Some(_), RestoreMode::Create) => return Err(RestoreError::TableExists(table)),
            (None, RestoreMode::Fill | RestoreMode::Replace { .. }) => return Err(RestoreError::NoTable(table)),
            (None, RestoreMode::Create) => creation::create_table(&mut connection, &table, schema).await?,
            (Some((oid, is_parted)), RestoreMode::Replace { .. }) => {
                replacement = Some(TableReplacement::begin(&mut connection, &table, oid, schema, is_parted).await?);
            }
            (Some((_, is_parted)), RestoreMode::Fill) => {
                let only = if is_parted { "" } else { "ONLY " };
                let rows = connection.simple_query(&format!("SELECT 1 FROM {only}{name} LIMIT 1")).await?;
                if !rows.is_empty() {
                    return Err(RestoreError::HasRows(table));
                }
            }
        }
        let facts =
            catalog::read_facts(&mut connection, "", std::slice::from_ref(&table)).await?.into_iter().flatten().next();
        let conversion =
            facts.map_or(CellConversion::Unchanged, |facts| CellConversion::between(schema, &facts.definition));
        let allows_cascade = mode == RestoreMode::Replace { allows_cascade: true };
        Ok(TableRestore { connection, table, conversion, replacement, allows_cascade, touched: Vec::new() })
    }

    /// Writes rows of the schema that the restore was begun with. Calls `done` with the number of
    /// rows sent so far after each row. Returns the number of rows.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn rows<'a>(
        &mut self,
        schema: &Schema,
        rows: impl Iterator<Item = &'a Tuple>,
        done: impl Fn(u64),
    ) -> Result<u64, RestoreError> {
        let columns: Vec<String> = schema.columns().iter().map(|column| quoted(&column.name)).collect();
        let into = self.replacement.as_ref().map_or_else(|| self.table.quoted(), |new| new.stage().to_owned());
        let sql = format!("COPY {into} ({}) FROM STDIN (FORMAT binary)", columns.join(", "));
        // PostgreSQL has at most 1,600 columns.
        let count = u16::try_from(columns.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut copy = self.connection.copy_in(&sql).await?;
        copy.send(HEADER).await?;
        let (mut line, mut sent) = (Vec::new(), 0);
        for row in rows {
            line.clear();
            line.extend_from_slice(&count);
            // The cells are stored in the format that COPY uses.
            let converted = self.conversion.row(schema, row)?;
            line.extend_from_slice(Tuple::as_ref(&converted).bytes());
            copy.send(&line).await?;
            sent += 1;
            done(sent);
        }
        copy.send(&TRAILER).await?;
        copy.finish().await?;
        if let Some(replacement) = &self.replacement {
            self.touched = replacement.apply(&mut self.connection, sent, self.allows_cascade).await?;
        }
        Ok(sent)
    }

    /// Commits, and returns the other tables whose rows changed too.
    ///
    /// # Errors
    /// [`RestoreError::Transport`]. If the connection was lost before the reply, the rows may be
    /// committed nevertheless.
    pub async fn commit(mut self) -> Result<Vec<TouchedTable>, RestoreError> {
        self.connection.simple_query("COMMIT").await?;
        Ok(self.touched)
    }
}

fn listed(touched: &[TouchedTable]) -> String {
    touched.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Returns a table's OID and true if it is partitioned. `None` if it does not exist.
async fn found(connection: &mut SqlConnection, name: &str) -> Result<Option<(Oid, bool)>, TransportError> {
    let sql = format!("SELECT oid, relkind = 'p' FROM pg_class WHERE oid = to_regclass({})", escape_literal(name));
    let rows = connection.simple_query(&sql).await?;
    let Some([Some(oid), Some(is_parted)]) = rows.first().map(Vec::as_slice) else { return Ok(None) };
    let oid = oid.parse().map_err(|_| TransportError::Protocol(format!("{oid} is not the OID of a table")))?;
    Ok(Some((oid, is_parted == "t")))
}
