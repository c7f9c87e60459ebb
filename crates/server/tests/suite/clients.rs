//! Clients whose rows are compared with the server's for an operator, in every protocol.

use std::time::Duration;

use crate::support::http::{HttpReply, frame, http1, http2};
use crate::support::{SimServer, next, prefix, request, serve_with, within};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
use laredo_proto::oam::verify_table_response::Event;
use laredo_proto::oam::{ClientComparison, ClientOutcome, VerifyTableRequest, VerifyTableResponse};
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{Heartbeat, ReportChecksumRequest, RowEncoding, SyncRequest, SyncResponse};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::SimDatabase;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::{Code, Streaming};

const PATH: &str = "/laredo.replication.v1.LaredoReplicationService/ReportChecksum";

async fn serve(wait: Duration) -> SimServer {
    let database = SimDatabase::new(1);
    database.commit(0, (0..100).map(|id| Insert(id, format!("row {id}"))).collect());
    let server = serve_with(&database, "a", 1, |options| options.waits.answer = wait).await;
    server.ready().await;
    server
}

fn client(client_id: &str) -> SyncRequest {
    SyncRequest {
        client_id: client_id.to_owned(),
        wants_checksums: true,
        answers_checks: true,
        ..request(RowEncoding::PostgresBinary)
    }
}

/// Opens a stream, and reads until the client has everything.
async fn follow(server: &SimServer, request: SyncRequest) -> Streaming<SyncResponse> {
    let mut stream = server.sync(request).await;
    loop {
        match next(&mut stream).await.unwrap() {
            Message::SnapshotEnd(_) => return stream,
            message => drop(message),
        }
    }
}

async fn check(stream: &mut Streaming<SyncResponse>) -> Heartbeat {
    loop {
        match next(stream).await.unwrap() {
            Message::Heartbeat(heartbeat) if !heartbeat.check.is_empty() => return heartbeat,
            message => drop(message),
        }
    }
}

fn report(heartbeat: &Heartbeat) -> ReportChecksumRequest {
    ReportChecksumRequest {
        schema: "public".to_owned(),
        table: "t0".to_owned(),
        check: heartbeat.check.clone(),
        source_position: heartbeat.source_position.clone(),
        checksum: heartbeat.checksum.clone(),
        row_count: Some(100),
    }
}

fn report_json(heartbeat: &Heartbeat) -> Vec<u8> {
    let report = report(heartbeat);
    let json = json!({
        "schema": "public", "table": "t0", "sourcePosition": report.source_position, "rowCount": "100",
        "check": BASE64_STANDARD.encode(&report.check), "checksum": BASE64_STANDARD.encode(&report.checksum),
    });
    json.to_string().into_bytes()
}

async fn verify(server: &SimServer) -> Streaming<VerifyTableResponse> {
    let request = VerifyTableRequest {
        schema: "public".to_owned(),
        table: "t0".to_owned(),
        clients: true,
        ..VerifyTableRequest::default()
    };
    LaredoOamServiceClient::new(server.channel().await).verify_table(request).await.unwrap().into_inner()
}

/// Returns the clients' results. The table's result comes after them.
async fn results(mut events: Streaming<VerifyTableResponse>) -> Vec<ClientComparison> {
    let mut clients = None;
    loop {
        match within(events.message(), "an event").await.unwrap().unwrap().event.unwrap() {
            Event::Progress(progress) => assert!(!progress.compares_clients || clients.is_none()),
            Event::Clients(comparisons) => clients = Some(comparisons.clients),
            Event::Result(result) => {
                assert_eq!(result.differing, 0);
                return clients.expect("the clients come first");
            }
        }
    }
}

