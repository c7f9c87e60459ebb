//! The same services in every protocol: the messages, the end of a stream, and the refusals.

use std::time::Duration;

use crate::support::http::{HttpReply, ReplyFrames, STATUS, SYNC, frame, http1, http2, message};
use crate::support::{LONG, SimServer, SimpleReplica, request, serve_with};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use laredo_core::Lsn;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{GetReplicationStatusRequest, GetReplicationStatusResponse, RowEncoding};
use laredo_server::ServerOptions;
use laredo_testkit::SimChange::{Delete, Insert, Update};
use laredo_testkit::{SimDatabase, eventually};
use prost::Message as _;
use serde_json::{Value, json};

const TABLE: &str = r#"{"schema":"public","table":"t0"}"#;

async fn table() -> (SimDatabase, SimServer) {
    let database = SimDatabase::new(1);
    database.commit(0, (0..100).map(|i| Insert(i, format!("row {i}"))).collect());
    let quiet = |options: &mut ServerOptions| options.tables[0].limits.heartbeat_interval = Duration::from_secs(3600);
    let server = serve_with(&database, "a", 1, quiet).await;
    // The journal exists slightly before the status is complete.
    eventually(LONG, async || server.get("/health/ready").await.0 == 200).await.unwrap();
    (database, server)
}

fn ask(encoding: RowEncoding) -> Vec<u8> {
    frame(&request(encoding).encode_to_vec())
}

async fn post(server: &SimServer, path: &str, content_type: &str, body: &[u8]) -> HttpReply {
    http1(server.grpc, "POST", path, &[("Content-Type", content_type)], body).await
}

/// Reads until a message that `is_last` accepts. Keeps all bytes except those of heartbeats, which
/// depend on the clock.
async fn read_until(frames: &mut ReplyFrames, bytes: &mut Vec<u8>, is_last: impl Fn(&Message) -> bool) {
    loop {
        let frame = frames.next().await.expect("the stream has not ended");
        let message = message(&frame).message.unwrap();
        if !matches!(message, Message::Heartbeat(_)) {
            bytes.extend(&frame);
        }
        if is_last(&message) {
            return;
        }
    }
}

