//! The composition of `laredo-snapshotter`: configuration → feeds, destinations, writers → run
//! until stopped.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::config::server::{AuditConfig, LoggingConfig};
use crate::config::snapshotter::HttpConfig;
use crate::config::{ConfigLoader, SnapshotterConfig};
use crate::program::{
    HealthPort, ProgramStart, ProgramTask, begin, configured_port, healthcheck, print_warning, run as run_until_stopped,
};

mod arguments;
#[cfg(feature = "aws")]
mod aws;
mod compose;
pub(crate) mod feed;
mod http;
mod subscription;
mod table;
mod targets;

pub use arguments::SnapshotterArguments;
pub use http::metrics_reference;

const PROGRAM: &str = "laredo-snapshotter";

/// The path at which the program reports if every table has its first snapshot. No key changes it.
const READINESS_PATH: &str = "/health/ready";

/// Runs the program and returns its exit code: 0 stopped as asked, 1 failed, 2 misconfigured.
#[must_use]
pub fn run(arguments: SnapshotterArguments) -> ExitCode {
    let SnapshotterArguments { config: arguments, http_port, log_level, command } = arguments;
    let load = |mut loader: ConfigLoader| {
        if let Some(port) = http_port {
            loader = loader.flag("--http-port", "snapshotter.http.port", port.to_string());
        }
        SnapshotterConfig::load(&loader)
    };
    match begin(SnapshotterArguments::command(), &arguments, command, load, SnapshotterConfig::to_hocon) {
        ProgramTask::Done(code) => code,
        ProgramTask::Checked(config) => {
            config.warnings().iter().for_each(|warning| print_warning(warning));
            ExitCode::SUCCESS
        }
        ProgramTask::Healthcheck(config, probe) => {
            let HttpConfig { address, port, tls, .. } = &config.http;
            healthcheck(PROGRAM, HealthPort { address, port: *port, tls: tls.as_ref() }, READINESS_PATH, &probe)
        }
        ProgramTask::Run(config) => {
            let logging = LoggingConfig { level: log_level, ..LoggingConfig::default() };
            let HttpConfig { address, port, .. } = &config.http;
            let ports = vec![configured_port("snapshotter.http.port", address, *port)];
            let config_files = SnapshotterConfig::files(&arguments.loader());
            let start = ProgramStart { program: PROGRAM, config_files, ports };
            run_until_stopped(&start, (&logging, &AuditConfig::default()), async |stop| {
                config.warnings().iter().for_each(|warning| tracing::warn!(event = "config_warning", "{warning}"));
                compose::run(config, stop).await
            })
        }
    }
}
