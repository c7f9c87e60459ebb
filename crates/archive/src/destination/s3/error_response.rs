//! The error responses of S3, and their meaning.

use std::error::Error;
use std::fmt;

use http::StatusCode;
use http::response::Parts;
use http_body::Body;
use http_body_util::{BodyExt, Limited};

use crate::aws::NoCredentials;
use crate::destination::DestinationError;

/// The maximum size in bytes that is read of an error document, which normally has a few lines.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;

/// The kind of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum S3Operation {
    Write,
    Read,
    List,
    Delete,
}

/// An error response that the same request would get again.
#[derive(Debug)]
pub(super) struct S3ErrorResponse {
    status: StatusCode,
    /// The error code, such as `AccessDenied` or `NoSuchBucket`; empty if the store sends none.
    code: String,
    message: String,
    /// The region of the bucket, if the response names it.
    region: Option<String>,
}

impl S3ErrorResponse {
    /// Returns true if a response with this status is final. `object_store` retries others at once.
    pub(super) fn is_definite(status: StatusCode) -> bool {
        let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
        let refused = status.is_redirection() || status.is_client_error() || status == StatusCode::NOT_IMPLEMENTED;
        refused && !passing
    }

    pub(super) async fn read<B>(parts: &Parts, body: B) -> S3ErrorResponse
    where
        B: Body,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let document = Limited::new(body, DOCUMENT_BYTES_MAX).collect().await;
        let document = document.map(|document| document.to_bytes()).unwrap_or_default();
        let document = String::from_utf8_lossy(&document);
        let header = parts.headers.get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
        S3ErrorResponse {
            status: parts.status,
            code: element(&document, "Code").unwrap_or_default().to_owned(),
            message: element(&document, "Message").unwrap_or_default().to_owned(),
            region: header.or_else(|| element(&document, "Region")).map(ToOwned::to_owned),
        }
    }

    /// Returns the response that caused an error of `object_store`, if there was one.
    pub(super) fn of(error: &object_store::Error) -> Option<&S3ErrorResponse> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }

    /// Returns true if the condition did not hold: the object exists already, or is a different
    /// one.
    pub(super) fn is_unmet(&self) -> bool {
        self.status == StatusCode::PRECONDITION_FAILED
    }

    /// Returns true if the store checked the condition: it did not hold, or another request
    /// interfered.
    pub(super) fn is_condition(&self) -> bool {
        self.is_unmet() || self.is_no_object() || self.code == "ConditionalRequestConflict"
    }

    /// Returns true if the store does not support the request.
    pub(super) fn is_no_such_request(&self) -> bool {
        matches!(
            self.status,
            StatusCode::BAD_REQUEST
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_IMPLEMENTED
        )
    }

    /// Returns true if the bucket exists but not the object.
    pub(super) fn is_no_object(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && ["", "NoSuchKey"].contains(&self.code.as_str())
    }

    /// Returns the action by which the operator can fix this error, if there is a known one.
    fn remedy(&self, doing: S3Operation, bucket: &str, prefix: &str) -> Option<String> {
        let known = match (self.status.as_u16(), self.code.as_str()) {
            (_, "NoSuchBucket") => "the bucket does not exist: create it, or correct `bucket`".to_owned(),
            (_, "InvalidBucketName") => "the name of the bucket is invalid: correct `bucket`".to_owned(),
            (301, _) | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => match &self.region {
                Some(region) => format!("the bucket is in the region {region}: set `region` to that"),
                None => "the bucket is in another region, or at another endpoint: set `region`".to_owned(),
            },
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch") => {
                "the credentials are not valid here: correct the profile that this destination uses".to_owned()
            }
            (_, "RequestTimeTooSkewed") => "this machine's clock is wrong: set it".to_owned(),
            (401 | 403, _) => doing.permission(bucket, prefix),
            (501, _) | (_, "NotImplemented") => {
                "the store lacks what an archive needs: conditional writes (If-None-Match, If-Match)".to_owned()
            }
            _ => return None,
        };
        Some(known)
    }
}

impl fmt::Display for S3ErrorResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store answered {}", self.status.as_u16())?;
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => Ok(()),
            (code, "") => write!(f, " {code}"),
            (code, message) => write!(f, " {code} ({})", message.trim_end_matches('.')),
        }
    }
}

impl Error for S3ErrorResponse {}

impl S3Operation {
    fn word(self) -> &'static str {
        match self {
            S3Operation::Write => "write",
            S3Operation::Read => "read",
            S3Operation::List => "list",
            S3Operation::Delete => "delete",
        }
    }

    fn permission(self, bucket: &str, prefix: &str) -> String {
        match self {
            S3Operation::Write => format!("allow s3:PutObject and s3:AbortMultipartUpload on {bucket}/{prefix}*"),
            // Without s3:ListBucket, S3 does not report that an object is missing.
            S3Operation::Read => format!("allow s3:GetObject on {bucket}/{prefix}*, and s3:ListBucket on {bucket}"),
            S3Operation::List => format!("allow s3:ListBucket on {bucket}"),
            S3Operation::Delete => format!("allow s3:DeleteObject on {bucket}/{prefix}*"),
        }
    }
}

