//! TLS. If an authority is configured, only clients with its certificates are served.

use crate::support::{GrpcTestClient, SimServer, SimpleReplica, request, serve_with};
use laredo_proto::replication::RowEncoding;
use laredo_server::{ServeError, Server, ServerListeners, ServerOptions, ServerTlsOptions};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::SimDatabase;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

struct ServerTlsAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl ServerTlsAuthority {
    fn new() -> ServerTlsAuthority {
        let mut params = CertificateParams::default();
        // The authority has a name of its own. OpenSSL takes a certificate whose issuer has the
        // same name for self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ServerTlsAuthority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Returns a certificate and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

async fn connect(server: &SimServer, tls: ClientTlsConfig) -> Result<GrpcTestClient, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://localhost:{}", server.grpc.port()))?;
    Ok(GrpcTestClient::new(endpoint.tls_config(tls)?.connect().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_their_certificate() {
    let authority = ServerTlsAuthority::new();
    let (certificate, key) = authority.issue("localhost");
    let ca = authority.issuer.pem();
    let tls = ServerTlsOptions {
        certificate: certificate.into_bytes(),
        key: key.into_bytes(),
        client_ca: Some(ca.clone().into_bytes()),
    };
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let server = serve_with(&database, "a", 1, |options| options.tls = Some(tls)).await;
    let trusting = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca)).domain_name("localhost");
    let (certificate, key) = authority.issue("client");
    let mut client = connect(&server, trusting().identity(Identity::from_pem(certificate, key))).await.unwrap();
    let mut stream = client.sync(request(RowEncoding::Struct)).await.unwrap().into_inner();
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;
    assert_eq!(replica.rows.len(), 1);
    // A connection without a certificate may fail at once or with its first request, depending on
    // TLS.
    if let Ok(mut stranger) = connect(&server, trusting()).await {
        stranger.sync(request(RowEncoding::Struct)).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served_in_either_http() {
    let authority = ServerTlsAuthority::new();
    let (certificate, key) = authority.issue("localhost");
    let tls = ServerTlsOptions { certificate: certificate.into_bytes(), key: key.into_bytes(), client_ca: None };
    let server = serve_with(&SimDatabase::new(1), "a", 1, |options| options.tls = Some(tls)).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.issuer.pem()).unwrap();
    server.ready().await;
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--show-error", flag, "--cacert"]).arg(&ca);
        curl.args(["--header", "Content-Type: application/json", "--data", r#"{"schema":"public","table":"t0"}"#]);
        curl.args(["--write-out", "\\n%{http_version} %{http_code}"]);
        curl.arg(format!("https://localhost:{}{}", server.grpc.port(), crate::support::http::STATUS));
        let output = crate::support::within(curl.output(), "curl").await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (answer, outcome) = text.rsplit_once('\n').unwrap();
        assert_eq!(outcome, format!("{version} 200"), "{text} {}", String::from_utf8_lossy(&output.stderr));
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        assert!(answer["currentSequence"].is_string(), "{answer}");
    }
}

#[tokio::test]
async fn a_broken_certificate_is_an_error_at_once() {
    let tls = ServerTlsOptions { certificate: b"no".to_vec(), key: b"no".to_vec(), client_ca: None };
    let clock: laredo_engine::Clock = std::sync::Arc::new(|| laredo_core::CommitTime(0));
    let (sources, tables, allowed_origins, http, waits) = Default::default();
    let dropped_log_lines = || 0_u64;
    let options =
        ServerOptions { sources, tables, tls: Some(tls), allowed_origins, http, waits, clock, dropped_log_lines };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listeners = ServerListeners { grpc: vec![listener], ..ServerListeners::default() };
    let served = Server::new(options).serve(listeners, std::future::pending()).await;
    assert!(matches!(served, Err(ServeError::Tls(_))), "{served:?}");
}
