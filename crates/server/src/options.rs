//! The options of a server.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use laredo_core::CommitTime;
use laredo_engine::journal::BufferPolicy;
use laredo_engine::{Clock, EngineHandle, TableHandle};
use tokio::sync::mpsc;

use crate::access::AccessRules;
use crate::config_order::ConfigOrder;
use crate::hosts::AllowedHosts;
use crate::listener::PortListener;
use crate::tls::ServerTls;

/// The configuration of a server: the tables, and the limits.
#[derive(Clone)]
pub struct ServerOptions {
    /// The sources of the tables, for status requests and operators' commands.
    pub sources: Vec<ServedSource>,
    /// The tables to serve. If two have the same name, the first one is served.
    pub tables: Vec<ServedTableOptions>,
    /// The maximum number of open connections of each gRPC port.
    pub connections_max: usize,
    /// The origins of web pages that may call from a browser, such as `https://console.example`;
    /// `*` allows every page. The server's own origin need not be listed, even if a proxy serves
    /// both the page and the server.
    pub allowed_origins: Vec<HeaderValue>,
    /// The names by which clients may call the ports in plain text.
    pub allowed_hosts: AllowedHosts,
    /// The callers and their grants; `None` if everyone may do everything.
    pub access: Option<AccessRules>,
    /// The paths of the HTTP endpoints.
    pub http: HttpOptions,
    /// The time limits.
    pub waits: ServerTimeLimits,
    /// The clock that gives the time of day.
    pub clock: Clock,
    /// The receiver of orders that concern the configuration; `None` if it never changes.
    pub config_orders: Option<mpsc::Sender<ConfigOrder>>,
    /// Returns the number of log lines that the program has dropped since its start, for the
    /// metrics.
    pub dropped_log_lines: fn() -> u64,
}

/// A source of tables.
#[derive(Clone, Debug)]
pub struct ServedSource {
    /// The source's name in the configuration.
    pub id: String,
    /// The kind of the source in the configuration: `postgresql`.
    pub kind: String,
    /// True if the source resumes where it was after a restart, because it has a permanent slot.
    pub resumes: bool,
    /// The engine that follows the source.
    pub engine: EngineHandle,
}

impl ServedSource {
    /// Returns the milliseconds since every table of the source was known to have all commits.
    /// Returns `None` before the first copies.
    pub(crate) fn lag_ms(&self, now: CommitTime) -> Option<u64> {
        let oldest = self.engine.tables().iter().map(|table| table.status().current_at).min()?;
        let now = self.engine.source_time(now);
        let lag_us = u64::try_from(now.0.saturating_sub(oldest.0)).unwrap_or(0);
        (oldest != CommitTime::default()).then_some(lag_us / 1000)
    }

    /// Returns the method that detects those changes of definitions that the stream does not
    /// announce.
    pub(crate) fn ddl_watch(&self) -> &'static str {
        let is_triggered = self.engine.tables().iter().any(|table| table.definition().is_triggered);
        if is_triggered { "trigger" } else { "poll" }
    }
}

/// The configuration of one table and of the service to its clients.
#[derive(Clone, Debug)]
pub struct ServedTableOptions {
    /// The table.
    pub handle: TableHandle,
    /// The name of the table's source, as in [`ServedSource::id`].
    pub source_id: String,
    /// The limits of the table's clients.
    pub limits: TableLimits,
    /// The maximum size in bytes of the cached projections (Struct rows, filtered batches). Clients
    /// that want the same projections share them.
    pub projection_bytes_max: u64,
    /// The rows and indexes for the Query service; `None` if the table answers no queries.
    pub query: Option<QueryOptions>,
}

/// The answers of a table to queries.
#[derive(Clone, Debug, Default)]
pub struct QueryOptions {
    /// The secondary indexes.
    pub indexes: Vec<Arc<QueryIndexOptions>>,
}

/// A secondary index for queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryIndexOptions {
    /// The name by which queries use the index.
    pub name: String,
    /// The columns, in the order in which queries give their values.
    pub fields: Vec<String>,
    /// True if no two rows have the same values.
    pub unique: bool,
}

/// The limits of a table's clients. They may change while the table is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLimits {
    /// The maximum number of concurrent streams.
    pub clients_max: usize,
    /// The limit on how far a live client may fall behind. A change is for later streams.
    pub buffer: BufferOptions,
    /// The time without other messages after which a heartbeat is sent.
    pub heartbeat_interval: Duration,
}

