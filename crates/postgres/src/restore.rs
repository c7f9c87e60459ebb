//! Rows back into a table, all of them or none.

mod fit;

use laredo_core::{ProjectError, Schema, TableName, Tuple, UnprojectError};

use postgres_protocol::escape::escape_literal;

use crate::catalog::{self, quoted};
use crate::options::ConnectionOptions;
use crate::transport::{Connection, TransportError};
use fit::Fit;

/// The signature of a binary COPY, its flags, and the length of nothing more.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

/// A table that gets rows. Nothing is there before [`Restore::commit`].
#[derive(Debug)]
pub struct Restore {
    connection: Connection,
    table: TableName,
    fit: Fit,
}

/// Why rows do not get into a table. The table is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// PostgreSQL cannot be reached, or says no.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// There is no such table.
    #[error("there is no table {0}; create it, or have it created with the columns that the rows have (--create)")]
    NoTable(TableName),
    /// There is one already.
    #[error("table {0} is there already; leave --create out")]
    TableExists(TableName),
    /// It has rows.
    #[error("table {0} has rows; empty it first, or have them replaced (--replace)")]
    HasRows(TableName),
    /// A column's values cannot be sent.
    #[error("column {0} has a type without a binary form, which COPY does not take; write jsonl and load that")]
    NoBinaryForm(String),
    /// A cell is no value of its type.
    #[error(transparent)]
    Cell(#[from] ProjectError),
    /// A value is none of the type that the column has in the table.
    #[error("the table's {0}")]
    Value(#[from] UnprojectError),
}

impl Restore {
    /// Begins: with a table that is there and empty, with one whose rows are replaced, or with one that is created.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub async fn begin(
        options: &ConnectionOptions,
        table: TableName,
        schema: &Schema,
        creates: bool,
        replaces: bool,
    ) -> Result<Restore, RestoreError> {
        if let Some(column) = schema.columns().iter().find(|column| column.is_text) {
            return Err(RestoreError::NoBinaryForm(column.name.clone()));
        }
        let mut connection = Connection::connect(options).await?;
        connection.simple_query("BEGIN").await?;
        let name = table.quoted();
        let found = connection.simple_query(&format!("SELECT to_regclass({})", escape_literal(&name))).await?;
        let is_there = found.first().and_then(|row| row.first()).is_some_and(Option::is_some);
        match (is_there, creates) {
            (true, true) => return Err(RestoreError::TableExists(table)),
            (false, false) => return Err(RestoreError::NoTable(table)),
            (false, true) => drop(connection.simple_query(&create(&name, schema)).await?),
            (true, false) if replaces => drop(connection.simple_query(&format!("DELETE FROM {name}")).await?),
            (true, false) => {
                let rows = connection.simple_query(&format!("SELECT 1 FROM {name} LIMIT 1")).await?;
                if !rows.is_empty() {
                    return Err(RestoreError::HasRows(table));
                }
            }
        }
        let found =
            catalog::read(&mut connection, "", std::slice::from_ref(&table)).await?.into_iter().flatten().next();
        let fit = found.map_or(Fit::AsItIs, |facts| Fit::between(schema, &facts.definition));
        Ok(Restore { connection, table, fit })
    }

    /// Puts rows into it, of the schema that it was begun with; `done` is told how many went so far.
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
        let sql = format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.table.quoted(), columns.join(", "));
        // PostgreSQL has at most 1,600 columns.
        let count = u16::try_from(columns.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut copy = self.connection.copy_in(&sql).await?;
        copy.send(HEADER).await?;
        let (mut line, mut sent) = (Vec::new(), 0);
        for row in rows {
            line.clear();
            line.extend_from_slice(&count);
            // Cells are what COPY has them as.
            let fitting = self.fit.row(schema, row)?;
            line.extend_from_slice(Tuple::as_ref(&fitting).bytes());
            copy.send(&line).await?;
            sent += 1;
            done(sent);
        }
        copy.send(&TRAILER).await?;
        copy.finish().await?;
        Ok(sent)
    }

    /// Makes it so.
    ///
    /// # Errors
    /// [`RestoreError::Transport`]: where the answer was lost, it may be so all the same.
    pub async fn commit(mut self) -> Result<(), RestoreError> {
        self.connection.simple_query("COMMIT").await?;
        Ok(())
    }
}

fn create(name: &str, schema: &Schema) -> String {
    let column = |column: &laredo_core::Column| {
        let not_null = if column.not_null { " NOT NULL" } else { "" };
        format!("{} {}{not_null}", quoted(&column.name), column.type_name)
    };
    let mut parts: Vec<String> = schema.columns().iter().map(column).collect();
    let key: Vec<String> = schema
        .key()
        .columns()
        .iter()
        .filter_map(|place| schema.columns().get(*place))
        .map(|column| quoted(&column.name))
        .collect();
    if !key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    format!("CREATE TABLE {name} ({})", parts.join(", "))
}
