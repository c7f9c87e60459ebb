//! The memory of requests that arrive: a caller that leaves them unfinished delays no other one.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Frame;
use http_body_util::StreamBody;
use laredo_proto::replication::RowEncoding;
use laredo_server::{AccessGrants, AccessOptions, AccessRules};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::SimDatabase;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

use crate::support::access::{asked_by, grant, identities};
use crate::support::http::STATUS;
use crate::support::{SimServer, clock, next, request, serve_with, within};

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// Serves the identities `a` and `b`, whose tokens are their names. Health is open to anyone.
async fn serve() -> SimServer {
    let rules = AccessOptions {
        identities: identities(&["a", "b"]),
        grants: AccessGrants { readers: vec![grant(&["a", "b"], "public.*")], ..AccessGrants::default() },
        health_is_open: true,
        ..AccessOptions::default()
    };
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "row".to_owned())]);
    let server = serve_with(&database, "a", 1, |options| {
        options.access = Some(AccessRules::new(rules, clock()));
        // No request ends by its deadline.
        options.waits.request = Duration::from_secs(3600);
    })
    .await;
    server.ready().await;
    server
}

/// Sends so many bytes of a request that does not end, and returns the answer.
async fn send_unfinished(server: &SimServer, path: &str, token: Option<&str>, length: usize) -> Response<Body> {
    let begun = tokio_stream::once(Ok::<_, Status>(Frame::data(Bytes::from(vec![0; length]))));
    let body = Body::new(StreamBody::new(begun.chain(tokio_stream::pending())));
    let mut request = http::Request::post(path).header("content-type", "application/grpc");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(body).unwrap();
    let mut channel = server.channel().await;
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    channel.call(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_health_of_an_unknown_caller_is_small() {
    let server = serve().await;
    let answer = within(send_unfinished(&server, CHECK, None, 5000), "a refusal").await;
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("larger than"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_requests_of_an_identity_refuse_no_other_one() {
    let server = std::sync::Arc::new(serve().await);
    let mut unfinished = JoinSet::new();
    for _ in 0..17 {
        let server = server.clone();
        unfinished.spawn(async move { send_unfinished(&server, STATUS, Some("a"), 1 << 20).await });
    }
    let answer = within(unfinished.join_next(), "a refusal").await.unwrap().unwrap();
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert!(status.code() == Code::ResourceExhausted && status.message().contains("this caller"), "{status}");
    let ask = asked_by("b", request(RowEncoding::Struct));
    let mut stream = within(server.client().await.sync(ask), "a stream").await.unwrap().into_inner();
    next(&mut stream).await.unwrap();
}
