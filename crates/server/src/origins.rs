//! Access from pages of other origins. Browsers ask the server before they let such a page call it.
//!
//! By default no page may call. Otherwise any page in an operator's browser could read tables that
//! only the operator's network reaches. Without that question, a page can send none of the
//! protocols' content types.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// The time for which a browser may remember the answer. Chromium uses no longer time.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
/// The headers that Connect and gRPC-Web clients send.
const REQUEST_HEADERS: [HeaderName; 7] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    HeaderName::from_static("connect-protocol-version"),
    HeaderName::from_static("connect-timeout-ms"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-user-agent"),
];
/// The headers of an answer that a page may read. They may contain gRPC-Web's status.
const RESPONSE_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];

/// Returns the layer that answers browsers; `None` if no pages are allowed.
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
