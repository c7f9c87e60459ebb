//! Reading a request: one message, of bounded size, in bounded time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use laredo_proto::frame::{self, PREFIX_LENGTH};
use tokio::time::timeout;
use tonic::Status;

use crate::refusal;

/// Bytes of a request.
pub(super) const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The one message of a body.
///
/// # Errors
/// When it is not exactly one uncompressed message within the limits.
pub(super) async fn one_message<B>(body: B, time_max: Duration) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let received = timeout(time_max, all(body)).await;
    let seconds = time_max.as_secs_f64();
    let mut bytes =
        received.map_err(|_| refusal::malformed("request", format!("it took longer than {seconds} s")))??;
    let Some(length) = frame::length(&bytes) else {
        return Err(refusal::malformed("request", "it is shorter than the prefix of a message"));
    };
    if bytes[0] != 0 {
        return Err(Status::unimplemented("compressed requests are not supported; send it uncompressed"));
    }
    let found = bytes.len() - PREFIX_LENGTH;
    if found != length {
        let problem =
            format!("its prefix announces {length} bytes and {found} came; there must be exactly one message");
        return Err(refusal::malformed("request", problem));
    }
    bytes.advance(PREFIX_LENGTH);
    Ok(bytes.freeze())
}

async fn all<B>(mut body: B) -> Result<BytesMut, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| refusal::malformed("request", format!("its body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > PREFIX_LENGTH + REQUEST_BYTES_MAX {
            let problem = format!("it is larger than {REQUEST_BYTES_MAX} bytes");
            return Err(refusal::malformed("request", problem));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
