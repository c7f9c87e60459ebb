//! HTTP/1.1 for health, status and metrics. There are few connections with short requests, and
//! every request must be answered.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use laredo_engine::descriptors;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::accept::{ConnectionAcceptor, DescriptorBudget};

/// The maximum number of connections of one port, if no descriptors are reserved.
const CONNECTIONS_MAX: usize = 64;
/// The divisor of the reserve for the share of one port, and the minimum number of its connections.
const RESERVE_SHARE: usize = 4;
const CONNECTIONS_MIN: usize = 2;
/// The time within which a request must arrive, and the limit for idle connections.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// Serves a router on a port until `closing` is cancelled. Requests that have begun are then
/// answered before this returns.
///
/// The number of connections is bounded. A further connection closes the oldest one, so that idle
/// connections never prevent the answer to a probe.
pub async fn serve_http(listener: TcpListener, router: Router, closing: CancellationToken) {
    let mut acceptor = ConnectionAcceptor::new(listener, DescriptorBudget::Reserved);
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    let (open, _) = watch::channel(());
    loop {
        let connection = tokio::select! {
            () = closing.cancelled() => break,
            connection = acceptor.accept() => connection,
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= connections_max()
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let (router, closing, is_open) = (router.clone(), closing.clone(), open.subscribe());
        connections.push_back(tokio::spawn(async move {
            serve_connection(connection, router, closing).await;
            drop(is_open);
        }));
    }
    drop(acceptor);
    open.closed().await;
}

/// Returns the maximum number of connections. Probes are answered even if all descriptors outside
/// the reserve are in use. The greater part of the reserve is for files.
fn connections_max() -> usize {
    match descriptors::reserved() {
        0 => CONNECTIONS_MAX,
        reserved => (reserved / RESERVE_SHARE).max(CONNECTIONS_MIN),
    }
}

async fn serve_connection(connection: TcpStream, router: Router, closing: CancellationToken) {
    let service = router.map_request(|request: Request<Incoming>| request.map(Body::new));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(REQUEST_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(connection), TowerToHyperService::new(service)));
    tokio::select! {
        // Errors of a connection are the client's.
        _ = connection.as_mut() => return,
        () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
