//! What `laredo-server` is told on its command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Live copies of PostgreSQL tables for any number of clients, from one replication slot.
#[derive(Debug, Parser)]
#[command(name = "laredo-server", version, after_help = "Exit codes: 0 stopped as asked, 1 failed, 2 misconfigured.")]
pub struct Arguments {
    /// The configuration file (HOCON); `LAREDO_CONFIG` names it too.
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// A folder of *.conf files that are merged over it by name [default: /etc/laredo/conf.d].
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(super) conf_dir: Option<PathBuf>,
    /// Another such folder, merged last [default: /docker-entrypoint-init.d].
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(super) init_dir: Option<PathBuf>,
    /// Sets one key over files and environment, such as `grpc.port=5001`. May be repeated.
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// The health port, over `health.http_port`.
    #[arg(long, global = true, value_name = "PORT")]
    pub(super) health_port: Option<u16>,
    /// The log level, over `observability.logging.level`.
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Check the configuration and exit.
    #[arg(long)]
    pub(super) check: bool,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the configuration and exit, as `--check` does.
    Validate,
    /// Print the effective configuration, secrets masked.
    Config,
    /// Ask a running server on this machine whether it is ready: exit code 0 if it is.
    Healthcheck,
    /// Print the version.
    Version,
}
