//! Command-line arguments of `laredo-snapshotter`.

use clap::Parser;

use crate::config::server::LogLevel;
use crate::program::{ConfigArguments, ProgramCommand};

/// Tables of a laredo-server as archives in folders and S3: base snapshots, diffs, and a manifest.
#[derive(Debug, Parser)]
#[command(
    name = "laredo-snapshotter",
    version,
    after_help = "LAREDO_SNAPSHOTTER_CONFIG names the configuration file, too.\n\n\
                  Exit codes: 0 stopped as asked, 1 failed, 2 misconfigured."
)]
pub struct SnapshotterArguments {
    #[command(flatten)]
    pub(super) config: ConfigArguments,
    /// The port of the HTTP API, over `snapshotter.http.port`.
    #[arg(long, global = true, value_name = "PORT")]
    pub(super) http_port: Option<u16>,
    /// The lowest level that is logged: trace, debug, info, warn or error.
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", value_parser = level)]
    pub(super) log_level: LogLevel,
    #[command(subcommand)]
    pub(super) command: Option<ProgramCommand>,
}

fn level(name: &str) -> Result<LogLevel, String> {
    let names = || LogLevel::ALL.iter().map(|level| level.name()).collect::<Vec<_>>();
    LogLevel::from_name(name).ok_or_else(|| format!("expected one of {}", names().join(", ")))
}
