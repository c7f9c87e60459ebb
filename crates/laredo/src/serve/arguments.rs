//! Command-line arguments of `laredo-server`.

use std::time::Duration;

use clap::Parser;

use crate::program::{ConfigArguments, ProgramCommand};

/// Live copies of PostgreSQL tables for any number of clients, from one replication slot.
#[derive(Debug, Parser)]
#[command(
    name = "laredo-server",
    version,
    after_help = "LAREDO_CONFIG names the configuration file, too.\n\nExit codes: 0 stopped as asked, 1 failed, 2 misconfigured."
)]
pub struct ServerArguments {
    #[command(flatten)]
    pub(super) config: ConfigArguments,
    /// The health port, over `health.http_port`.
    #[arg(long, global = true, value_name = "PORT")]
    pub(super) health_port: Option<u16>,
    /// The log level, over `observability.logging.level`.
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// The time for which connected clients are still served after SIGTERM, such as `15s`.
    /// Meanwhile the server is not ready, and new clients are sent elsewhere.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) drain_grace: Duration,
    /// End with exit code 2 at start if a source or a table is refused, and open the ports only
    /// when all others are ready: for a deploy pipeline. Without it, a refused source is tried
    /// again while the others are served.
    #[arg(long)]
    pub(super) strict: bool,
    /// With --check: also ask each database, once, if it and its tables can be followed. Nothing is
    /// changed there.
    #[arg(long, requires = "check")]
    pub(super) connect: bool,
    #[command(subcommand)]
    pub(super) command: Option<ProgramCommand>,
}

/// Parses a whole number and its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected a whole number and its unit (ms, s, m or h), such as 15s".to_owned()),
    };
    let ms = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    ms.map(Duration::from_millis).ok_or_else(|| format!("`{number}` is not a whole number that can be waited for"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        let parsed = ["15s", "0s", "250ms", "2m", "1h"].map(|text| duration(text).unwrap().as_millis());
        assert_eq!(parsed, [15_000, 0, 250, 120_000, 3_600_000]);
        for wrong in ["", "15", "s", "-1s", "1.5s", "15 s", "1d", "99999999999999999999s", "9999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
