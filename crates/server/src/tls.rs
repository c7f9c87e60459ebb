//! TLS certificates and handshakes.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The protocols that a connection may use: HTTP/2, or HTTP/1.1 for clients without HTTP/2.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// The time limit of a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The maximum number of concurrent handshakes. Further connections wait.
const HANDSHAKES_MAX: usize = 256;

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct ServerTlsOptions {
    /// The certificate, followed by its chain.
    pub certificate: Vec<u8>,
    /// The private key of the certificate.
    pub key: Vec<u8>,
    /// The authority that clients' certificates must come from; `None` to require no client
    /// certificate.
    pub client_ca: Option<Vec<u8>>,
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
type TlsFileProblem = (TlsFile, String);

impl ServerTlsOptions {
    /// Checks that the files contain a certificate, its key and authorities.
    ///
    /// # Errors
    /// Returns all problems, each with its file.
    pub fn check(&self) -> Result<(), Vec<TlsFileProblem>> {
        self.config().map(drop)
    }

    /// Returns the acceptor for connections.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, Vec<TlsFileProblem>> {
        Ok(TlsAcceptor::from(Arc::new(self.config()?)))
    }

    fn config(&self) -> Result<ServerConfig, Vec<TlsFileProblem>> {
        let mut problems = Vec::new();
        let mut keep = |file, problem: String| problems.push((file, problem));
        let chain = certificates(&self.certificate).map_err(|problem| keep(TlsFile::Certificate, problem)).ok();
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| keep(TlsFile::Key, format!("there is no private key in it ({error})")))
            .ok();
        let verifier = self.client_ca.as_ref().map(|pem| verifier(pem)).transpose();
        let verifier = verifier.map_err(|problem| keep(TlsFile::ClientCa, problem)).ok().flatten();
        if let Some((chain, key)) = chain.zip(key) {
            match paired(chain, key, verifier) {
                Ok(config) if problems.is_empty() => return Ok(config),
                Ok(_) => {}
                Err(error) => {
                    problems.push((TlsFile::Key, format!("it cannot be used with the certificate ({error})")));
                }
            }
        }
        Err(problems)
    }
}

fn paired(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// Returns a verifier that requires a client certificate of these authorities.
fn verifier(pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(pem)? {
        roots.add(authority).map_err(|error| format!("it is not the certificate of an authority ({error})"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map(|verifier| verifier as Arc<dyn ClientCertVerifier>).map_err(|error| error.to_string())
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(chain) if chain.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("it is not a file of certificates ({error})")),
    }
}

/// Performs the handshake with each client. A handshake that fails or takes too long ends the
/// connection.
pub(crate) fn handshakes(
    connections: impl Stream<Item = TcpStream>,
    acceptor: TlsAcceptor,
) -> impl Stream<Item = TlsStream<TcpStream>> {
    let handshakes = connections.map(move |connection| {
        let acceptor = acceptor.clone();
        async move {
            match timeout(HANDSHAKE_MAX, acceptor.accept(connection)).await {
                Ok(Ok(connection)) => Some(connection),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    None
                }
                Err(_) => None,
            }
        }
    });
    handshakes.buffer_unordered(HANDSHAKES_MAX).filter_map(std::future::ready)
}
