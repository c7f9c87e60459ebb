//! Translation of requests of other protocols to gRPC.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use http_body_util::Full;
use laredo_proto::frame;
use prost_reflect::DynamicMessage;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use super::json;
use super::methods::RpcMethod;
use super::protocol_choice::{BodyEncoding, MessageCodec, TranslatedProtocol};
use crate::receive::BodyLimits;
use crate::{receive, refusal};

const VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");
const TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const STREAM_ENCODING: HeaderName = HeaderName::from_static("connect-content-encoding");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// The maximum number of digits of a timeout. The longest timeout is 115 days.
const TIMEOUT_DIGITS_MAX: usize = 10;

/// Returns the time by which a call must be over. gRPC-Web has none here: it uses gRPC's header,
/// which the transport handles.
///
/// # Errors
/// Returns an error if the timeout is not a number of milliseconds.
pub(super) fn deadline(protocol: TranslatedProtocol, headers: &HeaderMap) -> Result<Option<Instant>, Status> {
    if matches!(protocol, TranslatedProtocol::GrpcWeb(_)) {
        return Ok(None);
    }
    let Some(timeout) = headers.get(TIMEOUT) else { return Ok(None) };
    let text = timeout.to_str().unwrap_or_default();
    let is_number = text.len() <= TIMEOUT_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse().ok().filter(|_| is_number) {
        Some(milliseconds) => Ok(Some(Instant::now() + Duration::from_millis(milliseconds))),
        None => {
            let problem = format!("it must be milliseconds in at most {TIMEOUT_DIGITS_MAX} digits, not {timeout:?}");
            Err(refusal::malformed("Connect-Timeout-Ms", problem))
        }
    }
}

/// Returns the status of a call that was not over in time.
pub(super) fn late() -> Status {
    Status::deadline_exceeded("the call took longer than its Connect-Timeout-Ms")
}

/// Translates a call to gRPC.
///
/// # Errors
/// Returns an error if the protocol refuses the request before it reaches the service.
pub(super) async fn to_grpc(
    protocol: TranslatedProtocol,
    method: &RpcMethod,
    request: Request<Body>,
    limits: &BodyLimits,
) -> Result<Request<Body>, Status> {
    let (mut head, body) = request.into_parts();
    if !matches!(protocol, TranslatedProtocol::GrpcWeb(_)) {
        check(&head.headers)?;
    }
    let body = match protocol {
        TranslatedProtocol::ConnectUnary(MessageCodec::Proto) => {
            framed(&checked(receive::read_whole_body(body, limits).await?, method).await?)
        }
        TranslatedProtocol::ConnectUnary(MessageCodec::Json) => {
            framed(&json::request(receive::read_whole_body(body, limits).await?, &method.input).await?)
        }
        TranslatedProtocol::ConnectStream(MessageCodec::Json) => {
            framed(&json::request(receive::one_message(body, limits).await?, &method.input).await?)
        }
        TranslatedProtocol::GrpcWeb(BodyEncoding::Base64) => {
            let text = receive::read_whole_body(body, limits).await?;
            let bytes = BASE64_STANDARD.decode(text).map_err(|error| refusal::malformed("request", error))?;
            Body::new(Full::new(Bytes::from(bytes)))
        }
        // These frames are valid in gRPC.
        TranslatedProtocol::ConnectStream(MessageCodec::Proto) | TranslatedProtocol::GrpcWeb(BodyEncoding::Binary)
            if method.stays_open =>
        {
            body
        }
        TranslatedProtocol::ConnectStream(MessageCodec::Proto) | TranslatedProtocol::GrpcWeb(BodyEncoding::Binary) => {
            Body::new(Full::new(receive::read_whole_body(body, limits).await?))
        }
    };
    head.version = Version::HTTP_2;
    for name in [CONTENT_LENGTH, CONTENT_ENCODING, ACCEPT_ENCODING] {
        head.headers.remove(name);
    }
    head.headers.insert(CONTENT_TYPE, GRPC);
    head.headers.insert(TE, HeaderValue::from_static("trailers"));
    Ok(Request::from_parts(head, body))
}

fn check(headers: &HeaderMap) -> Result<(), Status> {
    if let Some(version) = headers.get(VERSION).filter(|version| *version != "1") {
        return Err(refusal::malformed("Connect-Protocol-Version", format!("it must be 1, not {version:?}")));
    }
    let codings = [CONTENT_ENCODING, STREAM_ENCODING].into_iter().filter_map(|name| headers.get(name));
    match codings.into_iter().find(|coding| *coding != "identity") {
        None => Ok(()),
        Some(coding) => Err(Status::unimplemented(format!(
            "requests compressed as {coding:?} are not supported; the supported encodings are: identity"
        ))),
    }
}

/// Checks that a message can be decoded. Otherwise the service would report the client's error as
/// its own.
async fn checked(message: Bytes, method: &RpcMethod) -> Result<Bytes, Status> {
    let input = method.input.clone();
    let check = move |message: &[u8]| match DynamicMessage::decode(input.clone(), message) {
        Ok(_) => Ok(()),
        Err(error) => Err(refusal::malformed(input.name(), error)),
    };
    json::convert(message.clone(), check).await.map(|()| message)
}

fn framed(message: &[u8]) -> Body {
    let mut bytes = Vec::with_capacity(frame::PREFIX_LENGTH + message.len());
    frame::prefix(message.len(), &mut bytes);
    bytes.extend_from_slice(message);
    Body::new(Full::new(Bytes::from(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_is_at_most_ten_digits() {
        let connect = TranslatedProtocol::ConnectUnary(MessageCodec::Json);
        let of = |text| deadline(connect, &headers("connect-timeout-ms", text)).map_err(|status| status.code());
        let after = |milliseconds| Ok(Some(Instant::now() + Duration::from_millis(milliseconds)));
        assert_eq!(of("250"), after(250));
        assert_eq!(of("0"), after(0));
        assert_eq!(of("9999999999"), after(9_999_999_999));
        for text in ["", "12345678901", "-1", "+1", "1.5", "1s", " 1"] {
            assert_eq!(of(text), Err(tonic::Code::InvalidArgument), "{text:?}");
        }
        assert_eq!(deadline(connect, &HeaderMap::new()).unwrap(), None);
        let web = TranslatedProtocol::GrpcWeb(BodyEncoding::Binary);
        assert_eq!(deadline(web, &headers("connect-timeout-ms", "x")).unwrap(), None);
    }

    #[test]
    fn one_version_is_spoken_and_nothing_is_compressed() {
        let of = |name, value| check(&headers(name, value)).err().map(|status| status.code());
        assert_eq!(check(&HeaderMap::new()).err().map(|status| status.code()), None);
        assert_eq!(of("connect-protocol-version", "1"), None);
        assert_eq!(of("connect-protocol-version", "2"), Some(tonic::Code::InvalidArgument));
        for name in ["content-encoding", "connect-content-encoding"] {
            assert_eq!(of(name, "identity"), None);
            assert_eq!(of(name, "gzip"), Some(tonic::Code::Unimplemented));
        }
    }
}
