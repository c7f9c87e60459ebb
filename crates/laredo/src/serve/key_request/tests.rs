use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use super::*;

/// A server with the documents of an issuer, by path. It runs until the process ends.
pub(in crate::serve) struct TestIssuer {
    pub(in crate::serve) port: u16,
    documents: Arc<Mutex<BTreeMap<String, String>>>,
    /// The heads of all requests.
    heads: Arc<Mutex<Vec<String>>>,
}

impl TestIssuer {
    pub(in crate::serve) fn start(tls: Option<Arc<ServerConfig>>) -> TestIssuer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (documents, heads) =
            (Arc::<Mutex<BTreeMap<String, String>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let issuer = TestIssuer { port, documents: documents.clone(), heads: heads.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = |head: &str| {
                    heads.lock().push(head.to_owned());
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    documents.lock().get(path).cloned()
                };
                // A client that does not trust the certificate breaks the handshake.
                let _ = match &tls {
                    Some(tls) => {
                        let connection = ServerConnection::new(tls.clone()).unwrap();
                        exchange(StreamOwned::new(connection, stream), answer)
                    }
                    None => exchange(stream, answer),
                };
            }
        });
        issuer
    }

    /// Sets the answer at a path: the lines after `HTTP/1.1 `, and the body.
    pub(in crate::serve) fn set(&self, path: &str, head: &str, body: &str) {
        let answer = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        self.documents.lock().insert(path.to_owned(), answer);
    }

    fn requests(&self) -> Vec<String> {
        self.heads.lock().clone()
    }
}

fn exchange<S: Read + Write>(mut stream: S, answer: impl FnOnce(&str) -> Option<String>) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        head.push(byte[0]);
    }
    // Without a document, the answer never comes.
    let Some(answer) = answer(&String::from_utf8_lossy(&head)) else { return stream.read(&mut byte).map(drop) };
    stream.write_all(answer.as_bytes())?;
    stream.flush()
}

/// Returns a key set with keys of these names.
pub(in crate::serve) fn key_set(names: &[&str]) -> String {
    let key = |name: &&str| {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": name, "x": BASE64_URL_SAFE_NO_PAD.encode(pair.public_key_raw()) })
    };
    json!({ "keys": names.iter().map(key).collect::<Vec<_>>() }).to_string()
}

fn request(address: KeyAddress) -> KeyRequest {
    KeyRequest { address, ca_file: None, token_file: None }
}

#[tokio::test]
async fn keys_are_read_with_the_time_for_which_they_are_used() {
    let issuer = TestIssuer::start(None);
    let address = format!("http://127.0.0.1:{}/keys?a=b", issuer.port);
    for (cache, seconds) in [
        ("", 300),
        ("Cache-Control: public, max-age=600, must-revalidate\r\nX: y", 600),
        ("cache-control: Max-Age=0", 60),
        ("Cache-Control: max-age=999999999", 3600),
        ("Cache-Control: max-age=x", 300),
        ("Cache-Control: no-store", 300),
        ("Cache-Control: s-maxage=700\r\nCache-Control: max-age=800", 800),
    ] {
        let head = if cache.is_empty() { "200 OK".to_owned() } else { format!("200 OK\r\n{cache}") };
        issuer.set("/keys?a=b", &head, "text");
        let answer = request(KeyAddress::Keys(address.clone())).send().await.unwrap();
        assert_eq!((answer.body.as_slice(), answer.use_time.as_secs()), (b"text".as_slice(), seconds), "{cache}");
    }
    assert!(issuer.requests().iter().all(|head| !head.to_lowercase().contains("authorization")));
}

