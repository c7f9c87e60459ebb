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
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use laredo_engine::descriptors;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tower::ServiceExt;

use crate::accept::{AcceptedConnection, ConnectionAcceptor, DescriptorBudget};
use crate::handshake::make_http1_ready;
use crate::hosts::{self, AllowedHosts};
use crate::listener::PortListener;

/// The maximum number of connections of one port, if no descriptors are reserved.
const CONNECTIONS_MAX: usize = 64;
/// The divisor of the reserve for the share of one port, and the minimum number of its connections.
const RESERVE_SHARE: usize = 4;
const CONNECTIONS_MIN: usize = 2;
/// The time within which a request must arrive, and the limit for idle connections.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// The maximum size of a request's head in bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Serves a router on a port until `closing` is cancelled. Requests that have begun are then
/// answered before this returns.
///
/// The number of connections is bounded. A further connection closes the oldest one, so that idle
/// connections never prevent the answer to a probe.
///
/// A request in plain text for a host that is not in `hosts` is answered 421.
pub async fn serve_http(
    listener: impl Into<PortListener>,
    router: Router,
    hosts: AllowedHosts,
    closing: CancellationToken,
) {
    let mut acceptor = ConnectionAcceptor::new(listener.into(), DescriptorBudget::Reserved);
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
        let (router, hosts, closing, is_open) = (router.clone(), hosts.clone(), closing.clone(), open.subscribe());
        connections.push_back(tokio::spawn(async move {
            serve_connection(connection, router, hosts, closing).await;
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

async fn serve_connection(
    accepted: AcceptedConnection,
    router: Router,
    hosts: AllowedHosts,
    closing: CancellationToken,
) {
    let Some(connection) = make_http1_ready(accepted).await else { return };
    let peer = connection.connect_info();
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        let checked = hosts.check(&request);
        let router = router.clone();
        async move {
            match checked {
                Ok(()) => router.oneshot(request).await,
                Err(refused) => Ok(hosts::misdirected(&refused).map(Body::new)),
            }
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(REQUEST_MAX).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(connection), service));
    tokio::select! {
        // Errors of a connection are the client's.
        _ = connection.as_mut() => return,
        () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
