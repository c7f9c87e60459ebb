//! Translation of a gRPC stream to another protocol. In protobuf the frames pass unchanged, and
//! only the end has another form, in a last frame.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::Frame;
use laredo_proto::frame;
use prost_reflect::MessageDescriptor;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::methods::RpcMethod;
use super::protocol_choice::{BodyEncoding, MessageCodec, TranslatedProtocol};
use super::{json, request_translation, response_translation, stream_end};

/// A body that ends with the protocol's last frame, and never with an error or trailers.
pub(super) struct TranslatedBody {
    protocol: TranslatedProtocol,
    writing: FrameConversion,
    /// `None` after the end of the stream, or after its deadline. Dropping the body releases the
    /// service.
    inner: Option<Body>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// The conversion of frames.
enum FrameConversion {
    AsItIs,
    Base64,
    Json(JsonFrameConverter),
    /// A conversion to JSON on another thread.
    Busy(JoinHandle<(JsonFrameConverter, Result<Bytes, Status>)>),
}

impl TranslatedBody {
    pub(super) fn new(
        protocol: TranslatedProtocol,
        method: &RpcMethod,
        inner: Body,
        deadline: Option<Instant>,
    ) -> TranslatedBody {
        let writing = match protocol {
            TranslatedProtocol::ConnectStream(MessageCodec::Json) => {
                FrameConversion::Json(JsonFrameConverter { message: method.output.clone(), begun: BytesMut::new() })
            }
            TranslatedProtocol::GrpcWeb(BodyEncoding::Base64) => FrameConversion::Base64,
            TranslatedProtocol::ConnectUnary(MessageCodec::Proto | MessageCodec::Json)
            | TranslatedProtocol::ConnectStream(MessageCodec::Proto)
            | TranslatedProtocol::GrpcWeb(BodyEncoding::Binary) => FrameConversion::AsItIs,
        };
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        TranslatedBody { protocol, writing, inner: Some(inner), deadline }
    }

    /// Returns the next bytes, or the final status of the stream.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(request_translation::late()));
        }
        loop {
            let written = match &mut self.writing {
                FrameConversion::Busy(task) => match ready!(Pin::new(task).poll(cx)) {
                    Err(error) => Err(Status::internal(format!("writing JSON: {error}"))),
                    Ok((frames, written)) => {
                        self.writing = FrameConversion::Json(frames);
                        written
                    }
                },
                idle => match ready!(poll_data(self.inner.as_mut(), cx)) {
                    Err(status) => Err(status),
                    Ok(data) => match idle {
                        FrameConversion::AsItIs => Ok(data),
                        FrameConversion::Base64 => Ok(stream_end::base64(&data)),
                        FrameConversion::Json(frames) if data.len() <= json::INLINE_BYTES => frames.write(&data),
                        FrameConversion::Json(frames) => {
                            let mut frames = frames.take();
                            self.writing = FrameConversion::Busy(spawn_blocking(move || {
                                let written = frames.write(&data);
                                (frames, written)
                            }));
                            continue;
                        }
                        FrameConversion::Busy(_) => continue,
                    },
                },
            };
            // An incomplete frame yields nothing yet.
            if !matches!(&written, Ok(bytes) if bytes.is_empty()) {
                return Poll::Ready(written);
            }
        }
    }
}

impl http_body::Body for TranslatedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.inner.is_none() {
            return Poll::Ready(None);
        }
        let bytes = ready!(self.poll_bytes(cx)).unwrap_or_else(|status| {
            self.inner = None;
            stream_end::last_frame(self.protocol, &status)
        });
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

/// Returns the next data of the service, or its final status.
fn poll_data(inner: Option<&mut Body>, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
    let Some(inner) = inner else { return Poll::Ready(Err(response_translation::without_status())) };
    let frame = match ready!(http_body::Body::poll_frame(Pin::new(inner), cx)) {
        None => return Poll::Ready(Err(response_translation::without_status())),
        Some(Err(status)) => return Poll::Ready(Err(status)),
        Some(Ok(frame)) => frame,
    };
    Poll::Ready(frame.into_data().map_err(|frame| {
        let status = frame.trailers_ref().and_then(Status::from_header_map);
        status.unwrap_or_else(response_translation::without_status)
    }))
}

/// A converter of frames from protobuf to JSON.
struct JsonFrameConverter {
    message: MessageDescriptor,
    /// The received part of an incomplete frame.
    begun: BytesMut,
}

impl JsonFrameConverter {
    fn take(&mut self) -> JsonFrameConverter {
        JsonFrameConverter { message: self.message.clone(), begun: std::mem::take(&mut self.begun) }
    }

    fn write(&mut self, data: &[u8]) -> Result<Bytes, Status> {
        let begun = &mut self.begun;
        begun.extend_from_slice(data);
        let mut out = Vec::new();
        while let Some(length) = frame::length(begun).filter(|length| begun.len() - frame::PREFIX_LENGTH >= *length) {
            begun.advance(frame::PREFIX_LENGTH);
            let json = json::from_proto(&begun.split_to(length), &self.message)?;
            frame::prefix(json.len(), &mut out);
            out.extend_from_slice(&json);
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_become_json_wherever_they_are_cut() {
        let pool = prost_reflect::DescriptorPool::decode(laredo_proto::FILE_DESCRIPTOR_SET).unwrap();
        let message = pool.get_message_by_name("laredo.replication.v1.SnapshotEnd").unwrap();
        let end =
            |rows_sent| laredo_proto::replication::SnapshotEnd { sequence: 1 << 60, rows_sent, ..Default::default() };
        let mut bytes = Vec::new();
        [0, 7, 300].iter().for_each(|rows| frame::encode(&end(*rows), &mut bytes));
        let written = |cut: usize| {
            let mut frames = JsonFrameConverter { message: message.clone(), begun: BytesMut::new() };
            [&bytes[..cut], &bytes[cut..]].map(|part| frames.write(part).unwrap()).concat()
        };
        let expected = [
            "{\"sequence\":\"1152921504606846976\"}",
            "{\"sequence\":\"1152921504606846976\",\"rowsSent\":\"7\"}",
            "{\"sequence\":\"1152921504606846976\",\"rowsSent\":\"300\"}",
        ];
        let expected =
            expected.map(|json| [&[0, 0, 0, 0, u8::try_from(json.len()).unwrap()], json.as_bytes()].concat());
        for cut in 0..=bytes.len() {
            assert_eq!(written(cut), expected.concat(), "cut at {cut}");
        }
    }
}
