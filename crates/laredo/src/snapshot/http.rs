//! The HTTP API: health, status, metrics, and snapshots on demand.

mod metrics;
mod report;

use std::future::Future;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::metrics::Metrics;
use super::table::{self, Table};

struct Api {
    tables: Vec<Table>,
    metrics: Metrics,
}

/// Serves until `ended` completes.
pub(super) async fn serve(listener: TcpListener, tables: Vec<Table>, ended: impl Future<Output = ()> + Send + 'static) {
    let api = Arc::new(Api { metrics: Metrics::new(), tables });
    let router = Router::new()
        .route("/health/live", get(async || Json(json!({ "status": "live" }))))
        .route("/health/ready", get(ready))
        .route("/status", get(async |State(api): State<Arc<Api>>| Json(report::status(&api.tables))))
        .route("/snapshot", post(snapshot))
        .route("/metrics", get(metrics))
        .with_state(api);
    // An open connection must not keep the process alive.
    tokio::select! {
        () = laredo_server::serve_http(listener, router, CancellationToken::new()) => {}
        () = ended => {}
    }
}

async fn ready(State(api): State<Arc<Api>>) -> Response {
    let (is_ready, body) = report::ready(&api.tables);
    let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(body)).into_response()
}

async fn metrics(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], api.metrics.render(&api.tables)).into_response()
}

#[derive(Deserialize)]
struct Which {
    table: Option<String>,
}

/// Makes one table's writer, or every table's, write a snapshot. Answers with the artifacts once
/// the manifests name them.
async fn snapshot(State(api): State<Arc<Api>>, Query(Which { table }): Query<Which>) -> Response {
    let names = |wanted: &Table| {
        table.as_ref().is_none_or(|name| *name == wanted.name() || *name == wanted.config.source.table)
    };
    let wanted: Vec<&Table> = api.tables.iter().filter(|table| names(table)).collect();
    if wanted.is_empty() {
        let known: Vec<String> = api.tables.iter().map(Table::name).collect();
        let error = format!("there is no table {}", table.unwrap_or_default());
        return (StatusCode::NOT_FOUND, Json(json!({ "error": error, "tables": known }))).into_response();
    }
    let results = join_all(wanted.into_iter().map(written)).await;
    let is_done = results.iter().all(|result| result.get("error").is_none());
    let code = if is_done { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "snapshots": results }))).into_response()
}

async fn written(table: &Table) -> Value {
    let name = table.name();
    let written = match table.state() {
        table::State::Running(running) => running.writer.snapshot().await.map_err(|error| error.to_string()),
        table::State::Opening => Err("its archive is not open yet".to_owned()),
        table::State::Failed { error, .. } => Err(error),
    };
    match written {
        Ok(written) => report::artifact(&name, &written),
        Err(error) => json!({ "table": name, "error": error }),
    }
}
