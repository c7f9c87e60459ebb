//! Callers with JWTs of an identity provider: their rows, their refusals, and the provider's keys.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use laredo_client::Replica;
use laredo_core::TableName;
use laredo_server::{AccessToken, TokenHash};
use laredo_testkit::{ChildProcess, Cluster, ClusterOptions, eventually};
use parking_lot::Mutex;
use rcgen::{KeyPair, SigningKey as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::server::{PATIENCE, ServerProcess, ServerProcessConfig};

const ISSUER: &str = "https://issuer.example";
const ORDERS: &str = r#"{"schema":"public","table":"orders"}"#;

fn orders() -> TableName {
    TableName::new("public", "orders")
}

fn cluster() -> Cluster {
    let cluster = Cluster::start(ClusterOptions::default()).unwrap();
    let schema = "
        CREATE TABLE orders (id int PRIMARY KEY, tenant_id text NOT NULL);
        INSERT INTO orders SELECT n, CASE n % 3 WHEN 0 THEN 'acme' WHEN 1 THEN 'globex' ELSE 'other' END
            FROM generate_series(1, 300) n";
    cluster.psql(schema).unwrap();
    cluster
}

/// A key of an identity provider.
struct IssuerKey {
    id: &'static str,
    pair: KeyPair,
}

impl IssuerKey {
    fn new(id: &'static str) -> IssuerKey {
        IssuerKey { id, pair: KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap() }
    }

    fn sign(&self, claims: &Value) -> String {
        let encode = |json: Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        let header = json!({ "alg": "EdDSA", "kid": self.id, "typ": "JWT" });
        let signed = format!("{}.{}", encode(header), encode(claims.clone()));
        let signature = self.pair.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Returns a JSON Web Key Set.
fn key_set(keys: &[&IssuerKey]) -> String {
    let key = |key: &&IssuerKey| {
        let x = BASE64_URL_SAFE_NO_PAD.encode(key.pair.public_key_raw());
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": key.id, "x": x })
    };
    json!({ "keys": keys.iter().map(key).collect::<Vec<_>>() }).to_string()
}

/// Returns the claims of a caller of these tenants, which are valid for the seconds from now on.
fn claims(cluster: &Cluster, subject: &str, tenants: &[&str], seconds: i64) -> Value {
    let now = cluster.psql("SELECT extract(epoch FROM now())::bigint").unwrap();
    let exp = now.trim().parse::<i64>().unwrap() + seconds;
    json!({ "iss": ISSUER, "aud": ["laredo"], "sub": subject, "exp": exp, "app": { "tenants": tenants } })
}

fn observer() -> AccessToken {
    AccessToken::from_random([7; 32])
}

/// Returns a server whose readers have JWTs, with these keys of the block `jwt`.
fn config(cluster: &Cluster, keys: &str) -> ServerProcessConfig {
    let mut config = ServerProcessConfig::new(cluster.url("postgres"), [orders()]);
    config.extra = format!(
        "access {{
            identities {{
                tenant {{ jwt {{ issuer = \"{ISSUER}\", audiences = [laredo], leeway = 0s, {keys} }} }}
                observer {{ tokens = [{{ sha256 = {} }}] }}
            }}
            readers = [{{
                identities = [tenant], tables = [public.orders]
                rows = [{{ type = field-equals, field = tenant_id, value = \"${{claims.app.tenants}}\" }}]
            }}]
            observers = [{{ identities = [observer] }}]
        }}",
        TokenHash::of(observer().expose()),
    );
    config
}

/// Calls a method with curl. Returns the code of HTTP and the body.
fn curl(server: &ServerProcess, url: &str, token: &str, arguments: &[&str]) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--write-out", "\n%{http_code}"]).args(arguments);
    let output = curl.args(["--header", &format!("Authorization: Bearer {token}")]).arg(url).output();
    let output = output.expect("curl is installed");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, code) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{}", server.process.output().join("\n")));
    (code.parse().unwrap(), body.to_owned())
}

/// Asks for the status of the table, as any caller with a grant may.
fn ask(server: &ServerProcess, token: &str) -> (u16, String) {
    let url = format!("{}/laredo.replication.v1.LaredoReplicationService/GetReplicationStatus", server.url());
    curl(server, &url, token, &["--header", "Content-Type: application/json", "--data", ORDERS])
}

async fn is_accepted(server: &ServerProcess, token: &str) {
    let accepted = eventually(PATIENCE, async || ask(server, token).0 == 200).await;
    assert!(accepted.is_ok(), "{:?}\n{}", ask(server, token), server.process.output().join("\n"));
}

fn hang_up(process: &ChildProcess) {
    kill_process(Pid::from_raw(process.id().cast_signed()).unwrap(), Signal::HUP).unwrap();
}

async fn metrics(server: &ServerProcess) -> String {
    let url = format!("http://127.0.0.1:{}/metrics", server.ports.metrics);
    let (code, body) = curl(server, &url, observer().expose(), &[]);
    assert_eq!(code, 200, "{body}");
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_a_jwt_reads_the_rows_of_its_claims_until_it_expires() {
    let (cluster, folder, key) = (cluster(), tempfile::tempdir().unwrap(), IssuerKey::new("one"));
    let file = folder.path().join("keys.json");
    std::fs::write(&file, key_set(&[&key])).unwrap();
    let mut server = config(&cluster, &format!("jwks_file = \"{}\"", file.display())).start().await;
    server.ends_unverified();
    let token = key.sign(&claims(&cluster, "auth0|1", &["acme", "globex"], 600));
    assert_eq!(ask(&server, &token).0, 200);
    let replica = Replica::builder(server.url(), orders()).token(&token).client_id("service").start().unwrap();
    replica.ready(PATIENCE).await.unwrap();
    let tenants = |replica: &Replica| {
        let mut tenants = BTreeMap::new();
        let view = replica.view();
        view.rows().for_each(|row| *tenants.entry(row.get::<String>("tenant_id").unwrap()).or_insert(0) += 1);
        tenants
    };
    assert_eq!(tenants(&replica), [("acme".to_owned(), 100), ("globex".to_owned(), 100)].into());
    let (_, status) = ask(&server, &token);
    assert!(status.contains("tenant/auth0|1/service"), "the client has the name of its identity: {status}");

    let short = key.sign(&claims(&cluster, "auth0|2", &["acme"], 10));
    let ending = Replica::builder(server.url(), orders()).token(&short).start().unwrap();
    ending.ready(PATIENCE).await.unwrap();
    let has_ended = async || ending.status().error.is_some_and(|error| error.to_string().contains("expired"));
    assert!(eventually(PATIENCE, has_ended).await.is_ok(), "{:?}", ending.status());
    assert_eq!(ask(&server, &short).0, 401);
    assert!(replica.status().error.is_none());
    replica.stop().await;
    ending.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_jwt_is_refused_with_its_reason_at_every_port() {
    let (cluster, folder, key) = (cluster(), tempfile::tempdir().unwrap(), IssuerKey::new("one"));
    let file = folder.path().join("keys.json");
    std::fs::write(&file, key_set(&[&key])).unwrap();
    let mut server = config(&cluster, &format!("jwks_file = \"{}\"", file.display())).start().await;
    server.ends_unverified();
    let right = claims(&cluster, "a", &["acme"], 600);
    let with = |name: &str, value: Value| {
        let mut claims = right.clone();
        claims[name] = value;
        key.sign(&claims)
    };
    let unsigned = {
        let encode = |json: Value| BASE64_URL_SAFE_NO_PAD.encode(json.to_string());
        format!("{}.{}.", encode(json!({ "alg": "none" })), encode(right.clone()))
    };
    for (token, reason) in [
        (with("aud", json!("other")), "another audience"),
        (with("iss", json!("https://other.example")), "issuer"),
        (with("exp", json!(1_000_000_000)), "expired"),
        (with("nbf", json!(4_000_000_000_i64)), "not valid yet"),
        (with("sub", json!(null)), "subject"),
        (unsigned, "algorithm"),
        (IssuerKey::new("one").sign(&right), "signature is wrong"),
        (IssuerKey::new("two").sign(&right), "does not publish"),
        ("a.b.c".to_owned(), "malformed"),
    ] {
        let (code, body) = ask(&server, &token);
        assert!(code == 401 && body.contains(reason), "{reason}: {code} {body}");
        for (port, path) in [(server.ports.health, "/health/ready"), (server.ports.metrics, "/metrics")] {
            let (code, body) = curl(&server, &format!("http://127.0.0.1:{port}{path}"), &token, &[]);
            assert!(code == 401 && body.contains(reason), "{path} {reason}: {code} {body}");
        }
    }
    let (code, _) = ask(&server, &with("padding", json!("x".repeat(60_000))));
    assert!([401, 431].contains(&code), "{code}");
    assert_eq!(ask(&server, &key.sign(&right)).0, 200);
    let output = server.process.output().join("\n");
    assert!(output.contains("\"audit\"") && !output.contains(&key.sign(&right)), "no token is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_a_file_are_replaced_while_the_server_runs() {
    let (cluster, folder) = (cluster(), tempfile::tempdir().unwrap());
    let (old, new) = (IssuerKey::new("old"), IssuerKey::new("new"));
    let file = folder.path().join("keys.json");
    let config = config(&cluster, &format!("jwks_file = \"{}\"", file.display()));
    let refused = config.launch();
    assert!(!refused.process.wait(PATIENCE).await.unwrap().success(), "a file that is missing is refused at the start");
    let output = refused.process.output().join("\n");
    assert!(output.contains("access.identities.tenant.jwt.jwks_file: cannot read"), "{output}");
    drop_unverified(refused);

    std::fs::write(&file, key_set(&[&old])).unwrap();
    let mut server = config.start().await;
    server.ends_unverified();
    let claims = claims(&cluster, "a", &["acme"], 600);
    assert_eq!(ask(&server, &old.sign(&claims)).0, 200);
    replace(&file, &key_set(&[&new]));
    hang_up(&server.process);
    is_accepted(&server, &new.sign(&claims)).await;
    assert_eq!(ask(&server, &old.sign(&claims)).0, 401);
    // Without a signal, the file is read every ten seconds.
    replace(&file, &key_set(&[&new, &old]));
    is_accepted(&server, &old.sign(&claims)).await;
    replace(&file, "{");
    let failed = format!("laredo_jwt_keys_failed{{source=\"{}\"}} 1", file.display());
    let has_failed = async || metrics(&server).await.contains(&failed);
    assert!(eventually(PATIENCE, has_failed).await.is_ok(), "{}", metrics(&server).await);
    assert_eq!(ask(&server, &new.sign(&claims)).0, 200, "the previous keys remain");
}

fn drop_unverified(mut server: ServerProcess) {
    server.ends_unverified();
}

/// Replaces a file in one step.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// The keys of an issuer over HTTP. Without a set, it answers 503.
struct KeyServer {
    port: u16,
    set: Arc<Mutex<Option<String>>>,
}

impl KeyServer {
    async fn start() -> KeyServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let set = Arc::<Mutex<Option<String>>>::default();
        let served = set.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (code, body) = match served.lock().clone() {
                    Some(set) => ("200 OK", set),
                    None => ("503 Service Unavailable", String::new()),
                };
                let length = body.len();
                let answer = format!("HTTP/1.1 {code}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
                // The head of a request for keys is shorter.
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        KeyServer { port, set }
    }

    fn set(&self, set: Option<String>) {
        *self.set.lock() = set;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_of_an_address_may_come_late_change_and_go_away() {
    let (cluster, issuer) = (cluster(), KeyServer::start().await);
    let (old, new) = (IssuerKey::new("old"), IssuerKey::new("new"));
    let url = format!("http://127.0.0.1:{}/keys", issuer.port);
    let mut server = config(&cluster, &format!("jwks_url = \"{url}\"")).start().await;
    server.ends_unverified();
    let claims = claims(&cluster, "a", &["acme"], 600);
    let (code, body) = ask(&server, &old.sign(&claims));
    assert!(code == 503 && body.contains("no keys of the JWT's issuer yet"), "{code} {body}");
    issuer.set(Some(key_set(&[&old])));
    is_accepted(&server, &old.sign(&claims)).await;

    // The next reading on time is in five minutes. A token with an unknown key causes it earlier.
    issuer.set(Some(key_set(&[&old, &new])));
    is_accepted(&server, &new.sign(&claims)).await;

    issuer.set(None);
    hang_up(&server.process);
    let failed = format!("laredo_jwt_keys_failed{{source=\"{url}\"}} 1");
    let has_failed = async || metrics(&server).await.contains(&failed);
    assert!(eventually(PATIENCE, has_failed).await.is_ok(), "{}", metrics(&server).await);
    assert!(metrics(&server).await.contains(&format!("laredo_jwt_keys{{source=\"{url}\"}} 2")));
    for key in [&old, &new] {
        assert_eq!(ask(&server, &key.sign(&claims)).0, 200, "the previous keys remain");
    }
    let problem = format!("the keys of JWTs: cannot read {url}: it answers 503");
    let lines = server.process.output().into_iter().filter(|line| line.contains(&problem)).count();
    assert_eq!(lines, 2, "each outage is logged once:\n{}", server.process.output().join("\n"));
}
