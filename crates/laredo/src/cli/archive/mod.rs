//! The commands `laredo archive`, which list, check, print, compare, rebuild and export archives.

mod args;
mod contents;
mod export;
mod location;
mod progress;
mod reconstruct;
mod rows;
mod server_comparison;
mod state_diff;

use std::process::ExitCode;

pub(super) use args::ArchiveCommand;
pub(super) use server_comparison::{ArchiveCompareArgs, ArchiveComparison, compare_with_server};

use super::error::CliError;

pub(super) async fn run(command: ArchiveCommand) -> Result<ExitCode, CliError> {
    match command {
        ArchiveCommand::Ls(args) => contents::ls(args).await,
        ArchiveCommand::Verify(args) => contents::verify(args).await,
        ArchiveCommand::Cat(args) => contents::cat(args).await,
        ArchiveCommand::Diff(args) => reconstruct::diff(args).await,
        ArchiveCommand::Reconstruct(args) => reconstruct::reconstruct(args).await,
        ArchiveCommand::Export(args) => export::run(args).await,
    }
}
