//! Tests of connections whose clients read nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use hyper::body::Body as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tower::service_fn as tower_service;

use super::*;
use crate::accept::DescriptorBudget;

/// The size of the parts that the service sends. The window of a client is not a multiple of it, so
/// that a part is sent only half.
const PART_BYTES: usize = (1 << 20) + 1000;
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of a part, counted while they exist.
struct CountedPart(Vec<u8>, Arc<AtomicUsize>);

impl CountedPart {
    fn new(live: &Arc<AtomicUsize>) -> CountedPart {
        live.fetch_add(1, Ordering::SeqCst);
        CountedPart(vec![0; PART_BYTES], live.clone())
    }
}

impl AsRef<[u8]> for CountedPart {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for CountedPart {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A body without an end. It counts as one part itself.
struct EndlessBody(CountedPart);

impl http_body::Body for EndlessBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(CountedPart::new(&self.0.1))))))
    }
}

/// A server whose path `/endless` never ends. Other paths are answered without a body.
struct EndlessServer {
    port: u16,
    /// The number of parts and bodies in memory.
    live: Arc<AtomicUsize>,
    tasks: Arc<Mutex<Vec<ResponseTask>>>,
}

async fn endless_server() -> EndlessServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (live, tasks) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<ResponseTask>>>::default());
    let (counter, begun) = (live.clone(), tasks.clone());
    let service = tower_service(move |request: Request<Body>| {
        let (counter, begun) = (counter.clone(), begun.clone());
        async move {
            if request.uri().path() != "/endless" {
                return Ok(Response::new(Body::empty()));
            }
            begun.lock().push(request.extensions().get::<ResponseTask>().cloned().unwrap());
            Ok(Response::new(Body::new(EndlessBody(CountedPart::new(&counter)))))
        }
    });
    let acceptor = ConnectionAcceptor::new(listener.into(), DescriptorBudget::Spare);
    tokio::spawn(serve_connections(acceptor, service, CancellationToken::new()));
    EndlessServer { port, live, tasks }
}

impl EndlessServer {
    fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    async fn wait_until(&self, holds: impl Fn(usize) -> bool) {
        let begun = Instant::now();
        while !holds(self.live()) {
            assert!(begun.elapsed() < PATIENCE, "{} parts are in memory", self.live());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://127.0.0.1{path}")).header("host", "127.0.0.1").body(Empty::new()).unwrap()
}

#[tokio::test]
async fn a_response_that_is_ended_leaves_nothing_with_its_connection() {
    let server = endless_server().await;
    let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let unread = client.send_request(get("/endless")).await.unwrap();
    // The body, the part that HTTP/2 has accepted, and the part that waits for it.
    server.wait_until(|live| live >= 3).await;
    let mut other = client.send_request(get("/endless")).await.unwrap().into_body();
    server.wait_until(|live| live >= 6).await;
    let task = server.tasks.lock()[0].clone();
    task.abort();
    server.wait_until(|live| live <= 3).await;
    let mut received = 0;
    let mut body = unread.into_body();
    let ended = loop {
        match body.frame().await {
            Some(Ok(frame)) => received += frame.into_data().map_or(0, |data| data.len()),
            ended => break ended,
        }
    };
    let reset = ended.expect("the end is a reset").unwrap_err();
    assert!(format!("{reset:?}").contains("CANCEL"), "{reset:?}");
    assert!(received < 20 * PART_BYTES, "{received}");
    assert!(other.frame().await.unwrap().is_ok(), "the connection's other streams continue");
    assert!(client.send_request(get("/")).await.unwrap().body().is_end_stream());
}

#[tokio::test]
async fn a_response_over_http1_that_is_ended_ends_its_connection() {
    let server = endless_server().await;
    let stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let unread = client.send_request(get("/endless")).await.unwrap();
    server.wait_until(|live| live >= 2).await;
    let task = server.tasks.lock()[0].clone();
    task.abort();
    server.wait_until(|live| live == 0).await;
    drop(unread);
}

#[test]
fn a_time_limit_has_a_unit_and_at_most_eight_digits() {
    let of =
        |text: &'static str| time_limit(&HeaderMap::from_iter([(TIMEOUT.parse().unwrap(), text.parse().unwrap())]));
    assert_eq!(of("2H"), Some(Duration::from_secs(7200)));
    assert_eq!(of("3M"), Some(Duration::from_secs(180)));
    assert_eq!(of("99999999S"), Some(Duration::from_secs(99_999_999)));
    assert_eq!([of("5m"), of("5u"), of("5n")].map(|time| time.unwrap().as_nanos()), [5_000_000, 5000, 5]);
    for text in ["", "S", "5", "+5S", "-5S", "999999999S", "5s", "5 S"] {
        assert_eq!(of(text), None, "{text:?}");
    }
    assert_eq!(time_limit(&HeaderMap::new()), None);
}

#[tokio::test]
async fn a_call_that_is_not_answered_in_time_is_answered_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = tower_service(|_: Request<Body>| std::future::pending());
    let acceptor = ConnectionAcceptor::new(listener.into(), DescriptorBudget::Spare);
    tokio::spawn(serve_connections(acceptor, service, CancellationToken::new()));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = get("/");
    request.headers_mut().insert(TIMEOUT, "1m".parse().unwrap());
    let answer = client.send_request(request).await.unwrap();
    assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), tonic::Code::DeadlineExceeded);
}

