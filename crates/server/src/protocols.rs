//! gRPC, gRPC-Web and Connect on the same ports. A request in another protocol is translated to
//! gRPC before it reaches a service, and the answer is translated back. So the services only
//! implement gRPC, and each of them is available in all three protocols.
//!
//! The protocols share the framing of streams. A service's messages pass unchanged, and only the
//! end of a stream has a different form. JSON is made from the descriptions of the messages, if the
//! client requests it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{Request, Response};
use tokio::time::timeout_at;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

mod answer;
mod choose;
mod connect;
mod end;
mod json;
mod methods;
mod question;
mod refused;
mod stream;

pub(crate) use methods::Methods;

use choose::{Asked, Choice, Protocol, choose};
use methods::Method;

/// A layer that adds all protocols to services that implement gRPC.
#[derive(Clone)]
pub(crate) struct Protocols {
    methods: Arc<Methods>,
    /// The time within which a request must arrive.
    request_time_max: Duration,
}

impl Protocols {
    pub(crate) fn new(methods: Arc<Methods>, request_time_max: Duration) -> Protocols {
        Protocols { methods, request_time_max }
    }
}

impl<S> Layer<S> for Protocols {
    type Service = Translator<S>;

    fn layer(&self, inner: S) -> Translator<S> {
        Translator { protocols: self.clone(), inner }
    }
}

/// A service behind all protocols.
#[derive(Clone)]
pub(crate) struct Translator<S> {
    protocols: Protocols,
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Translator<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        // The instance that was polled ready is called, and a clone is kept for later.
        let another = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, another);
        let method = self.protocols.methods.find(request.uri().path());
        let asked = Asked {
            method: request.method(),
            version: request.version(),
            content_type: request.headers().get(CONTENT_TYPE).map(http::HeaderValue::as_bytes),
            shape: method.as_ref().map(|method| method.shape),
        };
        match choose(asked) {
            Choice::Grpc => Box::pin(inner.call(request)),
            Choice::Other(protocol) => {
                let request_time_max = self.protocols.request_time_max;
                Box::pin(async move { Ok(speak(protocol, method, inner, request, request_time_max).await) })
            }
            Choice::Refuse(refused) => Box::pin(std::future::ready(Ok(refused.into_response()))),
        }
    }
}

/// Calls the service in gRPC, and answers in the client's protocol.
async fn speak<S>(
    protocol: Protocol,
    method: Option<Method>,
    mut inner: S,
    request: Request<Body>,
    request_time_max: Duration,
) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let timeout = question::deadline(protocol, request.headers());
    let asked = async {
        let method = method.as_ref().ok_or_else(|| question::unknown_method(request.uri().path()))?;
        let request = question::to_grpc(protocol, method, request, request_time_max).await?;
        let Ok(response) = inner.call(request).await;
        Ok(response)
    };
    let (deadline, answered) = match timeout {
        Err(status) => (None, Err(status)),
        Ok(None) => (None, asked.await),
        Ok(Some(at)) => (Some(at), timeout_at(at, asked).await.unwrap_or_else(|_| Err(question::late()))),
    };
    let response = answered.unwrap_or_else(Status::into_http);
    answer::from_grpc(protocol, method.as_ref(), response, deadline).await
}
