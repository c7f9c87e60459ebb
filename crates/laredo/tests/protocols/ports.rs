//! The ports of real processes: addresses, orders from this machine and from elsewhere, limits of
//! connections and of requests.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use laredo_testkit::{Cluster, eventually};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};
use super::{cluster, item};

const RELOAD: &str = "laredo.v1.LaredoOAMService/ReloadAll";
const STATUS: &str = "laredo.v1.LaredoOAMService/GetStatus";
const ROWS: &str = "laredo.replication.v1.LaredoReplicationService/GetReplicationStatus";
const ITEM: &str = r#"{"schema":"public","table":"item"}"#;

/// Returns an address of this machine that is not loopback. No packet is sent.
fn outer_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("this machine has a network");
    let address = socket.local_addr().unwrap().ip();
    assert!(!address.is_loopback(), "this machine has no address but loopback");
    address
}

fn config(cluster: &Cluster, extra: &str) -> ServerProcessConfig {
    ServerProcessConfig { extra: extra.to_owned(), ..ServerProcessConfig::new(cluster.url("postgres"), [item()]) }
}

/// Calls with curl. Returns the status code and the body.
fn curl(arguments: &[&str]) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "\n%{http_code}"]).args(arguments);
    let output: Output = curl.output().expect("curl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or_default();
    (code.parse().unwrap_or(0), format!("{body}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Posts JSON in Connect. Returns the status code and the answer.
fn post(to: SocketAddr, method: &str, body: &str, more: &[&str]) -> (u16, Value) {
    let url = format!("http://{to}/{method}");
    let arguments = [&["--header", "Content-Type: application/json", "--data", body, &url], more].concat();
    let (code, body) = curl(&arguments);
    (code, serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_taken_from_this_machine_and_reads_from_everywhere() {
    let cluster = cluster();
    let server = config(&cluster, "").start().await;
    let here = SocketAddr::from(([127, 0, 0, 1], server.ports.grpc));
    let there = SocketAddr::from((outer_address(), server.ports.grpc));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let (code, answer) = post(there, RELOAD, "{}", &[version]);
        assert_eq!((code, &answer["code"]), (403, &Value::from("permission_denied")), "{answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(&outer_address().to_string()) && message.contains("127.0.0.1"), "{message}");
        assert_eq!(post(there, STATUS, "{}", &[version]).0, 200);
        assert_eq!(post(there, ROWS, ITEM, &[version]).1["rowCount"], "500");
        let (code, answer) = post(here, RELOAD, "{}", &[version]);
        assert_eq!((code, &answer["accepted"]), (200, &Value::Bool(true)), "{answer}");
    }
    // The refusal needs no body: it comes while the client has sent the head alone.
    let mut stream = TcpStream::connect(there).await.unwrap();
    let head = format!(
        "POST /{RELOAD} HTTP/1.1\r\nHost: {there}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_are_refused_in_every_protocol() {
    use laredo_proto::oam::ReloadAllRequest;
    use laredo_proto::oam::laredo_oam_service_client::LaredoOamServiceClient;
    let cluster = cluster();
    let server = config(&cluster, "").start().await;
    let there = SocketAddr::from((outer_address(), server.ports.grpc));
    let channel = tonic::transport::Channel::from_shared(format!("http://{there}")).unwrap().connect().await.unwrap();
    let refused = LaredoOamServiceClient::new(channel).reload_all(ReloadAllRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert!(refused.message().contains("orders are accepted only from the same machine"), "{refused}");
    let url = format!("http://{there}/{RELOAD}");
    let frame = "@-";
    let mut curl = Command::new("sh");
    curl.arg("-c").arg(format!(
        "printf '\\0\\0\\0\\0\\0' | curl --silent --header 'Content-Type: application/grpc-web' --data-binary {frame} {url}"
    ));
    let answer = curl.output().unwrap().stdout;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("grpc-status: 7"), "{answer}");
    assert_eq!(server.metric("laredo_copies_total", &item()).await, Some(1), "nothing was reloaded");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_gives_an_order_even_if_its_origin_may_read() {
    let cluster = cluster();
    let server = config(&cluster, "grpc.allowed_origins = [\"*\"]").start().await;
    let here = SocketAddr::from(([127, 0, 0, 1], server.ports.grpc));
    for header in ["Origin: https://console.example", "Origin: null", "Sec-Fetch-Site: same-origin"] {
        let (code, answer) = post(here, RELOAD, "{}", &["--header", header]);
        assert_eq!((code, &answer["code"]), (403, &Value::from("permission_denied")), "{header}: {answer}");
        assert_eq!(post(here, ROWS, ITEM, &["--header", header]).0, 200, "{header}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_serves_the_operator_and_a_port_can_be_of_loopback_alone() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let socket = folder.path().join("laredo.sock");
    let health = folder.path().join("health.sock");
    let extra = format!(
        "grpc.address = \"unix:{}\"\nfanout.grpc.address = \"127.0.0.1\"\nhealth.address = \"unix:{}\"\n\
         observability.metrics.address = \"127.0.0.1\"",
        socket.display(),
        health.display()
    );
    let mut server = config(&cluster, &extra).launch();
    server.ends_unverified();
    let ready = async || get_by_socket(&health, "/health/ready").0 == 200;
    assert!(eventually(PATIENCE, ready).await.is_ok(), "{}", server.process.output().join("\n"));
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);

    let socket_text = socket.display().to_string();
    let url = format!("http://localhost/{RELOAD}");
    let json = ["--header", "Content-Type: application/json", "--data", "{}"];
    let (code, answer) = curl(&[&["--unix-socket", &socket_text, &url], &json[..]].concat());
    assert_eq!(code, 200, "{answer}");
    let mut status = Command::new(env!("CARGO_BIN_EXE_laredo"));
    status.args(["source", "--oam", &format!("unix:{socket_text}")]);
    let status = status.output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));

    let outer = SocketAddr::from((outer_address(), server.ports.fanout));
    assert_eq!(TcpStream::connect(outer).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let inner = SocketAddr::from(([127, 0, 0, 1], server.ports.fanout));
    assert_eq!(post(inner, ROWS, ITEM, &[]).0, 200);
    let metrics = format!("http://127.0.0.1:{}/metrics", server.ports.metrics);
    assert_eq!(curl(&[&metrics]).0, 200);
    // A killed process leaves its socket, which the next one replaces.
    drop(server.relaunch().await);
    assert!(eventually(PATIENCE, ready).await.is_ok(), "{}", server.process.output().join("\n"));
}

fn get_by_socket(socket: &Path, path: &str) -> (u16, String) {
    curl(&["--unix-socket", &socket.display().to_string(), &format!("http://localhost{path}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_port_is_logged_and_open_ones_are_warned_of() {
    let cluster = cluster();
    let server = config(&cluster, "grpc.address = \"127.0.0.1\"").start().await;
    let lines = server.process.output();
    let listening: Vec<&String> = lines.iter().filter(|line| line.contains("\"listening\"")).collect();
    assert_eq!(listening.len(), 4, "{lines:#?}");
    assert!(listening[0].contains("grpc.port") && listening[0].contains("by this machine"), "{}", listening[0]);
    assert!(listening[0].contains("orders only from this machine"), "{}", listening[0]);
    assert!(listening[1].contains("every host"), "{}", listening[1]);
    let warnings: Vec<&String> = lines.iter().filter(|line| line.contains("in plain text")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("tables[0].targets[0].grpc.port"), "{}", warnings[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_access_the_log_says_that_orders_come_from_any_machine() {
    let cluster = cluster();
    let access = format!("access {{ identities {{ a {{ tokens = [{{ sha256 = \"{}\" }}] }} }} }}", "0".repeat(64));
    let mut server = config(&cluster, &access).start().await;
    let lines = server.process.output();
    let listening = lines.iter().find(|line| line.contains("\"listening\"")).unwrap();
    assert!(listening.contains("orders from any machine"), "{listening}");
    // No identity may compare the tables.
    server.ends_unverified();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_public_name_is_refused_on_every_port_unless_it_is_listed() {
    let cluster = cluster();
    let server = config(&cluster, "allowed_hosts = [\"laredo.example.com\"]").start().await;
    let ports = server.ports;
    let urls = [
        format!("http://127.0.0.1:{}/{STATUS}", ports.grpc),
        format!("http://127.0.0.1:{}/{ROWS}", ports.fanout),
        format!("http://127.0.0.1:{}/health/live", ports.health),
        format!("http://127.0.0.1:{}/metrics", ports.metrics),
    ];
    for url in &urls {
        for (host, is_allowed) in [("evil.example", false), ("laredo.example.com", true), ("laredo:4002", true)] {
            let host_header = format!("Host: {host}");
            let (code, answer) = curl(&["--header", &host_header, url]);
            assert_eq!(code != 421, is_allowed, "{url} {host}: {code} {answer}");
            assert!(is_allowed || answer.contains("allowed_hosts"), "{answer}");
        }
    }
    let (code, answer) = curl(&["--http2-prior-knowledge", "--header", "Host: evil.example", &urls[0]]);
    assert_eq!(code, 421, "{answer}");
}

/// Opens a connection in HTTP/2 and returns the settings that the server sends, by their number.
async fn settings(to: SocketAddr) -> Vec<(u16, u32)> {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "the first frame has the settings");
    let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
    stream.read_exact(&mut payload).await.unwrap();
    let setting =
        |six: &[u8]| (u16::from_be_bytes([six[0], six[1]]), u32::from_be_bytes([six[2], six[3], six[4], six[5]]));
    payload.chunks_exact(6).map(setting).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_a_limit_of_streams_and_of_headers() {
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    const MAX_HEADER_LIST_SIZE: u16 = 6;
    let cluster = cluster();
    let server = config(&cluster, "").start().await;
    for port in [server.ports.grpc, server.ports.fanout] {
        let here = SocketAddr::from(([127, 0, 0, 1], port));
        let settings = settings(here).await;
        assert!(settings.contains(&(MAX_CONCURRENT_STREAMS, 256)), "{settings:?}");
        assert!(settings.contains(&(MAX_HEADER_LIST_SIZE, 16 * 1024)), "{settings:?}");
        let long = format!("X-Long: {}", "x".repeat(40_000));
        let (code, answer) = post(here, ROWS, ITEM, &["--http2-prior-knowledge", "--header", &long]);
        assert!([0, 431].contains(&code), "{code} {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_has_a_limit_of_connections_and_serves_again_after_it() {
    let cluster = cluster();
    let server = config(&cluster, "grpc.max_connections = 8").start().await;
    let here = SocketAddr::from(([127, 0, 0, 1], server.ports.fanout));
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(here).await.unwrap();
        // A connection that has begun to speak is not closed for silence at once.
        stream.write_all(b"POST / HTTP/1.1\r\n").await.unwrap();
        held.push(stream);
    }
    let is_warned = async || server.process.output().iter().any(|line| line.contains("its maximum of connections"));
    let mut ninth = TcpStream::connect(here).await.unwrap();
    ninth.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(eventually(PATIENCE, is_warned).await.is_ok());
    drop(held);
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE, ninth.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 405");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_end_is_refused_in_time() {
    let cluster = cluster();
    let server: ServerProcess = config(&cluster, "").start().await;
    let here = SocketAddr::from(([127, 0, 0, 1], server.ports.grpc));
    // A unary method in plain gRPC: the prefix announces a message that never comes.
    let (mut client, connection) = h2::client::handshake(TcpStream::connect(here).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{here}/{STATUS}")).header("content-type", "application/grpc");
    let (response, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(vec![0, 0, 0, 16, 0].into(), false).unwrap();
    let response = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap();
    assert_eq!(response.headers()["grpc-status"], "3", "{response:?}");
    // One that is larger than any request is refused as it arrives.
    let too_large = vec![b' '; (1 << 20) + (64 << 10)];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, too_large).unwrap();
    let from = format!("@{}", file.display());
    for content_type in ["application/json", "application/proto", "application/grpc-web"] {
        let header = format!("Content-Type: {content_type}");
        let url = format!("http://{here}/{STATUS}");
        let (code, answer) = curl(&["--header", &header, "--data-binary", &from, &url]);
        assert!(answer.contains("larger") || code == 400, "{content_type}: {code} {answer}");
    }
}
