//! The HTTP API: health, status, metrics, and snapshots on demand.

mod metrics;
mod report;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::join_all;
use laredo_server::{AllowedHosts, PortListener, ServerTls};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::metrics::metrics_reference;
use self::metrics::render_metrics;
use super::table::{self, SnapshotterTable};

/// The tables that the HTTP API shows, and the state of its requests.
pub(super) struct SnapshotterApi {
    tables: Vec<SnapshotterTable>,
    /// A permit for each table: one request at a time waits for a snapshot.
    requests: HashMap<String, Semaphore>,
    certificates: Vec<ServerTls>,
}

impl SnapshotterApi {
    pub(super) fn new(tables: Vec<SnapshotterTable>, certificates: Vec<ServerTls>) -> SnapshotterApi {
        let requests = tables.iter().map(|table| (table.name(), Semaphore::new(1))).collect();
        SnapshotterApi { certificates, requests, tables }
    }
}

/// Serves until `ended` completes.
pub(super) async fn serve(
    listener: PortListener,
    hosts: AllowedHosts,
    api: SnapshotterApi,
    ended: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route("/health/live", get(async || Json(json!({ "status": "live" }))))
        .route("/health/ready", get(ready))
        .route("/status", get(async |State(api): State<Arc<SnapshotterApi>>| Json(report::status(&api.tables))))
        .route("/snapshot", post(snapshot))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(api));
    // An open connection must not keep the process alive.
    tokio::select! {
        () = laredo_server::serve_http(listener, router, hosts, CancellationToken::new()) => {}
        () = ended => {}
    }
}

async fn ready(State(api): State<Arc<SnapshotterApi>>) -> Response {
    let (is_ready, body) = report::ready(&api.tables);
    let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(body)).into_response()
}

async fn metrics(State(api): State<Arc<SnapshotterApi>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], render_metrics(&api.tables, &api.certificates))
        .into_response()
}

#[derive(Deserialize)]
struct SnapshotQuery {
    table: Option<String>,
    /// True to write a snapshot even if the newest one has all changes.
    #[serde(default)]
    force: bool,
}

/// Makes one table's writer, or every table's, write a snapshot. Answers with the artifacts once
/// the manifests name them. The order is taken from this machine alone, and not from a web page,
/// because each snapshot is a whole copy of the table.
async fn snapshot(
    State(api): State<Arc<SnapshotterApi>>,
    Query(SnapshotQuery { table, force }): Query<SnapshotQuery>,
    head: Parts,
) -> Response {
    if let Err(refused) = laredo_server::check_order(&head.extensions, &head.headers) {
        return (StatusCode::FORBIDDEN, Json(json!({ "error": refused.to_string() }))).into_response();
    }
    let names = |wanted: &SnapshotterTable| {
        table.as_ref().is_none_or(|name| *name == wanted.name() || *name == wanted.config.source.table)
    };
    let wanted: Vec<&SnapshotterTable> = api.tables.iter().filter(|table| names(table)).collect();
    if wanted.is_empty() {
        let known: Vec<String> = api.tables.iter().map(SnapshotterTable::name).collect();
        let error = format!("there is no table {}", table.unwrap_or_default());
        return (StatusCode::NOT_FOUND, Json(json!({ "error": error, "tables": known }))).into_response();
    }
    let results = join_all(wanted.into_iter().map(|table| write_table_snapshot(&api, table, force))).await;
    let is_done = results.iter().all(|result| result.get("error").is_none());
    let code = if is_done { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "snapshots": results }))).into_response()
}

async fn write_table_snapshot(api: &SnapshotterApi, table: &SnapshotterTable, force: bool) -> Value {
    let name = table.name();
    let Some(Ok(_permit)) = api.requests.get(&name).map(Semaphore::try_acquire) else {
        let error = "another request already waits for a snapshot of this table; wait for its end";
        return json!({ "table": name, "error": error });
    };
    if let Some(unchanged) = report::unchanged_snapshot(&name, &table.status()).filter(|_| !force) {
        return unchanged;
    }
    let written = match table.state() {
        table::ArchiveTaskState::Running(running) => running.writer.snapshot().await.map_err(|error| error.to_string()),
        table::ArchiveTaskState::Opening => Err("its archive is not open yet".to_owned()),
        table::ArchiveTaskState::Failed { error, .. } => Err(error),
    };
    match written {
        Ok(written) => report::artifact(&name, &written),
        Err(error) => json!({ "table": name, "error": error }),
    }
}
