//! Putting it together, running it, and stopping it.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use laredo_core::TableName;
use laredo_engine::Clock;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::util::option_layer;

use crate::accept::{Acceptor, Descriptors, with_preface};
use crate::grpc::Replication;
use crate::http::serve_http;
use crate::oam;
use crate::options::{Listeners, ServeError, ServerOptions, TlsOptions};
use crate::protocols::{Methods, Protocols};
use crate::query;
use crate::shared::Shared;
use crate::table::Served;
use crate::{origins, tls};

/// A peer that does not answer pings is gone after the sum of these.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests are small, but a client may ask for many tables at once.
const WINDOW_BYTES: u32 = 1024 * 1024;
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
/// How often health is looked at and clients that hold up others are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// How often a server that stops looks whether its clients have left.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);

/// Serves tables to clients.
pub struct Server {
    shared: Arc<Shared>,
    tls: Option<TlsOptions>,
    allowed_origins: Vec<HeaderValue>,
}

impl Server {
    /// A server that does not run yet.
    #[must_use]
    pub fn new(options: ServerOptions) -> Server {
        let ServerOptions { sources, tables, tls, allowed_origins, http, waits, clock } = options;
        let tables = tables.into_iter().map(|table| Arc::new(Served::new(table))).collect();
        Server { shared: Arc::new(Shared::new(sources, tables, clock, waits, http)), tls, allowed_origins }
    }

    /// A server with no TLS and the default paths and waits.
    #[must_use]
    pub fn with_tables(tables: Vec<crate::ServedTableOptions>, clock: Clock) -> Server {
        Server::new(ServerOptions {
            sources: Vec::new(),
            tables,
            tls: None,
            allowed_origins: Vec::new(),
            http: crate::HttpOptions::default(),
            waits: crate::Waits::default(),
            clock,
        })
    }

    /// Serves until `stop` resolves. Then it is not ready any more and begins no more streams, but asks those that it has to leave
    /// (GoAway) and serves them until they have ended or [`Waits::drain`](crate::Waits::drain) is over. At last every stream ends
    /// with UNAVAILABLE, and this returns when the clients have heard it, or soon after.
    ///
    /// # Errors
    /// When TLS cannot be set up, or a listener fails.
    pub async fn serve(self, listeners: Listeners, stop: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let Server { shared, tls, allowed_origins } = self;
        let acceptor = tls.as_ref().map(acceptor).transpose()?;
        let protocols = Protocols::new(Arc::new(methods()?), shared.waits.request);
        let closing = CancellationToken::new();
        let (reporter, health) = tonic_health::server::health_reporter();
        report(&shared, &reporter).await;
        let mut tasks = JoinSet::new();
        let grpc = listeners.grpc.into_iter().map(|listener| (listener, true));
        for (listener, has_oam) in grpc.chain(listeners.fanout.into_iter().map(|listener| (listener, false))) {
            let router = transport()
                .layer(option_layer(origins::layer(&allowed_origins)))
                .layer(protocols.clone())
                .add_service(Replication::new(shared.clone()))
                .add_optional_service(has_oam.then(|| oam::service(shared.clone())))
                .add_optional_service(has_oam.then(query::service))
                .add_service(health.clone())
                .add_service(reflection()?);
            let connections = Acceptor::new(listener, Descriptors::Spare).into_stream();
            let acceptor = acceptor.clone();
            let closed = closing.clone().cancelled_owned();
            tasks.spawn(async move {
                let served = match acceptor {
                    None => router.serve_with_incoming_shutdown(with_preface(connections), closed).await,
                    Some(acceptor) => {
                        let connections = tls::handshakes(connections, acceptor);
                        router.serve_with_incoming_shutdown(with_preface(connections), closed).await
                    }
                };
                served.map_err(ServeError::Grpc)
            });
        }
        let http = [
            listeners.health.map(|listener| (listener, crate::http::router(&shared))),
            listeners.metrics.map(|listener| (listener, crate::http::metrics_router(&shared))),
        ];
        for (listener, router) in http.into_iter().flatten() {
            let serving = serve_http(listener, router, closing.clone());
            tasks.spawn(async move {
                serving.await;
                Ok(())
            });
        }
        let last = async {
            stop.await;
            shared.leave(Instant::now());
            report(&shared, &reporter).await;
            let _ = tokio::time::timeout(shared.waits.drain, all_gone(&shared)).await;
        };
        let ended = tokio::select! {
            () = last => Ok(()),
            () = watch(&shared, &reporter) => Ok(()),
            Some(ended) = tasks.join_next() => flatten(ended),
        };
        shared.leave(Instant::now());
        shared.stop.cancel();
        report(&shared, &reporter).await;
        closing.cancel();
        // A client that reads nothing cannot be told, and must not keep the process.
        let waited = tokio::time::timeout(shared.waits.stop, join_all(&mut tasks)).await;
        ended.and(waited.unwrap_or(Ok(())))
    }
}

/// Waits until no stream is left.
async fn all_gone(shared: &Shared) {
    let mut ticks = interval(DRAIN_INTERVAL);
    while shared.clients() > 0 {
        ticks.tick().await;
    }
}

async fn join_all(tasks: &mut JoinSet<Result<(), ServeError>>) -> Result<(), ServeError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(flatten(ended));
    }
    outcome
}

fn flatten(ended: Result<Result<(), ServeError>, tokio::task::JoinError>) -> Result<(), ServeError> {
    ended.unwrap_or_else(|error| Err(ServeError::Http(std::io::Error::other(error))))
}

/// HTTP/2 and HTTP/1.1; what each connection speaks is seen from its first bytes.
fn transport() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
}

fn acceptor(tls: &TlsOptions) -> Result<TlsAcceptor, ServeError> {
    tls.acceptor().map_err(|problems| {
        let problems: Vec<String> =
            problems.into_iter().map(|(file, problem)| format!("{file:?}: {problem}")).collect();
        ServeError::Tls(problems.join("; "))
    })
}

/// What the services that are served are described by.
const DESCRIPTIONS: [&[u8]; 2] = [laredo_proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];

fn methods() -> Result<Methods, ServeError> {
    Methods::new(&DESCRIPTIONS).map_err(|error| ServeError::Descriptions(error.to_string()))
}

fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    ServeError,
> {
    let builder = tonic_reflection::server::Builder::configure();
    let described = DESCRIPTIONS.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
    described.build_v1().map_err(|error| ServeError::Descriptions(error.to_string()))
}

/// The name by which gRPC health knows a table: `laredo.table.SCHEMA.TABLE`.
fn table_service(name: &TableName) -> String {
    format!("laredo.table.{name}")
}

/// Looks after health and clients as long as it is polled.
async fn watch(shared: &Shared, reporter: &HealthReporter) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.sweep(Instant::now());
        report(shared, reporter).await;
    }
}

/// The Replication service serves once the first copies are over, well or not: a failed table does not stop its
/// neighbours. The server as a whole and each table are what readiness says of them.
async fn report(shared: &Shared, reporter: &HealthReporter) {
    let serving = |is_well| match is_well {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    let replicates = shared.is_started() && !shared.is_draining();
    reporter.set_service_status(Replication::NAME, serving(replicates)).await;
    reporter.set_service_status("", serving(shared.is_ready())).await;
    let now = (shared.clock)();
    for table in &shared.tables {
        let is_ready = table.is_ready(now) && !shared.is_draining();
        reporter.set_service_status(table_service(table.name()), serving(is_ready)).await;
    }
}