/// The limit on how far a live client may fall behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferOptions {
    /// The maximum number of entries; `u64::MAX` for no limit other than the journal's own.
    pub behind_max: u64,
    /// The action when a client exceeds the limit.
    pub policy: BufferPolicy,
}

/// The paths of the HTTP endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// The path of the liveness endpoint.
    pub liveness_path: String,
    /// The path of the readiness endpoint.
    pub readiness_path: String,
    /// The path of the startup endpoint, which answers 200 once the first copies are over.
    pub startup_path: String,
    /// The path of the metrics endpoint.
    pub metrics_path: String,
    /// True if the server is ready only while every table is.
    pub strict_readiness: bool,
}

/// The time limits of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerTimeLimits {
    /// The time that a client waits for the server to reach the client's position, or for a table
    /// to become ready.
    pub ready: Duration,
    /// The time after which a client that reads nothing of its snapshot is cut, and a download that
    /// is not read ends. The journal is kept for such a client.
    pub stalled: Duration,
    /// The time within which a request must arrive.
    pub request: Duration,
    /// The time for which existing streams continue after the server was asked to stop. No new
    /// streams begin meanwhile.
    pub drain: Duration,
    /// The time in which a client can receive the final status, when the server stops or the client
    /// was cut. The stream of a client that was cut is then reset.
    pub stop: Duration,
    /// The time within which clients must answer a request for the checksum of their rows.
    pub answer: Duration,
}

/// The listeners of a server.
#[derive(Debug, Default)]
pub struct ServerListeners {
    /// The listeners for gRPC, gRPC-Web and Connect, with all services.
    pub grpc: Vec<PortListener>,
    /// The listeners for the same protocols, with the Replication service alone.
    pub fanout: Vec<PortListener>,
    /// The listener for health over HTTP. It also serves metrics.
    pub health: Option<PortListener>,
    /// The listener for metrics alone over HTTP.
    pub metrics: Option<PortListener>,
}

impl ServerListeners {
    /// Returns the certificates of all ports, each once.
    pub(crate) fn certificates(&self) -> Vec<ServerTls> {
        let listeners = self.grpc.iter().chain(&self.fanout).chain(&self.health).chain(&self.metrics);
        let mut certificates: Vec<ServerTls> = Vec::new();
        for tls in listeners.filter_map(PortListener::tls) {
            if !certificates.iter().any(|known| known.name() == tls.name()) {
                certificates.push(tls.clone());
            }
        }
        certificates
    }
}

/// An error that keeps a server from serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A failure of a port.
    #[error("serving: {0}")]
    Http(#[source] std::io::Error),
    /// Built-in service descriptions that cannot be read.
    #[error("reading the service descriptions: {0}")]
    Descriptions(String),
}

/// The default of [`ServerOptions::connections_max`].
pub const CONNECTIONS_MAX: usize = 10_000;

/// The default of [`TableLimits::clients_max`].
///
/// It is half of [`CONNECTIONS_MAX`], so that the clients of one table do not keep those of other
/// tables out. It also bounds the memory of clients that read nothing: each may hold two parts of a
/// snapshot, of a megabyte each, until it is cut.
pub const CLIENTS_MAX: u32 = 5000;

impl Default for BufferOptions {
    fn default() -> BufferOptions {
        BufferOptions { behind_max: u64::MAX, policy: BufferPolicy::DropDisconnect }
    }
}

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            liveness_path: "/health/live".to_owned(),
            readiness_path: "/health/ready".to_owned(),
            startup_path: "/health/startup".to_owned(),
            metrics_path: "/metrics".to_owned(),
            strict_readiness: false,
        }
    }
}

impl Default for ServerTimeLimits {
    fn default() -> ServerTimeLimits {
        ServerTimeLimits {
            ready: Duration::from_secs(10),
            stalled: Duration::from_secs(60),
            request: Duration::from_secs(10),
            drain: Duration::ZERO,
            stop: Duration::from_secs(5),
            answer: Duration::from_secs(10),
        }
    }
}

impl ServedTableOptions {
    /// Returns the default options for a table: [`CLIENTS_MAX`] clients, no limit on how far they
    /// may fall behind, and a heartbeat every 5 s.
    #[must_use]
    pub fn new(handle: TableHandle) -> ServedTableOptions {
        ServedTableOptions {
            handle,
            source_id: String::new(),
            limits: TableLimits {
                clients_max: CLIENTS_MAX as usize,
                buffer: BufferOptions::default(),
                heartbeat_interval: Duration::from_secs(5),
            },
            projection_bytes_max: 64 * 1024 * 1024,
            query: None,
        }
    }
}
