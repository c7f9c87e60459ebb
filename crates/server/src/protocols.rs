//! gRPC, gRPC-Web and Connect on the same ports. A request in another protocol is translated to
//! gRPC before it reaches a service, and the answer is translated back. So the services only
//! implement gRPC, and each of them is available in all three protocols.
//!
//! Here is also where each request is admitted or refused, from its headers alone, and where the
//! size and time of every body are limited. No service is reached in another way.
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
use http_body_util::Full;
use tokio::time::timeout_at;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

mod connect;
#[cfg(test)]
mod fuzz_tests;
mod json;
mod methods;
mod plain_refusals;
mod protocol_choice;
mod request_translation;
mod response_translation;
mod stream_end;
mod stream_translation;

pub(crate) use methods::MethodTable;

use methods::RpcMethod;
use protocol_choice::{ProtocolChoice, RequestHead, TranslatedProtocol, choose};

use crate::access::AccessGate;
use crate::hosts::{self, AllowedHosts};
use crate::{receive, refusal};

/// A layer that adds all protocols to services that implement gRPC.
#[derive(Clone)]
pub(crate) struct ProtocolLayer {
    methods: Arc<MethodTable>,
    hosts: AllowedHosts,
    gate: AccessGate,
    /// The time within which a request must arrive.
    request_time_max: Duration,
}

impl ProtocolLayer {
    pub(crate) fn new(
        methods: Arc<MethodTable>,
        hosts: AllowedHosts,
        gate: AccessGate,
        request_time_max: Duration,
    ) -> ProtocolLayer {
        ProtocolLayer { methods, hosts, gate, request_time_max }
    }
}

impl<S> Layer<S> for ProtocolLayer {
    type Service = ProtocolTranslator<S>;

    fn layer(&self, inner: S) -> ProtocolTranslator<S> {
        ProtocolTranslator { protocols: self.clone(), inner }
    }
}

/// A service behind all protocols.
#[derive(Clone)]
pub(crate) struct ProtocolTranslator<S> {
    protocols: ProtocolLayer,
    inner: S,
}

type TranslatorFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for ProtocolTranslator<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = TranslatorFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> TranslatorFuture {
        if let Err(refused) = self.protocols.hosts.check(&request) {
            return Box::pin(std::future::ready(Ok(hosts::misdirected(&refused))));
        }
        // The instance that was polled ready is called, and a clone is kept for later.
        let another = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, another);
        let method = self.protocols.methods.find(request.uri().path());
        let asked = RequestHead {
            method: request.method(),
            version: request.version(),
            content_type: request.headers().get(CONTENT_TYPE).map(http::HeaderValue::as_bytes),
            shape: method.as_ref().map(|method| method.shape),
        };
        let choice = choose(asked);
        let gate = self.protocols.gate.clone();
        let request_time_max = self.protocols.request_time_max;
        match choice {
            ProtocolChoice::Grpc => Box::pin(async move {
                let request = async {
                    admit(&gate, &mut request).await?;
                    bounded(method, request, request_time_max).await
                };
                match request.await {
                    Ok(request) => inner.call(request).await,
                    Err(status) => Ok(status.into_http()),
                }
            }),
            ProtocolChoice::Other(protocol) => Box::pin(async move {
                let admitted = admit(&gate, &mut request).await;
                Ok(speak(protocol, method, inner, (request, admitted), request_time_max).await)
            }),
            ProtocolChoice::Refuse(refused) => Box::pin(std::future::ready(Ok(plain_refusals::response(refused)))),
        }
    }
}

/// Checks the caller of a request, before anything of its body is read.
async fn admit(gate: &AccessGate, request: &mut Request<Body>) -> Result<(), Status> {
    gate.await_key(request.headers()).await;
    gate.check(request)
}

/// Reads the body of a request in gRPC, within the limits. A request that may stay open is passed
/// on with its body, which is bounded as it is read.
async fn bounded(
    method: Option<RpcMethod>,
    request: Request<Body>,
    time_max: Duration,
) -> Result<Request<Body>, Status> {
    let (head, body) = request.into_parts();
    let body = match method {
        Some(method) if method.stays_open => body,
        Some(_) => Body::new(Full::new(receive::read_framed_body(body, time_max).await?)),
        // A request of several messages: reflection.
        None => Body::new(receive::limit_stream(body)),
    };
    Ok(Request::from_parts(head, body))
}

/// Calls the service in gRPC, if the request was admitted, and answers in the client's protocol.
async fn speak<S>(
    protocol: TranslatedProtocol,
    method: Option<RpcMethod>,
    mut inner: S,
    (request, admitted): (Request<Body>, Result<(), Status>),
    request_time_max: Duration,
) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let timeout = request_translation::deadline(protocol, request.headers());
    let asked = async {
        admitted?;
        let method = method.as_ref().ok_or_else(|| refusal::no_method(request.uri().path()))?;
        let request = request_translation::to_grpc(protocol, method, request, request_time_max).await?;
        let Ok(response) = inner.call(request).await;
        Ok(response)
    };
    let (deadline, answered) = match timeout {
        Err(status) => (None, Err(status)),
        Ok(None) => (None, asked.await),
        Ok(Some(at)) => (Some(at), timeout_at(at, asked).await.unwrap_or_else(|_| Err(request_translation::late()))),
    };
    let response = answered.unwrap_or_else(Status::into_http);
    response_translation::from_grpc(protocol, method.as_ref(), response, deadline).await
}
