//! Health before the tables are known: live, neither started nor ready, with the reason.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::serve_http;
use crate::hosts::AllowedHosts;
use crate::options::{HttpOptions, ServeError, ServerListeners};

/// The names of the sources that a starting server waits for, each with what it lacks.
pub type AwaitedSources = BTreeMap<String, String>;

/// Answers health requests until this future is dropped. The listeners can then be passed to a
/// [`Server`](crate::Server).
///
/// # Errors
/// Returns an error if a listener fails.
pub async fn serve_startup(
    listeners: &ServerListeners,
    paths: &HttpOptions,
    hosts: AllowedHosts,
    waiting: watch::Receiver<AwaitedSources>,
) -> Result<(), ServeError> {
    let Some(health) = &listeners.health else { return std::future::pending().await };
    // Connections outlive the future that accepts them, and must not report the start forever.
    let closing = CancellationToken::new();
    let _closes = closing.clone().drop_guard();
    let listener = health.twin().map_err(ServeError::Http)?;
    serve_http(listener, router(paths, waiting), hosts, closing).await;
    Ok(())
}

fn router(paths: &HttpOptions, waiting: watch::Receiver<AwaitedSources>) -> Router {
    Router::new()
        .route(&paths.liveness_path, get(super::live))
        .route(&paths.readiness_path, get(ready))
        .route(&paths.startup_path, get(started))
        .with_state(waiting)
}

async fn ready(State(waiting): State<watch::Receiver<AwaitedSources>>) -> Response {
    let waiting_for = waiting.borrow().clone();
    let report = serde_json::json!({ "ready": false, "tables": [], "waiting_for": waiting_for });
    (StatusCode::SERVICE_UNAVAILABLE, Json(report)).into_response()
}

async fn started(State(waiting): State<watch::Receiver<AwaitedSources>>) -> Response {
    let waiting_for = waiting.borrow().clone();
    let report = serde_json::json!({ "started": false, "waiting_for": waiting_for });
    (StatusCode::SERVICE_UNAVAILABLE, Json(report)).into_response()
}