/// Converts an error of `object_store` to an error of a destination.
pub(super) fn to_destination_error(
    error: &object_store::Error,
    doing: S3Operation,
    at: &str,
    bucket: &str,
    prefix: &str,
) -> DestinationError {
    let (at, word) = (at.to_owned(), doing.word());
    if let Some(answer) = S3ErrorResponse::of(error) {
        return match answer.remedy(doing, bucket, prefix) {
            _ if answer.is_no_object() => DestinationError::Missing { at },
            Some(remedy) => DestinationError::Refused { doing: word, at, reason: format!("{answer}; {remedy}") },
            None => DestinationError::Unavailable { doing: word, at, reason: answer.to_string() },
        };
    }
    match causes(error).find_map(|cause| cause.downcast_ref::<NoCredentials>()) {
        Some(none) if none.definite => {
            let reason = format!("{none}; give this process credentials, or let it assume the role");
            DestinationError::Refused { doing: word, at, reason }
        }
        _ => DestinationError::Unavailable { doing: word, at, reason: deepest(error).to_string() },
    }
}

/// Returns the innermost cause. The errors around it describe requests and tries.
pub(super) fn deepest(error: &object_store::Error) -> &(dyn Error + 'static) {
    causes(error).last().unwrap_or(error)
}

fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), |error: &&(dyn Error + 'static)| (*error).source())
}

/// Returns the text of an XML document's first element of this name, which must contain only text.
fn element<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = document.split_once(&format!("<{name}>"))?;
    Some(rest.split_once('<')?.0.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    use object_store::client::{HttpError, HttpErrorKind};

    async fn judged(status: u16, document: &str, region: Option<&str>, doing: S3Operation) -> DestinationError {
        let mut response = http::Response::builder().status(status);
        if let Some(region) = region {
            response = response.header("x-amz-bucket-region", region);
        }
        let (parts, body) = response.body(document.to_owned()).unwrap().into_parts();
        let answer = S3ErrorResponse::read(&parts, body).await;
        // The error is nested as `object_store` nests it.
        let source = Box::new(HttpError::new(HttpErrorKind::Unknown, answer));
        to_destination_error(&object_store::Error::Generic { store: "S3", source }, doing, "s3://b/p/x", "b", "p/")
    }

    #[tokio::test]
    async fn a_refusal_says_what_to_do() {
        let cases = [
            (403, "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>", S3Operation::Write),
            (403, "<Error><Code>InvalidAccessKeyId</Code></Error>", S3Operation::Read),
            (404, "<Error><Code>NoSuchBucket</Code></Error>", S3Operation::List),
            (
                400,
                "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>",
                S3Operation::Read,
            ),
            (501, "", S3Operation::Write),
        ];
        let mut said = Vec::new();
        for (status, document, doing) in cases {
            let error = judged(status, document, None, doing).await;
            assert!(matches!(error, DestinationError::Refused { .. }), "{error:?}");
            said.push(error.to_string());
        }
        let moved = judged(301, "", Some("eu-north-1"), S3Operation::Delete).await;
        assert!(matches!(moved, DestinationError::Refused { .. }), "{moved:?}");
        said.push(moved.to_string());
        let expected = [
            "cannot write s3://b/p/x: the store answered 403 AccessDenied (Access Denied); \
             allow s3:PutObject and s3:AbortMultipartUpload on b/p/*",
            "cannot read s3://b/p/x: the store answered 403 InvalidAccessKeyId; \
             the credentials are not valid here: correct the profile that this destination uses",
            "cannot list s3://b/p/x: the store answered 404 NoSuchBucket; \
             the bucket does not exist: create it, or correct `bucket`",
            "cannot read s3://b/p/x: the store answered 400 AuthorizationHeaderMalformed; \
             the bucket is in the region eu-west-1: set `region` to that",
            "cannot write s3://b/p/x: the store answered 501; \
             the store lacks what an archive needs: conditional writes (If-None-Match, If-Match)",
            "cannot delete s3://b/p/x: the store answered 301; \
             the bucket is in the region eu-north-1: set `region` to that",
        ];
        assert_eq!(said, expected);
    }

    #[tokio::test]
    async fn passing_errors_and_missing_objects_are_distinguished() {
        let no_key = judged(404, "<Error><Code>NoSuchKey</Code></Error>", None, S3Operation::Read).await;
        assert!(matches!(no_key, DestinationError::Missing { .. }), "{no_key:?}");
        for code in ["ConditionalRequestConflict", "NoSuchUpload", "ExpiredToken", "RequestTimeout"] {
            let status = if code == "NoSuchUpload" { 404 } else { 400 };
            let error = judged(status, &format!("<Code>{code}</Code>"), None, S3Operation::Write).await;
            assert!(matches!(error, DestinationError::Unavailable { .. }), "{error:?}");
        }
    }

    #[test]
    fn an_overloaded_store_is_asked_again() {
        let definite = |status| S3ErrorResponse::is_definite(StatusCode::from_u16(status).unwrap());
        assert!([301, 307, 400, 403, 404, 409, 412, 501].into_iter().all(definite));
        assert!(![200, 206, 408, 429, 500, 503].into_iter().any(definite));
    }
}
