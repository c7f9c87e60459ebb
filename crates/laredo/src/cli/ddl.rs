//! `laredo ddl install` and `laredo ddl remove`.

use std::process::ExitCode;

use laredo_postgres::{ConnectionOptions, ddl};

use super::args::{DdlArgs, DdlCommand};
use super::error::CliError;
use super::print_output;

/// Creates or drops the event trigger, or prints the statements that do so.
pub(super) async fn run(command: DdlCommand) -> Result<ExitCode, CliError> {
    let (args, sql, done) = match &command {
        DdlCommand::Install(args) => (args, ddl::INSTALL, "the event trigger is installed"),
        DdlCommand::Remove(args) => (args, ddl::REMOVE, "the event trigger is removed"),
    };
    let DdlArgs { postgres: Some(url), print: false } = args else {
        print_output(sql)?;
        return Ok(ExitCode::SUCCESS);
    };
    let options = ConnectionOptions::parse(url)?;
    let run = match command {
        DdlCommand::Install(_) => ddl::install(&options).await,
        DdlCommand::Remove(_) => ddl::remove(&options).await,
    };
    run.map_err(|error| CliError::Ddl(error.to_string()))?;
    print_output(&format!("{done}\n"))?;
    Ok(ExitCode::SUCCESS)
}
