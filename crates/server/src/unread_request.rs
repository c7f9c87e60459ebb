//! The part of a request that its service leaves unread, as a refusal does.
//!
//! HTTP/2 resets a stream whose response ends before its request has arrived. Several clients then
//! report the reset in place of the response that they have already received. So the response ends
//! only after the rest of the request, within limits.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

/// The maximum number of bytes, and the time, for which a response waits for its request.
const UNREAD_BYTES_MAX: usize = 1024 * 1024;
const UNREAD_TIME_MAX: Duration = Duration::from_secs(5);

/// The body of a request that its service has dropped before the end.
#[derive(Clone, Default)]
pub(crate) struct UnreadRequest(Arc<Mutex<Option<Incoming>>>);

impl UnreadRequest {
    /// Returns a request's body for the service.
    pub(crate) fn watch(&self, body: Incoming) -> Body {
        Body::new(WatchedRequest { body: Some(body), unread: self.clone() })
    }

    /// Lets a response end after its request.
    pub(crate) fn delay_end(self, response: Body) -> Body {
        // A response without a body is complete with its headers, as gRPC requires for a refusal.
        match response.is_end_stream() {
            true => response,
            false => Body::new(DelayedEnd { response, unread: self, rest: None }),
        }
    }
}

/// The body of a request. It is left to the response if it is dropped before its end.
struct WatchedRequest {
    /// `None` only while this is dropped.
    body: Option<Incoming>,
    unread: UnreadRequest,
}

impl Drop for WatchedRequest {
    fn drop(&mut self) {
        *self.unread.0.lock() = self.body.take().filter(|body| !body.is_end_stream());
    }
}

impl HttpBody for WatchedRequest {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

/// A response that ends after the rest of its request was read.
struct DelayedEnd {
    response: Body,
    unread: UnreadRequest,
    rest: Option<RestOfRequest>,
}

/// The rest of a request, while it is read.
struct RestOfRequest {
    body: Incoming,
    /// The number of bytes that have arrived since the response was complete.
    bytes: usize,
    time_over: Pin<Box<Sleep>>,
}

impl RestOfRequest {
    /// Waits until the request has arrived, broke off or exceeds the limits.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.bytes < UNREAD_BYTES_MAX && self.time_over.as_mut().poll(cx).is_pending() {
            let Some(Ok(frame)) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { break };
            self.bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        Poll::Ready(())
    }
}

impl HttpBody for DelayedEnd {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.rest.is_none() {
            let frame = ready!(Pin::new(&mut this.response).poll_frame(cx));
            let unread = if frame.is_none() { this.unread.0.lock().take() } else { None };
            let Some(body) = unread else { return Poll::Ready(frame) };
            this.rest = Some(RestOfRequest { body, bytes: 0, time_over: Box::pin(sleep(UNREAD_TIME_MAX)) });
        }
        let ended = this.rest.as_mut().map_or(Poll::Ready(()), |rest| rest.poll_end(cx));
        ended.map(|()| None)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.unread.0.lock().is_none() && self.response.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.response.size_hint()
    }
}
