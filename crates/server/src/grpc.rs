//! The Replication service over gRPC, to which all protocols are translated (`protocols`). `Sync`
//! is implemented by hand: its frames are already encoded, and are sent unchanged. The other
//! methods are generated.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Request, Response};
use http_body::Frame;
use laredo_proto::replication::laredo_replication_service_server::LaredoReplicationServiceServer;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::access::{Caller, admitted};
use crate::log_limits::ClientEvent;
use crate::receive::{self, AcknowledgementReader, BodyLimits, OpeningRequest};
use crate::refusal;
use crate::request::SessionRequest;
use crate::response_task::ResponseTask;
use crate::server_state::ServerState;
use crate::session::{Session, SessionStream, SessionStreamItem};
use crate::table::ServedTable;

mod snapshots;
mod unary;

use unary::UnaryMethods;

/// The path of the method that is implemented by hand.
const SYNC_PATH: &str = "/laredo.replication.v1.LaredoReplicationService/Sync";

/// The Replication service.
#[derive(Clone)]
pub(crate) struct ReplicationService {
    shared: Arc<ServerState>,
    unary: LaredoReplicationServiceServer<UnaryMethods>,
}

impl NamedService for ReplicationService {
    const NAME: &'static str = <LaredoReplicationServiceServer<UnaryMethods> as NamedService>::NAME;
}

impl ReplicationService {
    pub(crate) fn new(shared: Arc<ServerState>) -> ReplicationService {
        let unary = LaredoReplicationServiceServer::new(UnaryMethods::new(shared.clone()));
        ReplicationService { shared, unary }
    }
}

type GrpcResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Service<Request<Body>> for ReplicationService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = GrpcResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> GrpcResponseFuture {
        if request.uri().path() != SYNC_PATH {
            return self.unary.call(request);
        }
        let shared = self.shared.clone();
        Box::pin(async move { Ok(sync(shared, request).await.unwrap_or_else(Status::into_http)) })
    }
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

async fn sync(shared: Arc<ServerState>, request: Request<Body>) -> Result<Response<Body>, Status> {
    if let Some(refused) = refuse_other_content(&request) {
        return Ok(refused);
    }
    let caller = admitted(request.extensions())?;
    let task = request.extensions().get::<ResponseTask>().cloned().unwrap_or_default();
    let limits = body_limits(&request)?;
    let OpeningRequest { request, acknowledgements } = receive::opening(request.into_body(), &limits).await?;
    let (table, scope) = shared.readable_table(&caller, &request.schema, &request.table)?;
    let ask = || SessionRequest::new(request, scope);
    let stream = open_session(shared.clone(), table, caller.clone(), ask, task)?;
    Ok(stream_response(shared, caller, stream, acknowledgements))
}

/// Returns the response to a request that is not gRPC.
pub(crate) fn refuse_other_content(request: &Request<Body>) -> Option<Response<Body>> {
    let content_type = request.headers().get(http::header::CONTENT_TYPE);
    let is_grpc = content_type.is_some_and(|value| {
        let value = value.as_bytes();
        value == b"application/grpc" || value.starts_with(b"application/grpc+proto")
    });
    (!is_grpc).then(|| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
        response
    })
}

/// Returns the limits of a request's body.
pub(crate) fn body_limits(request: &Request<Body>) -> Result<BodyLimits, Status> {
    let limits = request.extensions().get::<BodyLimits>().cloned();
    limits.ok_or_else(|| Status::internal("the request has no limits; this is a fault of laredo"))
}

/// Returns a stream as the response to its request.
pub(crate) fn stream_response(
    shared: Arc<ServerState>,
    caller: Caller,
    stream: SessionStream,
    acknowledgements: Option<AcknowledgementReader<Body>>,
) -> Response<Body> {
    let mut response = Response::new(Body::new(SyncBody { shared, caller, stream, acknowledgements }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC);
    response
}

/// Begins a stream, if the table and the caller may have another one.
///
/// # Errors
/// UNAVAILABLE if the table is drained. RESOURCE_EXHAUSTED if there are too many streams. The error
/// of the request.
pub(crate) fn open_session(
    shared: Arc<ServerState>,
    table: Arc<ServedTable>,
    caller: Caller,
    ask: impl FnOnce() -> Result<SessionRequest, Status>,
    task: ResponseTask,
) -> Result<SessionStream, Status> {
    if table.drain().has_begun() {
        return Err(refusal::draining(table.name()));
    }
    let ask = ask()?;
    let permit = caller.begin_stream()?;
    let seat = table.take_seat()?.with_permit(permit);
    let session = Session { shared, table, caller, ask, seat, task };
    Ok(session.into_stream())
}

/// A stream as an HTTP/2 body. The final status goes into the trailers.
struct SyncBody {
    shared: Arc<ServerState>,
    caller: Caller,
    stream: SessionStream,
    acknowledgements: Option<AcknowledgementReader<Body>>,
}

impl SyncBody {
    fn poll_pulled(&mut self, cx: &mut Context<'_>) -> Poll<Option<SessionStreamItem>> {
        if let Some(acknowledgements) = &mut self.acknowledgements
            && let Poll::Ready(status) = acknowledgements.poll(cx)
        {
            if self.shared.log_limits.allows(ClientEvent::MalformedMessage, self.caller.group()) {
                let (identity, peer) = (self.caller.identity_name(), self.caller.peer_text());
                tracing::info!(
                    event = "message_malformed",
                    identity, peer, code = ?status.code(), reason = status.message(),
                    "stream ended because of a malformed message from its client"
                );
            }
            self.acknowledgements = None;
            self.stream.end();
            return Poll::Ready(Some(SessionStreamItem::End(status)));
        }
        self.stream.poll_next(cx)
    }
}

impl http_body::Body for SyncBody {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        self.poll_pulled(cx).map(|pulled| {
            pulled.map(|pulled| match pulled {
                SessionStreamItem::Frames(bytes) => Ok(Frame::data(bytes)),
                SessionStreamItem::End(status) => {
                    let mut trailers = http::HeaderMap::new();
                    status.add_header(&mut trailers)?;
                    Ok(Frame::trailers(trailers))
                }
            })
        })
    }
}