#[tokio::test]
async fn an_issuer_describes_where_its_keys_are() {
    let server = TestIssuer::start(None);
    let base = format!("http://127.0.0.1:{}", server.port);
    server.set("/keys", "200 OK\r\nCache-Control: max-age=90", "{}");
    for (path, issuer) in [("", base.clone()), ("/realms/a", format!("{base}/realms/a")), ("", format!("{base}/"))] {
        let description = json!({ "issuer": issuer, "jwks_uri": format!("{base}/keys"), "other": 1 }).to_string();
        server.set(&format!("{path}/.well-known/openid-configuration"), "200 OK", &description);
        let answer = request(KeyAddress::Issuer(issuer)).send().await.unwrap();
        assert_eq!((answer.body.as_slice(), answer.use_time.as_secs()), (b"{}".as_slice(), 90));
    }
    let fails = async |description: String| {
        server.set("/.well-known/openid-configuration", "200 OK", &description);
        request(KeyAddress::Issuer(base.clone())).send().await.unwrap_err()
    };
    let other = fails(json!({ "issuer": "https://other", "jwks_uri": format!("{base}/keys") }).to_string()).await;
    assert!(other.contains("describes the issuer \"https://other\""), "{other}");
    let plain = fails(json!({ "issuer": base, "jwks_uri": "http://issuer.example/keys" }).to_string()).await;
    assert!(plain.contains("\"http://issuer.example/keys\" is not an https:// address"), "{plain}");
    for wrong in ["", "[]", "{\"issuer\": 1}"] {
        let error = fails(wrong.to_owned()).await;
        assert!(error.contains("does not describe an issuer") && error.contains("set jwks_url"), "{error}");
    }
}

#[tokio::test]
async fn redirects_errors_and_long_answers_are_refused() {
    let server = TestIssuer::start(None);
    let address = format!("http://127.0.0.1:{}/keys", server.port);
    let long = "x".repeat(ANSWER_BYTES_MAX + 1);
    server.set("/elsewhere", "200 OK", "{}");
    for (head, body, reason) in [
        ("302 Found\r\nLocation: /elsewhere", "", "it redirects to \"/elsewhere\", which is not followed"),
        ("301 Moved\r\nLocation: http://other.example/", "", "it redirects to \"http://other.example/\""),
        ("500 Internal Server Error", "{}", "it answers 500 Internal Server Error"),
        ("404 Not Found", "{}", "it answers 404 Not Found"),
        ("200 OK", long.as_str(), "(at most 262144 bytes are read)"),
    ] {
        server.set("/keys", head, body);
        let error = request(KeyAddress::Keys(address.clone())).send().await.unwrap_err();
        assert!(error.starts_with(&format!("cannot read {address}: ")) && error.contains(reason), "{error}");
    }
    assert!(server.requests().iter().all(|head| head.starts_with("GET /keys ")), "no redirect was followed");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = request(KeyAddress::Keys(format!("http://{free}/"))).send().await.unwrap_err();
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_not_waited_for() {
    let server = TestIssuer::start(None);
    let address = format!("http://127.0.0.1:{}/silent", server.port);
    let error = request(KeyAddress::Keys(address)).send().await.unwrap_err();
    assert!(error.contains("no answer within 5 s"), "{error}");
}

#[tokio::test]
async fn a_server_is_checked_against_its_authority_and_sent_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let tls = builder.with_single_cert(vec![own.der().clone()], key).unwrap();
    let server = TestIssuer::start(Some(Arc::new(tls)));
    server.set("/keys", "200 OK", "{}");
    let (ca_file, token_file) = (folder.path().join("ca.pem"), folder.path().join("token"));
    std::fs::write(&ca_file, authority.pem()).unwrap();
    std::fs::write(&token_file, "a-token\n").unwrap();
    let address = KeyAddress::Keys(format!("https://127.0.0.1:{}/keys", server.port));
    let untrusted = request(address.clone()).send().await.unwrap_err();
    assert!(untrusted.to_lowercase().contains("certificate"), "{untrusted}");
    assert!(server.requests().iter().all(String::is_empty), "no request was sent: {:?}", server.requests());
    let request = KeyRequest { ca_file: Some(ca_file), token_file: Some(token_file.clone()), ..request(address) };
    assert_eq!(request.send().await.unwrap().body, b"{}");
    let head = server.requests().pop().unwrap();
    assert!(head.to_lowercase().contains("authorization: bearer a-token\r\n"), "{head}");
    std::fs::remove_file(token_file).unwrap();
    let error = request.send().await.unwrap_err();
    assert!(error.contains("cannot read ") && error.contains("/token: "), "{error}");
}
