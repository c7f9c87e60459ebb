//! Pages of other origins: browsers ask before they let one call.
//!
//! By default no page may. Whoever can open a page in an operator's browser could otherwise read tables that only the operator's
//! network reaches; no content type of any protocol is one that a page may send without asking.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may remember the answer; Chromium remembers nothing longer.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
/// What calls of Connect and gRPC-Web bring along.
const REQUEST_HEADERS: [HeaderName; 6] = [
    CONTENT_TYPE,
    HeaderName::from_static("connect-protocol-version"),
    HeaderName::from_static("connect-timeout-ms"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
];
/// What a page may see of an answer: gRPC-Web's status may stand there.
const RESPONSE_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// Answers browsers; `None` where there are no pages to be allowed.
pub(crate) fn layer(allowed: &[HeaderValue]) -> Option<CorsLayer> {
    if allowed.is_empty() {
        return None;
    }
    let origins = match allowed.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(allowed.iter().cloned()),
    };
    let layer = CorsLayer::new().allow_origin(origins).allow_methods([Method::POST]).allow_headers(REQUEST_HEADERS);
    Some(layer.expose_headers(RESPONSE_HEADERS).max_age(MAX_AGE))
}
