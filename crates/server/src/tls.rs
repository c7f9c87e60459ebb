//! The certificates and keys of TLS.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The protocols that a connection may use: HTTP/2, or HTTP/1.1 for clients without HTTP/2.
const PROTOCOLS: [&[u8]; 2] = [b"h2", HTTP1];
const HTTP1: &[u8] = b"http/1.1";

/// A certificate and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerTlsOptions {
    /// The certificate, followed by its chain.
    pub certificate: Vec<u8>,
    /// The private key of the certificate.
    pub key: Vec<u8>,
    /// The authority that clients' certificates must come from; `None` to request no client
    /// certificate.
    pub client_ca: Option<Vec<u8>>,
    /// The clients that must show a certificate of `client_ca`.
    pub client_certificates: ClientCertificates,
}

/// The clients of a port that must show a certificate, if the port has an authority for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// All clients.
    #[default]
    Required,
    /// None. A certificate that a client shows must still be of the authority.
    Optional,
}

/// A file that TLS is configured from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFile {
    /// The file of [`ServerTlsOptions::certificate`].
    Certificate,
    /// The file of [`ServerTlsOptions::key`].
    Key,
    /// The file of [`ServerTlsOptions::client_ca`].
    ClientCa,
}

/// A problem, with the file that has it.
pub type TlsFileProblem = (TlsFile, String);

/// The TLS of one or more ports. Its certificate can be replaced while the ports are open.
#[derive(Clone)]
pub struct ServerTls(Arc<ServerTlsState>);

struct ServerTlsState {
    /// The path of the certificate, or another name for it.
    name: String,
    loaded: ArcSwap<LoadedTls>,
}

struct LoadedTls {
    config: Arc<ServerConfig>,
    /// The same for ports that speak HTTP/1.1 alone.
    http1_config: Arc<ServerConfig>,
    not_after: i64,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.0.name).finish()
    }
}

impl ServerTls {
    /// Makes the TLS of ports. `name` is the path of the certificate, for logs and metrics.
    ///
    /// # Errors
    /// Returns all problems, each with its file.
    pub fn new(name: impl Into<String>, options: &ServerTlsOptions) -> Result<ServerTls, Vec<TlsFileProblem>> {
        let loaded = ArcSwap::from_pointee(options.load()?);
        Ok(ServerTls(Arc::new(ServerTlsState { name: name.into(), loaded })))
    }

    /// Replaces the certificate, the key and the authority for new connections. Open connections
    /// are not affected.
    ///
    /// # Errors
    /// Returns all problems, each with its file. The previous ones then remain.
    pub fn replace(&self, options: &ServerTlsOptions) -> Result<(), Vec<TlsFileProblem>> {
        self.0.loaded.store(Arc::new(options.load()?));
        Ok(())
    }

    /// Returns the name that was given to [`ServerTls::new`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the time when the first certificate of the chain expires, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> i64 {
        self.0.loaded.load().not_after
    }

    /// Returns the acceptor for the next connection.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.loaded.load().config.clone())
    }

    /// Returns the acceptor for the next connection of a port with HTTP/1.1 alone.
    pub(crate) fn http1_acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.loaded.load().http1_config.clone())
    }
}

impl ServerTlsOptions {
    fn load(&self) -> Result<LoadedTls, Vec<TlsFileProblem>> {
        let mut problems = Vec::new();
        let mut keep = |file, problem: String| problems.push((file, problem));
        let chain = certificates(&self.certificate).and_then(|chain| Ok((first_expiry(&chain)?, chain)));
        let chain = chain.map_err(|problem| keep(TlsFile::Certificate, problem)).ok();
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| keep(TlsFile::Key, format!("there is no private key in it ({error})")))
            .ok();
        let verifier = self.client_ca.as_ref().map(|pem| verifier(pem, self.client_certificates)).transpose();
        let verifier = verifier.map_err(|problem| keep(TlsFile::ClientCa, problem)).ok().flatten();
        if let Some(((not_after, chain), key)) = chain.zip(key) {
            match paired(chain, key, verifier) {
                Ok(config) if problems.is_empty() => {
                    let mut http1_config = config.clone();
                    http1_config.alpn_protocols = vec![HTTP1.to_vec()];
                    let [config, http1_config] = [config, http1_config].map(Arc::new);
                    return Ok(LoadedTls { config, http1_config, not_after });
                }
                Ok(_) => {}
                Err(error) => {
                    problems.push((TlsFile::Key, format!("it cannot be used with the certificate ({error})")));
                }
            }
        }
        Err(problems)
    }
}

