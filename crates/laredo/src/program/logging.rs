//! The log on standard error, and the audit. Threads of their own write both.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::PanicHookInfo;
use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::ProgramFailure;
use crate::config::server::{AuditConfig, LogLevel, LogType, LoggingConfig};

mod line_format;
mod line_writer;

use line_format::{JsonLines, TextLines, text_fields};
pub(crate) use line_writer::dropped_log_lines;
use line_writer::{LineWriter, LossReports};

/// The target of the audit's events.
const AUDIT: &str = "audit";
/// The mode of the audit's file. It names callers and their addresses.
const AUDIT_MODE: u32 = 0o600;
/// The maximum time for which the end of the process waits for its last lines to be written.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// The filter of the log, once it has begun.
static FILTER: OnceLock<LogFilter> = OnceLock::new();

/// The filter of the log, which can be replaced while the program runs.
struct LogFilter {
    handle: reload::Handle<Targets, Registry>,
    /// The level of the audit's events in the log.
    audited: LevelFilter,
}

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The log of this process, and its audit.
#[derive(Clone)]
pub(super) struct ProcessLog {
    log: LineWriter,
    /// `None` if the audit is a part of the log.
    audit: Option<LineWriter>,
}

/// The end of the process's log, at which the last lines are written.
pub(super) struct LogEnd(ProcessLog);

impl Drop for LogEnd {
    fn drop(&mut self) {
        self.0.flush();
    }
}

impl ProcessLog {
    /// Returns a value that flushes the log when it is dropped.
    pub(super) fn end(&self) -> LogEnd {
        LogEnd(self.clone())
    }

    /// Waits until all lines are written, but no longer than [`FLUSH_MAX`].
    pub(super) fn flush(&self) {
        let began_at = Instant::now();
        // The audit first, because the log reports its missing lines.
        if let Some(audit) = &self.audit {
            audit.flush(began_at + FLUSH_MAX / 2);
        }
        self.log.flush(began_at + FLUSH_MAX);
    }
}

/// Begins to log on standard error, panics as well. The audit is logged at every level, or appended
/// to its file.
///
/// # Errors
/// Returns an error if the audit's file cannot be opened, or a thread cannot be started.
pub(super) fn begin_logging(logging: &LoggingConfig, audit: &AuditConfig) -> Result<ProcessLog, ProgramFailure> {
    let audit = audit.file.as_deref().map(write_audit).transpose()?;
    let audited = if audit.is_some() { LevelFilter::OFF } else { LevelFilter::INFO };
    let (targets, handle) = reload::Layer::new(targets(logging.level, audited));
    // Only the first log of a process can be changed, and there is no other.
    let _ = FILTER.set(LogFilter { handle, audited });
    let log = write_log()?;
    let shown = tracing_subscriber::fmt::layer().with_writer(log.clone());
    let shown: BoxedLayer = match logging.log_type {
        LogType::Structured => shown.fmt_fields(JsonFields::new()).event_format(JsonLines).with_filter(targets).boxed(),
        LogType::Text => {
            let shown = shown.with_ansi(io::stderr().is_terminal()).fmt_fields(text_fields());
            shown.event_format(TextLines { timer: SystemTime }).with_filter(targets).boxed()
        }
    };
    let mut layers = vec![shown];
    if let Some(audit) = &audit {
        let shown = tracing_subscriber::fmt::layer().with_writer(audit.clone());
        let shown = shown.fmt_fields(JsonFields::new()).event_format(JsonLines);
        layers.push(shown.with_filter(Targets::new().with_target(AUDIT, LevelFilter::INFO)).boxed());
    }
    tracing_subscriber::registry().with(layers).init();
    std::panic::set_hook(Box::new(log_panic));
    Ok(ProcessLog { log, audit })
}

/// Changes the lowest level that the log of this process shows. Does nothing before the log has
/// begun.
pub(crate) fn set_log_level(level: LogLevel) {
    if let Some(LogFilter { handle, audited }) = FILTER.get()
        && let Err(error) = handle.reload(targets(level, *audited))
    {
        tracing::error!(
            event = "log_level_not_changed", %error,
            "the log level cannot be changed; restart laredo"
        );
    }
}

/// Returns the filter of the log.
fn targets(level: LogLevel, audited: LevelFilter) -> Targets {
    let level = match level {
        LogLevel::Trace => Level::TRACE,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error => Level::ERROR,
    };
    Targets::new().with_default(level).with_target(AUDIT, audited)
}

/// Starts to write the log to stderr.
fn write_log() -> anyhow::Result<LineWriter> {
    let reports = LossReports {
        // An error, so that it is shown at every level.
        dropped: |lines: u64| {
            tracing::error!(
                event = "log_lines_dropped",
                lines,
                "log lines were dropped, because the log was not written or read as fast as they came"
            );
        },
        // There is no place to report that the log cannot be written, other than the metric.
        failed: |_: &io::Error, _: u64| {},
    };
    start("log", io::stderr(), reports)
}

/// Starts to append the audit to its file. The log reports lines that are missing in it.
fn write_audit(path: &Path) -> Result<LineWriter, ProgramFailure> {
    let file = open_audit(path).map_err(|error| {
        let path = path.display();
        ProgramFailure::Misconfigured(vec![format!(
            "access.audit.file: cannot append to {path}: {error}; name a file that laredo may write"
        )])
    })?;
    let file_path = path.to_owned();
    let reports = LossReports {
        dropped: |lines: u64| {
            tracing::error!(
                event = "audit_lines_dropped",
                lines,
                "audit lines were dropped, because their file (`access.audit.file`) was not written as fast as they came"
            );
        },
        failed: move |error: &io::Error, lines: u64| {
            let path = file_path.display();
            tracing::error!(
                event = "audit_lines_dropped",
                lines, %error, %path,
                "audit lines were dropped, because their file (`access.audit.file`) cannot be written; make room for it"
            );
        },
    };
    Ok(start("audit", file, reports)?)
}

fn start(
    name: &str,
    out: impl io::Write + Send + 'static,
    reports: LossReports<impl Fn(u64) + Send + 'static, impl Fn(&io::Error, u64) + Send + 'static>,
) -> anyhow::Result<LineWriter> {
    LineWriter::start(name, out, reports)
        .with_context(|| format!("cannot start the thread that writes the {name}; raise the limit of threads"))
}

fn open_audit(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(AUDIT_MODE).open(path)
}

/// Logs a panic. The default hook would write to stderr on the thread that panicked.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let reason = panic.payload_as_str().unwrap_or("no reason was given");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let current = thread::current();
    tracing::error!(event = "panic", place, thread = current.name(), backtrace, "a thread panicked: {reason}");
}

#[cfg(test)]
mod tests {
    use super::line_format::LoggedText;
    use super::*;

    #[test]
    fn a_panic_is_a_line_with_its_place_and_reason() {
        let text = LoggedText::default();
        let writer = text.clone();
        let shown = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let shown = shown.fmt_fields(JsonFields::new()).event_format(JsonLines);
        let before = std::panic::take_hook();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(shown), || {
            std::panic::set_hook(Box::new(log_panic));
            std::panic::catch_unwind(|| panic!("row {}\nis missing", 5)).unwrap_err();
        });
        std::panic::set_hook(before);
        let line: serde_json::Value = serde_json::from_str(text.read().trim_end()).expect("it is one line");
        assert_eq!((&line["event"], &line["level"]), (&"panic".into(), &"ERROR".into()));
        assert_eq!(line["message"], "a thread panicked: row 5\nis missing");
        assert!(line["place"].as_str().unwrap().contains("logging.rs:"), "{line}");
    }
}
