//! s3s-fs, which checks every signature.
//!
//! It honours If-None-Match and If-Match on PUT, and both on the completion of an upload, but looks first and writes afterwards,
//! where S3 does both in one. So its requests are let in one by one, or two writers who exclude each other could both succeed. Whoever
//! has a key may do everything, so what a lack of permission looks like is tested by its words alone.

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

use super::{BUCKET, Bucket, keys};

pub(crate) struct Server {
    url: String,
    desk: Arc<Desk>,
    serving: JoinHandle<()>,
    pub(crate) folder: tempfile::TempDir,
}

/// One request that fails, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub(crate) how: How,
    /// Which request it is, from 0.
    pub(crate) request: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// The connection is cut before anything is done.
    Before,
    /// It is cut when everything is done.
    After,
    /// It is cut in the middle: of what is written if that is something, or else of the answer.
    Halfway,
    /// Nothing fails, but it takes long.
    Slow,
    /// The connection is cut, and the request is done all the same, but later: when it has been made again already.
    Late,
}

impl How {
    pub(crate) const ALL: [How; 5] = [How::Before, How::After, How::Halfway, How::Slow, How::Late];
}

/// Looks at what is there after a request; an error says what is wrong with it.
pub(crate) type Inspect = Box<dyn Fn(PathBuf) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What answers requests.
struct Desk {
    service: S3Service,
    bucket: PathBuf,
    turn: Mutex<()>,
    trouble: Option<Trouble>,
    requests: AtomicUsize,
    /// The heads of all requests, in their order.
    heads: Mutex<Vec<Parts>>,
    inspect: Inspect,
    /// What was found wrong first.
    found: Mutex<Option<String>>,
}

impl Server {
    pub(crate) async fn start() -> Server {
        Server::with(None, Box::new(|_| Box::pin(async { Ok(()) }))).await
    }

    /// One of whose requests one may fail. After each, somebody inspects the bucket's folder, where each object is a file of its name.
    pub(crate) async fn with(trouble: Option<Trouble>, inspect: Inspect) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let bucket = folder.path().join(BUCKET);
        std::fs::create_dir(&bucket).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(keys().access_key_id(), keys().secret_access_key()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let desk = Arc::new(Desk {
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
        Server { url, desk, serving, folder }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) async fn bucket(&self) -> Bucket {
        Bucket::new(self.url.clone(), keys()).await
    }

    /// Takes the heads of the requests since it was asked last.
    pub(crate) async fn heads(&self) -> Vec<Parts> {
        std::mem::take(&mut *self.desk.heads.lock().await)
    }

    /// Whether there were so many requests that one has failed. Panics if anything was found wrong after one.
    pub(crate) async fn has_failed(&self) -> bool {
        assert_eq!(*self.desk.found.lock().await, None, "{:?}", self.desk.trouble);
        let requests = self.desk.requests.load(Ordering::Relaxed);
        self.desk.trouble.is_some_and(|trouble| trouble.request < requests)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    // Owned by this task, so that aborting it ends them too.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let desk = desk.clone();
        let answer = hyper::service::service_fn(move |request| desk.clone().answer(request));
        connections.spawn(async move {
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

impl Desk {
    async fn answer(self: Arc<Desk>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        self.heads.lock().await.push(parts.clone());
        let how = self.trouble.filter(|trouble| trouble.request == number).map(|trouble| trouble.how);
        match how {
            None => self.handle(Request::from_parts(parts, Body::from(body))).await,
            Some(How::Before) => Err(Cut),
            Some(How::After) => self.handle(Request::from_parts(parts, Body::from(body))).await.and(Err(Cut)),
            Some(How::Halfway) if body.is_empty() => {
                let (parts, body) = self.handle(Request::from_parts(parts, Body::empty())).await?.into_parts();
                let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
                Ok(Response::from_parts(parts, half(&body)))
            }
            Some(How::Halfway) => self.handle(Request::from_parts(parts, half(&body))).await.and(Err(Cut)),
            Some(How::Slow) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                self.handle(Request::from_parts(parts, Body::from(body))).await
            }
            Some(How::Late) => {
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(600)).await;
                    drop(self.handle(Request::from_parts(parts, Body::from(body))).await);
                });
                Err(Cut)
            }
        }
    }

    async fn handle(&self, request: Request<Body>) -> Result<Response<Body>, Cut> {
        let _mine = self.turn.lock().await;
        let answer = self.service.call(request).await;
        if let Err(wrong) = (self.inspect)(self.bucket.clone()).await {
            self.found.lock().await.get_or_insert(wrong);
        }
        answer.map_err(|_: HttpError| Cut)
    }
}

/// The first half, and then an error.
fn half(body: &Bytes) -> Body {
    let parts = [Ok(Frame::data(body.slice(..body.len() / 2))), Err(Cut)];
    Body::http_body_unsync(StreamBody::new(futures::stream::iter(parts)))
}

/// The connection is closed.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a fault was made")
    }
}

impl std::error::Error for Cut {}
