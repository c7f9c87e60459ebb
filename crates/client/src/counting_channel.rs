//! Counts the parts of a response as they arrive, so that a large message on a slow connection is
//! not mistaken for silence.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, FutureExt};
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::body::Body;
use tower::Service;

/// A channel that counts the parts of its responses.
#[derive(Clone, Debug)]
pub(crate) struct CountingChannel<S> {
    inner: S,
    pieces: Arc<AtomicU64>,
}

impl<S> CountingChannel<S> {
    pub(crate) fn new(inner: S, pieces: Arc<AtomicU64>) -> CountingChannel<S> {
        CountingChannel { inner, pieces }
    }
}

impl<S> Service<Request<Body>> for CountingChannel<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let pieces = self.pieces.clone();
        let response = self.inner.call(request);
        async move { Ok(response.await?.map(|inner| Body::new(CountingBody { inner, pieces }))) }.boxed()
    }
}

struct CountingBody {
    inner: Body,
    pieces: Arc<AtomicU64>,
}

impl http_body::Body for CountingBody {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, tonic::Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(context);
        if frame.is_ready() {
            self.pieces.fetch_add(1, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
