//! Translation of gRPC answers to the client's protocol. Metadata other than the status is not
//! translated, because no service sends any.

use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use laredo_proto::frame;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use super::methods::RpcMethod;
use super::protocol_choice::{BodyEncoding, MessageCodec, TranslatedProtocol};
use super::stream_translation::TranslatedBody;
use super::{connect, json, stream_end};

/// The header that asks a proxy not to buffer a response.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Translates an answer to the protocol. `method` may be missing only for a refusal.
pub(super) async fn from_grpc(
    protocol: TranslatedProtocol,
    method: Option<&RpcMethod>,
    response: Response<Body>,
    deadline: Option<Instant>,
) -> Response<Body> {
    let (head, body) = response.into_parts();
    let refused = Status::from_header_map(&head.headers);
    if let TranslatedProtocol::ConnectUnary(codec) = protocol {
        return unary(codec, method, refused, body).await;
    }
    let body = match (refused, method) {
        (None, Some(method)) => Body::new(TranslatedBody::new(protocol, method, body, deadline)),
        (refused, _) => {
            let status = refused.unwrap_or_else(without_status);
            Body::new(Full::new(stream_end::last_frame(protocol, &status)))
        }
    };
    let mut response = respond(StatusCode::OK, content_type(protocol), body);
    // nginx and similar proxies would hold back small changes until a buffer is full.
    response.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

async fn unary(codec: MessageCodec, method: Option<&RpcMethod>, refused: Option<Status>, body: Body) -> Response<Body> {
    let answered = match (refused, method) {
        (None, Some(method)) => match (one_message(body).await, codec) {
            (Ok(message), MessageCodec::Json) => json::answer(message, &method.output).await,
            (answered, _) => answered,
        },
        (refused, _) => Err(refused.unwrap_or_else(without_status)),
    };
    match answered {
        Ok(message) => respond(
            StatusCode::OK,
            content_type(TranslatedProtocol::ConnectUnary(codec)),
            Body::new(Full::new(message)),
        ),
        Err(status) => {
            let error = connect::error(&status).to_string();
            let json = content_type(TranslatedProtocol::ConnectUnary(MessageCodec::Json));
            respond(connect::http_status(status.code()), json, Body::new(Full::new(Bytes::from(error))))
        }
    }
}

/// Returns the message of a unary method, if it succeeded. The size is not limited, because the
/// service already has the message in memory.
async fn one_message(body: Body) -> Result<Bytes, Status> {
    let collected = body.collect().await?;
    let status = collected.trailers().and_then(Status::from_header_map).unwrap_or_else(without_status);
    if status.code() != Code::Ok {
        return Err(status);
    }
    let mut bytes = collected.to_bytes();
    if frame::length(&bytes) != bytes.len().checked_sub(frame::PREFIX_LENGTH) {
        return Err(Status::internal("the service's answer is not exactly one message"));
    }
    bytes.advance(frame::PREFIX_LENGTH);
    Ok(bytes)
}

/// Returns the status of a service that ended without one, for an unknown reason.
pub(super) fn without_status() -> Status {
    Status::unknown("the service ended without a status")
}

fn content_type(protocol: TranslatedProtocol) -> HeaderValue {
    HeaderValue::from_static(match protocol {
        TranslatedProtocol::ConnectUnary(MessageCodec::Proto) => "application/proto",
        TranslatedProtocol::ConnectUnary(MessageCodec::Json) => "application/json",
        TranslatedProtocol::ConnectStream(MessageCodec::Proto) => "application/connect+proto",
        TranslatedProtocol::ConnectStream(MessageCodec::Json) => "application/connect+json",
        TranslatedProtocol::GrpcWeb(BodyEncoding::Binary) => "application/grpc-web+proto",
        TranslatedProtocol::GrpcWeb(BodyEncoding::Base64) => "application/grpc-web-text+proto",
    })
}

fn respond(status: StatusCode, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = HeaderMap::from_iter([(CONTENT_TYPE, content_type)]);
    response
}
