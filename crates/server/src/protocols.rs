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

use crate::access::{AccessGate, admitted};
use crate::hosts::{self, AllowedHosts};
use crate::receive::{BodyLimits, RequestMemory};
use crate::{receive, refusal, rpc_rules};

/// A layer that adds all protocols to services that implement gRPC.
#[derive(Clone)]
pub(crate) struct ProtocolLayer {
    methods: Arc<MethodTable>,
    hosts: AllowedHosts,
    gate: AccessGate,
    /// The time within which a request must arrive.
    request_time_max: Duration,
    memory: RequestMemory,
}

impl ProtocolLayer {
    pub(crate) fn new(
        methods: Arc<MethodTable>,
        hosts: AllowedHosts,
        gate: AccessGate,
        request_time_max: Duration,
    ) -> ProtocolLayer {
        ProtocolLayer { methods, hosts, gate, request_time_max, memory: RequestMemory::default() }
    }

    /// Checks the caller of a request, before anything of its body is read. Returns the limits for
    /// the body, which the request also has as an extension.
    async fn admit(&self, request: &mut Request<Body>) -> Result<BodyLimits, Status> {
        self.gate.await_key(request.headers()).await;
        self.gate.check(request)?;
        let limits = match rpc_rules::is_health(request.uri().path()) {
            true => BodyLimits::of_health(self.request_time_max),
            false => {
                let group = admitted(request.extensions())?.group();
                BodyLimits::new(self.request_time_max, self.memory.clone(), group)
            }
        };
        request.extensions_mut().insert(limits.clone());
        Ok(limits)
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
        let protocols = self.protocols.clone();
        match choice {
            ProtocolChoice::Grpc => Box::pin(async move {
                let request = async {
                    let limits = protocols.admit(&mut request).await?;
                    bounded(method, request, &limits).await
                };
                match request.await {
                    Ok(request) => inner.call(request).await,
                    Err(status) => Ok(status.into_http()),
                }
            }),
            ProtocolChoice::Other(protocol) => Box::pin(async move {
                let admitted = protocols.admit(&mut request).await;
                Ok(speak(protocol, method, inner, (request, admitted)).await)
            }),
            ProtocolChoice::Refuse(refused) => Box::pin(std::future::ready(Ok(plain_refusals::response(refused)))),
        }
    }
}

/// Reads the body of a request in gRPC, within the limits. A request that may stay open is passed
/// on with its body, which is bounded as it is read.
async fn bounded(
    method: Option<RpcMethod>,
    request: Request<Body>,
    limits: &BodyLimits,
) -> Result<Request<Body>, Status> {
    let (head, body) = request.into_parts();
    let body = match method {
        Some(method) if method.stays_open => body,
        Some(_) => Body::new(Full::new(receive::read_framed_body(body, limits).await?)),
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
    (request, admitted): (Request<Body>, Result<BodyLimits, Status>),
) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let timeout = request_translation::deadline(protocol, request.headers());
    let asked = async {
        let limits = admitted?;
        let method = method.as_ref().ok_or_else(|| refusal::no_method(request.uri().path()))?;
        let request = request_translation::to_grpc(protocol, method, request, &limits).await?;
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
