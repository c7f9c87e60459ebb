//! Ports, TLS files, and the origins whose pages may call the server.

use std::collections::BTreeSet;
use std::path::Path;

use http::HeaderValue;
use laredo_server::{ServerListeners, ServerTlsOptions, TlsFile};
use tokio::net::TcpListener;

use crate::config::ServerConfig;
use crate::config::server::GrpcTlsConfig;
use crate::program::{ProgramFailure, bind};

/// Binds every port. The error names all ports that cannot be bound.
pub(super) async fn bind_all(config: &ServerConfig) -> Result<ServerListeners, ProgramFailure> {
    let ports: BTreeSet<u16> = config.tables.iter().map(|table| table.fanout.grpc.port).collect();
    let (mut fanout, mut problems) = (Vec::new(), Vec::new());
    for port in ports.into_iter().filter(|port| *port != config.grpc.port) {
        let bound = bind(port, "the fan-out's grpc.port").await;
        bound.map(|listener| fanout.push(listener)).unwrap_or_else(|problem| problems.push(problem));
    }
    let grpc = bind(config.grpc.port, "grpc.port").await;
    let health = bind(config.health.http_port, "health.http_port").await;
    let metrics = bind(config.observability.metrics.port, "observability.metrics.port").await;
    let mut keep = |bound: Result<TcpListener, String>| bound.map_err(|problem| problems.push(problem)).ok();
    let (grpc, health, metrics) = (keep(grpc).into_iter().collect(), keep(health), keep(metrics));
    if !problems.is_empty() {
        return Err(ProgramFailure::Misconfigured(problems));
    }
    Ok(ServerListeners { grpc, fanout, health, metrics })
}

/// Reads and checks the TLS files. The error names every problem.
pub(super) fn read_tls_files(config: &ServerConfig) -> Result<Option<ServerTlsOptions>, ProgramFailure> {
    let Some(tls) = &config.grpc.tls else { return Ok(None) };
    let mut problems = Vec::new();
    let mut read = |key: &str, path: &Path| {
        std::fs::read(path).unwrap_or_else(|error| {
            problems.push(format!("grpc.tls.{key}: cannot read {}: {error}", path.display()));
            Vec::new()
        })
    };
    let certificate = read("cert_path", &tls.cert_path);
    let key = read("key_path", &tls.key_path);
    let client_ca = tls.client_ca_path.as_ref().map(|path| read("client_ca_path", path));
    let options = ServerTlsOptions { certificate, key, client_ca };
    if problems.is_empty() {
        problems = options
            .check()
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|problem| tls_problem_text(tls, problem))
            .collect();
    }
    if problems.is_empty() { Ok(Some(options)) } else { Err(ProgramFailure::Misconfigured(problems)) }
}

/// Returns the origins whose pages may call the server from a browser.
pub(super) fn allowed_origins(config: &ServerConfig) -> Result<Vec<HeaderValue>, ProgramFailure> {
    let origins = config.grpc.allowed_origins.iter();
    let origins = origins.map(|origin| HeaderValue::from_str(origin).map_err(|error| format!("{origin}: {error}")));
    let origins: Result<Vec<_>, String> = origins.collect();
    origins.map_err(|problem| ProgramFailure::Misconfigured(vec![format!("grpc.allowed_origins: {problem}")]))
}

fn tls_problem_text(tls: &GrpcTlsConfig, (file, problem): (TlsFile, String)) -> String {
    let (key, path) = match file {
        TlsFile::Certificate => ("cert_path", Some(&tls.cert_path)),
        TlsFile::Key => ("key_path", Some(&tls.key_path)),
        TlsFile::ClientCa => ("client_ca_path", tls.client_ca_path.as_ref()),
    };
    let path = path.map(|path| path.display().to_string()).unwrap_or_default();
    format!("grpc.tls.{key}: {path}: {problem}; name a valid PEM file")
}
