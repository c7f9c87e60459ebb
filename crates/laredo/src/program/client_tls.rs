//! The TLS of connections to other servers.

use std::io;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt;
use rustls::client::WantsClientCert;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

/// Returns the beginning of a configuration that trusts the authorities in `ca_pem`, or without it
/// those of the system.
///
/// # Errors
/// Returns an error if there are no certificates in the text, or in the system's store.
pub(crate) fn client_tls(ca_pem: Option<&[u8]>) -> io::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    match ca_pem {
        Some(pem) => Ok(builder.with_root_certificates(roots(pem)?)),
        None => builder.with_native_roots(),
    }
}

fn roots(pem: &[u8]) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    if roots.is_empty() {
        return Err(io::Error::other("there is no certificate in the file of authorities"));
    }
    Ok(roots)
}
