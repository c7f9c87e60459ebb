//! The errors of clients that cannot be served, and the effect of hostile bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::support::{LONG, SimServer, SimpleReplica, next, request, serve, serve_with};
use bytes::Bytes;
use http_body::Frame;
use laredo_proto::frame;
use laredo_proto::replication::{
    FetchSnapshotRequest, GetReplicationStatusRequest, ListSnapshotsRequest, RowEncoding, SyncRequest,
};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::{SimDatabase, is_full};
use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tonic::Code;
use tonic::transport::Channel;
use tower::Service;

/// A request body with these bytes.
struct RawBody(Option<Bytes>);

impl http_body::Body for RawBody {
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
        .body(tonic::body::Body::new(RawBody(Some(bytes.into()))))
        .unwrap();
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    channel.call(request).await.unwrap()
}

/// Returns the immediate status of the answer, or `None` if the stream begins.
async fn answer(channel: &mut Channel, bytes: Vec<u8>) -> Option<tonic::Status> {
    let response = send(channel, "application/grpc", bytes).await;
    assert_eq!(response.status(), 200);
    tonic::Status::from_header_map(response.headers())
}

async fn server(database: &SimDatabase) -> SimServer {
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

/// Returns valid requests, to be damaged.
fn requests(database: &SimDatabase) -> Vec<SyncRequest> {
    let position = database.end().to_string();
    let filters = vec![crate::support::prefix("a"), crate::support::prefix("")];
    vec![
        request(RowEncoding::Struct),
        request(RowEncoding::PostgresBinary),
        SyncRequest { last_known_source_position: position, ..request(RowEncoding::PostgresBinary) },
        SyncRequest { last_known_sequence: 1007, instance_id: "a-0".to_owned(), ..request(RowEncoding::Struct) },
        SyncRequest { filters, last_snapshot_id: "x".to_owned(), ..request(RowEncoding::Struct) },
    ]
}

/// Returns a request in its frame, damaged at random.
fn damaged(requests: &[SyncRequest], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = requests.choose(rng).unwrap().encode_to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 if at < bytes.len() => bytes[at] = rng.random(),
            3 => {
                let other = requests.choose(rng).unwrap().encode_to_vec();
                bytes.truncate(at);
                bytes.extend_from_slice(&other[rng.random_range(0..other.len())..]);
            }
            4 => drop(bytes.splice(at..at, std::iter::repeat_n(rng.random::<u8>(), rng.random_range(1..2_000_000)))),
            _ => {
                drop(bytes.splice(at..at, (0..rng.random_range(1..20)).map(|_| rng.random::<u8>()).collect::<Vec<_>>()))
            }
        }
    }
    let length = match rng.random_range(0..10) {
        0 => rng.random(),
        _ => u32::try_from(bytes.len()).unwrap(),
    };
    let flag = u8::from(rng.random_ratio(1, 20));
    [&[flag], &length.to_be_bytes()[..], &bytes].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_requests_are_answered_and_never_harm() {
    let database = SimDatabase::new(1);
    let server = server(&database).await;
    server.ready().await;
    let mut channel = server.channel().await;
    let requests = requests(&database);
    let until = Instant::now() + Duration::from_secs(if is_full() { 60 } else { 3 });
    let (mut refused, mut served) = (0, 0);
    let mut seeds = 0..;
    while Instant::now() < until || refused < 50 || served < 5 {
        let seed = seeds.next().unwrap();
        assert!(
            seed < 100_000 || Instant::now() < until,
            "{served} served, {refused} refused: damage is too little or too much"
        );
        let bytes = damaged(&requests, &mut StdRng::seed_from_u64(seed));
        // HTTP/2 closes a connection after a thousand stream resets.
        if seed % 200 == 199 {
            channel = server.channel().await;
        }
        // The seed alone reproduces a failure.
        let answered = tokio::time::timeout(LONG, answer(&mut channel.clone(), bytes)).await;
        match answered.unwrap_or_else(|_| panic!("seed {seed} is never answered")) {
            None => served += 1,
            Some(status) => {
                let is_reported = matches!(
                    status.code(),
                    Code::InvalidArgument | Code::NotFound | Code::Unimplemented | Code::FailedPrecondition
                );
                assert!(is_reported, "seed {seed}: {status:?}");
                refused += 1;
            }
        }
    }
    println!("{refused} damaged requests were refused, {served} served");
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut server.sync(request(RowEncoding::Struct)).await, database.end()).await;
    assert_eq!(replica.rows, database.rows_at(0, database.end()));
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
    let server = serve_with(&database, "a", 1, |options| options.tables[0].limits.clients_max = 2).await;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = server.sync(request(RowEncoding::Struct)).await;
        SimpleReplica::default().read_to(&mut stream, database.end()).await;
        streams.push(stream);
    }
    let mut client = server.client().await;
    let status = client.sync(request(RowEncoding::Struct)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("max_clients"), "{status:?}");
    streams.pop();
    let free = || async { client.clone().sync(request(RowEncoding::Struct)).await.is_ok() };
    laredo_testkit::eventually(LONG, free).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_table_says_why_and_its_neighbor_is_served() {
    let database = SimDatabase::new(2);
    database.commit_unseen(vec![(0, Insert(1, "a".to_owned())), (1, Insert(1, "b".to_owned()))]);
    database.make_visible(database.end());
    let change = |options: &mut laredo_server::ServerOptions| {
        options.tables.iter_mut().for_each(|t| t.limits.heartbeat_interval = std::time::Duration::from_millis(20));
    };
    let server = serve_with(&database, "a", 2, change).await;
    server.ready().await;
    let mut stream = server.sync(request(RowEncoding::Struct)).await;
    SimpleReplica::default().read_to(&mut stream, database.end()).await;
    // The journal exists slightly before the status shows the phase. The same applies to the
    // failure.
    let ready = async || server.get("/health/ready").await.0 == 200;
    laredo_testkit::eventually(LONG, ready).await.unwrap();
    let error = "its key was dropped; add one and restart".to_owned();
    let table = laredo_engine::source::TableIndex(0);
    database.inject_event(laredo_engine::source::SourceEvent::Broken { table, error }).await;
    // The following client receives the error instead of endless heartbeats.
    let status = loop {
        if let Err(status) = next(&mut stream).await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("its key was dropped"), "{status:?}");
    let told = async || {
        let (code, body) = server.get("/health/ready").await;
        let report: serde_json::Value = serde_json::from_str(&body).unwrap();
        let states = ["failed", "live"].map(serde_json::Value::from);
        // The server serves the tables that it can.
        code == 200 && report["ready"] == true && [0, 1].map(|i| report["tables"][i]["state"].clone()) == states
    };
    laredo_testkit::eventually(LONG, told).await.unwrap();
    for (table, code) in [("t0", 503), ("t1", 200)] {
        assert_eq!(server.get(&format!("/health/ready?table=public.{table}")).await.0, code, "{table}");
    }
    let neighbor = SyncRequest { table: "t1".to_owned(), ..request(RowEncoding::Struct) };
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut server.sync(neighbor).await, database.end()).await;
    assert_eq!(replica.rows, database.rows_at(1, database.end()));
}
