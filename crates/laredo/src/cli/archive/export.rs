//! A table of a database to an archive, once.

use std::process::ExitCode;

use super::args::ExportArgs;
use crate::cli::error::CliError;

pub(super) async fn run(args: ExportArgs) -> Result<ExitCode, CliError> {
    let _ = args;
    todo!()
}
