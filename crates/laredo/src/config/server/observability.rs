//! The configuration of metrics and logs.

use laredo_server::ListenAddress;

use super::super::declaration::{block, config_block, config_choice, key};
use super::super::port::{self, PortTlsConfig};
use super::super::schema::{PORT, URL_PATH};

config_block! {
    /// The configuration of metrics and logs.
    pub struct ObservabilityConfig {
        /// The metrics endpoint.
        pub metrics: MetricsConfig = block("metrics"),
        /// The log.
        pub logging: LoggingConfig = block("logging"),
    }
}

config_block! {
    /// The metrics endpoint.
    pub struct MetricsConfig {
        /// The format of the metrics.
        pub metrics_type: MetricsType = key("type", MetricsType::KIND, || MetricsType::Prometheus),
        /// The port of the metrics endpoint.
        pub port: u16 = key("port", PORT, || 9090),
        /// The address of this port. Ours.
        pub address: ListenAddress = port::address(),
        /// TLS for this port; `None` if it is not enabled. Ours.
        pub tls: Option<PortTlsConfig> = port::tls(),
        /// The path of the metrics endpoint.
        pub path: String = key("path", URL_PATH, || "/metrics".to_owned()),
    }
}

config_choice! {
    /// The format of metrics.
    pub enum MetricsType {
        /// The text format of Prometheus.
        Prometheus = "prometheus",
    }
}

config_block! {
    /// The log.
    pub struct LoggingConfig {
        /// The format of a line: an object of JSON, or text for people.
        pub log_type: LogType = key("type", LogType::KIND, || LogType::Structured),
        /// The lowest level that is logged. `--log-level` sets it.
        pub level: LogLevel = key("level", LogLevel::KIND, || LogLevel::Info),
    }
}

config_choice! {
    /// The format of a log line.
    pub enum LogType {
        /// JSON lines, with an object for each event.
        Structured = "structured",
        /// Text for people.
        Text = "text",
    }
}

config_choice! {
    /// A log level.
    pub enum LogLevel {
        /// All events.
        Trace = "trace",
        /// Events for developers.
        Debug = "debug",
        /// Events that an operator wants to see.
        Info = "info",
        /// Events that may need attention.
        Warn = "warn",
        /// Events that need attention.
        Error = "error",
    }
}
