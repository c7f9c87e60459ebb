//! The composition of `laredo-server`: configuration → sources, engines, server → run until
//! stopped.

use std::process::ExitCode;
use std::sync::Arc;

use clap::CommandFactory;

use crate::config::{ConfigLoader, ServerConfig};
use crate::program::{
    HealthPort, ProgramStart, ProgramTask, begin, healthcheck, print_warning, run as run_until_stopped,
};

mod access;
mod access_reload;
mod arguments;
mod check;
mod compose;
mod config_plan;
mod config_reload;
mod jwt_keys;
mod key_request;
mod listen;
mod options;
mod prepare;

pub use arguments::ServerArguments;
use check::check_sources;
use compose::serve;
pub(crate) use compose::{StartMode, serve_at};
pub(crate) use options::{connection, slot, table_folders};

const PROGRAM: &str = "laredo-server";

/// Runs the program and returns its exit code: 0 stopped as asked, 1 failed, 2 misconfigured.
#[must_use]
pub fn run(arguments: ServerArguments) -> ExitCode {
    let ServerArguments { config: arguments, health_port, log_level, drain_grace, strict, connect, command } =
        arguments;
    let mode = if strict { StartMode::Strict } else { StartMode::Lenient };
    let loader = move |mut loader: ConfigLoader| {
        if let Some(port) = health_port {
            loader = loader.flag("--health-port", "health.http_port", port.to_string());
        }
        if let Some(level) = &log_level {
            loader = loader.flag("--log-level", "observability.logging.level", level);
        }
        loader
    };
    let load = |layers| ServerConfig::load(&loader(layers));
    match begin(ServerArguments::command(), &arguments, command, load, ServerConfig::to_hocon) {
        ProgramTask::Done(code) => code,
        ProgramTask::Checked(config) => {
            config.warnings().iter().for_each(|warning| print_warning(warning));
            if connect { check_sources(&config) } else { ExitCode::SUCCESS }
        }
        ProgramTask::Healthcheck(ServerConfig { health, .. }, probe) => {
            let port = HealthPort { address: &health.address, port: health.http_port, tls: health.tls.as_ref() };
            healthcheck(PROGRAM, port, &health.readiness_path, &probe)
        }
        ProgramTask::Run(config) => {
            let audit = config.access.as_ref().map(|access| access.audit.clone()).unwrap_or_default();
            let loader = loader(arguments.loader());
            let (config_files, ports) = (ServerConfig::files(&loader), listen::configured_ports(&config));
            let start = ProgramStart { program: PROGRAM, config_files, ports };
            let reload = Arc::new(move || ServerConfig::load(&loader));
            run_until_stopped(&start, (&config.observability.logging, &audit), async |stop| {
                serve(&config, (mode, drain_grace), stop, reload).await
            })
        }
    }
}
