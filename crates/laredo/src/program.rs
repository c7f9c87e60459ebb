//! What the programs that run on and on have in common: `laredo-server` and `laredo-snapshotter`.

use std::io::IsTerminal;
use std::process::ExitCode;

use tokio::sync::watch;

use crate::config::server::{LogLevel, LogType, LoggingConfig};
use crate::config::{Loader, Report};

mod arguments;
mod descriptors;
mod healthcheck;
mod listen;
mod random;
mod stop;

pub(crate) use arguments::{Command, ConfigArguments};
pub(crate) use descriptors::reserve_descriptors;
pub(crate) use healthcheck::healthcheck;
pub(crate) use listen::bind;
pub(crate) use random::random;
pub(crate) use stop::until;

/// The configuration, or what it names, has to be mended.
const MISCONFIGURED: u8 = 2;

/// Why a program ended.
pub(crate) enum Failure {
    /// What a person has to mend before it can start, each a sentence.
    Misconfigured(Vec<String>),
    /// What went wrong.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

/// What is left to do with a configuration that is right.
pub(crate) enum Task<C> {
    /// Nothing: it was asked whether it is right.
    Checked(C),
    /// To ask the program that runs with it whether it is ready.
    Healthcheck(C),
    /// To run with it.
    Run(C),
    /// All is done.
    Done(ExitCode),
}

/// Does what every program does alike with its arguments.
pub(crate) fn begin<C>(
    program: &str,
    arguments: &ConfigArguments,
    command: Option<Command>,
    load: impl FnOnce(Loader) -> Result<C, Report>,
    show: impl FnOnce(&C) -> String,
) -> Task<C> {
    if command == Some(Command::Version) {
        println!("{program} {}", env!("CARGO_PKG_VERSION"));
        return Task::Done(ExitCode::SUCCESS);
    }
    let config = match load(arguments.loader()) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.render(std::io::stderr().is_terminal()));
            return Task::Done(ExitCode::from(MISCONFIGURED));
        }
    };
    match command {
        Some(Command::Config) => {
            println!("{}", show(&config));
            Task::Done(ExitCode::SUCCESS)
        }
        Some(Command::Validate) => Task::Checked(config),
        None if arguments.check => Task::Checked(config),
        Some(Command::Healthcheck) => Task::Healthcheck(config),
        Some(Command::Version) | None => Task::Run(config),
    }
}

/// Runs until the work ends, which is told when to stop: 0 stopped as asked, 1 failed, 2 misconfigured.
pub(crate) fn run(
    program: &str,
    logging: &LoggingConfig,
    work: impl AsyncFnOnce(watch::Receiver<bool>) -> Result<(), Failure>,
) -> ExitCode {
    log_to_stderr(logging);
    descriptors::raise_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(async { work(stop::stop_signal()?).await }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Misconfigured(problems)) => {
            problems.iter().for_each(|problem| eprintln!("error: {problem}"));
            ExitCode::from(MISCONFIGURED)
        }
        Err(Failure::Failed(error)) => {
            tracing::error!(error = format!("{error:#}"), "{program} has failed");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(logging: &LoggingConfig) {
    let level = match logging.level {
        LogLevel::Trace => tracing::Level::TRACE,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Error => tracing::Level::ERROR,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match logging.log_type {
        LogType::Structured => log.json().flatten_event(true).init(),
        LogType::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}
