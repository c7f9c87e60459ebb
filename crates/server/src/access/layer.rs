//! The places of access in the path of a request: the gate before its body is read, and the layer
//! around the services.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::audit::AuditLog;
use super::caller::Caller;
use super::jwt::JwtKeys;
use super::rules::{AccessRules, CallRefusal};
use crate::order_rule::{check_order, check_page};
use crate::peer::PeerInfo;
use crate::refusal;
use crate::response_task::ResponseTask;
use crate::rpc_rules::{self, RpcEffect};

/// The gate of a server. Every request passes it before its body is read.
#[derive(Clone)]
pub(crate) struct AccessGate {
    /// `None` without access rules, so that everyone may do everything.
    rules: Option<AccessRules>,
    audit: AuditLog,
}

impl AccessGate {
    pub(crate) fn new(rules: Option<AccessRules>) -> AccessGate {
        AccessGate { rules, audit: AuditLog::default() }
    }

    /// Waits for the key of the caller's JWT, within a bound, if the key is not known yet.
    pub(crate) async fn await_key(&self, headers: &HeaderMap) {
        if let Some(rules) = &self.rules {
            rules.await_key(headers).await;
        }
    }

    /// Returns the keys of all issuers of JWTs, each once.
    pub(crate) fn jwt_keys(&self) -> Vec<JwtKeys> {
        self.rules.as_ref().map(AccessRules::jwt_keys).unwrap_or_default()
    }

    /// Checks the caller of an rpc, and attaches it to the request. Without access rules, orders
    /// are only for callers on this machine.
    ///
    /// # Errors
    /// UNAUTHENTICATED, UNAVAILABLE, PERMISSION_DENIED or UNIMPLEMENTED, with the reason.
    pub(crate) fn check(&self, request: &mut Request<Body>) -> Result<(), Status> {
        let (path, headers, extensions) = (request.uri().path(), request.headers(), request.extensions());
        let peer = extensions.get::<PeerInfo>();
        let effect = rpc_rules::find_effect(path);
        let admitted = match (&self.rules, effect) {
            (None, None) => Err(CallRefusal::new(None, peer, refusal::no_method(path))),
            (None, Some(RpcEffect::Orders)) => match check_order(extensions, headers) {
                Ok(()) => Ok(Caller::unlimited(peer)),
                Err(refused) => Err(CallRefusal::new(None, peer, refusal::order(refused))),
            },
            (None, Some(RpcEffect::Reads | RpcEffect::Observes)) => Ok(Caller::unlimited(peer)),
            (Some(rules), _) => rules.admit(path, headers, peer),
        };
        // A web page gives no orders, not even for a known caller.
        let admitted = admitted.and_then(|caller| match effect {
            Some(RpcEffect::Orders) => match check_page(headers) {
                Ok(()) => Ok(caller),
                Err(refused) => Err(CallRefusal::of(&caller, refusal::order(refused))),
            },
            Some(RpcEffect::Reads | RpcEffect::Observes) | None => Ok(caller),
        });
        match admitted {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Ok(())
            }
            Err(refused) => Err(self.log_refusal(path, refused)),
        }
    }

    /// Logs a refusal, and returns its status.
    fn log_refusal(&self, path: &str, refused: CallRefusal) -> Status {
        let CallRefusal { identity, peer, status } = refused;
        // A caller that asks for what does not exist is refused nothing.
        if status.code() != Code::Unimplemented {
            self.audit.refusal(identity.as_deref(), peer, (path, ""), &status);
        }
        status
    }

    /// Checks the caller of an HTTP endpoint. Metrics and health have rules of their own.
    ///
    /// # Errors
    /// UNAUTHENTICATED, UNAVAILABLE or PERMISSION_DENIED, with the reason.
    pub(crate) fn check_http(
        &self,
        is_metrics: bool,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&PeerInfo>,
    ) -> Result<Caller, Status> {
        let Some(rules) = &self.rules else { return Ok(Caller::unlimited(peer)) };
        rules.admit_http(is_metrics, headers, peer).map_err(|refused| self.log_refusal(path, refused))
    }

    /// Returns the layer for the services behind the gate. A client whose stream ends by the rules
    /// has `end_wait` to take its last messages. Then the stream is reset.
    pub(crate) fn layer(&self, end_wait: Duration) -> AuditLayer {
        AuditLayer { audit: self.audit.clone(), end_wait }
    }

    /// Judges open streams again if the keys of an issuer were replaced.
    pub(crate) fn publish_new_keys(&self) {
        if let Some(rules) = &self.rules {
            rules.publish_new_keys();
        }
    }
}

