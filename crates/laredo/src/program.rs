//! Parts that the long-running programs `laredo-server` and `laredo-snapshotter` share.

use std::io::{self, ErrorKind, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::sync::watch;

use crate::config::server::{AuditConfig, LoggingConfig};
use crate::config::{ConfigLoader, ConfigReport};
use crate::printable::printable_lines;

mod arguments;
mod client_tls;
mod clock;
mod descriptors;
mod healthcheck;
mod listen;
mod logging;
mod random;
mod service_manager;
mod stop;
mod temporary_folder;
mod tls_files;

pub(crate) use arguments::{ConfigArguments, ConfigPlaceArguments, HealthcheckArguments, ProgramCommand};
pub(crate) use client_tls::client_tls;
pub(crate) use clock::now;
pub(crate) use descriptors::reserve_descriptors;
pub(crate) use healthcheck::{HealthPort, healthcheck};
pub(crate) use listen::{allowed_hosts, bind, configured_port, log_port};
use logging::begin_logging;
pub(crate) use logging::{dropped_log_lines, set_log_level};
pub(crate) use random::random;
pub(crate) use service_manager::report_ready;
pub(crate) use stop::wait_for_flag;
pub(crate) use temporary_folder::temporary_folder;
pub(crate) use tls_files::{PortCertificates, READ_INTERVAL};

/// The exit code for a configuration, or something that it names, that the operator must fix.
pub(crate) const MISCONFIGURED: u8 = 2;

/// The reason why a program ended early.
pub(crate) enum ProgramFailure {
    /// Problems that the operator must fix before the program can start, each a sentence.
    Misconfigured(Vec<String>),
    /// Any other error.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for ProgramFailure {
    fn from(error: anyhow::Error) -> ProgramFailure {
        ProgramFailure::Failed(error)
    }
}

/// The part of a run that is known before it begins, for the first line of the log.
pub(crate) struct ProgramStart {
    /// The name of the program.
    pub(crate) program: &'static str,
    /// The files that the configuration was merged from, in their order.
    pub(crate) config_files: Vec<PathBuf>,
    /// The ports of the configuration, each with its key.
    pub(crate) ports: Vec<String>,
}

impl ProgramStart {
    fn log(&self) {
        let files: Vec<_> = self.config_files.iter().map(|file| file.display().to_string()).collect();
        tracing::info!(
            event = "starting",
            program = self.program,
            version = env!("CARGO_PKG_VERSION"),
            commit = env!("BUILD_COMMIT"),
            config_files = files.join(", "),
            ports = self.ports.join(", "),
            "starting"
        );
    }
}

/// The task that remains after the configuration was loaded without errors.
pub(crate) enum ProgramTask<C> {
    /// No further task: the operator asked only for a check of the configuration.
    Checked(C),
    /// A health check of the program that runs with this configuration.
    Healthcheck(C, HealthcheckArguments),
    /// A run with this configuration.
    Run(C),
    /// No further task: the program ends with this exit code.
    Done(ExitCode),
}

/// Handles the arguments and commands that all programs share, and loads the configuration.
pub(crate) fn begin<C>(
    program: clap::Command,
    arguments: &ConfigArguments,
    command: Option<ProgramCommand>,
    load: impl FnOnce(ConfigLoader) -> Result<C, ConfigReport>,
    show: impl FnOnce(&C) -> String,
) -> ProgramTask<C> {
    match &command {
        Some(ProgramCommand::Version) => {
            println!("{} {}", program.get_name(), env!("CARGO_PKG_VERSION"));
            return ProgramTask::Done(ExitCode::SUCCESS);
        }
        Some(ProgramCommand::Completions(completions)) => {
            return written("standard output", &completions.print(program));
        }
        Some(ProgramCommand::Man(manual)) => {
            return written(&manual.folder.display().to_string(), &manual.write(program));
        }
        Some(ProgramCommand::Config | ProgramCommand::Validate | ProgramCommand::Healthcheck(_)) | None => {}
    }
    let config = match load(arguments.loader()) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.render(std::io::stderr().is_terminal()));
            return ProgramTask::Done(ExitCode::from(MISCONFIGURED));
        }
    };
    match command {
        Some(ProgramCommand::Config) => {
            println!("{}", show(&config));
            ProgramTask::Done(ExitCode::SUCCESS)
        }
        Some(ProgramCommand::Validate) => ProgramTask::Checked(config),
        None if arguments.check => ProgramTask::Checked(config),
        Some(ProgramCommand::Healthcheck(probe)) => ProgramTask::Healthcheck(config, probe),
        Some(ProgramCommand::Version | ProgramCommand::Completions(_) | ProgramCommand::Man(_)) | None => {
            ProgramTask::Run(config)
        }
    }
}

/// Returns the end of a command that only writes to a place, and reports its error.
fn written<C>(place: &str, result: &io::Result<()>) -> ProgramTask<C> {
    match result {
        Ok(()) => ProgramTask::Done(ExitCode::SUCCESS),
        // The reader closed the output because it needs no more.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ProgramTask::Done(ExitCode::SUCCESS),
        Err(error) => {
            print_error(&format!("cannot write to {place}: {error}"));
            ProgramTask::Done(ExitCode::FAILURE)
        }
    }
}

/// Runs `work` to its end and returns the exit code: 0 stopped as asked, 1 failed, 2 misconfigured.
/// The receiver that `work` is given becomes true when the work must stop.
pub(crate) fn run(
    start: &ProgramStart,
    (logging, audit): (&LoggingConfig, &AuditConfig),
    work: impl AsyncFnOnce(watch::Receiver<bool>) -> Result<(), ProgramFailure>,
) -> ExitCode {
    let log = match begin_logging(logging, audit) {
        Ok(log) => log,
        Err(ProgramFailure::Misconfigured(problems)) => return misconfigured(&problems),
        Err(ProgramFailure::Failed(error)) => {
            print_error(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    // Dropped last, after the runtime, so that no line is missing.
    let log_end = log.end();
    start.log();
    descriptors::raise_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(event = "runtime_failed", %error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        let stop = stop::stop_signal(log)?;
        tokio::select! {
            // The stop is reported before the work can end.
            biased;
            never = service_manager::report_state(stop.clone()) => match never {},
            ended = work(stop) => ended,
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(ProgramFailure::Misconfigured(problems)) => {
            drop(log_end);
            misconfigured(&problems)
        }
        Err(ProgramFailure::Failed(error)) => {
            tracing::error!(event = "program_failed", error = format!("{error:#}"), "{} has failed", start.program);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error of a command that has no log.
pub(crate) fn print_error(error: &str) {
    eprintln!("error: {}", printable_lines(error));
}

/// Prints a warning of a command that has no log.
pub(crate) fn print_warning(warning: &str) {
    eprintln!("warning: {}", printable_lines(warning));
}

/// Prints problems that the operator must fix, and returns the exit code for them.
pub(crate) fn misconfigured(problems: &[String]) -> ExitCode {
    problems.iter().for_each(|problem| print_error(problem));
    ExitCode::from(MISCONFIGURED)
}
