//! An S3 server on s3s-fs, which checks every signature.
//!
//! It honors If-None-Match and If-Match on PUT, and both on the completion of an upload. But it
//! checks first and writes afterwards, while S3 does both in one step. So requests run one at a
//! time. Otherwise two writers that exclude each other could both succeed. A valid key permits
//! everything, so errors of missing permissions are tested only by their text.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use super::{BUCKET, TestBucket, keys};

pub(crate) struct TestS3Server {
    url: String,
    desk: Arc<S3ServerState>,
    serving: JoinHandle<()>,
    pub(crate) folder: tempfile::TempDir,
}

/// A failure of one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestFault {
    pub(crate) how: RequestFaultMode,
    /// The number of the request, from 0.
    pub(crate) request: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestFaultMode {
    /// The connection is cut before the request has any effect.
    Before,
    /// The connection is cut after the request is complete.
    After,
    /// The connection is cut in the middle of the request's body, or of the answer if the request
    /// has none.
    Halfway,
    /// The request succeeds after a delay.
    Slow,
    /// The connection is cut. The request takes effect later, when the client has already repeated
    /// it.
    Late,
}

impl RequestFaultMode {
    pub(crate) const ALL: [RequestFaultMode; 5] = [
        RequestFaultMode::Before,
        RequestFaultMode::After,
        RequestFaultMode::Halfway,
        RequestFaultMode::Slow,
        RequestFaultMode::Late,
    ];
}

/// A check of the bucket's folder after a request. The error describes a fault.
pub(crate) type BucketInspection = Box<dyn Fn(PathBuf) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The state that answers requests.
struct S3ServerState {
    service: S3Service,
    bucket: PathBuf,
    turn: Mutex<()>,
    trouble: Option<RequestFault>,
    requests: AtomicUsize,
    /// The heads of all requests, in order.
    heads: Mutex<Vec<Parts>>,
    inspect: BucketInspection,
    /// The first fault that was found.
    found: Mutex<Option<String>>,
}

impl TestS3Server {
    pub(crate) async fn start() -> TestS3Server {
        TestS3Server::with(None, Box::new(|_| Box::pin(async { Ok(()) }))).await
    }

    /// Starts a server on which one request may fail. After each request, `inspect` checks the
    /// bucket's folder, which has a file for each object.
    pub(crate) async fn with(trouble: Option<RequestFault>, inspect: BucketInspection) -> TestS3Server {
        let folder = tempfile::tempdir().unwrap();
        let bucket = folder.path().join(BUCKET);
        std::fs::create_dir(&bucket).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(keys().access_key_id(), keys().secret_access_key()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let desk = Arc::new(S3ServerState {
            service: builder.build(),
            bucket,
            turn: Mutex::default(),
            trouble,
            requests: AtomicUsize::new(0),
            heads: Mutex::default(),
            inspect,
            found: Mutex::default(),
        });
        let serving = tokio::spawn(serve(listener, desk.clone()));
        TestS3Server { url, desk, serving, folder }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn bucket(&self) -> TestBucket {
        TestBucket::new(self.url.clone(), keys()).await
    }

    /// Returns the heads of the requests since the last call.
    pub(crate) async fn heads(&self) -> Vec<Parts> {
        std::mem::take(&mut *self.desk.heads.lock().await)
    }

    /// Returns true if there were enough requests that one has failed. Panics if a check has found
    /// a fault.
    pub(crate) async fn has_failed(&self) -> bool {
        assert_eq!(*self.desk.found.lock().await, None, "{:?}", self.desk.trouble);
        let requests = self.desk.requests.load(Ordering::Relaxed);
        self.desk.trouble.is_some_and(|trouble| trouble.request < requests)
    }
}

impl Drop for TestS3Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, desk: Arc<S3ServerState>) {
    // The connections belong to this task, so aborting it ends them too.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let desk = desk.clone();
        let answer = hyper::service::service_fn(move |request| desk.clone().answer(request));
        connections.spawn(async move {
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

impl S3ServerState {
    async fn answer(self: Arc<S3ServerState>, request: Request<Incoming>) -> Result<Response<Body>, ConnectionCut> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| ConnectionCut)?.to_bytes();
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.heads.lock().await.push(parts.clone());
        let how = self.trouble.filter(|trouble| trouble.request == number).map(|trouble| trouble.how);
        match how {
            None => self.handle(Request::from_parts(parts, Body::from(body))).await,
            Some(RequestFaultMode::Before) => Err(ConnectionCut),
            Some(RequestFaultMode::After) => {
                self.handle(Request::from_parts(parts, Body::from(body))).await.and(Err(ConnectionCut))
            }
            Some(RequestFaultMode::Halfway) if body.is_empty() => {
                let (parts, body) = self.handle(Request::from_parts(parts, Body::empty())).await?.into_parts();
                let body = body.collect().await.map_err(|_| ConnectionCut)?.to_bytes();
                Ok(Response::from_parts(parts, half(&body)))
            }
            Some(RequestFaultMode::Halfway) => {
                self.handle(Request::from_parts(parts, half(&body))).await.and(Err(ConnectionCut))
            }
            Some(RequestFaultMode::Slow) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.handle(Request::from_parts(parts, Body::from(body))).await
            }
            Some(RequestFaultMode::Late) => {
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(600)).await;
                    drop(self.handle(Request::from_parts(parts, Body::from(body))).await);
                });
                Err(ConnectionCut)
            }
        }
    }

    async fn handle(&self, request: Request<Body>) -> Result<Response<Body>, ConnectionCut> {
        let _mine = self.turn.lock().await;
        let answer = self.service.call(request).await;
        if let Err(wrong) = (self.inspect)(self.bucket.clone()).await {
            self.found.lock().await.get_or_insert(wrong);
        }
        answer.map_err(|_: HttpError| ConnectionCut)
    }
}

/// Returns a body with the first half of the bytes, followed by an error.
fn half(body: &Bytes) -> Body {
    let parts = [Ok(Frame::data(body.slice(..body.len() / 2))), Err(ConnectionCut)];
    Body::http_body_unsync(StreamBody::new(futures::stream::iter(parts)))
}

/// An error that closes the connection.
#[derive(Debug)]
struct ConnectionCut;

impl fmt::Display for ConnectionCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a fault was made")
    }
}

impl std::error::Error for ConnectionCut {}
