//! The server's composition, operation and shutdown.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use laredo_core::TableName;
use laredo_engine::Clock;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::ServiceBuilder;
use tower::util::option_layer;

use crate::accept::{ConnectionAcceptor, DescriptorBudget};
use crate::access::AccessGate;
use crate::connections::serve_connections;
use crate::grpc::ReplicationService;
use crate::health::{health_service, table_service};
use crate::hosts::AllowedHosts;
use crate::http::serve_http;
use crate::oam;
use crate::options::{ServeError, ServerListeners, ServerOptions, TableLimits};
use crate::origins;
use crate::protocols::{MethodTable, ProtocolLayer};
use crate::query;
use crate::server_state::ServerState;
use crate::table::ServedTable;

/// The interval at which health is updated and clients are checked for resources held too long.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// The interval at which a stopping server checks if its clients have left.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);

/// A server of tables to clients.
pub struct Server {
    shared: Arc<ServerState>,
    connections_max: usize,
    allowed_origins: Vec<HeaderValue>,
    allowed_hosts: AllowedHosts,
}

/// A handle to a server, to change its tables while it runs. Cheap to clone.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<ServerState>,
}

impl ServerHandle {
    /// Removes tables. Their streams end with NOT_FOUND, and the reason.
    pub fn remove_tables(&self, names: &[TableName]) {
        self.shared.remove_tables(names);
    }

    /// Adds tables. A table that the server has is replaced by the one with the same name, and its
    /// clients have to reconnect.
    pub fn put_tables(&self, tables: Vec<crate::ServedTableOptions>) {
        self.shared.put_tables(tables);
    }

    /// Changes the limits of a table's clients.
    pub fn set_limits(&self, table: &TableName, limits: TableLimits) {
        self.shared.set_limits(table, limits);
    }
}

impl Server {
    /// Returns a handle to the server.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        ServerHandle { shared: self.shared.clone() }
    }

    /// Returns a server that is not running yet.
    #[must_use]
    pub fn new(options: ServerOptions) -> Server {
        let ServerOptions {
            sources,
            tables,
            connections_max,
            allowed_origins,
            allowed_hosts,
            access,
            http,
            waits,
            clock,
            config_orders,
            dropped_log_lines,
        } = options;
        let tables = tables.into_iter().map(|table| Arc::new(ServedTable::new(table, false))).collect();
        let gate = AccessGate::new(access);
        let state = ServerState::new(sources, tables, clock, waits, http, gate, dropped_log_lines);
        let state = state.with_config_orders(config_orders);
        Server { shared: Arc::new(state), connections_max, allowed_origins, allowed_hosts }
    }

    /// Returns a server with the default paths and time limits.
    #[must_use]
    pub fn with_tables(tables: Vec<crate::ServedTableOptions>, clock: Clock) -> Server {
        Server::new(ServerOptions {
            sources: Vec::new(),
            tables,
            connections_max: crate::CONNECTIONS_MAX,
            allowed_origins: Vec::new(),
            allowed_hosts: AllowedHosts::default(),
            access: None,
            http: crate::HttpOptions::default(),
            waits: crate::ServerTimeLimits::default(),
            clock,
            config_orders: None,
            dropped_log_lines: || 0,
        })
    }

    /// Serves until `stop` resolves. The server is then no longer ready, accepts no more streams,
    /// and asks the existing clients to leave (`GoAway`). It serves them until they have left or
    /// [`drain`](crate::ServerTimeLimits::drain) is over. Then every stream ends with
    /// UNAVAILABLE. The method returns when the clients have received that status, at the latest
    /// after [`ServerTimeLimits::stop`](crate::ServerTimeLimits::stop).
    ///
    /// # Errors
    /// Returns an error if the task of a port panics.
    pub async fn serve(
        self,
        listeners: ServerListeners,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let Server { shared, connections_max, allowed_origins, allowed_hosts } = self;
        let (methods, gate) = (Arc::new(methods()?), shared.gate.clone());
        let protocols = ProtocolLayer::new(methods, allowed_hosts.clone(), gate, shared.waits.request);
        let closing = CancellationToken::new();
        let certificates = listeners.certificates();
        let reporter = HealthReporter::new();
        let health = health_service(reporter.clone());
        report(&shared, &reporter).await;
        let mut tasks = JoinSet::new();
        let grpc = listeners.grpc.into_iter().map(|listener| (listener, true));
        for (listener, has_oam) in grpc.chain(listeners.fanout.into_iter().map(|listener| (listener, false))) {
            let mut routes = Routes::new(ReplicationService::new(shared.clone()))
                .add_service(health.clone())
                .add_service(reflection()?);
            if has_oam {
                routes = routes.add_service(oam::service(shared.clone())).add_service(query::service(shared.clone()));
            }
            let service = ServiceBuilder::new()
                .layer(option_layer(origins::layer(&allowed_origins)))
                .layer(protocols.clone())
                .layer(shared.gate.layer(shared.waits.stop))
                .service(routes.prepare());
            let acceptor = ConnectionAcceptor::new(listener, DescriptorBudget::Spare).with_limit(connections_max);
            tasks.spawn(serve_connections(acceptor, service, closing.clone()));
        }
        let http = [
            listeners.health.map(|listener| (listener, crate::http::router(&shared, &certificates))),
            listeners.metrics.map(|listener| (listener, crate::http::metrics_router(&shared, &certificates))),
        ];
        for (listener, router) in http.into_iter().flatten() {
            let serving = serve_http(listener, router, allowed_hosts.clone(), closing.clone());
            tasks.spawn(serving);
        }
        shared.tables().iter().for_each(|table| shared.follow_for_queries(table));
        let last = async {
            stop.await;
            shared.leave(Instant::now());
            report(&shared, &reporter).await;
            let _ = tokio::time::timeout(shared.waits.drain, all_gone(&shared)).await;
        };
        let ended = tokio::select! {
            () = last => Ok(()),
            () = watch(&shared, &reporter) => Ok(()),
            Some(ended) = tasks.join_next() => joined(ended),
        };
        shared.leave(Instant::now());
        shared.end_streams();
        shared.end_queries();
        report(&shared, &reporter).await;
        closing.cancel();
        // A client that reads nothing cannot be notified, and must not keep the process alive.
        let waited = tokio::time::timeout(shared.waits.stop, join_all(&mut tasks)).await;
        ended.and(waited.unwrap_or(Ok(())))
    }
}

