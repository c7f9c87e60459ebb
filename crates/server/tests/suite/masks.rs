//! Masked columns of a grant: what their readers receive in each protocol, and what they may ask.

use laredo_engine::{CellReplacement, HashKey, SnapshotFormat, ValueMask};
use laredo_proto::replication::fetch_snapshot_response::Chunk;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{
    FetchSnapshotRequest, ListSnapshotsRequest, RowEncoding, SyncHandshake, SyncMode, SyncRequest,
};
use laredo_server::{
    AccessGrants, AccessOptions, AccessRules, GrantSubjects, IdentityOptions, ReaderGrant, TokenHash, TokenOptions,
};
use laredo_testkit::SimChange::{Insert, Update};
use laredo_testkit::{SimDatabase, eventually};
use prost::Message as _;
use tonic::{Code, Request};

use crate::snapshots::kept;
use crate::support::http::{HttpReply, ReplyFrames, SYNC, frame, http1};
use crate::support::{LONG, SimServer, clock, next, prefix, request, serve_with, start, within};

/// The text that each value of the masked column contains.
const SECRET: &str = "secret";
const MASK: &str = "masked";

fn fixed(text: &str) -> CellReplacement {
    CellReplacement::Mask(ValueMask::Fixed(text.to_owned()))
}

/// Returns rules under which the identity `partner` receives a mask instead of each body, and the
/// identity `owner` receives every value. Their tokens are their names.
fn access(mask: Option<CellReplacement>) -> AccessRules {
    let identity = |name: &str| IdentityOptions {
        name: name.to_owned(),
        tokens: vec![TokenOptions { hash: TokenHash::of(name), expires_at: None }],
        ..IdentityOptions::default()
    };
    let grant = |name: &str, mask: Option<CellReplacement>| ReaderGrant {
        subjects: GrantSubjects { identities: vec![name.to_owned()], ..GrantSubjects::default() },
        tables: vec!["public.*".parse().unwrap()],
        rows: Vec::new(),
        hidden_columns: Vec::new(),
        masked_columns: mask.map(|mask| ("body".to_owned(), mask)).into_iter().collect(),
    };
    let options = AccessOptions {
        identities: vec![identity("partner"), identity("owner")],
        grants: AccessGrants { readers: vec![grant("partner", mask), grant("owner", None)], ..AccessGrants::default() },
        ..AccessOptions::default()
    };
    AccessRules::new(options, clock())
}

fn asked_by<T>(name: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {name}").parse().unwrap());
    request
}

async fn post(server: &SimServer, name: &str, content_type: &str, body: &[u8]) -> HttpReply {
    let authorization = format!("Bearer {name}");
    let headers = [("Content-Type", content_type), ("Authorization", authorization.as_str())];
    http1(server.grpc, "POST", SYNC, &headers, body).await
}

/// Returns the number of times that bytes contain a text.
fn count(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count()
}

