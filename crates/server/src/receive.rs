//! Reading a request: of bounded size, in bounded time.

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
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The one message of a body of frames.
///
/// # Errors
/// When it is not exactly one uncompressed message within the limits.
pub(crate) async fn one_message<B>(body: B, time_max: Duration) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut bytes = within(body, time_max, PREFIX_LENGTH + REQUEST_BYTES_MAX).await?;
    let Some(length) = frame::length(&bytes) else {
        return Err(refusal::malformed("request", "it is shorter than the prefix of a message"));
    };
    match bytes[0] {
        0 => {}
        1 => return Err(Status::unimplemented("compressed requests are not supported; send it uncompressed")),
        flags => return Err(refusal::malformed("request", format!("its prefix has the unknown flags {flags:#04x}"))),
    }
    let found = bytes.len() - PREFIX_LENGTH;
    if found != length {
        let problem =
            format!("its prefix announces {length} bytes and {found} came; there must be exactly one message");
        return Err(refusal::malformed("request", problem));
    }
    bytes.advance(PREFIX_LENGTH);
    Ok(bytes)
}

/// All of a body.
///
/// # Errors
/// When it breaks off, or is not within the limits.
pub(crate) async fn whole<B>(body: B, time_max: Duration) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    within(body, time_max, REQUEST_BYTES_MAX).await
}

async fn within<B>(body: B, time_max: Duration, bytes_max: usize) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let seconds = time_max.as_secs_f64();
    let received = timeout(time_max, all(body, bytes_max)).await;
    received.map_err(|_| refusal::malformed("request", format!("it took longer than {seconds} s")))?
}

async fn all<B>(mut body: B, bytes_max: usize) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut bytes = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| refusal::malformed("request", format!("its body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(refusal::malformed("request", format!("it is larger than {REQUEST_BYTES_MAX} bytes")));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}