async fn post(server: &SimServer, content_type: &str, body: &[u8]) -> HttpReply {
    http1(server.fanout, "POST", PATH, &[("Content-Type", content_type)], body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_is_answered_in_every_protocol() {
    let server = serve(Duration::from_secs(60)).await;
    let names = ["grpc", "connect json", "connect proto", "grpc-web"];
    let mut streams = Vec::new();
    for name in names {
        streams.push(follow(&server, client(name)).await);
    }
    let events = verify(&server).await;
    let mut checks = Vec::new();
    for stream in &mut streams {
        checks.push(check(stream).await);
    }
    let encoded = |place: usize| report(&checks[place]).encode_to_vec();
    let mut reply = http2(&mut server.channel().await, PATH, "application/grpc", frame(&encoded(0))).await;
    let _ = reply.bytes().await;
    assert_eq!((reply.status, reply.header("grpc-status")), (200, "0"));
    let mut reply = post(&server, "application/json", &report_json(&checks[1])).await;
    assert_eq!((reply.status, reply.json().await), (200, json!({})));
    let mut reply = post(&server, "application/proto", &encoded(2)).await;
    assert_eq!((reply.status, reply.bytes().await), (200, vec![]));
    let mut reply = post(&server, "application/grpc-web", &frame(&encoded(3))).await;
    let told = String::from_utf8_lossy(&reply.bytes().await).into_owned();
    assert!(reply.status == 200 && told.contains("grpc-status: 0"), "{told}");
    let results = results(events).await;
    let found: Vec<_> = results.iter().map(|c| (c.client_id.as_str(), c.outcome(), c.rows)).collect();
    assert_eq!(found, names.map(|name| (name, ClientOutcome::Equal, Some(100))));
    assert!(results.iter().all(|client| client.position == checks[0].source_position && client.connected_at.is_some()));
    // A check is answered once, and only by the client that it was sent to.
    let mut reply = post(&server, "application/json", &report_json(&checks[1])).await;
    let refused: Value = reply.json().await;
    assert_eq!((reply.status, &refused["code"]), (404, &json!("not_found")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_refused_by_name() {
    let server = serve(Duration::from_secs(60)).await;
    let mut stream = follow(&server, client("one")).await;
    let events = verify(&server).await;
    let heartbeat = check(&mut stream).await;
    let good = report(&heartbeat);
    let refused = async |report: ReportChecksumRequest| {
        let status = server.client().await.report_checksum(report).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let bad = [
        (ReportChecksumRequest { table: "other".to_owned(), ..good.clone() }, Code::NotFound, "public.other"),
        (ReportChecksumRequest { check: vec![], ..good.clone() }, Code::InvalidArgument, "`check`"),
        (ReportChecksumRequest { check: vec![7; 17], ..good.clone() }, Code::InvalidArgument, "`check`"),
        (ReportChecksumRequest { check: vec![7; 16], ..good.clone() }, Code::NotFound, "`check`"),
        (ReportChecksumRequest { checksum: vec![7; 15], ..good.clone() }, Code::InvalidArgument, "`checksum`"),
        (ReportChecksumRequest { row_count: Some(-1), ..good.clone() }, Code::InvalidArgument, "`row_count`"),
        (
            ReportChecksumRequest { source_position: "here".to_owned(), ..good.clone() },
            Code::InvalidArgument,
            "`source_position`",
        ),
        (
            ReportChecksumRequest { source_position: "0/1".to_owned(), ..good.clone() },
            Code::InvalidArgument,
            "`source_position`",
        ),
    ];
    for (report, code, named) in bad {
        let (found, message) = refused(report).await;
        assert!(found == code && message.contains(named), "{named}: {found:?} {message}");
    }
    server.client().await.report_checksum(ReportChecksumRequest { checksum: vec![7; 16], ..good }).await.unwrap();
    let results = results(events).await;
    assert_eq!(
        (results[0].outcome(), results[0].client_checksum.as_str()),
        (ClientOutcome::Differs, "07".repeat(16).as_str())
    );
    assert_ne!(results[0].server_checksum, results[0].client_checksum);
    assert_eq!(server.metric("laredo_clients_differing_total{table=\"public.t0\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_cannot_answer_are_named_with_the_reason() {
    let server = serve(Duration::from_millis(500)).await;
    let requests = [
        client("silent"),
        SyncRequest { client_id: "structs".to_owned(), ..request(RowEncoding::Struct) },
        SyncRequest { filters: vec![prefix("row")], ..client("filtered") },
        SyncRequest { answers_checks: false, ..client("earlier") },
    ];
    let mut streams = Vec::new();
    for request in requests {
        streams.push(follow(&server, request).await);
    }
    let results = results(verify(&server).await).await;
    let found: Vec<_> = results.iter().map(|c| (c.client_id.as_str(), c.outcome(), c.reason.as_str())).collect();
    let named = |place: usize, id: &str, outcome: ClientOutcome, reason: &str| {
        let (found_id, found_outcome, found_reason) = found[place];
        assert!((found_id, found_outcome) == (id, outcome) && found_reason.contains(reason), "{found:?}");
    };
    assert_eq!(found.len(), 4);
    named(0, "silent", ClientOutcome::NoAnswer, "in time");
    named(1, "structs", ClientOutcome::NotComparable, "Structs");
    named(2, "filtered", ClientOutcome::NotComparable, "filters");
    named(3, "earlier", ClientOutcome::NotComparable, "version");
}
