//! TLS: a client shows its certificate, and checks the server's.

use crate::support::*;
use laredo_client::{Replica, ReplicaError, StartError, TableName};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

struct ClientTestAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl ClientTestAuthority {
    fn new() -> ClientTestAuthority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ClientTestAuthority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Returns a certificate and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Starts a server that refuses clients without a certificate of this authority.
    async fn serve(&self) -> ScriptedServer {
        let (certificate, key) = self.issue("localhost");
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(self.issuer.pem()));
        let transport = tonic::transport::Server::builder().tls_config(tls).unwrap();
        let script = |_, request| Ok(then_hang(ScriptedJournal::new(&[row(1, &["a", "x"])]).answer(&request)));
        ScriptedServer::start_on(transport, "https://localhost", script).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_shows_its_certificate_to_a_server_that_asks_for_one() {
    let authority = ClientTestAuthority::new();
    let server = authority.serve().await;
    let (certificate, key) = authority.issue("client");
    let replica = server.replica().ca_pem(authority.issuer.pem()).identity_pem(certificate, key).start().unwrap();
    replica.ready(LONG).await.unwrap();
    assert_eq!(replica.view().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_or_an_authority_that_it_trusts_gets_nothing() {
    let authority = ClientTestAuthority::new();
    let server = authority.serve().await;
    let (certificate, key) = authority.issue("client");
    let strangers = [
        server.replica().ca_pem(authority.issuer.pem()),
        server.replica().ca_pem(ClientTestAuthority::new().issuer.pem()).identity_pem(certificate, key),
    ];
    for stranger in strangers {
        let replica = stranger.start().unwrap();
        let mut status = replica.watch_status();
        let failed = status.wait_for(|s| s.last_error.is_some()).await.unwrap();
        let error = failed.last_error.unwrap();
        assert!(matches!(error, ReplicaError::Connect { .. } | ReplicaError::Ended { .. }), "{error:?}");
        assert_eq!(failed.connects, 0);
    }
    assert!(server.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_broken_certificate_is_reported_at_the_start() {
    let table = TableName::new("public", "t");
    let builder = Replica::builder("https://localhost:1", table).ca_pem(ClientTestAuthority::new().issuer.pem());
    let started = builder.identity_pem("no", "no").start();
    assert!(matches!(started, Err(StartError::Address { .. })), "{started:?}");
}

#[tokio::test]
async fn without_an_authority_of_ones_own_it_is_the_systems() {
    let started = Replica::builder("https://localhost:1", TableName::new("public", "t")).start();
    // Some test machines have no system authorities. Then the error must say so.
    let is_reported = |error: &StartError| error.to_string().to_lowercase().contains("native certs");
    assert!(started.as_ref().map_or_else(is_reported, |_| true), "{started:?}");
}
