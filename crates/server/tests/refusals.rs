//! What a client hears when it cannot be served, and what hostile bytes come to.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends")]

mod support;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use laredo_proto::frame;
use laredo_proto::replication::{
    FetchSnapshotRequest, GetReplicationStatusRequest, ListSnapshotsRequest, RowEncoding, SyncRequest,
};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::SimDatabase;
use proptest::prelude::*;
use support::{Replica, Running, request, serve, serve_with};
use tonic::Code;
use tonic::transport::Channel;
use tower::Service;

/// A request body of these bytes.
struct Raw(Option<Bytes>);

impl http_body::Body for Raw {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

async fn send(channel: &mut Channel, content_type: &str, bytes: Vec<u8>) -> http::Response<tonic::body::Body> {
    let request = http::Request::post("/laredo.replication.v1.LaredoReplicationService/Sync")
        .header("content-type", content_type)
        .header("te", "trailers")
        .body(tonic::body::Body::new(Raw(Some(bytes.into()))))
        .unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    channel.call(request).await.unwrap()
}

/// What bytes are answered with at once; `None` where the stream begins.
async fn answer(channel: &mut Channel, bytes: Vec<u8>) -> Option<tonic::Status> {
    let response = send(channel, "application/grpc", bytes).await;
    assert_eq!(response.status(), 200);
    tonic::Status::from_header_map(response.headers())
}

async fn server(database: &SimDatabase) -> Running {
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    serve(database, "a").await
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_one_message_are_refused() {
    let database = SimDatabase::new(1);
    let server = server(&database).await;
    let channel = &mut server.channel().await;
    let good = frame::to_bytes(&request(RowEncoding::Struct)).to_vec();
    assert!(answer(channel, good.clone()).await.is_none());
    let cases = [
        (vec![], Code::InvalidArgument, "shorter"),
        (vec![0, 0, 0], Code::InvalidArgument, "shorter"),
        (good[..good.len() - 1].to_vec(), Code::InvalidArgument, "exactly one"),
        ([good.clone(), good.clone()].concat(), Code::InvalidArgument, "exactly one"),
        ([&[1], &good[1..]].concat(), Code::Unimplemented, "compressed"),
        (vec![0, 0xff, 0xff, 0xff, 0xff, 1], Code::InvalidArgument, "exactly one"),
        (vec![0, 0, 0, 0, 2, 0xff, 0xff], Code::InvalidArgument, "SyncRequest"),
        (vec![0; 1024 * 1024 + 6], Code::InvalidArgument, "larger"),
    ];
    for (bytes, code, words) in cases {
        let status = answer(channel, bytes).await.unwrap();
        assert!(status.code() == code && status.message().contains(words), "{status:?}");
    }
    let response = send(channel, "application/json", good).await;
    assert_eq!(response.status(), 415);
}

#[test]
fn random_bytes_never_harm() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let database = SimDatabase::new(1);
    let server = runtime.block_on(server(&database));
    let channel = runtime.block_on(server.channel());
    proptest!(ProptestConfig::with_cases(200), |(bytes: Vec<u8>, framed: bool)| {
        let bytes = match framed {
            true => [&[0], &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat(),
            false => bytes,
        };
        let status = runtime.block_on(answer(&mut channel.clone(), bytes));
        prop_assert!(status.is_some_and(|status| matches!(
            status.code(),
            Code::InvalidArgument | Code::NotFound | Code::Unimplemented
        )));
    });
    let mut replica = Replica::default();
    runtime.block_on(async {
        let mut stream = server.sync(request(RowEncoding::Struct)).await;
        replica.read_to(&mut stream, database.end()).await;
    });
    assert_eq!(replica.rows.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_has_its_code_and_its_name() {
    let database = SimDatabase::new(1);
    let server = server(&database).await;
    server.ready().await;
    let mut client = server.client().await;
    let with = |change: fn(&mut SyncRequest)| {
        let mut request = request(RowEncoding::Struct);
        change(&mut request);
        request
    };
    let cases = [
        (with(|r| r.schema.clear()), Code::InvalidArgument, "`schema`"),
        (with(|r| r.table.clear()), Code::InvalidArgument, "`table`"),
        (with(|r| r.table = "nope".to_owned()), Code::NotFound, "public.nope"),
        (with(|r| r.last_known_source_position = "x".to_owned()), Code::InvalidArgument, "last_known_source_position"),
        (with(|r| r.filters = vec![Default::default()]), Code::InvalidArgument, "filters[0].field"),
    ];
    for (request, code, words) in cases {
        let status = client.sync(request).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(words), "{status:?}");
    }
    let (schema, table) = ("public".to_owned(), "t0".to_owned());
    let list = ListSnapshotsRequest { schema: schema.clone(), table: table.clone(), limit: 0 };
    let status = client.list_snapshots(list).await.unwrap_err();
    assert!(status.code() == Code::FailedPrecondition && status.message().contains("no snapshot store configured"));
    let fetch = FetchSnapshotRequest { snapshot_id: "x".to_owned() };
    assert_eq!(client.fetch_snapshot(fetch).await.unwrap_err().code(), Code::FailedPrecondition);
    let status = GetReplicationStatusRequest { schema, table: "nope".to_owned() };
    assert_eq!(client.get_replication_status(status).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_has_only_so_many_clients() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let server = serve_with(&database, "a", 1, |options| options.tables[0].clients_max = Some(2)).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = server.sync(request(RowEncoding::Struct)).await;
        Replica::default().read_to(&mut stream, database.end()).await;
        streams.push(stream);
    }
    let mut client = server.client().await;
    let status = client.sync(request(RowEncoding::Struct)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("max_clients"), "{status:?}");
    streams.pop();
    let free = || async { client.clone().sync(request(RowEncoding::Struct)).await.is_ok() };
    laredo_testkit::eventually(std::time::Duration::from_secs(10), free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_table_says_why_and_its_neighbour_is_served() {
    let database = SimDatabase::new(2);
    database.commit_unseen(vec![(0, Insert(1, "a".to_owned())), (1, Insert(1, "b".to_owned()))]);
    database.show(database.end());
    let change = |options: &mut laredo_server::ServerOptions| {
        options.tables.iter_mut().for_each(|t| t.heartbeat_interval = std::time::Duration::from_millis(20));
    };
    let server = serve_with(&database, "a", 2, change).await;
    server.ready().await;
    let mut stream = server.sync(request(RowEncoding::Struct)).await;
    Replica::default().read_to(&mut stream, database.end()).await;
    assert_eq!(server.get("/health/ready").await.0, 200);
    let error = "its key was dropped; add one and restart".to_owned();
    let table = laredo_engine::source::TableIndex(0);
    database.say(laredo_engine::source::SourceEvent::Broken { table, error }).await;
    // Who follows it is told, rather than being left with heartbeats.
    let status = loop {
        if let Err(status) = stream.message().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("its key was dropped"), "{status:?}");
    let (code, body) = server.get("/health/ready").await;
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &report["ready"], &report["tables"][0]["state"]), (503, &false.into(), &"failed".into()));
    assert_eq!(report["tables"][1]["state"], "live");
    let neighbour = SyncRequest { table: "t1".to_owned(), ..request(RowEncoding::Struct) };
    let mut replica = Replica::default();
    replica.read_to(&mut server.sync(neighbour).await, database.end()).await;
    assert_eq!(replica.rows, database.rows_at(1, database.end()));
}
