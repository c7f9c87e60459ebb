//! The certificates of a connection to an `https://` server.

use std::path::PathBuf;

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// PEM, or the file that has it. A file is read at each connection.
#[derive(Clone)]
enum PemSource {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// The certificates that a client trusts, and its own.
#[derive(Clone, Default)]
pub(crate) struct TlsCertificates {
    authorities: Option<PemSource>,
    /// The certificate and its key.
    identity: Option<(PemSource, PemSource)>,
}

impl PemSource {
    fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            PemSource::Bytes(pem) => Ok(pem.clone()),
            PemSource::File(path) => {
                std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
            }
        }
    }
}

impl TlsCertificates {
    pub(crate) fn set_authorities(&mut self, pem: Vec<u8>) {
        self.authorities = Some(PemSource::Bytes(pem));
    }

    pub(crate) fn set_authorities_file(&mut self, path: PathBuf) {
        self.authorities = Some(PemSource::File(path));
    }

    pub(crate) fn set_identity(&mut self, certificate: &[u8], key: &[u8]) {
        self.identity = Some((PemSource::Bytes(certificate.to_vec()), PemSource::Bytes(key.to_vec())));
    }

    pub(crate) fn set_identity_files(&mut self, certificate: PathBuf, key: PathBuf) {
        self.identity = Some((PemSource::File(certificate), PemSource::File(key)));
    }

    /// Returns true if a certificate is in a file, and may therefore change.
    pub(crate) fn has_files(&self) -> bool {
        let is_file = |source: &PemSource| matches!(source, PemSource::File(_));
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.authorities.iter().chain(identity).any(is_file)
    }

    /// Returns the TLS with the certificates as they are now.
    ///
    /// # Errors
    /// The reason, when a file cannot be read.
    pub(crate) fn config(&self) -> Result<ClientTlsConfig, String> {
        let tls = match &self.authorities {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem.read()?)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let Some((certificate, key)) = &self.identity else { return Ok(tls) };
        Ok(tls.identity(Identity::from_pem(certificate.read()?, key.read()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let mut tls = TlsCertificates::default();
        assert!(!tls.has_files() && tls.config().is_ok());
        tls.set_identity(b"certificate", b"key");
        assert!(!tls.has_files());
        tls.set_authorities_file(path.clone());
        assert!(tls.has_files());
        let missing = tls.config().unwrap_err();
        assert!(missing.contains(path.to_str().unwrap()), "{missing}");
        std::fs::write(&path, "one").unwrap();
        assert!(tls.config().is_ok());
        tls.set_identity_files(path.clone(), folder.path().join("key.pem"));
        assert!(tls.config().unwrap_err().contains("key.pem"));
    }
}
