//! The choice of a request's protocol, from its first lines alone.

use http::{Method, Version};

/// A protocol other than gRPC, with its variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TranslatedProtocol {
    /// Connect for a unary method: bare messages, and HTTP's own status codes.
    ConnectUnary(MessageCodec),
    /// Connect for a stream: frames, with the end as JSON in the last one.
    ConnectStream(MessageCodec),
    /// gRPC-Web: frames, with the trailers in the last one.
    GrpcWeb(BodyEncoding),
}

/// The encoding of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageCodec {
    Proto,
    Json,
}

/// The encoding of a gRPC-Web body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyEncoding {
    Binary,
    Base64,
}

/// The number of answers of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MethodShape {
    Unary,
    Stream,
}

/// The parts of a request that determine its protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHead<'a> {
    pub(super) method: &'a Method,
    pub(super) version: Version,
    pub(super) content_type: Option<&'a [u8]>,
    /// The shape of the requested method; `None` if the method does not exist.
    pub(super) shape: Option<MethodShape>,
}

/// The handling of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtocolChoice {
    /// The services handle the request unchanged.
    Grpc,
    /// The request is translated.
    Other(TranslatedProtocol),
    Refuse(ProtocolRefusal),
}

/// The reason why a request is refused before it reaches a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProtocolRefusal {
    /// A method other than POST. No service method is available by GET, because it may have
    /// effects.
    NotPost,
    /// A content type of no protocol, or of a protocol that the method does not support.
    ContentType(Option<MethodShape>),
    /// gRPC over HTTP/1.1, which lacks the trailers that gRPC needs.
    GrpcOverHttp1,
}

/// Chooses the handling of a request.
pub(super) fn choose(asked: RequestHead<'_>) -> ProtocolChoice {
    let protocol = match NamedProtocol::new(asked.content_type) {
        // A gRPC client receives any further error in gRPC.
        Some(NamedProtocol::Grpc) if asked.version >= Version::HTTP_2 => return ProtocolChoice::Grpc,
        Some(NamedProtocol::Grpc) => return ProtocolChoice::Refuse(ProtocolRefusal::GrpcOverHttp1),
        Some(NamedProtocol::Other(protocol)) => Some(protocol),
        None => None,
    };
    if asked.method != Method::POST {
        return ProtocolChoice::Refuse(ProtocolRefusal::NotPost);
    }
    match (protocol, asked.shape) {
        // The two shapes of Connect must not be confused: a stream that fails has the HTTP status
        // 200.
        (Some(TranslatedProtocol::ConnectUnary(_)), Some(MethodShape::Stream))
        | (Some(TranslatedProtocol::ConnectStream(_)), Some(MethodShape::Unary))
        | (None, _) => ProtocolChoice::Refuse(ProtocolRefusal::ContentType(asked.shape)),
        (Some(protocol), _) => ProtocolChoice::Other(protocol),
    }
}

/// The protocol that a content type names.
enum NamedProtocol {
    Grpc,
    Other(TranslatedProtocol),
}

