//! Connections to a server.

use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::error::{CliError, deepest};

/// The files of TLS.
#[derive(Debug, clap::Args)]
pub(super) struct TlsArgs {
    /// The certificates (PEM) to check an https:// server against.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Our own certificate (PEM), for a server that asks for one.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The key (PEM) of our own certificate.
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

/// The contents of the TLS files.
pub(super) struct TlsFileContents {
    /// The certificates of the authorities that a server is checked against.
    pub(super) ca_pem: Vec<u8>,
    /// The client's own certificate and its key.
    pub(super) identity_pem: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsArgs {
    /// Reads the TLS files for a server. Returns `None` for a server without TLS.
    ///
    /// # Errors
    /// A missing `--ca-file`, or a file that cannot be read.
    pub(super) fn read(&self, server: &str) -> Result<Option<TlsFileContents>, CliError> {
        if !server.starts_with("https:") {
            return Ok(None);
        }
        let Some(ca_file) = &self.ca_file else {
            return Err(CliError::NoCertificates(server.to_owned()));
        };
        let identity_pem = match (&self.cert_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some((pem(certificate, "--cert-file")?, pem(key, "--key-file")?)),
            _ => None,
        };
        Ok(Some(TlsFileContents { ca_pem: pem(ca_file, "--ca-file")?, identity_pem }))
    }
}

fn pem(file: &Path, option: &'static str) -> Result<Vec<u8>, CliError> {
    std::fs::read(file).map_err(|reason| CliError::Certificates { file: file.to_owned(), option, reason })
}

/// Connects to a server. `option` names the options that set its address, for the error.
///
/// # Errors
/// An unreachable server, or one whose certificate is not trusted.
pub(super) async fn channel(server: &str, tls: &TlsArgs, option: &'static str) -> Result<Channel, CliError> {
    let unreachable = |error: tonic::transport::Error| CliError::Unreachable {
        server: server.to_owned(),
        reason: deepest(&error),
        option,
    };
    let mut endpoint = Endpoint::from_shared(server.to_owned()).map_err(unreachable)?;
    if let Some(TlsFileContents { ca_pem, identity_pem }) = tls.read(server)? {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca_pem));
        if let Some((certificate, key)) = identity_pem {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        endpoint = endpoint.tls_config(config).map_err(unreachable)?;
    }
    endpoint.connect().await.map_err(unreachable)
}
