//! The errors of wrong Connect and gRPC-Web calls, and the answers to a browser.

use std::collections::BTreeMap;

use crate::support::http::{HttpReply, STATUS, SYNC, frame, http1};
use crate::support::{SimServer, serve_with};
use http::HeaderValue;
use laredo_server::ServerOptions;
use laredo_testkit::SimChange::Insert;
use laredo_testkit::{SimDatabase, is_full};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const TABLE: &str = r#"{"schema":"public","table":"t0"}"#;
const JSON: (&str, &str) = ("Content-Type", "application/json");
const STREAM: (&str, &str) = ("Content-Type", "application/connect+json");
const PAGE: &str = "https://console.example";

async fn server(change: impl FnOnce(&mut ServerOptions)) -> SimServer {
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let server = serve_with(&database, "a", 1, change).await;
    server.ready().await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_call_is_refused_in_plain_http() {
    let server = server(|_| {}).await;
    for (method, path, headers, status, hint) in [
        ("GET", STATUS, vec![], 405, ("allow", "POST")),
        ("GET", "/", vec![JSON], 405, ("allow", "POST")),
        ("OPTIONS", STATUS, vec![("Origin", PAGE)], 405, ("allow", "POST")),
        ("POST", STATUS, vec![], 415, ("accept-post", "application/json, application/proto")),
        ("POST", STATUS, vec![("Content-Type", "text/plain")], 415, ("accept-post", "application/json")),
        ("POST", STATUS, vec![STREAM], 415, ("accept-post", "application/json")),
        ("POST", SYNC, vec![JSON], 415, ("accept-post", "application/connect+json")),
        ("POST", SYNC, vec![("Content-Type", "application/grpc")], 505, ("content-type", "text/plain")),
    ] {
        let reply = http1(server.grpc, method, path, &headers, b"{}").await;
        assert_eq!(reply.status, status, "{method} {path} {headers:?}");
        assert!(reply.header(hint.0).starts_with(hint.1), "{method} {path} {headers:?}: {:?}", reply.headers);
    }
}

/// Returns the status and body of a Connect error, after checking its content type.
async fn unary_error(mut reply: HttpReply) -> (u16, Value) {
    assert_eq!(reply.header("content-type"), "application/json");
    (reply.status, reply.json().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_wrong_hears_so_in_json() {
    let server = server(|_| {}).await;
    let large = format!("{{\"schema\":\"{}\"}}", "x".repeat(1024 * 1024));
    let nested = format!("{{\"x\":{}", "[".repeat(500_000));
    let unknown = "/laredo.replication.v1.LaredoReplicationService/Nope";
    let proto = ("Content-Type", "application/proto");
    for (path, headers, body, status, code, words) in [
        (STATUS, vec![JSON], "", 400, "invalid_argument", "JSON"),
        (STATUS, vec![JSON], "{", 400, "invalid_argument", "JSON"),
        (STATUS, vec![JSON], "[]", 400, "invalid_argument", "JSON"),
        (STATUS, vec![JSON], "{} {}", 400, "invalid_argument", "JSON"),
        (STATUS, vec![JSON], r#"{"schema":1}"#, 400, "invalid_argument", "JSON"),
        (STATUS, vec![JSON], nested.as_str(), 400, "invalid_argument", "JSON"),
        (STATUS, vec![JSON], "{}", 400, "invalid_argument", "`schema` is required"),
        (STATUS, vec![JSON], r#"{"schema":"public","table":"nope"}"#, 404, "not_found", "public.nope"),
        (STATUS, vec![JSON], large.as_str(), 400, "invalid_argument", "larger"),
        (STATUS, vec![proto], "\u{7f}", 400, "invalid_argument", "GetReplicationStatusRequest"),
        (STATUS, vec![JSON, ("Content-Encoding", "gzip")], TABLE, 501, "unimplemented", "identity"),
        (STATUS, vec![JSON, ("Connect-Protocol-Version", "2")], TABLE, 400, "invalid_argument", "must be 1"),
        (STATUS, vec![JSON, ("Connect-Timeout-Ms", "soon")], TABLE, 400, "invalid_argument", "milliseconds"),
        (unknown, vec![JSON], "{}", 501, "unimplemented", "Nope"),
        (unknown, vec![proto], "", 501, "unimplemented", "Nope"),
    ] {
        let (found, error) = unary_error(http1(server.grpc, "POST", path, &headers, body.as_bytes()).await).await;
        let body = body.get(..40).unwrap_or(body);
        assert_eq!((found, error["code"].as_str()), (status, Some(code)), "{headers:?} {body:?}: {error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{headers:?} {body:?}: {error}");
    }
    let headers = [JSON, ("Connect-Protocol-Version", "1"), ("Connect-Timeout-Ms", "60000")];
    let unknown_field = r#"{"schema":"public","table":"t0","later":{"a":[1]}}"#;
    let reply = http1(server.grpc, "POST", STATUS, &headers, unknown_field.as_bytes()).await;
    assert_eq!(reply.status, 200, "what a newer client adds is left out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_begin_says_so_in_its_end() {
    let server = server(|_| {}).await;
    let good = frame(TABLE.as_bytes());
    let compressed = [&[1], &good[1..]].concat();
    let filtered =
        |filters: &str| frame(format!(r#"{{"schema":"public","table":"t0","filters":[{filters}]}}"#).as_bytes());
    for (headers, body, code, words) in [
        (vec![STREAM], frame(br#"{"schema":"public","table":"nope"}"#), "not_found", "public.nope"),
        (
            vec![STREAM],
            filtered(r#"{"field":"body","prefix":"a"},{"field":"id","equals":"x"}"#),
            "invalid_argument",
            "`filters[1]`",
        ),
        (vec![STREAM], filtered(r#"{"field":"id","prefix":"1"}"#), "invalid_argument", "it is not text"),
        (vec![STREAM], filtered(r#"{"field":"id","in":[1,0.5]}"#), "invalid_argument", "0.5 is not one of its values"),
        (vec![STREAM], filtered(r#"{"field":"body","equals":5}"#), "invalid_argument", "column `body` is of type"),
        (vec![STREAM], frame(b"{"), "invalid_argument", "JSON"),
        (vec![STREAM], vec![], "invalid_argument", "shorter"),
        (vec![STREAM], compressed.clone(), "unimplemented", "compressed"),
        (vec![STREAM], [&[2], &good[1..]].concat(), "invalid_argument", "flags"),
        (vec![STREAM], [good.clone(), good.clone()].concat(), "invalid_argument", "exactly one"),
        (vec![STREAM], vec![0; 1024 * 1024 + 6], "invalid_argument", "larger"),
        (vec![STREAM, ("Connect-Content-Encoding", "br")], good.clone(), "unimplemented", "identity"),
        (vec![STREAM, ("Connect-Protocol-Version", "2")], good.clone(), "invalid_argument", "must be 1"),
        (vec![("Content-Type", "application/connect+proto")], frame(&[0xff]), "invalid_argument", "SyncRequest"),
    ] {
        let reply = http1(server.grpc, "POST", SYNC, &headers, &body).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, headers[0].1));
        let mut frames = reply.frames();
        let end = frames.next().await.unwrap();
        assert_eq!(end[0], 2);
        let end: Value = serde_json::from_slice(&end[5..]).unwrap();
        assert_eq!(end["error"]["code"], code, "{headers:?}: {end}");
        assert!(end["error"]["message"].as_str().unwrap().contains(words), "{headers:?}: {end}");
        assert_eq!(frames.next().await, None);
    }
    for (content_type, body) in [("application/grpc-web", &compressed[..]), ("application/grpc-web-text", b"*")] {
        let mut frames = http1(server.grpc, "POST", SYNC, &[("Content-Type", content_type)], body).await.frames();
        let end = frames.next().await.unwrap();
        assert!(end[0] == 0x80 && end[5..].starts_with(b"grpc-status: "), "{content_type}: {end:?}");
    }
}

/// Returns valid JSON in which some bytes are damaged.
fn damaged(rng: &mut StdRng) -> Vec<u8> {
    let good = r#"{"schema":"public","table":"t0","lastKnownSequence":"7","later":[1],"filters":[
        {"field":"id","in":[1,2.5,null,{"a":[true]}]},{"field":"body","prefix":"a"},{"field":"body","equals":"\u00fc"}]}"#;
    let mut bytes = good.as_bytes().to_vec();
    for _ in 0..rng.random_range(1..3) {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..5) {
            0 => bytes.truncate(at + 1),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[at] = *b"{}[]\",:0-e\\".choose(rng).unwrap(),
            3 => drop(bytes.splice(at..at, std::iter::repeat_n(b'[', rng.random_range(1..300)))),
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_json_is_answered_and_never_harms() {
    let server = server(|_| {}).await;
    let mut codes = BTreeMap::new();
    for seed in 0..if is_full() { 20_000 } else { 500 } {
        let body = damaged(&mut StdRng::seed_from_u64(seed));
        let mut unary = http1(server.grpc, "POST", STATUS, &[JSON], &body).await;
        let (status, told) = (unary.status, unary.json().await);
        assert!([200, 400, 404].contains(&status), "seed {seed}: {status} {told}");
        let mut frames = http1(server.grpc, "POST", SYNC, &[STREAM], &frame(&body)).await.frames();
        let first = frames.next().await.unwrap();
        let told: Value = serde_json::from_slice(&first[5..]).unwrap();
        let code = told["error"]["code"].as_str().unwrap_or("served").to_owned();
        assert!(["served", "invalid_argument", "not_found"].contains(&code.as_str()), "seed {seed}: {told}");
        *codes.entry(code).or_insert(0) += 1;
    }
    assert!(codes["served"] > 5 && codes["invalid_argument"] > 50, "damage is too little or too much: {codes:?}");
}

async fn preflight(server: &SimServer, origin: &str) -> HttpReply {
    let headers = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "connect-protocol-version,content-type"),
    ];
    http1(server.grpc, "OPTIONS", SYNC, &headers, b"").await
}

const ALLOWED: &str = "access-control-allow-origin";

#[tokio::test(flavor = "multi_thread")]
async fn no_page_of_another_origin_may_call_unless_it_is_named() {
    let closed = server(|_| {}).await;
    let reply = preflight(&closed, PAGE).await;
    assert_eq!((reply.status, reply.header(ALLOWED)), (405, ""));
    let call = async |server: &SimServer, origin| {
        let reply = http1(server.grpc, "POST", STATUS, &[JSON, ("Origin", origin)], TABLE.as_bytes()).await;
        assert_eq!(reply.status, 200);
        reply
    };
    assert_eq!(call(&closed, PAGE).await.header(ALLOWED), "");

    let named = server(|options| options.allowed_origins = vec![HeaderValue::from_static(PAGE)]).await;
    let reply = preflight(&named, PAGE).await;
    assert_eq!((reply.status, reply.header(ALLOWED)), (200, PAGE));
    assert_eq!(reply.header("access-control-allow-methods"), "POST");
    let headers = reply.header("access-control-allow-headers");
    assert!(headers.contains("content-type") && headers.contains("connect-protocol-version"), "{headers}");
    assert_eq!(preflight(&named, "https://evil.example").await.header(ALLOWED), "");
    let answer = call(&named, PAGE).await;
    assert_eq!(answer.header(ALLOWED), PAGE);
    assert!(answer.header("access-control-expose-headers").contains("grpc-status"));
    assert_eq!(call(&named, "https://evil.example").await.header(ALLOWED), "");

    let open = server(|options| options.allowed_origins = vec![HeaderValue::from_static("*")]).await;
    assert_eq!(preflight(&open, "https://evil.example").await.header(ALLOWED), "*");
}
