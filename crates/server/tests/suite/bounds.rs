//! Requests that ask for more than they may: each is refused, with the limit in the message.

use std::time::Duration;

use crate::support::http::{SYNC, frame, http1};
use crate::support::{LONG, SimServer, clock, prefix, request, serve_with, start_engine, within};
use laredo_engine::{Engine, SnapshotFormat, SnapshotOptions};
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::{CreateSnapshotRequest, WatchStatusRequest};
use laredo_proto::replication::{RowEncoding, SyncRequest};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::{SimDatabase, eventually, sim_table};
use tonic::transport::Channel;
use tonic::{Code, Status};

async fn oam(server: &SimServer) -> LaredoOamServiceClient<Channel> {
    LaredoOamServiceClient::new(server.channel().await)
}

fn repeated(name: &str, times: usize) -> Vec<String> {
    vec![name.to_owned(); times]
}

fn is_refused<T>(answer: Result<T, Status>, code: Code, words: &str) {
    let status = answer.map(drop).unwrap_err();
    assert!(status.code() == code && status.message().contains(words), "{status:?}: {words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_names_each_table_once() {
    let database = SimDatabase::new(2);
    let server = serve_with(&database, "a", 2, |_| {}).await;
    server.ready().await;
    let mut client = oam(&server).await;
    for (tables, pipeline_ids, field) in [
        (repeated("public.t0", 3), Vec::new(), "`tables`"),
        (Vec::new(), repeated("sim/public.t0", 1000), "`pipeline_ids`"),
    ] {
        let request = WatchStatusRequest { tables, pipeline_ids };
        let answer = client.watch_status(request).await;
        is_refused(answer, Code::InvalidArgument, field);
    }
    // The same table by both of its names, twice each, is reported once.
    let request = WatchStatusRequest {
        tables: repeated("public.t0", 2),
        pipeline_ids: vec!["sim/public.t0".to_owned(), "sim/public.t1".to_owned()],
    };
    let mut changes = client.watch_status(request).await.unwrap().into_inner();
    let mut named = Vec::new();
    while named.len() < 3 {
        let change = within(changes.message(), "a state").await.unwrap().unwrap();
        named.push(format!("{:?}", change.event));
    }
    let times = |table: &str| named.iter().filter(|event| event.contains(table)).count();
    assert_eq!((times("public.t0"), times("public.t1")), (1, 1), "{named:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_status_changes_are_limited_and_one_that_ends_makes_room() {
    let server = serve_with(&SimDatabase::new(1), "a", 1, |_| {}).await;
    server.ready().await;
    let mut client = oam(&server).await;
    let mut watches = Vec::new();
    for _ in 0..32 {
        watches.push(client.watch_status(WatchStatusRequest::default()).await.unwrap());
    }
    let one_more = client.watch_status(WatchStatusRequest::default()).await;
    is_refused(one_more, Code::ResourceExhausted, "maximum of 32 streams");
    watches.pop();
    let has_room = async || oam(&server).await.watch_status(WatchStatusRequest::default()).await.is_ok();
    eventually(LONG, has_room).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_asked_for_once_for_each_table() {
    let (database, folder) = (SimDatabase::new(2), tempfile::tempdir().unwrap());
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let tables = ["t0", "t1"].map(|name| {
        let (folder, interval) = (folder.path().join(name), Duration::from_secs(3600));
        let format = SnapshotFormat::Native;
        let snapshots = Some(SnapshotOptions { folder, format, interval, keep_count: 10, age_max: None });
        laredo_engine::TableOptions { snapshots, ..sim_table(name) }
    });
    let server = start_engine(Engine::prepare(database.clone(), tables.into(), clock()).await.unwrap(), |_| {}).await;
    server.ready().await;
    let folders: Vec<_> = server.engine.tables().iter().map(|table| table.snapshots().unwrap()).collect();
    eventually(LONG, async || folders.iter().all(|folder| folder.newest().is_some())).await.unwrap();
    let mut client = oam(&server).await;
    let ask = |times| CreateSnapshotRequest { tables: repeated("public.t0", times), user_meta: None };
    let too_many = client.create_snapshot(ask(3)).await;
    is_refused(too_many, Code::InvalidArgument, "`tables` is malformed: it has 3 names, and this server has 2 tables");
    let id = folders[0].newest().unwrap().id;
    for times in [1, 2, 2, 1] {
        let answer = client.create_snapshot(ask(times)).await.unwrap().into_inner();
        assert_eq!(answer.snapshot_id, id, "nothing has changed, so the newest one is the answer");
    }
    let end = database.commit(0, vec![Insert(2, "b".to_owned())]);
    let mut head = server.engine.tables()[0].journal().unwrap().watch_head();
    within(head.wait_for(|head| head.position >= end), "the head").await.unwrap();
    let answer = client.create_snapshot(ask(2)).await.unwrap().into_inner();
    assert_ne!(answer.snapshot_id, id);
    assert!(!answer.snapshot_id.contains(','), "one for the table: {}", answer.snapshot_id);
    assert_eq!(folders[0].status().writes, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_beyond_a_limit_is_refused_in_every_protocol() {
    let database = SimDatabase::new(1);
    let server = serve_with(&database, "a", 1, |_| {}).await;
    server.ready().await;
    let filtered =
        |text: &str, count| SyncRequest { filters: vec![prefix(text); count], ..request(RowEncoding::PostgresBinary) };
    let mut client = server.client().await;
    for (asked, words) in [
        (filtered("", 33), "33 predicates; the limit is 32"),
        (filtered(&"x".repeat(3000), 30), "bytes; the limit is 65536"),
        (filtered("", 50_000), "it is larger than"),
        (filtered(&"x".repeat(200_000), 1), "it is larger than"),
    ] {
        is_refused(client.sync(asked).await, Code::InvalidArgument, words);
    }
    let predicates = vec![serde_json::json!({ "field": "body", "prefix": "" }); 20_000];
    let body = serde_json::json!({ "schema": "public", "table": "t0", "filters": predicates }).to_string();
    let headers = [("Content-Type", "application/connect+json"), ("Connect-Protocol-Version", "1")];
    let mut reply = http1(server.grpc, "POST", SYNC, &headers, &frame(body.as_bytes())).await;
    let said = String::from_utf8(reply.bytes().await).unwrap();
    assert!(said.contains("invalid_argument") && said.contains("it is larger than"), "{said}");
    assert!(client.sync(filtered("", 32)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_log_lines_are_counted_by_reason() {
    let server = serve_with(&SimDatabase::new(1), "a", 1, |_| {}).await;
    let dropped = async |reason| server.metric(&format!("laredo_log_lines_dropped_total{{reason=\"{reason}\"}}")).await;
    assert_eq!((dropped("not_written").await, dropped("client_limit").await), (7.0, 0.0));
    // Each stream causes a line when it begins.
    for _ in 0..400 {
        let mut stream = server.sync(request(RowEncoding::Struct)).await;
        within(stream.message(), "a message").await.unwrap();
    }
    eventually(LONG, async || dropped("client_limit").await >= 10.0).await.unwrap();
}
