//! The configuration of metrics and logs.

use super::super::fields::BlockFields;
use super::super::schema::{BlockSchema, KeySchema, PORT, SettingKind, URL_PATH};
use super::super::write::{self, text};

/// The configuration of metrics and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservabilityConfig {
    /// The metrics endpoint, in the format of Prometheus.
    pub metrics: MetricsConfig,
    /// The log.
    pub logging: LoggingConfig,
}

/// The metrics endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsConfig {
    /// The TCP port; 0 means any free one. Default 9090.
    pub port: u16,
    /// The path. Default `/metrics`.
    pub path: String,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggingConfig {
    /// The format of a line (`type`).
    pub log_type: LogType,
    /// The lowest level that is logged.
    pub level: LogLevel,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogType {
    /// JSON lines, with an object for each event. The default.
    Structured,
    /// Text for people.
    Text,
}

/// A log level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// All events.
    Trace,
    /// Events for developers.
    Debug,
    /// Events that an operator wants to see. The default.
    Info,
    /// Events that may need attention.
    Warn,
    /// Events that need attention.
    Error,
}

/// The schema of `observability`.
pub(super) static OBSERVABILITY: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("metrics", SettingKind::Block(&METRICS)),
        KeySchema::new("logging", SettingKind::Block(&LOGGING)),
    ],
};

static METRICS: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("type", SettingKind::Choice(&[&["prometheus"]])),
        KeySchema::new("port", PORT),
        KeySchema::new("path", URL_PATH),
    ],
};

static LOGGING: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("type", SettingKind::Choice(&[&["structured"], &["text"]])),
        KeySchema::new("level", SettingKind::Choice(&[&["trace"], &["debug"], &["info"], &["warn"], &["error"]])),
    ],
};

impl ObservabilityConfig {
    pub(super) fn read(fields: &BlockFields) -> Self {
        let metrics = fields.block("metrics");
        let logging = fields.block("logging");
        ObservabilityConfig {
            metrics: MetricsConfig {
                port: metrics.port("port").unwrap_or(9090),
                path: metrics.text("path").unwrap_or_else(|| "/metrics".to_owned()),
            },
            logging: LoggingConfig {
                log_type: match logging.word("type") {
                    Some("text") => LogType::Text,
                    _ => LogType::Structured,
                },
                level: logging.word("level").and_then(LogLevel::from_name).unwrap_or(LogLevel::Info),
            },
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.block("metrics", |out| {
            out.put("type", "prometheus");
            out.put("port", self.metrics.port);
            out.put("path", text(&self.metrics.path));
        });
        out.block("logging", |out| {
            out.put(
                "type",
                match self.logging.log_type {
                    LogType::Structured => "structured",
                    LogType::Text => "text",
                },
            );
            out.put("level", self.logging.level.name());
        });
    }
}

impl LogLevel {
    /// All levels, the lowest first.
    pub const ALL: [LogLevel; 5] = [LogLevel::Trace, LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error];

    /// Returns the level with a name.
    pub fn from_name(name: &str) -> Option<LogLevel> {
        LogLevel::ALL.into_iter().find(|level| level.name() == name)
    }

    /// Returns the name of the level in configurations and in the filters of `tracing`.
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Trace => "trace",
            LogLevel::Debug => "debug",
            LogLevel::Info => "info",
            LogLevel::Warn => "warn",
            LogLevel::Error => "error",
        }
    }
}
