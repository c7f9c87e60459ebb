//! Reading of requests, with bounds on their size and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use http_body::Body;
use http_body_util::{BodyStream, Limited, StreamBody};
use laredo_proto::frame::{self, PREFIX_LENGTH};
use laredo_proto::replication::SyncRequest;
use prost::Message;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::peer::ClientGroup;
use crate::refusal;

mod acknowledgements;
mod memory;

pub(crate) use acknowledgements::AcknowledgementReader;
pub(crate) use memory::RequestMemory;

use memory::RequestMemoryShare;

/// The maximum size of a request in bytes.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// The maximum size in bytes of a request for a stream. Its filters are the largest part, and their
/// limit is half of this. Decoding takes many times the memory, so it must not be larger.
const OPENING_BYTES_MAX: usize = 128 * 1024;
/// The maximum size in bytes of a request for health. It has the name of one service, and unknown
/// callers may send it.
const HEALTH_BYTES_MAX: usize = 4 * 1024;
/// The maximum time that a request of several messages may take. Only reflection has such requests.
const STREAM_TIME_MAX: Duration = Duration::from_secs(60);

/// The limits of the body of one request.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    time_max: Duration,
    bytes_max: usize,
    /// The memory that all requests share, and the group of the caller. Missing if the body is so
    /// small that no other request has to wait for its memory.
    memory: Option<(RequestMemory, ClientGroup)>,
}

impl BodyLimits {
    /// Returns the limits of a request. The time is that within which its body must arrive.
    pub(crate) fn new(time_max: Duration, memory: RequestMemory, group: ClientGroup) -> BodyLimits {
        BodyLimits { time_max, bytes_max: REQUEST_BYTES_MAX, memory: Some((memory, group)) }
    }

    /// Returns the limits of a request for health. It uses none of the memory of other requests,
    /// because its caller may be unknown.
    pub(crate) fn of_health(time_max: Duration) -> BodyLimits {
        BodyLimits { time_max, bytes_max: HEALTH_BYTES_MAX, memory: None }
    }

    fn begin(&self) -> ArrivingBytes {
        let share = self.memory.as_ref().map(|(memory, group)| memory.share(group.clone()));
        ArrivingBytes { bytes: BytesMut::new(), share }
    }
}

/// The bytes of a request that have arrived.
struct ArrivingBytes {
    bytes: BytesMut,
    share: Option<RequestMemoryShare>,
}

impl ArrivingBytes {
    /// Appends the next frame of a body. Returns false at the end.
    async fn append_frame<B>(&mut self, body: &mut B, bytes_max: usize) -> Result<bool, Status>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await else { return Ok(false) };
        let frame = frame.map_err(|e| refusal::malformed("request", format!("its body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { return Ok(true) };
        if self.bytes.len() + data.len() > bytes_max {
            return Err(refusal::malformed("request", format!("it is larger than {bytes_max} bytes")));
        }
        if let Some(share) = &mut self.share {
            share.grow(data.len())?;
        }
        self.bytes.extend_from_slice(&data);
        Ok(true)
    }
}

/// The request that opens a stream, and the messages that its client sends after it.
#[derive(Debug)]
pub(crate) struct OpeningRequest<B> {
    pub(crate) request: SyncRequest,
    /// Only present for a client of version 0.4, which leaves its request open.
    pub(crate) acknowledgements: Option<AcknowledgementReader<B>>,
}

/// Reads the request of a `Sync`: a single message, or the first one of several.
///
/// # Errors
/// Returns an error if the request is malformed, exceeds the limits, or is followed by something
/// unexpected.
pub(crate) async fn opening<B>(body: B, limits: &BodyLimits) -> Result<OpeningRequest<B>, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    in_time(limits.time_max, read_opening(body, limits)).await
}

async fn read_opening<B>(mut body: B, limits: &BodyLimits) -> Result<OpeningRequest<B>, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (mut arriving, mut is_known) = (limits.begin(), false);
    loop {
        if !is_known && let Some(first) = first_message(&arriving.bytes)? {
            is_known = true;
            let (start, length) = (sync_start(first), first.len());
            if let Some(request) = start {
                let rest = &arriving.bytes[PREFIX_LENGTH + length..];
                let acknowledgements = Some(AcknowledgementReader::new(body, rest)?);
                return Ok(OpeningRequest { request, acknowledgements });
            }
        }
        if !arriving.append_frame(&mut body, PREFIX_LENGTH + OPENING_BYTES_MAX).await? {
            break;
        }
    }
    let request = SyncRequest::decode(only_message(arriving.bytes.freeze())?);
    let request = request.map_err(|error| refusal::malformed("SyncRequest", error))?;
    Ok(OpeningRequest { request, acknowledgements: None })
}

