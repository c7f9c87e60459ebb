//! Everything around the streams: reflection, health, status, metrics, slow clients, and stopping.

use std::time::Duration;

use crate::support::access::{asked_by, grant, identities};
use crate::support::{GrpcTestClient, LONG, SimServer, SimpleReplica, clock, next, request, serve, serve_with, within};
use laredo_engine::journal::BufferPolicy;
use laredo_proto::replication::{GetReplicationStatusRequest, RowEncoding, SyncRequest};
use laredo_server::{AccessGrants, AccessOptions, AccessRules, BufferOptions, ServerOptions};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::{SimDatabase, eventually};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const SERVICE: &str = "laredo.replication.v1.LaredoReplicationService";

async fn table(rows: i64) -> SimDatabase {
    let database = SimDatabase::new(1);
    database.commit(0, (0..rows).map(|i| Insert(i, format!("row {i}"))).collect());
    database
}

async fn status(client: &mut GrpcTestClient) -> laredo_proto::replication::GetReplicationStatusResponse {
    let request = GetReplicationStatusRequest { schema: "public".to_owned(), table: "t0".to_owned() };
    client.get_replication_status(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_names_the_services() {
    let database = table(1).await;
    let server = serve(&database, "a").await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    assert!(list.service.iter().any(|service| service.name == SERVICE), "{list:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ready_before_the_first_copy() {
    let database = table(1).await;
    database.hold_copies();
    let change = |options: &mut ServerOptions| options.waits.ready = Duration::from_millis(40);
    let server = crate::support::start(database.clone(), vec![laredo_testkit::sim_table("t0")], change).await;
    let channel = server.channel().await;
    let check = |service: &str| {
        let (channel, service) = (channel.clone(), service.to_owned());
        async move {
            let answer = HealthClient::new(channel).check(HealthCheckRequest { service }).await;
            answer.unwrap().into_inner().status() == ServingStatus::Serving
        }
    };
    assert!(!check("").await && !check(SERVICE).await);
    assert_eq!(server.get("/health/live").await.0, 200);
    for path in ["/health/ready", "/health/startup"] {
        assert_eq!(server.get(path).await.0, 503, "{path}");
    }
    let ended = next(&mut server.sync(request(RowEncoding::Struct)).await).await.unwrap_err();
    assert!(ended.code() == Code::Unavailable && ended.message().contains("public.t0"), "{ended:?}");
    let request = GetReplicationStatusRequest { schema: "public".to_owned(), table: "t0".to_owned() };
    let status = server.client().await.get_replication_status(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);

    database.release_copies();
    server.ready().await;
    eventually(LONG, || async { check("").await && check(SERVICE).await }).await.unwrap();
    assert_eq!(server.get("/health/startup").await.0, 200);
    // The journal exists slightly before the status shows the phase.
    let told = async || {
        let (code, body) = server.get("/health/ready").await;
        let report: serde_json::Value = serde_json::from_str(&body).unwrap();
        let table = &report["tables"][0];
        code == 200
            && report["ready"] == true
            && table["state"] == "live"
            && table["rows"] == 1
            && table["position"] == database.end().to_string()
            && table["lag_ms"].is_i64()
    };
    eventually(LONG, told).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_copied_says_why() {
    let database = table(1).await;
    let mut table = laredo_testkit::sim_table("t0");
    table.folder = "/nonexistent".into();
    let server = crate::support::start(database, vec![table], |_| {}).await;
    let ended = next(&mut server.sync(request(RowEncoding::Struct)).await).await.unwrap_err();
    // The folder may be created later, so the table retries.
    assert!(ended.code() == Code::Unavailable && ended.message().contains("/nonexistent"), "{ended:?}");
    let (code, body) = server.get("/health/ready").await;
    let report: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &report["tables"][0]["state"]), (503, &"retrying".into()), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_some_columns_is_not_shown_the_errors_of_the_table() {
    let database = table(1).await;
    let mut table = laredo_testkit::sim_table("t0");
    table.folder = "/nonexistent".into();
    let mut part = grant(&["part"], "public.*");
    part.hidden_columns = vec!["body".to_owned()];
    let grants = AccessGrants { readers: vec![part, grant(&["all"], "public.*")], ..AccessGrants::default() };
    let rules = AccessOptions { identities: identities(&["part", "all"]), grants, ..AccessOptions::default() };
    let access = Some(AccessRules::new(rules, clock()));
    let server = crate::support::start(database, vec![table], |options| options.access = access).await;
    for (name, is_shown) in [("part", false), ("all", true)] {
        let ask = asked_by(name, request(RowEncoding::Struct));
        let mut stream = within(server.client().await.sync(ask), "a stream").await.unwrap().into_inner();
        let ended = next(&mut stream).await.unwrap_err();
        let names_place = ended.message().contains("/nonexistent");
        assert!(ended.code() == Code::Unavailable && names_place == is_shown, "{name}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_metrics_show_the_connected_clients() {
    let database = table(10).await;
    let server = serve(&database, "a").await;
    let mut stream = server.sync(request(RowEncoding::PostgresBinary)).await;
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;
    let end = database.commit(0, vec![Insert(100, "a".to_owned()), Insert(101, "b".to_owned())]);
    replica.read_to(&mut stream, end).await;
    let mut client = server.client().await;
    let status = status(&mut client).await;
    assert_eq!(status.current_sequence, replica.sequence.to_wire());
    assert_eq!((status.journal_entry_count, status.connected_clients), (2, 1));
    assert_eq!((status.clients[0].client_id.as_str(), status.clients[0].behind_count), ("test", 0));
    assert_eq!(status.latest_snapshot.unwrap().row_count, 10);
    assert_eq!((status.full_snapshots, status.deltas), ([("fresh client".to_owned(), 1)].into(), 0));
    let labels = "{table=\"public.t0\"}";
    for (name, value) in
        [("laredo_clients", 1.0), ("laredo_journal_entries", 2.0), ("laredo_encoded_entries_total", 2.0)]
    {
        assert_eq!(server.metric(&format!("{name}{labels}")).await, value, "{name}");
    }
    let snapshots = "laredo_snapshots_total{table=\"public.t0\",reason=\"fresh client\"}";
    assert_eq!(server.metric(snapshots).await, 1.0);
    assert!(server.metric(&format!("laredo_sent_bytes_total{labels}")).await > 100.0);
    assert!(server.metric("process_resident_memory_bytes").await > 1e6);
    assert!(server.metric("process_open_fds").await >= 3.0);
    assert!(server.metric("process_start_time_seconds").await > 1e9);
    let build = format!("laredo_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(server.metric(&build).await, 1.0);
}

/// Returns a client with small windows, so that the server soon waits for its reads.
async fn narrow(server: &SimServer) -> GrpcTestClient {
    let endpoint = server.endpoint().initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    GrpcTestClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(64 << 20)
}

async fn end_of(stream: &mut tonic::Streaming<laredo_proto::replication::SyncResponse>) -> tonic::Status {
    loop {
        if let Err(status) = next(stream).await {
            return status;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_client_that_stops_reading_is_cut_and_continues_later() {
    let database = table(10).await;
    let buffer = BufferOptions { behind_max: 20, policy: BufferPolicy::DropDisconnect };
    let server = serve_with(&database, "a", 1, |options| options.tables[0].limits.buffer = buffer).await;
    let mut stream = narrow(&server).await.sync(request(RowEncoding::PostgresBinary)).await.unwrap().into_inner();
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;
    let mut other = server.sync(request(RowEncoding::PostgresBinary)).await;
    let mut fast = SimpleReplica::default();
    fast.read_to(&mut other, database.end()).await;
    for i in 0..60 {
        let end = database.commit(0, vec![Insert(1000 + i, "x".repeat(100_000))]);
        fast.read_to(&mut other, end).await;
    }
    // The client reads nothing, so it cannot be notified. It is still removed from the list.
    let gone = || async { status(&mut server.client().await).await.connected_clients == 1 };
    eventually(LONG, gone).await.unwrap();
    let ended = loop {
        match next(&mut stream).await {
            Ok(message) => replica.apply(message),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::ResourceExhausted);
    assert!(ended.message().contains("20 entries") && ended.message().contains("reconnect"), "{ended:?}");
    let mut stream = server.sync(replica.by_sequence(request(RowEncoding::PostgresBinary))).await;
    replica.read(&mut stream).await;
    replica.read_to(&mut stream, database.end()).await;
    assert_eq!((&replica.rows, replica.snapshots), (&database.rows_at(0, database.end()), 1));
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_may_slow_the_source_down_and_no_client_is_cut() {
    let database = table(10).await;
    let buffer = BufferOptions { behind_max: 20, policy: BufferPolicy::SlowDown };
    let server = serve_with(&database, "a", 1, |options| options.tables[0].limits.buffer = buffer).await;
    let mut stream = narrow(&server).await.sync(request(RowEncoding::PostgresBinary)).await.unwrap().into_inner();
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;
    for i in 0..100 {
        database.commit(0, vec![Insert(1000 + i, "x".repeat(100_000))]);
    }
    let mut client = server.client().await;
    let waited_for = async || status(&mut server.client().await).await.clients[0].state == "backpressured";
    eventually(LONG, waited_for).await.unwrap();
    replica.read_to(&mut stream, database.end()).await;
    assert!(replica.rows == database.rows_at(0, database.end()));
    let live = async || status(&mut server.client().await).await.clients[0].state == "live";
    eventually(LONG, live).await.unwrap();
    assert_eq!(status(&mut client).await.connected_clients, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_of_its_snapshot_gives_the_journal_back() {
    let database = SimDatabase::new(1);
    database.commit(0, (0..40).map(|i| Insert(i, "x".repeat(100_000))).collect());
    let change = |options: &mut ServerOptions| {
        (options.waits.stalled, options.waits.stop) = (Duration::from_millis(100), LONG);
    };
    let server = serve_with(&database, "a", 1, change).await;
    server.ready().await;
    let mut stream = narrow(&server).await.sync(request(RowEncoding::PostgresBinary)).await.unwrap().into_inner();
    // The client may be gone before it appears in the list, but its snapshot stays counted.
    let snapshots = "laredo_snapshots_total{table=\"public.t0\",reason=\"fresh client\"}";
    let began = async || server.get("/metrics").await.1.contains(&format!("{snapshots} 1"));
    eventually(LONG, began).await.unwrap();
    let gone = async || status(&mut server.client().await).await.connected_clients == 0;
    eventually(LONG, gone).await.unwrap();
    let ended = end_of(&mut stream).await;
    assert_eq!(ended.code(), Code::ResourceExhausted);
    assert!(ended.message().contains("snapshot was not read"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nothing_reads_is_reset_and_the_others_of_its_connection_continue() {
    let database = SimDatabase::new(1);
    database.commit(0, (0..40).map(|i| Insert(i, "x".repeat(100_000))).collect());
    let change = |options: &mut ServerOptions| {
        (options.waits.stalled, options.waits.stop) = (Duration::from_millis(100), Duration::from_millis(100));
        options.tables[0].limits.heartbeat_interval = Duration::from_millis(100);
    };
    let server = serve_with(&database, "a", 1, change).await;
    server.ready().await;
    let endpoint = server.endpoint().initial_stream_window_size(65_535).initial_connection_window_size(16 << 20);
    let mut client = GrpcTestClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(64 << 20);
    let mut unread = client.sync(request(RowEncoding::PostgresBinary)).await.unwrap().into_inner();
    let mut other = client.sync(request(RowEncoding::PostgresBinary)).await.unwrap().into_inner();
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut other, database.end()).await;
    // The server looks at its clients twice a second: the stream is cut, and then it is reset.
    for _ in 0..40 {
        replica.read(&mut other).await;
    }
    let ended = end_of(&mut unread).await;
    assert_eq!(ended.code(), Code::Cancelled, "{ended}");
    database.commit(0, vec![Insert(100, "y".to_owned())]);
    replica.read_to(&mut other, database.end()).await;
    assert_eq!(replica.rows.len(), 41);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_every_stream_with_unavailable() {
    let database = table(10).await;
    let mut server = serve(&database, "a").await;
    let mut streams = Vec::new();
    for encoding in [RowEncoding::Struct, RowEncoding::PostgresBinary] {
        let mut stream = server.sync(request(encoding)).await;
        SimpleReplica::default().read_to(&mut stream, database.end()).await;
        streams.push(stream);
    }
    let ahead = SyncRequest { last_known_source_position: "FF/0".to_owned(), ..request(RowEncoding::Struct) };
    streams.push(server.sync(ahead).await);
    server.stop();
    for stream in &mut streams {
        assert_eq!(end_of(stream).await.code(), Code::Unavailable);
    }
    drop(streams);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_serves_clients_of_ours_on_and_begins_no_new_streams() {
    let database = SimDatabase::new(1);
    let mut server = serve_with(&database, "a", 1, |options| options.waits.drain = Duration::from_secs(600)).await;
    server.ready().await;
    let mut stream = server.sync(request(RowEncoding::PostgresBinary)).await;
    let mut replica = SimpleReplica::default();
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    replica.read_to(&mut stream, database.end()).await;
    server.stop();
    let unready = async || server.get("/health/ready").await.0 == 503;
    laredo_testkit::eventually(Duration::from_secs(60), unready).await.unwrap();
    let refused = server.client().await.sync(request(RowEncoding::Struct)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    database.commit(0, vec![Insert(2, "b".to_owned())]);
    replica.read_to(&mut stream, database.end()).await;
    while replica.farewells == 0 {
        replica.read(&mut stream).await;
    }
    assert_eq!((replica.rows.len(), replica.farewells), (2, 1));
    drop(stream);
    server.stopped().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stays_is_cut_when_the_grace_is_over() {
    let database = SimDatabase::new(1);
    let mut server = serve_with(&database, "a", 1, |options| options.waits.drain = Duration::from_millis(100)).await;
    server.ready().await;
    let mut stream = server.sync(request(RowEncoding::Struct)).await;
    server.stop();
    let ended = loop {
        if let Err(status) = stream.message().await {
            break status;
        }
    };
    assert_eq!(ended.code(), tonic::Code::Unavailable, "{ended}");
    server.stopped().await;
}
