//! Health and metrics over HTTP.
//!
//! *Live*: the process answers. *Started*: every table's first copy is over, well or not. *Ready*: every table has been copied and
//! none has failed. A table that is being copied anew is ready, for its clients keep what they have. A failed table makes the
//! whole server not ready, because somebody has to look; its neighbours are served all the same, and the gRPC health service,
//! which balancers ask, goes on saying so. A server that drains is not ready.
//!
//! What the database keeps for a source stands beside that and decides nothing: a slot that is about to be lost costs a copy, during
//! which clients are served, and a balancer that sends them elsewhere cannot save it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use crate::shared::Shared;

mod metrics;
mod report;
mod serve;
mod startup;

pub use serve::serve_http;
pub use startup::{WaitingFor, serve_startup};

use metrics::Metrics;

/// Everything.
pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let paths = &shared.http;
    let health = Router::new()
        .route(&paths.liveness_path, get(live))
        .route(&paths.readiness_path, get(ready))
        .route(&paths.startup_path, get(started))
        .with_state(shared.clone());
    health.merge(metrics_router(shared))
}

/// Metrics alone.
pub(crate) fn metrics_router(shared: &Arc<Shared>) -> Router {
    let metrics = Arc::new(Metrics::new(shared.clone()));
    Router::new().route(&shared.http.metrics_path, get(numbers)).with_state(metrics)
}

async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "live": true }))
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let ready = shared.is_ready();
    let report = report::Report::new(&shared, ready);
    (code(ready), Json(report)).into_response()
}

async fn started(State(shared): State<Arc<Shared>>) -> Response {
    let started = shared.is_started();
    let report = match started {
        true => serde_json::json!({ "started": true }),
        false => serde_json::json!({ "started": false, "waiting_for": shared.waiting_for() }),
    };
    (code(started), Json(report)).into_response()
}

async fn numbers(State(metrics): State<Arc<Metrics>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
}

fn code(is_well: bool) -> StatusCode {
    match is_well {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}
