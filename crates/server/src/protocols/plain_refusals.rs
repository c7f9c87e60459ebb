//! Answers in plain HTTP to requests that belong to no protocol.

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tonic::body::Body;

use super::protocol_choice::{MethodShape, ProtocolRefusal};

const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Returns an answer with the problem and the correct form.
pub(super) fn response(refusal: ProtocolRefusal) -> Response<Body> {
    let (status, hint, words) = match refusal {
        ProtocolRefusal::NotPost => (
            StatusCode::METHOD_NOT_ALLOWED,
            Some((ALLOW, "POST")),
            "this port serves gRPC, gRPC-Web and Connect: POST to /package.Service/Method\n",
        ),
        ProtocolRefusal::GrpcOverHttp1 => {
            (StatusCode::HTTP_VERSION_NOT_SUPPORTED, None, "gRPC needs HTTP/2; over HTTP/1.1 use Connect or gRPC-Web\n")
        }
        ProtocolRefusal::ContentType(shape) => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Some((ACCEPT_POST, content_types(shape))),
            "no method supports this content type; Accept-Post lists the supported ones\n",
        ),
    };
    let mut response = Response::new(Body::new(Full::from(words)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    if let Some((name, value)) = hint {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Returns the content types that a method of this shape supports.
fn content_types(shape: Option<MethodShape>) -> &'static str {
    match shape {
        Some(MethodShape::Unary) | None => {
            "application/json, application/proto, application/grpc, application/grpc-web, application/grpc-web-text"
        }
        Some(MethodShape::Stream) => {
            "application/connect+json, application/connect+proto, application/grpc, application/grpc-web, \
             application/grpc-web-text"
        }
    }
}