/// Waits until no streams remain.
async fn all_gone(shared: &ServerState) {
    let mut ticks = interval(DRAIN_INTERVAL);
    while shared.clients() > 0 {
        ticks.tick().await;
    }
}

async fn join_all(tasks: &mut JoinSet<()>) -> Result<(), ServeError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(joined(ended));
    }
    outcome
}

fn joined(ended: Result<(), tokio::task::JoinError>) -> Result<(), ServeError> {
    ended.map_err(|error| ServeError::Http(std::io::Error::other(error)))
}

/// The descriptions of the services that are served.
const DESCRIPTIONS: [&[u8]; 2] = [laredo_proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];

fn methods() -> Result<MethodTable, ServeError> {
    MethodTable::new(&DESCRIPTIONS).map_err(|error| ServeError::Descriptions(error.to_string()))
}

fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection>,
    ServeError,
> {
    let builder = tonic_reflection::server::Builder::configure();
    let described = DESCRIPTIONS.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
    described.build_v1().map_err(|error| ServeError::Descriptions(error.to_string()))
}

/// Updates health and sweeps clients periodically, while it is polled.
async fn watch(shared: &ServerState, reporter: &HealthReporter) {
    let mut ticks = interval(SWEEP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.sweep(Instant::now());
        shared.gate.publish_new_keys();
        report(shared, reporter).await;
    }
}

/// Reports health. The Replication service is serving once the first copies are over, successful or
/// not, so that a failed table does not stop the others. The server as a whole and each table have
/// the status of their readiness.
async fn report(shared: &ServerState, reporter: &HealthReporter) {
    let serving = |is_well| match is_well {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    let replicates = shared.is_started() && !shared.is_draining();
    reporter.set_service_status(ReplicationService::NAME, serving(replicates)).await;
    reporter.set_service_status("", serving(shared.is_ready())).await;
    let now = (shared.clock)();
    for removed in shared.take_removed() {
        reporter.clone().clear_service_status(&table_service(&removed)).await;
    }
    for table in shared.tables().iter() {
        let is_ready = table.is_ready(now) && !shared.is_draining();
        reporter.set_service_status(table_service(table.name()), serving(is_ready)).await;
    }
}