/// Returns the first message of the frames, once all of it has arrived.
fn first_message(bytes: &[u8]) -> Result<Option<&[u8]>, Status> {
    let Some(length) = frame::length(bytes) else { return Ok(None) };
    check_flags(bytes.first().copied().unwrap_or_default())?;
    Ok(bytes.get(PREFIX_LENGTH..PREFIX_LENGTH + length.min(OPENING_BYTES_MAX)).filter(|first| first.len() == length))
}

/// Returns the request inside a first message of version 0.4: `{1: SyncStart}`. A SyncRequest has
/// its schema in field 1 and must have a table in field 2, so no message is both.
fn sync_start(message: &[u8]) -> Option<SyncRequest> {
    #[derive(Clone, PartialEq, Message)]
    struct FirstMessage {
        #[prost(bytes = "bytes", optional, tag = "1")]
        start: Option<Bytes>,
        #[prost(bytes = "bytes", optional, tag = "2")]
        table: Option<Bytes>,
    }
    match FirstMessage::decode(message).ok()? {
        // A SyncStart has the fields of a SyncRequest, with the same numbers.
        FirstMessage { start: Some(start), table: None } => SyncRequest::decode(start).ok(),
        _ => None,
    }
}

/// Reads the single message of a body of frames.
///
/// # Errors
/// Returns an error if the body is not exactly one uncompressed message within the limits.
pub(crate) async fn one_message<B>(body: B, limits: &BodyLimits) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    only_message(in_time(limits.time_max, all(body, PREFIX_LENGTH + limits.bytes_max, limits)).await?)
}

fn only_message(mut bytes: Bytes) -> Result<Bytes, Status> {
    let Some(length) = frame::length(&bytes) else {
        return Err(refusal::malformed("request", "it is shorter than the prefix of a message"));
    };
    check_flags(bytes[0])?;
    let found = bytes.len() - PREFIX_LENGTH;
    if found != length {
        let problem =
            format!("its prefix announces {length} bytes and {found} came; there must be exactly one message");
        return Err(refusal::malformed("request", problem));
    }
    bytes.advance(PREFIX_LENGTH);
    Ok(bytes)
}

/// Checks the first byte of a message's prefix.
///
/// # Errors
/// Returns an error if the message is compressed, or the flags are unknown.
pub(crate) fn check_flags(flags: u8) -> Result<(), Status> {
    match flags {
        0 => Ok(()),
        1 => Err(Status::unimplemented("compressed requests are not supported; send it uncompressed")),
        flags => Err(refusal::malformed("request", format!("its prefix has the unknown flags {flags:#04x}"))),
    }
}

/// Reads a whole body.
///
/// # Errors
/// Returns an error if the body breaks off, or exceeds the limits.
pub(crate) async fn read_whole_body<B>(body: B, limits: &BodyLimits) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    in_time(limits.time_max, all(body, limits.bytes_max, limits)).await
}

/// Reads a whole body of frames, unchanged.
///
/// # Errors
/// Returns an error if the body breaks off, or exceeds the limits.
pub(crate) async fn read_framed_body<B>(body: B, limits: &BodyLimits) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    in_time(limits.time_max, all(body, PREFIX_LENGTH + limits.bytes_max, limits)).await
}

/// Limits a request of several messages. It ends when its time is over, and fails when it is too
/// large.
pub(crate) fn limit_stream(
    body: tonic::body::Body,
) -> impl Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + Send {
    let frames = BodyStream::new(Limited::new(body, REQUEST_BYTES_MAX));
    StreamBody::new(frames.take_until(sleep(STREAM_TIME_MAX)))
}

async fn in_time<T>(time_max: Duration, read: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let seconds = time_max.as_secs_f64();
    let late = || refusal::malformed("request", format!("it took longer than {seconds} s"));
    timeout(time_max, read).await.map_err(|_| late())?
}

async fn all<B>(mut body: B, bytes_max: usize, limits: &BodyLimits) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut arriving = limits.begin();
    while arriving.append_frame(&mut body, bytes_max).await? {}
    Ok(arriving.bytes.freeze())
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn a_request_for_health_is_small() {
        let limits = BodyLimits::of_health(Duration::from_secs(10));
        let body = |length| Full::new(Bytes::from(vec![0; length]));
        for length in [HEALTH_BYTES_MAX, PREFIX_LENGTH + HEALTH_BYTES_MAX] {
            assert_eq!(read_framed_body(body(length), &limits).await.unwrap().len(), length);
        }
        let refused = read_framed_body(body(PREFIX_LENGTH + HEALTH_BYTES_MAX + 1), &limits).await.unwrap_err();
        assert!(refused.message().contains("larger than 4101 bytes"), "{refused}");
        let refused = read_whole_body(body(HEALTH_BYTES_MAX + 1), &limits).await.unwrap_err();
        assert!(refused.message().contains("larger than 4096 bytes"), "{refused}");
    }
}
