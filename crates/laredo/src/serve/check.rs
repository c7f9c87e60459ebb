//! The check that asks the databases: `--check --connect`.

use std::path::Path;
use std::process::ExitCode;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use laredo_engine::source::SourceError;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::prepare::plans;
use crate::config::ServerConfig;
use crate::program::{MISCONFIGURED, ProgramFailure, misconfigured, print_error, temporary_folder};

/// Asks each source once if it and its tables can be followed, and prints the answers as they come.
/// Nothing is changed in a database. Returns the exit code: 0 if everything can be followed, 2 for
/// a problem that the operator must fix, else 1 for a source that cannot be asked.
pub(super) fn check_sources(config: &ServerConfig) -> ExitCode {
    let folder = match temporary_folder("temp_dir", config.temp_dir.as_deref()) {
        Ok(folder) => folder,
        Err(ProgramFailure::Misconfigured(problems)) => return misconfigured(&problems),
        Err(ProgramFailure::Failed(error)) => {
            print_error(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(check_all(config, &folder)),
        Err(error) => {
            print_error(&format!("cannot start the runtime: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn check_all(config: &ServerConfig, folder: &Path) -> ExitCode {
    let (plans, malformed) = plans(config, folder, &mut StdRng::from_os_rng());
    malformed.iter().for_each(|problem| print_error(problem));
    let (mut is_misconfigured, mut is_unknown) = (!malformed.is_empty(), false);
    let mut answers: FuturesUnordered<_> =
        plans.iter().map(async |plan| (plan.name, plan.tables.len(), plan.check().await)).collect();
    while let Some((source, tables, answer)) = answers.next().await {
        match answer {
            Ok(()) => println!("source {source} can be followed; tables: {tables}"),
            Err(SourceError::Definite(sentences)) => {
                is_misconfigured = true;
                sentences.iter().for_each(|sentence| print_error(&format!("source {source}: {sentence}")));
            }
            Err(SourceError::Transient(reason) | SourceError::Held(reason)) => {
                is_unknown = true;
                print_error(&format!("source {source}: {reason}"));
            }
        }
    }
    match (is_misconfigured, is_unknown) {
        (true, _) => ExitCode::from(MISCONFIGURED),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    }
}
