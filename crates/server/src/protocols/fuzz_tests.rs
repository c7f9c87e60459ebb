//! The fuzz target of requests in other protocols than gRPC.

mod translated_requests {
    use std::time::Duration;

    use bytes::Bytes;
    use futures::stream;
    use http::Request;
    use http_body_util::{BodyExt, StreamBody};
    use laredo_fuzz::{FuzzTarget, outcome};
    use laredo_proto::frame;
    use laredo_proto::replication::SyncRequest;
    use prost::Message;
    use prost_reflect::DynamicMessage;
    use tonic::Status;
    use tonic::body::Body;

    use super::super::MethodTable;
    use super::super::protocol_choice::{BodyEncoding, MessageCodec, TranslatedProtocol};
    use super::super::request_translation::to_grpc;
    use crate::peer::ClientGroup;
    use crate::receive::{self, BodyLimits, RequestMemory};

    const PROTOCOLS: [TranslatedProtocol; 6] = [
        TranslatedProtocol::ConnectUnary(MessageCodec::Proto),
        TranslatedProtocol::ConnectUnary(MessageCodec::Json),
        TranslatedProtocol::ConnectStream(MessageCodec::Proto),
        TranslatedProtocol::ConnectStream(MessageCodec::Json),
        TranslatedProtocol::GrpcWeb(BodyEncoding::Binary),
        TranslatedProtocol::GrpcWeb(BodyEncoding::Base64),
    ];
    const METHODS: [&str; 2] = [
        "/laredo.replication.v1.LaredoReplicationService/Sync",
        "/laredo.replication.v1.LaredoReplicationService/GetReplicationStatus",
    ];

    /// Returns a body that arrives in pieces.
    fn body(bytes: &[u8], piece: usize) -> Body {
        let pieces: Vec<Result<_, Status>> =
            bytes.chunks(piece).map(|piece| Ok(http_body::Frame::data(Bytes::copy_from_slice(piece)))).collect();
        Body::new(StreamBody::new(stream::iter(pieces)))
    }

    fn seeds() -> Vec<Vec<u8>> {
        use base64::Engine as _;
        let request = SyncRequest { schema: "public".to_owned(), table: "t".to_owned(), ..SyncRequest::default() };
        let (message, framed) = (request.encode_to_vec(), frame::to_bytes(&request).to_vec());
        let json = br#"{"schema":"public","table":"t"}"#.to_vec();
        let mut framed_json = Vec::new();
        frame::prefix(json.len(), &mut framed_json);
        framed_json.extend_from_slice(&json);
        let text = base64::prelude::BASE64_STANDARD.encode(&framed).into_bytes();
        let bodies = [message, json, framed.clone(), framed_json, framed, text];
        let with_head = |(protocol, body): (u8, Vec<u8>)| [&[protocol, protocol % 2, 7], body.as_slice()].concat();
        (0..).zip(bodies).map(with_head).collect()
    }

    /// Translates a request. The service gets one message that it can decode, or frames of the
    /// client's own.
    #[test]
    fn any_body_is_refused_or_becomes_one_of_grpc() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let methods = MethodTable::new(&[laredo_proto::FILE_DESCRIPTOR_SET]).expect("they are compiled in");
        FuzzTarget::new("translated_requests", seeds()).run(|input| {
            let ([protocol, method, piece], rest) = input.split_first_chunk::<3>().ok_or("it is short")?;
            let protocol = PROTOCOLS[usize::from(*protocol) % PROTOCOLS.len()];
            let method = methods.find(METHODS[usize::from(*method) % 2]).expect("it is a method");
            let request = Request::new(body(rest, usize::from(*piece).max(1)));
            let limits = BodyLimits::new(Duration::from_secs(10), RequestMemory::default(), ClientGroup::default());
            let bytes = runtime.block_on(async {
                let request = to_grpc(protocol, &method, request, &limits).await?;
                request.into_body().collect().await.map(http_body_util::Collected::to_bytes)
            });
            let bytes = bytes.map_err(outcome)?;
            if matches!(
                protocol,
                TranslatedProtocol::ConnectUnary(_) | TranslatedProtocol::ConnectStream(MessageCodec::Json)
            ) {
                let message =
                    runtime.block_on(receive::one_message(body(&bytes, 1 << 20), &limits)).expect("it is framed");
                DynamicMessage::decode(method.input, message).expect("it was checked");
            }
            Ok(bytes.len().min(64) as u64)
        });
    }
}
