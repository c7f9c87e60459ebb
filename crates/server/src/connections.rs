//! The connections of a port, over HTTP/2 and HTTP/1.1. The first bytes of each connection show
//! which one it uses.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::{Service, ServiceExt};

use crate::accept::ConnectionAcceptor;
use crate::handshake::{ReadyConnection, ready_connections};
use crate::response_task::{ResponseExecutor, ResponseTask};
use crate::unread_request::UnreadRequest;

/// The interval and the time limit of HTTP/2 pings. A peer that stops answering is gone after the
/// sum of the two.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The receive window in bytes. Requests are small, but a client may request many tables at once.
const WINDOW_BYTES: u32 = 1024 * 1024;
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
/// The maximum number of concurrent streams of one connection. A client that follows more tables
/// opens more connections.
const STREAMS_MAX: u32 = 256;
/// The number of streams that a connection may make the server reset by errors of the protocol,
/// before it is closed. Without a limit, a client can make the server work for streams that never
/// count.
const ERROR_RESETS_MAX: usize = 1024;
/// The maximum size of a request's headers in bytes.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// The header with the time within which a call of gRPC or gRPC-Web must be answered, and the
/// maximum number of its digits.
const TIMEOUT: &str = "grpc-timeout";
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Serves the connections of a port until `closing` is cancelled, and then the requests that have
/// begun.
pub(crate) async fn serve_connections<S>(acceptor: ConnectionAcceptor, service: S, closing: CancellationToken)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let builder = builder();
    let (open, _) = watch::channel(());
    {
        // The port is closed at the end of this block, before the connections have ended.
        let mut connections = pin!(ready_connections(acceptor));
        loop {
            let connection = tokio::select! {
                () = closing.cancelled() => break,
                connection = connections.next() => connection,
            };
            let Some(connection) = connection else { break };
            let (builder, service, closing) = (builder.clone(), service.clone(), closing.clone());
            let is_open = open.subscribe();
            // The response of a connection over HTTP/1.1 is sent by the connection's own task.
            ResponseTask::spawn(async move {
                serve_connection(builder, connection, service, closing).await;
                drop(is_open);
            });
        }
    }
    open.closed().await;
}

async fn serve_connection<S>(
    builder: Builder<ResponseExecutor>,
    connection: ReadyConnection,
    service: S,
    closing: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let peer = connection.connect_info();
    let service = service_fn(move |request: Request<Incoming>| {
        let unread = UnreadRequest::default();
        let mut request = request.map(|body| unread.watch(body));
        request.extensions_mut().insert(peer.clone());
        let service = service.clone();
        async move {
            // The task that sends the response runs this block.
            request.extensions_mut().insert(ResponseTask::current());
            let time_max = time_limit(request.headers());
            let answer = service.oneshot(request);
            let answer = match time_max {
                None => answer.await,
                Some(time_max) => timeout(time_max, answer).await.unwrap_or_else(|_| Ok(late().into_http())),
            };
            answer.map(|response| response.map(|body| unread.delay_end(body)))
        }
    });
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    tokio::select! {
        // Errors of a connection are the client's.
        _ = serving.as_mut() => return,
        () = closing.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

fn builder() -> Builder<ResponseExecutor> {
    let mut builder = Builder::new(ResponseExecutor);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX);
    // With a timer, the headers of a request must arrive within 30 s.
    builder.http1().timer(TokioTimer::new());
    builder
}

/// Returns the time within which a call of gRPC or gRPC-Web must be answered, if it has a limit. A
/// malformed limit is ignored.
fn time_limit(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = digits.len() <= TIMEOUT_DIGITS_MAX && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| is_number)?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

fn late() -> Status {
    Status::deadline_exceeded("the call was not answered within its grpc-timeout")
}

#[cfg(test)]
mod tests;
