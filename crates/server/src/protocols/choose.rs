//! The choice of a request's protocol, from its first lines alone.

use http::{Method, Version};

/// A protocol other than gRPC, with its variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Connect for a unary method: bare messages, and HTTP's own status codes.
    ConnectUnary(Codec),
    /// Connect for a stream: frames, with the end as JSON in the last one.
    ConnectStream(Codec),
    /// gRPC-Web: frames, with the trailers in the last one.
    GrpcWeb(Transfer),
}

/// The encoding of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Proto,
    Json,
}

/// The encoding of a gRPC-Web body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    Binary,
    Base64,
}

/// The number of answers of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Unary,
    Stream,
}

/// The parts of a request that determine its protocol.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) version: Version,
    pub(super) content_type: Option<&'a [u8]>,
    /// The shape of the requested method; `None` if the method does not exist.
    pub(super) shape: Option<Shape>,
}

/// The handling of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The services handle the request unchanged.
    Grpc,
    /// The request is translated.
    Other(Protocol),
    Refuse(Refused),
}

/// The reason why a request is refused before it reaches a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A method other than POST. No service method is available by GET, because it may have
    /// effects.
    NotPost,
    /// A content type of no protocol, or of a protocol that the method does not support.
    ContentType(Option<Shape>),
    /// gRPC over HTTP/1.1, which lacks the trailers that gRPC needs.
    GrpcOverHttp1,
}

/// Chooses the handling of a request.
pub(super) fn choose(asked: Asked<'_>) -> Choice {
    let protocol = match Named::new(asked.content_type) {
        // A gRPC client receives any further error in gRPC.
        Some(Named::Grpc) if asked.version >= Version::HTTP_2 => return Choice::Grpc,
        Some(Named::Grpc) => return Choice::Refuse(Refused::GrpcOverHttp1),
        Some(Named::Other(protocol)) => Some(protocol),
        None => None,
    };
    if asked.method != Method::POST {
        return Choice::Refuse(Refused::NotPost);
    }
    match (protocol, asked.shape) {
        // The two shapes of Connect must not be confused: a stream that fails has the HTTP status
        // 200.
        (Some(Protocol::ConnectUnary(_)), Some(Shape::Stream))
        | (Some(Protocol::ConnectStream(_)), Some(Shape::Unary))
        | (None, _) => Choice::Refuse(Refused::ContentType(asked.shape)),
        (Some(protocol), _) => Choice::Other(protocol),
    }
}

/// The protocol that a content type names.
enum Named {
    Grpc,
    Other(Protocol),
}

impl Named {
    fn new(content_type: Option<&[u8]>) -> Option<Named> {
        // Parameters, such as a charset, are ignored.
        let name = content_type?.split(|byte| *byte == b';').next()?.trim_ascii().to_ascii_lowercase();
        let protocol = match name.as_slice() {
            b"application/proto" => Protocol::ConnectUnary(Codec::Proto),
            b"application/json" => Protocol::ConnectUnary(Codec::Json),
            b"application/connect+proto" => Protocol::ConnectStream(Codec::Proto),
            b"application/connect+json" => Protocol::ConnectStream(Codec::Json),
            b"application/grpc-web" | b"application/grpc-web+proto" => Protocol::GrpcWeb(Transfer::Binary),
            b"application/grpc-web-text" | b"application/grpc-web-text+proto" => Protocol::GrpcWeb(Transfer::Base64),
            b"application/grpc" => return Some(Named::Grpc),
            other if other.starts_with(b"application/grpc+") => return Some(Named::Grpc),
            _ => return None,
        };
        Some(Named::Other(protocol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(method: &Method, version: Version, content_type: &str, shape: Option<Shape>) -> Choice {
        let content_type = (!content_type.is_empty()).then_some(content_type.as_bytes());
        choose(Asked { method, version, content_type, shape })
    }

    fn posted(content_type: &str, shape: Option<Shape>) -> Choice {
        let [old, new] = [Version::HTTP_11, Version::HTTP_2].map(|v| chosen(&Method::POST, v, content_type, shape));
        assert_eq!(old, new, "only gRPC asks which HTTP it is: {content_type}");
        new
    }

    #[test]
    fn each_content_type_is_its_protocol() {
        use Codec::{Json, Proto};
        use Transfer::{Base64, Binary};
        let (unary, stream) = (Some(Shape::Unary), Some(Shape::Stream));
        let table = [
            ("application/proto", unary, Protocol::ConnectUnary(Proto)),
            ("application/json", unary, Protocol::ConnectUnary(Json)),
            ("Application/JSON ; charset=utf-8", unary, Protocol::ConnectUnary(Json)),
            ("application/json", None, Protocol::ConnectUnary(Json)),
            ("application/connect+proto", stream, Protocol::ConnectStream(Proto)),
            ("application/connect+json", stream, Protocol::ConnectStream(Json)),
            ("application/connect+json", None, Protocol::ConnectStream(Json)),
            ("application/grpc-web", unary, Protocol::GrpcWeb(Binary)),
            ("application/grpc-web+proto", stream, Protocol::GrpcWeb(Binary)),
            ("application/grpc-web-text", stream, Protocol::GrpcWeb(Base64)),
            ("application/grpc-web-text+proto", unary, Protocol::GrpcWeb(Base64)),
        ];
        for (content_type, shape, protocol) in table {
            assert_eq!(posted(content_type, shape), Choice::Other(protocol), "{content_type}");
        }
    }

    #[test]
    fn what_no_method_answers_in_is_refused() {
        let (unary, stream) = (Some(Shape::Unary), Some(Shape::Stream));
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
            assert_eq!(posted(content_type, shape), Choice::Refuse(Refused::ContentType(shape)), "{content_type}");
        }
    }

    #[test]
    fn grpc_is_left_alone_and_needs_http_2() {
        for content_type in
            ["application/grpc", "application/grpc+proto", "application/grpc;a=b", "application/grpc+json"]
        {
            for shape in [None, Some(Shape::Unary), Some(Shape::Stream)] {
                assert_eq!(chosen(&Method::POST, Version::HTTP_2, content_type, shape), Choice::Grpc);
                let old = chosen(&Method::POST, Version::HTTP_11, content_type, shape);
                assert_eq!(old, Choice::Refuse(Refused::GrpcOverHttp1));
            }
        }
    }

    #[test]
    fn only_posts_are_calls() {
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::OPTIONS, Method::DELETE] {
            for content_type in ["", "application/json", "application/grpc-web", "text/html"] {
                let choice = chosen(&method, Version::HTTP_11, content_type, Some(Shape::Unary));
                assert_eq!(choice, Choice::Refuse(Refused::NotPost), "{method} {content_type}");
            }
        }
    }
}
