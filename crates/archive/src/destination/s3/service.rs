//! The HTTP service through which requests reach S3.

use std::time::Duration;

use aws_smithy_runtime_api::client::http::HttpConnector as _;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest as SdkRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http::header::IF_NONE_MATCH;
use http::{HeaderValue, Method, Response};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use tower_http::timeout::TimeoutBody;

use super::error_response::S3ErrorResponse;
use crate::aws::AwsConnector;

/// The maximum time until a response begins, in addition to the time for sending the request's
/// body.
const PATIENCE: Duration = Duration::from_secs(20);
/// The lowest speed at which a request's body may be sent, in bytes per second.
const BYTES_PER_SECOND_MIN: usize = 128 << 10;
/// The maximum time without data while a response's body is received.
const SILENCE: Duration = Duration::from_secs(30);

/// The factory of a store's HTTP service.
#[derive(Debug)]
pub(super) struct S3Connector;

impl HttpConnector for S3Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(S3HttpService(crate::aws::connector())))
    }
}

/// The SDK's connection pool as a service for `object_store`, so that both reach AWS in the same
/// way.
#[derive(Debug)]
struct S3HttpService(AwsConnector);

#[async_trait::async_trait]
impl HttpService for S3HttpService {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if completes_an_upload(&request) {
            // `object_store` completes an upload even if the object exists, and has no option
            // against it. The header need not be signed: S3 accepts unsigned conditions.
            request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let sending = request.body().content_length() / BYTES_PER_SECOND_MIN;
        let patience = PATIENCE + Duration::from_secs(u64::try_from(sending).unwrap_or(u64::MAX));
        let answered = tokio::time::timeout(patience, self.send(request)).await;
        let (parts, body) = answered.map_err(|late| HttpError::new(HttpErrorKind::Timeout, late))??.into_parts();
        let body = TimeoutBody::new(SILENCE, body);
        if S3ErrorResponse::is_definite(parts.status) {
            let answer = S3ErrorResponse::read(&parts, body).await;
            // `object_store` does not retry errors of this kind.
            return Err(HttpError::new(HttpErrorKind::Unknown, answer));
        }
        let body = body.map_err(|error| HttpError::new_boxed(HttpErrorKind::Interrupted, error));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

impl S3HttpService {
    async fn send(&self, request: HttpRequest) -> Result<Response<SdkBody>, HttpError> {
        let wrong = |error| HttpError::new(HttpErrorKind::Unknown, error);
        let request = SdkRequest::try_from(request.map(SdkBody::from_body_1_x)).map_err(wrong)?;
        let response = self.0.call(request).await.map_err(broken)?;
        response.try_into_http1x().map_err(wrong)
    }
}

/// Returns true if the request completes a multipart upload. The request that begins one has
/// `uploads` in its query and no ID yet. Parts are sent with PUT, and an upload is aborted with
/// DELETE.
fn completes_an_upload(request: &HttpRequest) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() == Method::POST && query.split('&').any(|pair| pair.starts_with("uploadId="))
}

/// Converts a connection error. After a broken connection it is unknown whether the request took
/// effect, so only idempotent requests are sent again.
fn broken(error: ConnectorError) -> HttpError {
    let kind = match &error {
        error if error.is_timeout() => HttpErrorKind::Timeout,
        error if error.is_user() => HttpErrorKind::Unknown,
        _ => HttpErrorKind::Interrupted,
    };
    HttpError::new_boxed(kind, error.into_source())
}
