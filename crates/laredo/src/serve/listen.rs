//! The ports, their TLS, and the origins whose pages may call the server.

use http::HeaderValue;
use laredo_server::{ServerListeners, ServerTls};

use crate::config::ServerConfig;
use crate::program::{PortCertificates, ProgramFailure, bind, configured_port, log_port};

/// The words for what clients may do at a port of rows.
const ROWS: &str = "rows and status";
const ROWS_AND_ORDERS: &str = "rows and status (orders only from this machine)";
const ROWS_AND_RULED_ORDERS: &str = "rows and status (orders from any machine, by the grants of `access`)";

/// The TLS of the ports.
pub(super) struct ServerPortsTls {
    grpc: Option<ServerTls>,
    health: Option<ServerTls>,
    metrics: Option<ServerTls>,
}

/// Returns the texts for all ports of a configuration.
pub(super) fn configured_ports(config: &ServerConfig) -> Vec<String> {
    let (health, metrics) = (&config.health, &config.observability.metrics);
    let rows = config.row_ports().into_iter().map(|port| configured_port(&port.key, port.address, port.port));
    let others = [
        configured_port("health.http_port", &health.address, health.http_port),
        configured_port("observability.metrics.port", &metrics.address, metrics.port),
    ];
    rows.chain(others).collect()
}

/// Binds every port, and logs them. The error names all ports that cannot be bound.
pub(super) async fn bind_all(config: &ServerConfig, tls: &ServerPortsTls) -> Result<ServerListeners, ProgramFailure> {
    let mut listeners = ServerListeners::default();
    let mut problems = Vec::new();
    let rows_and_orders = if config.access.is_some() { ROWS_AND_RULED_ORDERS } else { ROWS_AND_ORDERS };
    for (i, port) in config.row_ports().into_iter().enumerate() {
        match bind(port.address, port.port, &port.key, tls.grpc.clone()).await {
            Ok(listener) if i == 0 => {
                log_port(&listener, &port.key, port.address.is_local(), rows_and_orders);
                listeners.grpc.push(listener);
            }
            Ok(listener) => {
                log_port(&listener, &port.key, port.address.is_local(), ROWS);
                listeners.fanout.push(listener);
            }
            Err(problem) => problems.push(problem),
        }
    }
    let health = &config.health;
    match bind(&health.address, health.http_port, "health.http_port", tls.health.clone()).await {
        Ok(listener) => {
            log_port(&listener, "health.http_port", health.address.is_local(), "health and metrics");
            listeners.health = Some(listener);
        }
        Err(problem) => problems.push(problem),
    }
    let metrics = &config.observability.metrics;
    match bind(&metrics.address, metrics.port, "observability.metrics.port", tls.metrics.clone()).await {
        Ok(listener) => {
            log_port(&listener, "observability.metrics.port", metrics.address.is_local(), "metrics");
            listeners.metrics = Some(listener);
        }
        Err(problem) => problems.push(problem),
    }
    if problems.is_empty() { Ok(listeners) } else { Err(ProgramFailure::Misconfigured(problems)) }
}

/// Reads and checks the files of TLS. The error names every problem.
pub(super) fn read_tls_files(config: &ServerConfig) -> Result<(ServerPortsTls, PortCertificates), ProgramFailure> {
    let (mut files, mut problems) = (PortCertificates::default(), Vec::new());
    let metrics = config.observability.metrics.tls.as_ref();
    let tls = ServerPortsTls {
        grpc: files.load("grpc.tls", config.grpc.tls.as_ref(), &mut problems),
        health: files.load("health.tls", config.health.tls.as_ref(), &mut problems),
        metrics: files.load("observability.metrics.tls", metrics, &mut problems),
    };
    if problems.is_empty() { Ok((tls, files)) } else { Err(ProgramFailure::Misconfigured(problems)) }
}

/// Returns the origins whose pages may call the server from a browser.
pub(super) fn allowed_origins(config: &ServerConfig) -> Result<Vec<HeaderValue>, ProgramFailure> {
    let origins = config.grpc.allowed_origins.iter();
    let origins = origins.map(|origin| HeaderValue::from_str(origin).map_err(|error| format!("{origin}: {error}")));
    let origins: Result<Vec<_>, String> = origins.collect();
    origins.map_err(|problem| ProgramFailure::Misconfigured(vec![format!("grpc.allowed_origins: {problem}")]))
}
