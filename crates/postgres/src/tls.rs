//! TLS with the semantics of libpq's `sslmode`, implemented with rustls.

mod algorithms;
mod authorities;
mod host_name;
mod refusal;
mod simple_path;
mod verifier;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{SHA256, SHA384, SHA512};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::options::{PostgresTlsOptions, RootCertificates, SslMode};
use authorities::TrustedAuthorities;
use verifier::{CertificateCheck, LibpqCertificateVerifier};

/// Returns a client configuration with the checks that `options.mode` requires.
///
/// # Errors
/// A sentence, if a certificate or key file cannot be used.
pub(crate) fn client_config(options: &PostgresTlsOptions) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(LibpqCertificateVerifier { check: check(options)? }));
    let config = match (&options.certificate, &options.key) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates(certificate, "sslcert")?, private_key(key)?)
            .map_err(|error| format!("sslcert and sslkey cannot be used together: {error}"))?,
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Returns the host name that the server's certificate is checked for.
pub(crate) fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned()).map_err(|_| format!("`{host}` is not a host name that TLS can check"))
}

/// Describes an error of TLS for the operator. A certificate that was refused is named with the
/// reason.
pub(crate) fn problem(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(refusal)) => refusal.to_string(),
        error => error.to_string(),
    }
}

/// Returns the `tls-server-end-point` hash of a certificate (RFC 5929), which binds SCRAM to the
/// TLS session. `None` if the certificate's signature has no hash of its own (Ed25519).
pub(crate) fn end_point_hash(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // RSA with MD5 or SHA-1, and ECDSA with SHA-1, use SHA-256. The next line is RSA and ECDSA
        // with SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => &SHA256,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" => &SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &SHA512,
        _ => return None,
    };
    Some(ring::digest::digest(algorithm, certificate).as_ref().to_vec())
}

fn check(options: &PostgresTlsOptions) -> Result<CertificateCheck, String> {
    let checks_name = match options.mode {
        SslMode::Disable | SslMode::Allow | SslMode::Prefer => return Ok(CertificateCheck::Nothing),
        // As in libpq, root certificates turn `require` into `verify-ca`.
        SslMode::Require | SslMode::VerifyCa => false,
        SslMode::VerifyFull => true,
    };
    let roots = match options.roots.clone().or_else(default_roots) {
        Some(roots) => roots,
        None if options.mode == SslMode::Require => return Ok(CertificateCheck::Nothing),
        None => {
            return Err("sslmode=verify-ca and verify-full need root certificates: add sslrootcert=FILE, or \
                 sslmode=verify-full sslrootcert=system"
                .to_owned());
        }
    };
    let (place, certificates) = match roots {
        RootCertificates::System => ("sslrootcert=system".to_owned(), rustls_native_certs::load_native_certs().certs),
        RootCertificates::File(path) => {
            (format!("sslrootcert {}", path.display()), certificates(&path, "sslrootcert")?)
        }
    };
    let authorities = TrustedAuthorities::new(place, certificates)?;
    Ok(match checks_name {
        true => CertificateCheck::AuthorityAndName(authorities),
        false => CertificateCheck::Authority(authorities),
    })
}

fn default_roots() -> Option<RootCertificates> {
    let path = PathBuf::from(std::env::var_os("HOME")?).join(".postgresql/root.crt");
    path.exists().then_some(RootCertificates::File(path))
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{key} {}: no PEM certificate in the file", path.display())),
        Err(error) => Err(format!("{key} {}: {error}", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| format!("sslkey {}: {error}", path.display()))
}
