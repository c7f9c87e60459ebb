//! TLS. If an authority is configured, only clients with its certificates are served.

use crate::support::{GrpcTestClient, SimServer, SimpleReplica, request, serve_with_tls, serve_with_tls_and};
use laredo_proto::replication::{GetReplicationStatusRequest, RowEncoding};
use laredo_server::{
    AccessGrants, AccessOptions, GrantSubjects, IdentityOptions, NamePattern, ReaderGrant, ServerTls, ServerTlsOptions,
    TlsFile,
};
use laredo_testkit::SimChange::Insert;
use laredo_testkit::SimDatabase;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::Code;
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

    /// Returns the options of a server for `localhost`. `asks_clients` requires a certificate of
    /// this authority from them.
    fn server_options(&self, asks_clients: bool) -> ServerTlsOptions {
        let (certificate, key) = self.issue("localhost");
        let client_ca = asks_clients.then(|| self.issuer.pem().into_bytes());
        ServerTlsOptions { certificate: certificate.into_bytes(), key: key.into_bytes(), client_ca }
    }
}

async fn connect(server: &SimServer, tls: ClientTlsConfig) -> Result<GrpcTestClient, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://localhost:{}", server.grpc.port()))?;
    Ok(GrpcTestClient::new(endpoint.tls_config(tls)?.connect().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_their_certificate() {
    let authority = ServerTlsAuthority::new();
    let (tls, ca) = (authority.server_options(true), authority.issuer.pem());
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let server = serve_with_tls(&database, ServerTls::new("server", &tls).unwrap()).await;
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
    let tls = authority.server_options(false);
    let server = serve_with_tls(&SimDatabase::new(1), ServerTls::new("server", &tls).unwrap()).await;
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

#[test]
fn every_broken_file_is_named() {
    let tls = ServerTlsOptions { certificate: b"no".to_vec(), key: b"no".to_vec(), client_ca: Some(b"no".to_vec()) };
    let problems = ServerTls::new("server", &tls).unwrap_err();
    let files: Vec<TlsFile> = problems.iter().map(|(file, _)| *file).collect();
    assert_eq!(files, [TlsFile::Certificate, TlsFile::Key, TlsFile::ClientCa]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_for_new_connections_and_a_broken_one_changes_nothing() {
    let [old, new] = [ServerTlsAuthority::new(), ServerTlsAuthority::new()];
    let files = |authority: &ServerTlsAuthority| authority.server_options(false);
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let tls = ServerTls::new("server", &files(&old)).unwrap();
    let server = serve_with_tls(&database, tls.clone()).await;
    let trusting = |authority: &ServerTlsAuthority| {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.issuer.pem())).domain_name("localhost")
    };
    let mut client = connect(&server, trusting(&old)).await.unwrap();
    let mut stream = client.sync(request(RowEncoding::Struct)).await.unwrap().into_inner();
    let mut replica = SimpleReplica::default();
    replica.read_to(&mut stream, database.end()).await;

    let broken = ServerTlsOptions { key: b"no".to_vec(), ..files(&new) };
    tls.replace(&broken).unwrap_err();
    connect(&server, trusting(&old)).await.unwrap();
    tls.replace(&files(&new)).unwrap();
    connect(&server, trusting(&old)).await.unwrap_err();
    connect(&server, trusting(&new)).await.unwrap();

    // The stream of the first connection continues.
    database.commit(0, vec![Insert(2, "b".to_owned())]);
    replica.read_to(&mut stream, database.end()).await;
    assert_eq!(replica.rows.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_a_certificate_is_the_identity_of_its_client() {
    let authority = ServerTlsAuthority::new();
    let (tls, ca) = (authority.server_options(true), authority.issuer.pem());
    let subjects = GrantSubjects { identities: vec!["mesh".to_owned()], ..GrantSubjects::default() };
    let tables = vec!["public.*".parse().unwrap()];
    let access = AccessOptions {
        identities: vec![IdentityOptions {
            name: "mesh".to_owned(),
            certificates: vec![NamePattern::new("*.reader.example")],
            ..IdentityOptions::default()
        }],
        grants: AccessGrants {
            readers: vec![ReaderGrant {
                subjects,
                tables,
                rows: Vec::new(),
                hidden_columns: Vec::new(),
                masked_columns: Vec::new(),
            }],
            ..AccessGrants::default()
        },
        ..AccessOptions::default()
    };
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let tls = ServerTls::new("server", &tls).unwrap();
    let server = serve_with_tls_and(&database, tls, |options| options.access = Some(access)).await;
    for (name, code) in [
        ("web.reader.example", None),
        ("web.writer.example", Some(Code::Unauthenticated)),
        ("a.web.reader.example", Some(Code::Unauthenticated)),
    ] {
        let (certificate, key) = authority.issue(name);
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca)).domain_name("localhost");
        let mut client = connect(&server, tls.identity(Identity::from_pem(certificate, key))).await.unwrap();
        let answered = client.sync(request(RowEncoding::Struct)).await;
        assert_eq!(answered.as_ref().err().map(tonic::Status::code), code, "{name}");
        if let Ok(answered) = answered {
            let mut replica = SimpleReplica::default();
            let mut stream = answered.into_inner();
            replica.read_to(&mut stream, database.end()).await;
            assert_eq!(replica.rows.len(), 1, "{name}");
            let name = GetReplicationStatusRequest { schema: "public".to_owned(), table: "t0".to_owned() };
            let status = client.get_replication_status(name).await.unwrap().into_inner();
            assert!(status.clients[0].client_id.starts_with("mesh/web.reader.example"), "{status:?}");
        }
    }
}
