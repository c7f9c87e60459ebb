//! A verifier that checks a server's certificate as libpq does, which is not as browsers do.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature_with_raw_key;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, SignatureScheme};
use webpki::RawPublicKeyEntity;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::algorithms::ALGORITHMS;
use super::authorities::TrustedAuthorities;
use super::host_name::verify_name;
use super::refusal::CertificateRefusal;

/// The checks of a server's certificate.
#[derive(Debug)]
pub(super) enum CertificateCheck {
    Nothing,
    Authority(TrustedAuthorities),
    AuthorityAndName(TrustedAuthorities),
}

#[derive(Debug)]
pub(super) struct LibpqCertificateVerifier {
    pub(super) check: CertificateCheck,
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
        let (authorities, checks_name) = match &self.check {
            CertificateCheck::Nothing => return Ok(ServerCertVerified::assertion()),
            CertificateCheck::Authority(authorities) => (authorities, false),
            CertificateCheck::AuthorityAndName(authorities) => (authorities, true),
        };
        let (_, certificate) =
            X509Certificate::from_der(end_entity).map_err(|error| CertificateRefusal::Unreadable(error.to_string()))?;
        let allowed_names = authorities.verify(end_entity, &certificate, intermediates, now)?;
        if checks_name {
            verify_name(&certificate, &name.to_str(), allowed_names)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = public_key(certificate)?;
        let key = RawPublicKeyEntity::try_from(&key).map_err(|_| CertificateError::BadEncoding)?;
        let possible = ALGORITHMS.mapping.iter().filter(|(scheme, _)| *scheme == signature.scheme);
        let mut algorithms = possible.flat_map(|(_, algorithms)| *algorithms);
        // In this version of TLS, a scheme does not name the curve. Only the algorithm that fits
        // the key can succeed.
        match algorithms.any(|algorithm| key.verify_signature(*algorithm, message, signature.signature()).is_ok()) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature_with_raw_key(message, &public_key(certificate)?, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// Returns the public key of a certificate of any version.
fn public_key(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, rustls::Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(SubjectPublicKeyInfoDer::from(parsed.public_key().raw.to_vec()))
}
