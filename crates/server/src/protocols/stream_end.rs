//! The last frame of a stream, which replaces gRPC's trailers.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use laredo_proto::frame;
use serde_json::json;
use tonic::{Code, Status};

use super::connect;
use super::protocol_choice::{BodyEncoding, TranslatedProtocol};

/// The flag of Connect's last frame.
const CONNECT_END: u8 = 0x02;
/// The flag of gRPC-Web's frame of trailers.
const WEB_TRAILERS: u8 = 0x80;

/// Returns the protocol's last frame for the final status of a stream.
pub(super) fn last_frame(protocol: TranslatedProtocol, status: &Status) -> Bytes {
    match protocol {
        TranslatedProtocol::GrpcWeb(BodyEncoding::Binary) => flagged(WEB_TRAILERS, &trailers(status)),
        TranslatedProtocol::GrpcWeb(BodyEncoding::Base64) => base64(&flagged(WEB_TRAILERS, &trailers(status))),
        TranslatedProtocol::ConnectUnary(_) | TranslatedProtocol::ConnectStream(_) => {
            let end = match status.code() {
                Code::Ok => json!({}),
                _ => json!({ "error": connect::error(status) }),
            };
            flagged(CONNECT_END, end.to_string().as_bytes())
        }
    }
}

/// Encodes bytes with padding. Each call is separate, because a client decodes the part that has
/// arrived.
pub(super) fn base64(bytes: &[u8]) -> Bytes {
    BASE64_STANDARD.encode(bytes).into()
}

/// Writes trailers as header lines of HTTP/1.
fn trailers(status: &Status) -> Vec<u8> {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        // The service's metadata does not fit in a header. Only the code is sent.
        headers.clear();
        headers.insert(Status::GRPC_STATUS, http::HeaderValue::from(status.code() as i32));
    }
    let mut lines = Vec::new();
    for (name, value) in &headers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    lines
}

fn flagged(flags: u8, message: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(frame::PREFIX_LENGTH + message.len());
    frame::prefix(message.len(), &mut bytes);
    bytes[0] = flags;
    bytes.extend_from_slice(message);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::super::protocol_choice::MessageCodec;
    use super::*;

    #[test]
    fn an_end_has_each_protocols_form() {
        let well = Status::ok("");
        let ill = Status::unavailable("the server is stöpping\n");
        let web = |status| last_frame(TranslatedProtocol::GrpcWeb(BodyEncoding::Binary), status);
        let text = last_frame(TranslatedProtocol::GrpcWeb(BodyEncoding::Base64), &ill);
        assert_eq!(BASE64_STANDARD.decode(text).unwrap(), web(&ill));
        let connect = |status| last_frame(TranslatedProtocol::ConnectStream(MessageCodec::Proto), status);
        assert_eq!(connect(&well), b"\x02\0\0\0\x02{}".as_slice());
        let end: serde_json::Value = serde_json::from_slice(&connect(&ill)[5..]).unwrap();
        assert_eq!(end, json!({ "error": { "code": "unavailable", "message": "the server is stöpping\n" } }));
        assert!(web(&well).starts_with(b"\x80\0\0\0") && web(&well)[5..].starts_with(b"grpc-status: 0\r\n"));
        let told = String::from_utf8(web(&ill)[5..].to_vec()).unwrap();
        assert!(told.contains("grpc-status: 14\r\n"), "{told}");
        assert!(told.contains("grpc-message: the%20server%20is%20st%C3%B6pping%0A\r\n"), "{told}");
    }
}