/// A layer that logs orders and the refusals of services, and ends a stream when its caller may not
/// have it any more.
#[derive(Clone)]
pub(crate) struct AuditLayer {
    audit: AuditLog,
    end_wait: Duration,
}

impl<S> Layer<S> for AuditLayer {
    type Service = AuditedService<S>;

    fn layer(&self, inner: S) -> AuditedService<S> {
        AuditedService { audit: self.audit.clone(), end_wait: self.end_wait, inner }
    }
}

/// A service inside an [`AuditLayer`].
#[derive(Clone)]
pub(crate) struct AuditedService<S> {
    audit: AuditLog,
    end_wait: Duration,
    inner: S,
}

type AuditedFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for AuditedService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = AuditedFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> AuditedFuture {
        let (path, caller) = (request.uri().path().to_owned(), request.extensions().get::<Caller>().cloned());
        let task = request.extensions().get::<ResponseTask>().cloned().unwrap_or_default();
        let (answering, audit, end_wait) = (self.inner.call(request), self.audit.clone(), self.end_wait);
        Box::pin(async move {
            let Ok(response) = answering.await;
            let Some(caller) = caller else { return Ok(response) };
            let result = Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok(""));
            match (rpc_rules::find_effect(&path), result.code()) {
                (Some(RpcEffect::Orders), _) => audit.order(&caller, &path, &result),
                (_, Code::PermissionDenied | Code::Unauthenticated) => {
                    let request = (path.as_str(), caller.description());
                    audit.refusal(Some(caller.identity_name()), caller.peer(), (request.0, &request.1), &result);
                }
                _ => {}
            }
            Ok(match caller.is_ruled() {
                true => response.map(|body| Body::new(JudgedBody::new(body, caller, path, audit, (task, end_wait)))),
                false => response,
            })
        })
    }
}

/// The answer to a caller. It ends with a status when the caller may not have it any more.
///
/// Each message is sent only if the caller may have it by the newest rules. The body of a client
/// that reads nothing is not polled, so another task waits for the same end.
struct JudgedBody {
    /// `None` after the end.
    inner: Option<Body>,
    ended: Pin<Box<dyn Future<Output = Status> + Send>>,
    /// The task that ends the answer to a client that reads nothing. It ends with this body.
    watch: JoinSet<()>,
}

impl JudgedBody {
    /// Returns the answer, which `task` sends. The task is aborted if the client has not taken the
    /// end within `end_wait`.
    fn new(
        inner: Body,
        caller: Caller,
        path: String,
        audit: AuditLog,
        (task, end_wait): (ResponseTask, Duration),
    ) -> JudgedBody {
        let end = move || {
            let (caller, path, audit) = (caller.clone(), path.clone(), audit.clone());
            async move {
                let status = caller.clone().ended(&path).await;
                (status, audit, caller, path)
            }
        };
        let (ended, unread) = (end(), end());
        let ended = async move {
            let (status, audit, caller, path) = ended.await;
            audit.end(&caller, &path, &status);
            status
        };
        let mut watch = JoinSet::new();
        watch.spawn(async move {
            let (status, audit, caller, path) = unread.await;
            tokio::time::sleep(end_wait).await;
            audit.end(&caller, &path, &status);
            task.abort();
        });
        JudgedBody { inner: Some(inner), ended: Box::pin(ended), watch }
    }
}

impl http_body::Body for JudgedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        if let Poll::Ready(status) = this.ended.as_mut().poll(cx) {
            this.inner = None;
            this.watch.abort_all();
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        Pin::new(inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}
