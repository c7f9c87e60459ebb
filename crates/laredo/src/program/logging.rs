//! The log on standard error, and the audit.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::server::{AuditConfig, LogLevel, LogType, LoggingConfig};

/// The target of the audit's events.
const AUDIT: &str = "audit";
/// The mode of the audit's file. It names callers and their addresses.
const AUDIT_MODE: u32 = 0o600;

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Begins to log on standard error. The audit is logged at every level, or appended to its file.
///
/// # Errors
/// A sentence if the audit's file cannot be opened.
pub(super) fn log_to_stderr(logging: &LoggingConfig, audit: &AuditConfig) -> Result<(), String> {
    let level = match logging.level {
        LogLevel::Trace => Level::TRACE,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error => Level::ERROR,
    };
    let audited = if audit.file.is_some() { LevelFilter::OFF } else { LevelFilter::INFO };
    let targets = Targets::new().with_default(level).with_target(AUDIT, audited);
    let log = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let log: BoxedLayer = match logging.log_type {
        LogType::Structured => log.json().flatten_event(true).with_filter(targets).boxed(),
        LogType::Text => log.with_ansi(io::stderr().is_terminal()).with_filter(targets).boxed(),
    };
    let mut layers = vec![log];
    if let Some(path) = &audit.file {
        let file = open_audit(path).map_err(|error| {
            let path = path.display();
            format!("access.audit.file: cannot append to {path}: {error}; name a file that laredo may write")
        })?;
        let audit = tracing_subscriber::fmt::layer().with_writer(Mutex::new(file)).json().flatten_event(true);
        layers.push(audit.with_filter(Targets::new().with_target(AUDIT, LevelFilter::INFO)).boxed());
    }
    tracing_subscriber::registry().with(layers).init();
    Ok(())
}

fn open_audit(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(AUDIT_MODE).open(path)
}
