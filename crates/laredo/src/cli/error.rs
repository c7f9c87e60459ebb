//! Errors of the command, worded so that the operator knows what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use laredo_archive::{ArchiveReadError, DestinationError, FormatError};
use laredo_client::{ReplicaError, StartError};
use laredo_core::TableName;
use laredo_postgres::{ConnectionStringError, RestoreError};
use laredo_values::ProjectError;

/// A reason why a command failed. All but a broken pipe end the process with exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The runtime did not start.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
    /// There is no terminal to draw on.
    #[error("`laredo top` needs a terminal; `laredo status` prints the same once")]
    NoTerminal,
    /// The folder for the pages of the manual cannot be written.
    #[error("cannot write to {}: {reason}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        reason: io::Error,
    },
    /// The certificates cannot be read.
    #[error("cannot read the certificates in {}: {reason}; {option} expects a PEM file", file.display())]
    Certificates {
        /// The file.
        file: PathBuf,
        /// The option that names the file.
        option: &'static str,
        /// The system's error.
        reason: io::Error,
    },
    /// The server is unreachable, or does not answer in time.
    #[error("{server} cannot be reached: {reason}; check that laredo-server runs there, and its {option}")]
    Unreachable {
        /// The address.
        server: String,
        /// The reason, as far as it is known.
        reason: String,
        /// The name of the address, and the options that set it.
        option: &'static str,
    },
    /// The server does not replicate this table.
    #[error(
        "{server} has no table {table}; `laredo status` lists its tables, and names are spelled as in the database"
    )]
    NoTable {
        /// The address.
        server: String,
        /// The table.
        table: TableName,
    },
    /// The server answered with an error.
    #[error("{server} refused a request for table {table}: {reason}")]
    Refused {
        /// The address.
        server: String,
        /// The table.
        table: TableName,
        /// The reason, in the server's words.
        reason: String,
    },
    /// The server answered a question about itself, or an order, with an error.
    #[error("{server}: {reason}")]
    ServerAnswer {
        /// The address.
        server: String,
        /// The reason, in the server's words.
        reason: String,
    },
    /// There is no OAM service at this address.
    #[error(
        "{0} has no OAM service; give grpc.port of its configuration with --oam or LAREDO_OAM, not the fan-out's port"
    )]
    NotOam(String),
    /// The filter can never match.
    #[error("{table} has no column `{column}`, so no row passes the filter; it has {columns}")]
    NoColumn {
        /// The table.
        table: TableName,
        /// The column, as given.
        column: String,
        /// The table's columns, separated by commas.
        columns: String,
    },
    /// The address is not that of laredo's health endpoint.
    #[error(
        "{url} is not laredo's health endpoint ({reason}); give health.http_port of its configuration with --health"
    )]
    NotHealth {
        /// The address.
        url: String,
        /// The unexpected answer.
        reason: String,
    },
    /// The token cannot be sent in a header.
    #[error(
        "the token (--token or LAREDO_TOKEN) has a character that no header can have; copy it again, without line breaks"
    )]
    Token,
    /// The operating system gave no random bytes.
    #[error("cannot make a token: the operating system gave no random bytes: {0}; try again")]
    Random(String),
    /// Standard input cannot be read.
    #[error("cannot read standard input: {0}; send the token as one line of text")]
    Input(#[source] std::io::Error),
    /// A replica cannot be started.
    #[error("cannot follow the table: {0}")]
    Start(#[from] StartError),
    /// A row cannot be shown.
    #[error("cannot show a row: {0}")]
    Row(#[from] ProjectError),
    /// An archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveReadError),
    /// A destination is invalid, or cannot be used.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// Rows cannot be written.
    #[error("cannot write rows: {0}")]
    Rows(#[source] FormatError),
    /// The address of a database is invalid.
    #[error(transparent)]
    Database(#[from] ConnectionStringError),
    /// The event trigger could not be created or dropped.
    #[error(
        "cannot change the event trigger: {0}; run the statements of `laredo ddl … --print` as a superuser, or as the role that your \
             provider has for event triggers"
    )]
    Ddl(String),
    /// The source cannot be retired. Nothing was changed.
    #[error("nothing was dropped: {0}")]
    NotRetired(String),
    /// A part of the source could not be dropped.
    #[error("not all was dropped; these are left: {0}; remove the causes, and run the command again")]
    PartlyRetired(String),
    /// The rows could not be restored into a table.
    #[error("nothing was restored: {0}")]
    Restore(#[source] Box<RestoreError>),
    /// The table could not be exported.
    #[error("nothing was exported: {0}")]
    Export(String),
    /// The table cannot be created, because the archive does not record the types of its columns.
    #[error("the archive does not record the types of its columns; create the table, and omit --create")]
    NoTypes,
    /// Two states cannot be compared, because their columns differ.
    #[error("the two states have different columns, and cannot be compared: {0}")]
    Diff(String),
    /// An archive cannot be compared with a server.
    #[error("the archive cannot be compared with the server: {0}")]
    Compare(String),
    /// The replica has ended by itself.
    #[error("the replica has ended by itself{}", .0.as_ref().map_or_else(String::new, |e| format!(": {e}")))]
    Stopped(Option<ReplicaError>),
}

/// The name of the fan-out address, and the options that set it.
pub(super) const SERVER_OPTION: &str = "fan-out address (--server or LAREDO_SERVER)";
/// The name of the OAM service's address, and the options that set it.
pub(super) const OAM_OPTION: &str = "grpc.port (--oam or LAREDO_OAM)";
/// The name of the health endpoint's address, and the option that sets it.
pub(super) const HEALTH_OPTION: &str = "health endpoint (--health)";

impl From<RestoreError> for CliError {
    fn from(error: RestoreError) -> CliError {
        CliError::Restore(Box::new(error))
    }
}

impl CliError {
    /// Converts an error of writing rows. An I/O error is an error of the output.
    pub(super) fn from_format(error: FormatError) -> CliError {
        match error {
            FormatError::Io(error) => CliError::Output(error),
            error => CliError::Rows(error),
        }
    }

    /// Returns the error for a server that did not answer within `timeout`.
    pub(super) fn timeout(server: &str, timeout: Duration, option: &'static str) -> CliError {
        let reason = format!("no answer within {} s", timeout.as_secs_f64());
        CliError::Unreachable { server: server.to_owned(), reason, option }
    }

    /// Returns the error for a gRPC status about a table.
    pub(super) fn from_status(server: &str, table: &TableName, code: tonic::Code, reason: &str) -> CliError {
        let (server, table) = (server.to_owned(), table.clone());
        match code {
            tonic::Code::NotFound => CliError::NoTable { server, table },
            code if reason.is_empty() => CliError::Refused { server, table, reason: code.description().to_owned() },
            _ => CliError::Refused { server, table, reason: reason.to_owned() },
        }
    }
}

/// Returns the innermost cause. The errors around it say only "transport error".
pub(super) fn deepest(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
