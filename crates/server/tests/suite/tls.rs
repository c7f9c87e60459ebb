//! TLS. If an authority is configured, only clients with its certificates are served.

use std::sync::{Arc, Mutex};

use crate::support::{GrpcTestClient, SimServer, SimpleReplica, request, serve_with_tls, serve_with_tls_and};
use laredo_core::CommitTime;
use laredo_proto::replication::sync_response::Message;
use laredo_proto::replication::{GetReplicationStatusRequest, RowEncoding};
use laredo_server::{
    AccessGrants, AccessOptions, AccessRules, AccessToken, ClientCertificates, GrantSubjects, IdentityOptions,
    NamePattern, ReaderGrant, ServerTls, ServerTlsOptions, TlsFile, TokenOptions,
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
        let [certificate, key] = [certificate, key].map(String::into_bytes);
        ServerTlsOptions { certificate, key, client_ca, client_certificates: ClientCertificates::Required }
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
    let [certificate, key, client_ca] = [(); 3].map(|()| b"no".to_vec());
    let client_certificates = ClientCertificates::Required;
    let tls = ServerTlsOptions { certificate, key, client_ca: Some(client_ca), client_certificates };
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

/// Returns the rules for one reader, `mesh`, which is known by its certificate or by tokens.
fn mesh_access(tokens: Vec<TokenOptions>) -> AccessOptions {
    let subjects = GrantSubjects { identities: vec!["mesh".to_owned()], ..GrantSubjects::default() };
    let tables = vec!["public.*".parse().unwrap()];
    AccessOptions {
        identities: vec![IdentityOptions {
            name: "mesh".to_owned(),
            tokens,
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
    }
}

fn rules(options: AccessOptions) -> AccessRules {
    AccessRules::new(options, crate::support::clock())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_certificate_is_checked_if_it_is_shown() {
    let [authority, stranger] = [ServerTlsAuthority::new(), ServerTlsAuthority::new()];
    let options =
        ServerTlsOptions { client_certificates: ClientCertificates::Optional, ..authority.server_options(true) };
    let token = AccessToken::from_random([7; 32]);
    let access = mesh_access(vec![TokenOptions { hash: token.hash(), expires_at: None }]);
    let tls = ServerTls::new("server", &options).unwrap();
    let server = serve_with_tls_and(&SimDatabase::new(1), tls, |options| options.access = Some(rules(access))).await;
    let ca = authority.issuer.pem();
    let trusting = || ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca)).domain_name("localhost");
    let identity = |(certificate, key): (String, String)| Identity::from_pem(certificate, key);
    let with_token = || {
        let mut request = tonic::Request::new(request(RowEncoding::Struct));
        request.metadata_mut().insert("authorization", format!("Bearer {}", token.expose()).parse().unwrap());
        request
    };
    let code = |answered: Result<tonic::Response<_>, tonic::Status>| answered.map(drop).map_err(|status| status.code());
    let mut bare = connect(&server, trusting()).await.unwrap();
    assert_eq!(code(bare.sync(request(RowEncoding::Struct)).await), Err(Code::Unauthenticated), "neither");
    assert_eq!(code(bare.sync(with_token()).await), Ok(()), "a token alone");
    let known = identity(authority.issue("web.reader.example"));
    let mut known = connect(&server, trusting().identity(known)).await.unwrap();
    assert_eq!(code(known.sync(request(RowEncoding::Struct)).await), Ok(()), "a certificate alone");
    // A certificate that is shown may fail at once or with the first request, depending on TLS.
    let unknown = identity(stranger.issue("web.reader.example"));
    if let Ok(mut unknown) = connect(&server, trusting().identity(unknown)).await {
        let refused = unknown.sync(with_token()).await.expect_err("another authority has signed the certificate");
        assert_ne!(refused.code(), Code::Unauthenticated, "the handshake fails: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_judged_again_when_the_rules_are_replaced() {
    let authority = ServerTlsAuthority::new();
    let (tls, ca) = (authority.server_options(true), authority.issuer.pem());
    let rules = rules(mesh_access(Vec::new()));
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let tls = ServerTls::new("server", &tls).unwrap();
    let server = serve_with_tls_and(&database, tls, |options| options.access = Some(rules.clone())).await;
    let mut streams = Vec::new();
    for name in ["web.reader.example", "app.reader.example"] {
        let (certificate, key) = authority.issue(name);
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca)).domain_name("localhost");
        let mut client = connect(&server, tls.identity(Identity::from_pem(certificate, key))).await.unwrap();
        let mut stream = client.sync(request(RowEncoding::Struct)).await.unwrap().into_inner();
        let mut replica = SimpleReplica::default();
        replica.read_to(&mut stream, database.end()).await;
        streams.push((stream, replica));
    }
    let mut narrower = mesh_access(Vec::new());
    narrower.identities[0].certificates = vec![NamePattern::new("app.reader.example")];
    rules.replace(narrower);
    database.commit(0, vec![Insert(2, "b".to_owned())]);
    let (mut app, mut replica) = streams.pop().unwrap();
    replica.read_to(&mut app, database.end()).await;
    assert_eq!(replica.rows.len(), 2, "its name is still one of the patterns");
    let (mut web, _) = streams.pop().unwrap();
    let ended = loop {
        match crate::support::within(web.message(), "the end of the stream").await {
            Err(status) => break status,
            Ok(message) => {
                let message = message.expect("it ends with a status").message;
                let is_row = matches!(&message, Some(Message::JournalEntry(entry)) if entry.new_values.is_some());
                assert!(!is_row, "{message:?}");
            }
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_a_certificate_is_the_identity_of_its_client() {
    let authority = ServerTlsAuthority::new();
    let (tls, ca) = (authority.server_options(true), authority.issuer.pem());
    let access = mesh_access(Vec::new());
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let tls = ServerTls::new("server", &tls).unwrap();
    let server = serve_with_tls_and(&database, tls, |options| options.access = Some(rules(access))).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_when_its_certificate_expires() {
    let authority = ServerTlsAuthority::new();
    let (tls, ca) = (authority.server_options(true), authority.issuer.pem());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["web.reader.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2090, 1, 1);
    let certificate = params.signed_by(&key, &authority.issuer).unwrap().pem();
    // The clock of the rules is close to the expiry; that of the handshake is the machine's.
    let last = CommitTime::from_unix_us(3_786_912_000_000_000);
    let now = Arc::new(Mutex::new(last));
    let clock_now = now.clone();
    let rules = AccessRules::new(mesh_access(Vec::new()), Arc::new(move || *clock_now.lock().unwrap()));
    let database = SimDatabase::new(1);
    database.commit(0, vec![Insert(1, "a".to_owned())]);
    let tls = ServerTls::new("server", &tls).unwrap();
    let server = serve_with_tls_and(&database, tls, |options| options.access = Some(rules)).await;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&ca)).domain_name("localhost");
    let tls = tls.identity(Identity::from_pem(certificate, key.serialize_pem()));
    let mut client = connect(&server, tls).await.unwrap();
    let mut stream = client.sync(request(RowEncoding::Struct)).await.unwrap().into_inner();
    SimpleReplica::default().read_to(&mut stream, database.end()).await;
    *now.lock().unwrap() = CommitTime(last.0 + 1_000_000);
    let ended = loop {
        match crate::support::within(stream.message(), "the end of the stream").await {
            Err(status) => break status,
            Ok(message) => assert!(message.is_some(), "it ends with a status"),
        }
    };
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    let later = client.sync(request(RowEncoding::Struct)).await.unwrap_err();
    assert_eq!(later.code(), Code::Unauthenticated, "a call on the same connection: {later}");
}
