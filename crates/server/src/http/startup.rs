//! Health before there are tables to tell of: alive, neither started nor ready, and why.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::serve_http;
use crate::options::{HttpOptions, Listeners, ServeError};

/// What a server that is starting waits for: the names of its sources, and what each of them lacks.
pub type WaitingFor = BTreeMap<String, String>;

/// Answers where health is asked for, until this is dropped; the listeners can then be given to a [`Server`](crate::Server).
///
/// # Errors
/// When a listener fails.
pub async fn serve_startup(
    listeners: &Listeners,
    paths: &HttpOptions,
    waiting: watch::Receiver<WaitingFor>,
) -> Result<(), ServeError> {
    let Some(health) = &listeners.health else { return std::future::pending().await };
    // Connections outlive the future that accepts them, and must not tell of the start for ever.
    let closing = CancellationToken::new();
    let _closes = closing.clone().drop_guard();
    let listener = twin(health).map_err(ServeError::Http)?;
    serve_http(listener, router(paths, waiting), closing).await;
    Ok(())
}

/// Another handle of the same socket.
fn twin(listener: &TcpListener) -> io::Result<TcpListener> {
    let socket = listener.as_fd().try_clone_to_owned()?;
    TcpListener::from_std(socket.into())
}

fn router(paths: &HttpOptions, waiting: watch::Receiver<WaitingFor>) -> Router {
    Router::new()
        .route(&paths.liveness_path, get(super::live))
        .route(&paths.readiness_path, get(ready))
        .route(&paths.startup_path, get(started))
        .with_state(waiting)
}

async fn ready(State(waiting): State<watch::Receiver<WaitingFor>>) -> Response {
    let waiting_for = waiting.borrow().clone();
    let report = serde_json::json!({ "ready": false, "tables": [], "waiting_for": waiting_for });
    (StatusCode::SERVICE_UNAVAILABLE, Json(report)).into_response()
}

async fn started(State(waiting): State<watch::Receiver<WaitingFor>>) -> Response {
    let waiting_for = waiting.borrow().clone();
    let report = serde_json::json!({ "started": false, "waiting_for": waiting_for });
    (StatusCode::SERVICE_UNAVAILABLE, Json(report)).into_response()
}