impl NamedProtocol {
    fn new(content_type: Option<&[u8]>) -> Option<NamedProtocol> {
        // Parameters, such as a charset, are ignored.
        let name = content_type?.split(|byte| *byte == b';').next()?.trim_ascii().to_ascii_lowercase();
        let protocol = match name.as_slice() {
            b"application/proto" => TranslatedProtocol::ConnectUnary(MessageCodec::Proto),
            b"application/json" => TranslatedProtocol::ConnectUnary(MessageCodec::Json),
            b"application/connect+proto" => TranslatedProtocol::ConnectStream(MessageCodec::Proto),
            b"application/connect+json" => TranslatedProtocol::ConnectStream(MessageCodec::Json),
            b"application/grpc-web" | b"application/grpc-web+proto" => {
                TranslatedProtocol::GrpcWeb(BodyEncoding::Binary)
            }
            b"application/grpc-web-text" | b"application/grpc-web-text+proto" => {
                TranslatedProtocol::GrpcWeb(BodyEncoding::Base64)
            }
            b"application/grpc" => return Some(NamedProtocol::Grpc),
            other if other.starts_with(b"application/grpc+") => return Some(NamedProtocol::Grpc),
            _ => return None,
        };
        Some(NamedProtocol::Other(protocol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(method: &Method, version: Version, content_type: &str, shape: Option<MethodShape>) -> ProtocolChoice {
        let content_type = (!content_type.is_empty()).then_some(content_type.as_bytes());
        choose(RequestHead { method, version, content_type, shape })
    }

    fn posted(content_type: &str, shape: Option<MethodShape>) -> ProtocolChoice {
        let [old, new] = [Version::HTTP_11, Version::HTTP_2].map(|v| chosen(&Method::POST, v, content_type, shape));
        assert_eq!(old, new, "only gRPC asks which HTTP it is: {content_type}");
        new
    }

    #[test]
    fn each_content_type_is_its_protocol() {
        use BodyEncoding::{Base64, Binary};
        use MessageCodec::{Json, Proto};
        let (unary, stream) = (Some(MethodShape::Unary), Some(MethodShape::Stream));
        let table = [
            ("application/proto", unary, TranslatedProtocol::ConnectUnary(Proto)),
            ("application/json", unary, TranslatedProtocol::ConnectUnary(Json)),
            ("Application/JSON ; charset=utf-8", unary, TranslatedProtocol::ConnectUnary(Json)),
            ("application/json", None, TranslatedProtocol::ConnectUnary(Json)),
            ("application/connect+proto", stream, TranslatedProtocol::ConnectStream(Proto)),
            ("application/connect+json", stream, TranslatedProtocol::ConnectStream(Json)),
            ("application/connect+json", None, TranslatedProtocol::ConnectStream(Json)),
            ("application/grpc-web", unary, TranslatedProtocol::GrpcWeb(Binary)),
            ("application/grpc-web+proto", stream, TranslatedProtocol::GrpcWeb(Binary)),
            ("application/grpc-web-text", stream, TranslatedProtocol::GrpcWeb(Base64)),
            ("application/grpc-web-text+proto", unary, TranslatedProtocol::GrpcWeb(Base64)),
        ];
        for (content_type, shape, protocol) in table {
            assert_eq!(posted(content_type, shape), ProtocolChoice::Other(protocol), "{content_type}");
        }
    }

    #[test]
    fn what_no_method_answers_in_is_refused() {
        let (unary, stream) = (Some(MethodShape::Unary), Some(MethodShape::Stream));
        let table = [
            ("", None),
            ("text/plain", unary),
            ("application/x-www-form-urlencoded", unary),
            ("application/grpc-web+json", unary),
            ("application/connect+xml", stream),
            ("application/json", stream),
            ("application/proto", stream),
            ("application/connect+json", unary),
            ("application/connect+proto", unary),
        ];
        for (content_type, shape) in table {
            assert_eq!(
                posted(content_type, shape),
                ProtocolChoice::Refuse(ProtocolRefusal::ContentType(shape)),
                "{content_type}"
            );
        }
    }

    #[test]
    fn grpc_is_left_alone_and_needs_http_2() {
        for content_type in
            ["application/grpc", "application/grpc+proto", "application/grpc;a=b", "application/grpc+json"]
        {
            for shape in [None, Some(MethodShape::Unary), Some(MethodShape::Stream)] {
                assert_eq!(chosen(&Method::POST, Version::HTTP_2, content_type, shape), ProtocolChoice::Grpc);
                let old = chosen(&Method::POST, Version::HTTP_11, content_type, shape);
                assert_eq!(old, ProtocolChoice::Refuse(ProtocolRefusal::GrpcOverHttp1));
            }
        }
    }

    #[test]
    fn only_posts_are_calls() {
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::OPTIONS, Method::DELETE] {
            for content_type in ["", "application/json", "application/grpc-web", "text/html"] {
                let choice = chosen(&method, Version::HTTP_11, content_type, Some(MethodShape::Unary));
                assert_eq!(choice, ProtocolChoice::Refuse(ProtocolRefusal::NotPost), "{method} {content_type}");
            }
        }
    }
}