/// Reads frames until one contains a text.
async fn read_until(frames: &mut ReplyFrames, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let frame = frames.next().await.expect("the stream has not ended");
        bytes.extend(&frame);
        if count(&frame, text) > 0 {
            return bytes;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_value_leaves_in_no_protocol_and_no_encoding() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, format!("{SECRET} 1")), Insert(2, format!("{SECRET} 2"))]);
    let server = serve_with(&database, "a", 1, |options| options.access = Some(access(Some(fixed(MASK))))).await;
    server.ready().await;
    let structs = frame(&request(RowEncoding::Struct).encode_to_vec());
    let binary = frame(&request(RowEncoding::PostgresBinary).encode_to_vec());
    let json = frame(br#"{"schema":"public","table":"t0"}"#);
    let mut streams = Vec::new();
    for (content_type, body) in [
        ("application/connect+proto", &structs),
        ("application/connect+proto", &binary),
        ("application/connect+json", &json),
        ("application/grpc-web+proto", &structs),
        ("application/grpc-web+proto", &binary),
    ] {
        for (name, shown) in [("partner", MASK), ("owner", SECRET)] {
            let mut frames = post(&server, name, content_type, body).await.frames();
            assert_eq!(frames.reply.status, 200, "{content_type}");
            let bytes = read_until(&mut frames, shown).await;
            streams.push((name, content_type, frames, bytes));
        }
    }
    database.commit(0, vec![Update(1, format!("{SECRET} 3")), Insert(3, format!("{SECRET} 4"))]);
    for (name, content_type, mut frames, mut bytes) in streams {
        let shown = if name == "partner" { MASK } else { SECRET };
        let expected = if name == "partner" { [4, 0] } else { [0, 4] };
        while count(&bytes, shown) < 4 {
            bytes.extend(read_until(&mut frames, shown).await);
        }
        // A Struct of an update has the old row, too.
        let counts = [MASK, SECRET].map(|text| count(&bytes, text).min(4));
        assert_eq!(counts, expected, "{name} by {content_type}: {}", String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_not_filter_by_a_masked_column() {
    let database = SimDatabase::new(1);
    let server = serve_with(&database, "a", 1, |options| options.access = Some(access(Some(fixed(MASK))))).await;
    server.ready().await;
    let filtered = SyncRequest { filters: vec![prefix(SECRET)], ..request(RowEncoding::Struct) };
    let mut client = server.client().await;
    let refused = client.sync(asked_by("partner", filtered.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("masks column `body`; filter by another column"), "{refused}");
    assert!(client.sync(asked_by("owner", filtered)).await.is_ok());
    let json = br#"{"schema":"public","table":"t0","filters":[{"field":"body","prefix":"s"}]}"#;
    let mut reply = post(&server, "partner", "application/connect+json", &frame(json)).await;
    let said = String::from_utf8(reply.bytes().await).unwrap();
    assert!(said.contains("permission_denied") && said.contains("masks column"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_snapshot_is_sent_with_masks() {
    let (database, folder) = (SimDatabase::new(1), tempfile::tempdir().unwrap());
    database.commit(0, vec![Insert(1, format!("{SECRET} 1")), Insert(2, format!("{SECRET} 2"))]);
    for (format, mask) in [
        (SnapshotFormat::Native, fixed(MASK)),
        (SnapshotFormat::Jsonl, CellReplacement::Hash(HashKey::new(b"0123456789abcdef").unwrap())),
    ] {
        let table = kept("t0", &folder.path().join(format!("{format:?}")), format);
        let server = start(database.clone(), vec![table], |options| options.access = Some(access(Some(mask)))).await;
        server.ready().await;
        let written = async || server.engine.tables()[0].snapshots().unwrap().newest().is_some();
        eventually(LONG, written).await.unwrap();
        let mut client = server.client().await;
        let list = ListSnapshotsRequest { schema: "public".to_owned(), table: "t0".to_owned(), limit: 0 };
        let listed = client.list_snapshots(asked_by("partner", list)).await.unwrap().into_inner().snapshots;
        let fetch = FetchSnapshotRequest { snapshot_id: listed[0].snapshot_id.clone() };
        for (name, is_masked) in [("partner", true), ("owner", false)] {
            let mut stream = client.fetch_snapshot(asked_by(name, fetch.clone())).await.unwrap().into_inner();
            let mut rows = 0;
            while let Some(answer) = within(stream.message(), "a part of the snapshot").await.unwrap() {
                if let Some(Chunk::Row(row)) = &answer.chunk {
                    let row = row.encode_to_vec();
                    assert_eq!((count(&row, "body"), count(&row, SECRET) == 0), (1, is_masked), "{name}: {answer:?}");
                    rows += 1;
                }
            }
            assert_eq!(rows, 2, "{name}");
        }
    }
}

/// Returns the handshake of a stream, and the sequence and position at the end of its snapshot.
async fn begin(server: &SimServer, request: SyncRequest) -> (SyncHandshake, i64, String) {
    let mut client = server.client().await;
    let mut stream = client.sync(asked_by("partner", request)).await.unwrap().into_inner();
    let mut handshake = SyncHandshake::default();
    loop {
        match next(&mut stream).await.unwrap() {
            Message::Handshake(begun) => handshake = begun,
            Message::JournalEntry(marker) => return (handshake, marker.sequence, marker.source_position),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resumes_after_its_mask_has_changed_is_sent_all_rows() {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, format!("{SECRET} 1"))]);
    let serve = async |instance, mask| {
        let server = serve_with(&database, instance, 1, |options| options.access = Some(access(mask))).await;
        server.ready().await;
        server
    };
    let server = serve("a", Some(fixed(MASK))).await;
    let (held, sequence, position) = begin(&server, request(RowEncoding::Struct)).await;
    assert_eq!(held.mode(), SyncMode::FullSnapshot);
    for (mask, expected) in [
        (Some(fixed(MASK)), SyncMode::Delta),
        (Some(fixed("another mask")), SyncMode::FullSnapshot),
        (None, SyncMode::FullSnapshot),
    ] {
        let other = serve("b", mask.clone()).await;
        let resumed = SyncRequest {
            last_snapshot_id: held.snapshot_id.clone(),
            last_known_sequence: sequence,
            last_known_source_position: position.clone(),
            ..request(RowEncoding::Struct)
        };
        let (handshake, ..) = begin(&other, resumed).await;
        assert_eq!(handshake.mode(), expected, "{mask:?}");
    }
}
