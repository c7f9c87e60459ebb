//! Connections to a server.

use std::io;
use std::path::{Path, PathBuf};

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};

use super::error::{CliError, deepest};
use crate::program::client_tls;

/// The files of TLS, and the token that proves the caller's identity.
#[derive(Debug, clap::Args)]
pub(super) struct TlsArgs {
    /// The certificates (PEM) to check an https:// server against [default: the system's].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Our own certificate (PEM), for a server that asks for one.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The key (PEM) of our own certificate.
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
    /// The token that proves who we are. Without https:// the network can read it. Other users of
    /// this machine can read arguments, but not the variable LAREDO_TOKEN.
    #[arg(long, value_name = "TOKEN", env = "LAREDO_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// A connection whose requests carry the token.
pub(super) type ServerChannel = InterceptedService<Channel, TokenHeader>;

/// The header with the token; `None` without a token.
#[derive(Clone)]
pub(super) struct TokenHeader(Option<AsciiMetadataValue>);

impl Interceptor for TokenHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// The contents of the TLS files.
pub(super) struct TlsFileContents {
    /// The certificates of the authorities that a server is checked against; `None` for the
    /// system's.
    pub(super) ca_pem: Option<Vec<u8>>,
    /// The client's own certificate and its key.
    pub(super) identity_pem: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsArgs {
    /// Returns the token, if there is one. An empty variable is none.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref().filter(|token| !token.is_empty())
    }

    /// Reads the TLS files for a server. Returns `None` for a server without TLS.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(&self, server: &str) -> Result<Option<TlsFileContents>, CliError> {
        if !server.starts_with("https:") {
            return Ok(None);
        }
        let identity_pem = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((pem(certificate, "--cert-file")?, pem(key, "--key-file")?)),
            _ => None,
        };
        let ca_pem = self.ca_file.as_ref().map(|file| pem(file, "--ca-file")).transpose()?;
        Ok(Some(TlsFileContents { ca_pem, identity_pem }))
    }
}

impl TlsFileContents {
    /// Returns the TLS of a connection in plain HTTP.
    ///
    /// # Errors
    /// Returns an error if there are no certificates in a file, or in the system's store.
    pub(super) fn client_config(&self) -> io::Result<ClientConfig> {
        let builder = client_tls(self.ca_pem.as_deref())?;
        let Some((certificate, key)) = &self.identity_pem else { return Ok(builder.with_no_client_auth()) };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let key = PrivateKeyDer::from_pem_slice(key).map_err(io::Error::other)?;
        builder.with_client_auth_cert(chain.map_err(io::Error::other)?, key).map_err(io::Error::other)
    }
}

fn pem(file: &Path, option: &'static str) -> Result<Vec<u8>, CliError> {
    std::fs::read(file).map_err(|reason| CliError::Certificates { file: file.to_owned(), option, reason })
}

/// Connects to a server. `option` names the options that set its address, for the error.
///
/// # Errors
/// An unreachable server, one whose certificate is not trusted, or a token that no header can have.
pub(super) async fn channel(server: &str, tls: &TlsArgs, option: &'static str) -> Result<ServerChannel, CliError> {
    let authorization = tls.token().map(|token| format!("Bearer {token}").parse()).transpose();
    let authorization = TokenHeader(authorization.map_err(|_| CliError::Token)?);
    let unreachable = |error: tonic::transport::Error| CliError::Unreachable {
        server: server.to_owned(),
        reason: deepest(&error),
        option,
    };
    let mut endpoint = Endpoint::from_shared(server.to_owned()).map_err(unreachable)?;
    if let Some(TlsFileContents { ca_pem, identity_pem }) = tls.read(server)? {
        let config = ClientTlsConfig::new();
        let mut config = match ca_pem {
            Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = identity_pem {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        endpoint = endpoint.tls_config(config).map_err(unreachable)?;
    }
    let channel = endpoint.connect().await.map_err(unreachable)?;
    Ok(InterceptedService::new(channel, authorization))
}
