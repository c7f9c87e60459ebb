//! The commands `laredo archive`, which list, check, print, compare, rebuild and export archives.

mod against_server;
mod args;
mod compare;
mod export;
mod place;
mod progress;
mod reconstruct;
mod rows;
mod show;

use std::process::ExitCode;

pub(super) use against_server::{ArchiveComparison, CompareArgs, compare};
pub(super) use args::ArchiveCommand;

use super::error::CliError;

pub(super) async fn run(command: ArchiveCommand) -> Result<ExitCode, CliError> {
    match command {
        ArchiveCommand::Ls(args) => show::ls(args).await,
        ArchiveCommand::Verify(args) => show::verify(args).await,
        ArchiveCommand::Cat(args) => show::cat(args).await,
        ArchiveCommand::Diff(args) => reconstruct::diff(args).await,
        ArchiveCommand::Reconstruct(args) => reconstruct::reconstruct(args).await,
        ArchiveCommand::Export(args) => export::run(args).await,
    }
}
