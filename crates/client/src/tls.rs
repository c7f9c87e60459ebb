//! The certificates of a connection to an `https://` server.

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// The certificates that a client trusts, and its own.
#[derive(Default)]
pub(crate) struct TlsCertificates {
    ca_pem: Option<Vec<u8>>,
    identity: Option<Identity>,
}

impl TlsCertificates {
    pub(crate) fn set_authorities(&mut self, pem: Vec<u8>) {
        self.ca_pem = Some(pem);
    }

    pub(crate) fn set_identity(&mut self, certificate: &[u8], key: &[u8]) {
        self.identity = Some(Identity::from_pem(certificate, key));
    }

    pub(crate) fn config(&self) -> ClientTlsConfig {
        let tls = match &self.ca_pem {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        self.identity.iter().fold(tls, |tls, identity| tls.identity(identity.clone()))
    }
}
