//! The end of a stream by the rules of access, if its client reads nothing.

use std::time::Duration;

use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use laredo_proto::replication::RowEncoding;
use laredo_server::{AccessGrants, AccessOptions, AccessRules};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::{SimDatabase, eventually};
use prost::Message as _;
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::access::{asked_by, grant, identities};
use crate::support::http::{SYNC, frame};
use crate::support::{LONG, clock, request, serve_with, within};

/// Returns rules under which these identities read everything. Their tokens are their names.
fn readers(names: &[&str]) -> AccessOptions {
    let grants = AccessGrants { readers: vec![grant(names, "public.*")], ..AccessGrants::default() };
    AccessOptions { identities: identities(names), grants, ..AccessOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_caller_that_reads_nothing_leaves_its_seat() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "row".to_owned())]);
    let rules = AccessRules::new(readers(&["a", "b"]), clock());
    let server = serve_with(&database, "a", 1, |options| {
        options.access = Some(rules.clone());
        options.tables[0].limits.clients_max = 1;
        options.waits.stop = Duration::from_millis(100);
    })
    .await;
    server.ready().await;
    // A client that lets nothing of an answer be sent.
    let stream = TcpStream::connect(server.grpc).await.unwrap();
    let builder = http2::Builder::new(TokioExecutor::new()).initial_stream_window_size(0).clone();
    let (mut unread, connection) = within(builder.handshake(TokioIo::new(stream)), "a connection").await.unwrap();
    tokio::spawn(connection);
    let body = Full::new(bytes::Bytes::from(frame(&request(RowEncoding::Struct).encode_to_vec())));
    let ask = http::Request::post(format!("http://{}{SYNC}", server.grpc))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", "Bearer a")
        .body(body)
        .unwrap();
    let _answer = within(unread.send_request(ask), "an answer").await.unwrap();

    let client = server.client().await;
    let begin = async || client.clone().sync(asked_by("b", request(RowEncoding::Struct))).await.map(drop);
    assert_eq!(begin().await.unwrap_err().code(), Code::ResourceExhausted, "the seat is taken");
    rules.replace(readers(&["b"]));
    eventually(LONG, async || begin().await.is_ok()).await.unwrap();
}