/// Returns the time when the first certificate of a chain expires, in seconds since 1970.
fn first_expiry(chain: &[CertificateDer<'_>]) -> Result<i64, String> {
    let expiry = |certificate: &CertificateDer<'_>| {
        let parsed =
            X509Certificate::from_der(certificate).map_err(|error| format!("a certificate is damaged ({error})"));
        parsed.map(|(_, certificate)| certificate.validity().not_after.timestamp())
    };
    let expiries: Result<Vec<i64>, String> = chain.iter().map(expiry).collect();
    Ok(expiries?.into_iter().min().unwrap_or(i64::MAX))
}

fn paired(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let checks_clients = verifier.is_some();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    if checks_clients {
        // A resumed session takes over the client's certificate without a check. The certificate
        // may have expired since, and its authority may not be one of the client authorities now.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// Returns a verifier of client certificates, which must be of these authorities.
fn verifier(pem: &[u8], demand: ClientCertificates) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(pem)? {
        roots.add(authority).map_err(|error| format!("it is not the certificate of an authority ({error})"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match demand {
        ClientCertificates::Required => builder,
        ClientCertificates::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map(|verifier| verifier as Arc<dyn ClientCertVerifier>).map_err(|error| error.to_string())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(chain) if chain.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("it is not a file of certificates ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;

    /// An authority, the options of a server that asks for its certificates, and a client's chain.
    struct TestAuthority {
        issuer: CertifiedIssuer<'static, KeyPair>,
    }

    impl TestAuthority {
        fn new() -> TestAuthority {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            TestAuthority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
        }

        fn issue(&self, name: &str) -> (String, String) {
            let (key, params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec![name.to_owned()]).unwrap());
            (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
        }

        fn server(&self, demand: Option<ClientCertificates>) -> ServerTls {
            let (certificate, key) = self.issue("localhost");
            let options = ServerTlsOptions {
                certificate: certificate.into_bytes(),
                key: key.into_bytes(),
                client_ca: demand.map(|_| self.issuer.pem().into_bytes()),
                client_certificates: demand.unwrap_or_default(),
            };
            ServerTls::new("server", &options).unwrap()
        }

        /// Returns a client that keeps its sessions, as rustls does by default.
        fn client(&self, version: &'static SupportedProtocolVersion, shows_certificate: bool) -> TlsConnector {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
            let builder = builder.with_root_certificates(roots);
            let (certificate, key) = self.issue("client");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            TlsConnector::from(Arc::new(match shows_certificate {
                true => builder.with_client_auth_cert(certificates(certificate.as_bytes()).unwrap(), key).unwrap(),
                false => builder.with_no_client_auth(),
            }))
        }
    }

    /// Connects, and returns the kind of the handshake.
    async fn handshake(client: &TlsConnector, server: TlsAcceptor) -> HandshakeKind {
        let (near, far) = tokio::io::duplex(65_536);
        let serving = tokio::spawn(async move {
            let mut connection = server.accept(far).await.unwrap();
            connection.write_all(b"x").await.unwrap();
            connection.shutdown().await.unwrap();
        });
        let mut connection = client.connect("localhost".try_into().unwrap(), near).await.unwrap();
        // The tickets of TLS 1.3 come before the first byte.
        let mut read = Vec::new();
        connection.read_to_end(&mut read).await.unwrap();
        serving.await.unwrap();
        assert_eq!(read, b"x");
        connection.get_ref().1.handshake_kind().unwrap()
    }

    #[tokio::test]
    async fn a_session_in_which_a_certificate_was_checked_is_not_resumed() {
        let authority = TestAuthority::new();
        for version in [&TLS12, &TLS13] {
            for (demand, shows_certificate, kind) in [
                (Some(ClientCertificates::Required), true, HandshakeKind::Full),
                (Some(ClientCertificates::Optional), true, HandshakeKind::Full),
                (Some(ClientCertificates::Optional), false, HandshakeKind::Full),
                (None, false, HandshakeKind::Resumed),
            ] {
                let (tls, client) = (authority.server(demand), authority.client(version, shows_certificate));
                for acceptor in [ServerTls::acceptor, ServerTls::http1_acceptor] {
                    handshake(&client, acceptor(&tls)).await;
                    let second = handshake(&client, acceptor(&tls)).await;
                    assert_eq!(second, kind, "{version:?}, {demand:?}, {shows_certificate}");
                }
            }
        }
    }
}
