//! `laredo-server`, composed: configuration → sources, engines, server → run until told to stop.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::server::{LogLevel, LogType, LoggingConfig};
use crate::config::{Loader, ServerConfig};

mod arguments;
mod compose;
mod healthcheck;
mod listen;
mod options;
mod prepare;

pub use arguments::Arguments;
use arguments::Command;
use compose::{Failure, serve};

/// The configuration, or what it names, has to be mended.
const MISCONFIGURED: u8 = 2;

/// Runs the program and tells how it ended: 0 stopped as asked, 1 failed, 2 misconfigured.
#[must_use]
pub fn run(arguments: Arguments) -> ExitCode {
    if matches!(arguments.command, Some(Command::Version)) {
        println!("laredo-server {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let config = match ServerConfig::load(&loader(&arguments)) {
        Ok(config) => config,
        Err(report) => {
            eprintln!("{}", report.render(std::io::stderr().is_terminal()));
            return ExitCode::from(MISCONFIGURED);
        }
    };
    match arguments.command {
        Some(Command::Config) => {
            println!("{}", config.to_hocon());
            ExitCode::SUCCESS
        }
        Some(Command::Validate) => ExitCode::SUCCESS,
        None if arguments.check => ExitCode::SUCCESS,
        Some(Command::Healthcheck) => healthcheck::run(&config.health),
        Some(Command::Version) | None => start(&config, arguments.drain_grace),
    }
}

fn loader(arguments: &Arguments) -> Loader {
    let mut loader = Loader::from_process();
    if let Some(file) = &arguments.config {
        loader = loader.file(file);
    }
    if let Some(folder) = &arguments.conf_dir {
        loader = loader.conf_dir(folder);
    }
    if let Some(folder) = &arguments.init_dir {
        loader = loader.init_dir(folder);
    }
    loader = arguments.set.iter().fold(loader, |loader, assignment| loader.set(assignment));
    if let Some(port) = arguments.health_port {
        loader = loader.flag("--health-port", "health.http_port", port.to_string());
    }
    if let Some(level) = &arguments.log_level {
        loader = loader.flag("--log-level", "observability.logging.level", level);
    }
    loader
}

fn start(config: &ServerConfig, drain: Duration) -> ExitCode {
    log_to_stderr(&config.observability.logging);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(config, drain)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Misconfigured(problems)) => {
            problems.iter().for_each(|problem| eprintln!("error: {problem}"));
            ExitCode::from(MISCONFIGURED)
        }
        Err(Failure::Failed(error)) => {
            tracing::error!(error = format!("{error:#}"), "laredo-server has failed");
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