/// Returns true if a message is an entry or the end of a batch at `end` or later.
fn reaches(message: &Message, end: Lsn) -> bool {
    match message {
        Message::JournalEntry(entry) if !entry.action.is_empty() => {
            entry.source_position.parse::<Lsn>().unwrap() >= end
        }
        Message::Batch(batch) => batch.ends && Lsn(batch.position) >= end,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_the_same_bytes_in_every_protocol_and_only_its_end_differs() {
    for encoding in [RowEncoding::Struct, RowEncoding::PostgresBinary] {
        let (database, mut server) = table().await;
        let text = BASE64_STANDARD.encode(ask(encoding)).into_bytes();
        let mut channel = server.channel().await;
        let mut streams = vec![("gRPC", http2(&mut channel, SYNC, "application/grpc", ask(encoding)).await)];
        for (content_type, body) in [
            ("application/connect+proto", &ask(encoding)),
            ("application/grpc-web", &ask(encoding)),
            ("application/grpc-web+proto", &ask(encoding)),
            ("application/grpc-web-text", &text),
        ] {
            streams.push((content_type, post(&server, SYNC, content_type, body).await));
            streams.push((content_type, http2(&mut channel, SYNC, content_type, body.clone()).await));
        }
        let mut streams: Vec<_> = streams.into_iter().map(|(name, reply)| (name, reply.frames(), Vec::new())).collect();
        for (name, frames, _) in &streams {
            assert_eq!(frames.reply.status, 200, "{name}");
            // Proxies do not buffer gRPC. For the other protocols, a header disables buffering.
            let expected = if *name == "gRPC" { "" } else { "no" };
            assert_eq!(frames.reply.header("x-accel-buffering"), expected, "{name}");
        }
        // A snapshot shows the head at its own moment. So all snapshots are read to their ends
        // before the table changes.
        for (_, frames, bytes) in &mut streams {
            read_until(frames, bytes, |message| matches!(message, Message::SnapshotEnd(_))).await;
        }
        database.commit(0, (100..200).map(|i| Insert(i, format!("row {i}"))).collect());
        let end = database.commit(0, vec![Update(1, "other".to_owned()), Delete(2)]);
        for (_, frames, bytes) in &mut streams {
            read_until(frames, bytes, |message| reaches(message, end)).await;
        }
        server.stop();
        let expected = streams[0].2.clone();
        for (name, mut frames, bytes) in streams {
            assert!(bytes == expected, "{name}: {} bytes differ from gRPC's {}", bytes.len(), expected.len());
            assert_end(name, &mut frames).await;
        }
        let mut replica = SimpleReplica::default();
        let mut bytes = expected.as_slice();
        while let Some(header) = bytes.first_chunk::<5>() {
            let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize + 5;
            replica.apply(message(&bytes[..length]).message.unwrap());
            bytes = &bytes[length..];
        }
        assert_eq!(replica.rows, database.rows_at(0, end));
        server.stopped().await;
    }
}

/// Checks that every stream reports the server's stop, in the form of its protocol.
async fn assert_end(name: &str, frames: &mut ReplyFrames) {
    let says_nothing_new = |frame: &[u8]| {
        frame[0] == 0 && matches!(message(frame).message, Some(Message::Heartbeat(_) | Message::GoAway(_)))
    };
    let last = loop {
        match frames.next().await {
            Some(frame) if says_nothing_new(&frame) => {}
            last => break last,
        }
    };
    match (name, last) {
        ("gRPC", None) => assert_eq!(frames.reply.header("grpc-status"), "14"),
        ("application/connect+proto", Some(last)) => {
            assert_eq!(last[0], 2);
            let end: Value = serde_json::from_slice(&last[5..]).unwrap();
            assert_eq!(end["error"]["code"], "unavailable");
            assert!(end["error"]["message"].as_str().unwrap().contains("reconnect to continue"), "{end}");
        }
        (_, Some(last)) => {
            assert_eq!(last[0], 0x80, "{name}");
            let trailers = String::from_utf8(last[5..].to_vec()).unwrap();
            assert!(trailers.contains("grpc-status: 14\r\n"), "{name}: {trailers}");
            assert!(trailers.contains("reconnect%20to%20continue"), "{name}: {trailers}");
        }
        (_, None) => panic!("{name} ends without an end"),
    }
    assert_eq!(frames.next().await, None, "{name}: nothing comes after the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_can_be_read_as_json() {
    let (database, mut server) = table().await;
    let ask =
        r#"{"schema":"public","table":"t0","clientId":"json","filters":[{"field":"id","in":[1,2,3,150]}],"new":1}"#;
    let reply = post(&server, SYNC, "application/connect+json", &frame(ask.as_bytes())).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/connect+json"));
    let mut frames = reply.frames();
    let mut next = async || -> (u8, Value) {
        let frame = frames.next().await.unwrap();
        (frame[0], serde_json::from_slice(&frame[5..]).unwrap())
    };
    let (_, handshake) = next().await;
    assert_eq!(handshake["handshake"]["mode"], "SYNC_MODE_FULL_SNAPSHOT");
    assert!(handshake["handshake"]["serverCurrentSequence"].is_string(), "64 bits are text: {handshake}");
    assert!(next().await.1["snapshotBegin"].is_object());
    let mut rows = Vec::new();
    loop {
        let (_, message) = next().await;
        let Some(row) = message.get("snapshotRow") else { break };
        rows.push(row["row"].clone());
    }
    rows.sort_by_key(|row| row["id"].as_f64().unwrap() as i64);
    assert_eq!(rows, [1, 2, 3].map(|id| json!({ "id": f64::from(id), "body": format!("row {id}") })));
    next().await;
    database.commit(0, vec![Insert(150, "later".to_owned())]);
    let (_, entry) = next().await;
    assert_eq!(entry["journalEntry"]["action"], "INSERT");
    assert_eq!(entry["journalEntry"]["newValues"]["body"], "later");
    server.stop();
    let (flags, end) = next().await;
    assert_eq!((flags, &end["error"]["code"]), (2, &json!("unavailable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_answers_once_is_asked_in_every_protocol() {
    let (_, server) = table().await;
    let ask = GetReplicationStatusRequest { schema: "public".to_owned(), table: "t0".to_owned() }.encode_to_vec();
    let rows = |bytes: &[u8]| GetReplicationStatusResponse::decode(bytes).unwrap().row_count;
    let mut channel = server.channel().await;
    for (content_type, body) in [("application/json", TABLE.as_bytes()), ("application/proto", &ask)] {
        let old = post(&server, STATUS, content_type, body).await;
        let new = http2(&mut channel, STATUS, content_type, body.to_vec()).await;
        for mut reply in [old, new] {
            assert_eq!((reply.status, reply.header("content-type")), (200, content_type));
            match content_type {
                "application/json" => assert_eq!(reply.json().await["rowCount"], "100"),
                _ => assert_eq!(rows(&reply.bytes().await), 100),
            }
        }
    }
    let text = BASE64_STANDARD.encode(frame(&ask)).into_bytes();
    for (content_type, body) in [("application/grpc-web", frame(&ask)), ("application/grpc-web-text", text)] {
        let mut frames = post(&server, STATUS, content_type, &body).await.frames();
        assert_eq!(rows(&frames.next().await.unwrap()[5..]), 100, "{content_type}");
        let end = frames.next().await.unwrap();
        assert!(end[0] == 0x80 && end[5..].starts_with(b"grpc-status: 0\r\n"), "{content_type}: {end:?}");
    }
    // This also works for services outside laredo's own, such as gRPC health.
    let serves = async || {
        let mut health = post(&server, "/grpc.health.v1.Health/Check", "application/json", b"{}").await;
        health.json().await == json!({ "status": "SERVING" })
    };
    eventually(LONG, serves).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_service_is_asked_and_watched_in_json_and_is_not_on_the_fan_out_port() {
    let (_, server) = table().await;
    let json = [("Content-Type", "application/json")];
    let path = "/laredo.v1.LaredoOAMService/GetStatus";
    let mut status = http1(server.grpc, "POST", path, &json, b"{}").await;
    assert_eq!(status.status, 200);
    assert_eq!(status.json().await["pipelines"][0]["rowCount"], "100");
    let mut absent = http1(server.fanout, "POST", path, &json, b"{}").await;
    assert_eq!((absent.status, &absent.json().await["code"]), (501, &json!("unimplemented")));

    let watch = "/laredo.v1.LaredoOAMService/WatchStatus";
    let mut frames = post(&server, watch, "application/connect+json", &frame(b"{}")).await.frames();
    let mut paused = post(&server, "/laredo.v1.LaredoOAMService/PauseSync", "application/json", b"{}").await;
    assert_eq!(paused.json().await["state"], "SERVICE_STATE_PAUSED");
    let first = frames.next().await.unwrap();
    let event: Value = serde_json::from_slice(&first[5..]).unwrap();
    assert!(first[0] == 0 && event["timestamp"].is_string(), "{event}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_stream_is_sent_at_once() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    database.hold_copies();
    let patient = |options: &mut ServerOptions| options.waits.ready = LONG;
    let server = crate::support::start(database.clone(), vec![laredo_testkit::sim_table("t0")], patient).await;
    let mut streams = Vec::new();
    for content_type in ["application/connect+proto", "application/grpc-web"] {
        // The call returns as soon as the head of the answer has arrived. At that time there is no
        // data yet for a body.
        streams.push(post(&server, SYNC, content_type, &ask(RowEncoding::Struct)).await.frames());
    }
    database.release_copies();
    for frames in &mut streams {
        let first = message(&frames.next().await.unwrap()).message.unwrap();
        assert!(matches!(first, Message::Handshake(_)), "{first:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_or_is_out_of_time_is_not_kept() {
    let (_, server) = table().await;
    let clients = async || {
        let mut reply = post(&server, STATUS, "application/json", TABLE.as_bytes()).await;
        reply.json().await.get("connectedClients").and_then(Value::as_i64).unwrap_or(0)
    };
    let mut frames = post(&server, SYNC, "application/connect+proto", &ask(RowEncoding::Struct)).await.frames();
    frames.next().await.unwrap();
    assert_eq!(clients().await, 1);
    drop(frames);
    eventually(LONG, async || clients().await == 0).await.unwrap();

    let headers = [("Content-Type", "application/connect+proto"), ("Connect-Timeout-Ms", "200")];
    let mut frames = http1(server.grpc, "POST", SYNC, &headers, &ask(RowEncoding::Struct)).await.frames();
    let last = loop {
        let frame = frames.next().await.unwrap();
        if frame[0] != 0 {
            break frame;
        }
    };
    let end: Value = serde_json::from_slice(&last[5..]).unwrap();
    assert_eq!(end["error"]["code"], "deadline_exceeded");
    eventually(LONG, async || clients().await == 0).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_over_http_1_is_not_read_ahead_for_and_is_cut() {
    let database = SimDatabase::new(1);
    // More than the sockets of both sides hold.
    database.commit(0, (0..400).map(|i| Insert(i, "x".repeat(100_000))).collect());
    let impatient = |options: &mut ServerOptions| {
        (options.waits.stalled, options.waits.stop) = (Duration::from_millis(200), LONG);
    };
    let server = serve_with(&database, "a", 1, impatient).await;
    server.ready().await;
    for (content_type, body) in
        [("application/connect+proto", ask(RowEncoding::Struct)), ("application/connect+json", frame(TABLE.as_bytes()))]
    {
        let mut frames = post(&server, SYNC, content_type, &body).await.frames();
        let clients = async || {
            let mut reply = post(&server, STATUS, "application/json", TABLE.as_bytes()).await;
            reply.json().await.get("connectedClients").and_then(Value::as_i64).unwrap_or(0)
        };
        assert!(frames.next().await.unwrap()[0] == 0, "{content_type}");
        eventually(LONG, async || clients().await == 0).await.unwrap();
        let end = loop {
            let frame = frames.next().await.unwrap();
            if frame[0] != 0 {
                break serde_json::from_slice::<Value>(&frame[5..]).unwrap();
            }
        };
        assert_eq!(end["error"]["code"], "resource_exhausted", "{content_type}: {end}");
    }
}