/// A server that refuses every request unread: with words, or in gRPC by headers alone.
async fn refusing_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = tower_service(|request: Request<Body>| async move {
        Ok(match request.uri().path() {
            "/grpc" => Status::permission_denied("no").into_http(),
            _ => Response::new(Body::new(http_body_util::Full::from("no"))),
        })
    });
    let acceptor = ConnectionAcceptor::new(listener.into(), DescriptorBudget::Spare);
    tokio::spawn(serve_connections(acceptor, service, CancellationToken::new()));
    port
}

/// A refusal that a client has received, and the rest of its request.
struct ReceivedRefusal {
    answer: Response<Incoming>,
    rest: tokio::sync::mpsc::Sender<Bytes>,
    _client: http2::SendRequest<Body>,
}

async fn refused(path: &str) -> ReceivedRefusal {
    let stream = TcpStream::connect(("127.0.0.1", refusing_server().await)).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (rest, parts) = tokio::sync::mpsc::channel(1);
    let parts = tokio_stream::wrappers::ReceiverStream::new(parts).map(|part| Ok::<_, Status>(Frame::data(part)));
    let body = Body::new(http_body_util::StreamBody::new(parts));
    let request = Request::post(format!("http://127.0.0.1{path}")).body(body).unwrap();
    let answer = client.send_request(request).await.unwrap();
    ReceivedRefusal { answer, rest, _client: client }
}

#[tokio::test]
async fn a_refusal_arrives_before_its_request_and_ends_after_it() {
    let ReceivedRefusal { answer, rest, _client } = refused("/").await;
    let mut body = answer.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "no");
    timeout(Duration::from_millis(300), body.frame()).await.unwrap_err();
    rest.send(Bytes::from("half")).await.unwrap();
    timeout(Duration::from_millis(300), body.frame()).await.unwrap_err();
    rest.send(Bytes::from("whole")).await.unwrap();
    drop(rest);
    assert!(body.collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn a_refusal_in_grpc_is_complete_with_its_headers() {
    let ReceivedRefusal { answer, rest, _client } = refused("/grpc").await;
    assert!(answer.body().is_end_stream());
    assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), tonic::Code::PermissionDenied);
    drop(rest);
}

#[tokio::test]
async fn a_request_without_an_end_delays_no_refusal_for_long() {
    // The time for which a response waits, and the number of bytes.
    let ReceivedRefusal { answer, rest, _client } = refused("/").await;
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "no");
    drop(rest);
    let ReceivedRefusal { answer, rest, _client } = refused("/").await;
    let sending = tokio::spawn(async move { while rest.send(Bytes::from(vec![0; 100_000])).await.is_ok() {} });
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "no");
    sending.await.unwrap();
}
