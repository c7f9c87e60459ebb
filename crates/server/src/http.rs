//! Health and metrics over HTTP.
//!
//! *Live*: the process answers. *Started*: every table's first copy is over, successful or not.
//! *Ready*: every table that can be served is, and at least one is. A server without tables is
//! ready too, and a server that drains is not.
//!
//! A table that is being copied again is ready, because its clients keep their rows. A table that
//! has failed, is drained, or has an unverified definition does not make the server unready,
//! because the other tables are served. The body names the table and the reason. With strict
//! readiness, every table must be ready. `?table=SCHEMA.TABLE` and `?source=NAME` select one table
//! or one source.
//!
//! The WAL that the database keeps for a source is reported too, but decides nothing. If a slot is
//! lost, tables are copied again, and clients are served meanwhile. A load balancer that moves the
//! clients elsewhere would not help.

use std::sync::Arc;

use axum::extract::{Extension, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tonic::Code;

use crate::access::Caller;
use crate::peer::PeerInfo;
use crate::server_state::ServerState;
use crate::tls::ServerTls;

mod metrics;
mod report;
mod selection;
mod serve;
mod startup;

pub use serve::serve_http;
pub use startup::{AwaitedSources, serve_startup};

use metrics::ServerMetrics;
pub use metrics::{CERTIFICATE_METRICS, metrics_reference};
pub(crate) use report::not_served;

/// Returns the router for health and metrics.
pub(crate) fn router(shared: &Arc<ServerState>, certificates: &[ServerTls]) -> Router {
    let paths = &shared.http;
    let health = Router::new()
        .route(&paths.readiness_path, get(ready))
        .route(&paths.startup_path, get(started))
        .with_state(shared.clone())
        .layer(from_fn_with_state((shared.clone(), Endpoint::Health), check_caller));
    // A probe of liveness needs no identity, because a failure restarts the server.
    Router::new().route(&paths.liveness_path, get(live)).merge(health).merge(metrics_router(shared, certificates))
}

/// Returns the router for metrics alone.
pub(crate) fn metrics_router(shared: &Arc<ServerState>, certificates: &[ServerTls]) -> Router {
    let metrics = Arc::new(ServerMetrics { shared: shared.clone(), certificates: certificates.to_vec() });
    let numbers = Router::new().route(&shared.http.metrics_path, get(numbers)).with_state(metrics);
    numbers.layer(from_fn_with_state((shared.clone(), Endpoint::Metrics), check_caller))
}

/// An endpoint with access rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Health,
    Metrics,
}

/// Answers a caller that has no access with 401, 403 or 503, and attaches any other to the request.
async fn check_caller(
    State((shared, endpoint)): State<(Arc<ServerState>, Endpoint)>,
    mut request: Request,
    next: Next,
) -> Response {
    shared.gate.await_key(request.headers()).await;
    let (path, peer) = (request.uri().path(), request.extensions().get::<PeerInfo>());
    match shared.gate.check_http(endpoint == Endpoint::Metrics, path, request.headers(), peer) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) if refused.code() == Code::Unauthenticated => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, challenge, format!("{}\n", refused.message())).into_response()
        }
        Err(refused) if refused.code() == Code::Unavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", refused.message())).into_response()
        }
        Err(refused) => (StatusCode::FORBIDDEN, format!("{}\n", refused.message())).into_response(),
    }
}

async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "live": true }))
}

async fn ready(
    State(shared): State<Arc<ServerState>>,
    Extension(caller): Extension<Caller>,
    RawQuery(query): RawQuery,
) -> Response {
    match selection::select(&shared, &caller, query.as_deref().unwrap_or_default()) {
        // The details name tables, sources and their errors.
        Ok(tables) if !caller.is_observer() => {
            let ready = shared.are_ready(&tables);
            (code(ready), Json(serde_json::json!({ "ready": ready }))).into_response()
        }
        Ok(tables) => {
            let ready = shared.are_ready(&tables);
            (code(ready), Json(report::ReadinessReport::new(&shared, &tables, ready))).into_response()
        }
        Err((code, Some(error))) => (code, Json(serde_json::json!({ "ready": false, "error": error }))).into_response(),
        Err((code, None)) => (code, Json(serde_json::json!({ "ready": false }))).into_response(),
    }
}

async fn started(State(shared): State<Arc<ServerState>>, Extension(caller): Extension<Caller>) -> Response {
    let started = shared.is_started();
    let report = match started || !caller.is_observer() {
        true => serde_json::json!({ "started": started }),
        false => serde_json::json!({ "started": false, "waiting_for": shared.waiting_for() }),
    };
    (code(started), Json(report)).into_response()
}

async fn numbers(State(metrics): State<Arc<ServerMetrics>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
}

fn code(is_well: bool) -> StatusCode {
    match is_well {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}
