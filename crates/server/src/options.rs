//! What a server is asked to be.

use std::time::Duration;

use http::HeaderValue;
use laredo_core::CommitTime;
use laredo_engine::journal::BufferPolicy;
use laredo_engine::{Clock, EngineHandle, TableHandle};
use tokio::net::TcpListener;

/// A server's tables and manners.
#[derive(Clone)]
pub struct ServerOptions {
    /// Where its tables come from, for those who ask and command.
    pub sources: Vec<ServedSource>,
    /// What it serves. Where two have one name, the first is served.
    pub tables: Vec<ServedTableOptions>,
    /// Certificates; none for plain text.
    pub tls: Option<TlsOptions>,
    /// Where the pages are from that may call from a browser, as in `https://console.example`; `*` for every page there is. A page
    /// that comes from the server's own address, as through a proxy before both, need not be named.
    pub allowed_origins: Vec<HeaderValue>,
    /// Paths of the HTTP endpoints.
    pub http: HttpOptions,
    /// How long things may take.
    pub waits: Waits,
    /// Tells the time of day.
    pub clock: Clock,
}

/// Where tables come from.
#[derive(Clone, Debug)]
pub struct ServedSource {
    /// Its name in the configuration.
    pub id: String,
    /// What it is, as the configuration says it: `postgresql`.
    pub kind: String,
    /// Whether it goes on after a restart where it was: it has a slot that stays.
    pub resumes: bool,
    /// What follows it.
    pub engine: EngineHandle,
}

impl ServedSource {
    /// Milliseconds since the source's tables, the last one of them, were known to have all that was committed; `None` before the first copies.
    pub(crate) fn lag_ms(&self, now: CommitTime) -> Option<u64> {
        let oldest = self.engine.tables().iter().map(|table| table.status().current_at).min()?;
        let now = self.engine.source_time(now);
        let lag_us = u64::try_from(now.0.saturating_sub(oldest.0)).unwrap_or(0);
        (oldest != CommitTime::default()).then_some(lag_us / 1000)
    }

    /// The way in which changes of definitions are noticed that the stream does not announce.
    pub(crate) fn ddl_watch(&self) -> &'static str {
        let is_triggered = self.engine.tables().iter().any(|table| table.definition().is_triggered);
        if is_triggered { "trigger" } else { "poll" }
    }
}

/// One table and how its clients are treated.
#[derive(Clone, Debug)]
pub struct ServedTableOptions {
    /// The table.
    pub handle: TableHandle,
    /// The name of its source, as in [`ServedSource::id`].
    pub source_id: String,
    /// Streams at a time; `None` for no limit.
    pub clients_max: Option<usize>,
    /// How far a live client may fall behind.
    pub buffer: BufferOptions,
    /// A heartbeat is sent when nothing else was for this long.
    pub heartbeat_interval: Duration,
    /// Bytes of projections (Struct rows, filtered batches) that are kept for other clients who want the same.
    pub projection_bytes_max: u64,
}

/// How far a live client may fall behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferOptions {
    /// Entries; `u64::MAX` for no bound but the journal's own.
    pub behind_max: u64,
    /// What happens beyond.
    pub policy: BufferPolicy,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct TlsOptions {
    /// The certificate, its chain behind it.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
    /// Clients must show a certificate of this authority; `None` to ask for none.
    pub client_ca: Option<Vec<u8>>,
}

/// One of the files that TLS is set up from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// [`TlsOptions::certificate`].
    Certificate,
    /// [`TlsOptions::key`].
    Key,
    /// [`TlsOptions::client_ca`].
    ClientCa,
}

/// Paths of the HTTP endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// The path of liveness.
    pub liveness_path: String,
    /// The path of readiness.
    pub readiness_path: String,
    /// The path that answers 200 once the first copies are over.
    pub startup_path: String,
    /// The path of the metrics.
    pub metrics_path: String,
    /// True where the server is ready only while every table is.
    pub strict_readiness: bool,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// A client that is ahead of this server waits for it so long, and one whose table is not ready for that.
    pub ready: Duration,
    /// A client that is being sent a snapshot and takes nothing for so long is cut: the journal is kept for its sake.
    pub stalled: Duration,
    /// A request must have arrived after this.
    pub request: Duration,
    /// Streams are served on for so long after the server was asked to stop, while no new ones begin.
    pub drain: Duration,
    /// Clients may take so long to hear that the server stops.
    pub stop: Duration,
    /// Clients that are asked for the checksum of their rows may take so long to answer.
    pub answer: Duration,
}

/// Where a server listens.
#[derive(Debug, Default)]
pub struct Listeners {
    /// gRPC, gRPC-Web and Connect, with all services.
    pub grpc: Vec<TcpListener>,
    /// The same with the Replication service alone.
    pub fanout: Vec<TcpListener>,
    /// Health over HTTP.
    pub health: Option<TcpListener>,
    /// Metrics over HTTP; they are also served beside health.
    pub metrics: Option<TcpListener>,
}

/// Why a server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificate, the key or the client authority is not one.
    #[error("setting up TLS: {0}; check cert_path, key_path and client_ca_path")]
    Tls(String),
    /// The gRPC server.
    #[error("serving gRPC: {0}")]
    Grpc(#[source] tonic::transport::Error),
    /// The HTTP server.
    #[error("serving HTTP: {0}")]
    Http(#[source] std::io::Error),
    /// The service descriptions that are built in cannot be read.
    #[error("reading the service descriptions: {0}")]
    Descriptions(String),
}

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

impl Default for Waits {
    fn default() -> Waits {
        Waits {
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
    /// A table with the defaults: no limits, a heartbeat every 5 s.
    #[must_use]
    pub fn new(handle: TableHandle) -> ServedTableOptions {
        ServedTableOptions {
            handle,
            source_id: String::new(),
            clients_max: None,
            buffer: BufferOptions::default(),
            heartbeat_interval: Duration::from_secs(5),
            projection_bytes_max: 64 * 1024 * 1024,
        }
    }
}
