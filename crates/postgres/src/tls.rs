//! TLS with the semantics of libpq's `sslmode`, implemented with rustls.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{SHA256, SHA384, SHA512};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::options::{PostgresTlsOptions, RootCertificates, SslMode};

/// Returns a client configuration with the checks that `options.mode` requires.
///
/// # Errors
/// A sentence, if a certificate or key file cannot be used.
pub(crate) fn client_config(options: &PostgresTlsOptions) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = LibpqCertificateVerifier { check: check(options)?, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
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

/// The checks of a server's certificate.
#[derive(Debug)]
enum CertificateCheck {
    Nothing,
    Authority(RootCertStore, Vec<CertificateDer<'static>>),
    AuthorityAndName(RootCertStore, Vec<CertificateDer<'static>>),
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
    let certificates = match roots {
        RootCertificates::System => rustls_native_certs::load_native_certs().certs,
        RootCertificates::File(path) => certificates(&path, "sslrootcert")?,
    };
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates.iter().cloned());
    if store.is_empty() {
        return Err("sslrootcert holds no certificate that can be used".to_owned());
    }
    Ok(match checks_name {
        true => CertificateCheck::AuthorityAndName(store, certificates),
        false => CertificateCheck::Authority(store, certificates),
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

/// A verifier that checks certificates as libpq does, which is not as browsers do.
#[derive(Debug)]
struct LibpqCertificateVerifier {
    check: CertificateCheck,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for LibpqCertificateVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (roots, trusted, names) = match &self.check {
            CertificateCheck::Nothing => return Ok(ServerCertVerified::assertion()),
            CertificateCheck::Authority(roots, trusted) => (roots, trusted, false),
            CertificateCheck::AuthorityAndName(roots, trusted) => (roots, trusted, true),
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        // The PostgreSQL manual creates a self-signed certificate and trusts exactly that one. It
        // is a certificate authority itself, which the usual path building refuses as a server's
        // certificate.
        if trusted.contains(end_entity) {
            in_time(end_entity, now)?;
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
        }
        if names {
            verify_server_name(&certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn in_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let bad = |error| rustls::Error::InvalidCertificate(error);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad(CertificateError::BadEncoding))?;
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    match now {
        Some(now) if parsed.validity().is_valid_at(now) => Ok(()),
        _ => Err(bad(CertificateError::Expired)),
    }
}
