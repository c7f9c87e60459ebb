//! The trusted authorities, and the path from a server's certificate to one of them.

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate, X509Version};

use super::algorithms::ALGORITHMS;
use super::host_name::NamesAllowed;
use super::refusal::CertificateRefusal;
use super::simple_path::SimplePathSearch;

/// The authorities that are trusted to sign a server's certificate.
#[derive(Debug)]
pub(super) struct TrustedAuthorities {
    /// The place that they were read from, for messages.
    place: String,
    anchors: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl TrustedAuthorities {
    /// Trusts these certificates.
    ///
    /// # Errors
    /// A sentence, if none of them can be used.
    pub(super) fn new(place: String, certificates: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut anchors = RootCertStore::empty();
        anchors.add_parsable_certificates(certificates.iter().cloned());
        match anchors.is_empty() {
            true => Err(format!("{place}: no certificate there can be used")),
            false => Ok(TrustedAuthorities { place, anchors, certificates }),
        }
    }

    /// Checks that a trusted authority has issued the certificate, directly or through others.
    /// Returns the names that count.
    pub(super) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        certificate: &X509Certificate<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<NamesAllowed, CertificateRefusal> {
        check_time(certificate, now)?;
        // The PostgreSQL manual creates a self-signed certificate and trusts exactly that one.
        if self.certificates.contains(end_entity) {
            return Ok(NamesAllowed::All);
        }
        // webpki refuses such certificates, which PostgreSQL's manual creates.
        if certificate.version() != X509Version::V3 || certificate.is_ca() {
            let search = SimplePathSearch::new(&self.place, &self.certificates, intermediates, now)?;
            return search.verify(certificate).map(|()| NamesAllowed::All);
        }
        let refused = |error| self.refusal(certificate, &error);
        let server = EndEntityCert::try_from(end_entity).map_err(refused)?;
        let path = server
            .verify_for_usage(
                ALGORITHMS.all,
                &self.anchors.roots,
                intermediates,
                now,
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(refused)?;
        if !self.allows_length(&path) {
            return Err(self.refusal(certificate, &webpki::Error::PathLenConstraintViolated));
        }
        Ok(if restricts_names(&path) { NamesAllowed::Alternative } else { NamesAllowed::All })
    }

    /// Returns true unless the trusted certificate allows fewer authorities below it. webpki looks
    /// at this limit in all certificates but the trusted one.
    fn allows_length(&self, path: &VerifiedPath<'_>) -> bool {
        let (anchor, below) = (path.anchor(), path.intermediate_certificates().count());
        let mut limits = self.certificates.iter().filter_map(|der| {
            let (_, trusted) = X509Certificate::from_der(der).ok()?;
            let is_anchor = trusted.subject().as_raw().ends_with(&anchor.subject)
                && trusted.public_key().raw.ends_with(&anchor.subject_public_key_info);
            let constraints = trusted.basic_constraints().ok().flatten();
            is_anchor.then(|| constraints.and_then(|constraints| constraints.value.path_len_constraint))
        });
        limits.any(|limit| limit.is_none_or(|max| usize::try_from(max).is_ok_and(|max| below <= max)))
    }

    fn refusal(&self, certificate: &X509Certificate<'_>, error: &webpki::Error) -> CertificateRefusal {
        let unusable = |problem: &str| CertificateRefusal::unusable(certificate, problem);
        match error {
            webpki::Error::UnknownIssuer => CertificateRefusal::unknown_issuer(certificate, &self.place),
            webpki::Error::InvalidSignatureForPublicKey => CertificateRefusal::wrong_key(certificate, &self.place),
            webpki::Error::CertExpired { .. } => unusable("the certificate of an authority that issued it has expired"),
            webpki::Error::CertNotValidYet { .. } => {
                unusable("the certificate of an authority that issued it is not valid yet")
            }
            webpki::Error::RequiredEkuNotFoundContext(_) => unusable("its extendedKeyUsage does not allow a server"),
            webpki::Error::NameConstraintViolation => unusable("an authority that issued it does not allow its names"),
            webpki::Error::PathLenConstraintViolated | webpki::Error::EndEntityUsedAsCa => {
                unusable("it was issued by a certificate that may not issue it")
            }
            webpki::Error::UnsupportedSignatureAlgorithmContext(_)
            | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
                unusable("its signature has an algorithm that is unsupported or too weak")
            }
            webpki::Error::UnsupportedCriticalExtension => unusable("it has a critical extension that is unsupported"),
            other => unusable(&other.to_string()),
        }
    }
}

/// Returns true if an authority on the path restricts the names. webpki has compared the
/// alternative names with that, but not the common name.
fn restricts_names(path: &VerifiedPath<'_>) -> bool {
    path.anchor().name_constraints.is_some()
        || path.intermediate_certificates().any(|authority| {
            let der = authority.der();
            let parsed =
                X509Certificate::from_der(&der).map(|(_, parsed)| !matches!(parsed.name_constraints(), Ok(None)));
            parsed.unwrap_or(true)
        })
}

/// Checks that a certificate is valid now.
pub(super) fn check_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), CertificateRefusal> {
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    let now = now.ok_or_else(|| CertificateRefusal::unusable(certificate, "the clock of this machine is wrong"))?;
    let subject = super::refusal::shown(certificate.subject());
    let validity = certificate.validity();
    if now < validity.not_before {
        return Err(CertificateRefusal::NotValidYet { subject, from: validity.not_before.to_string() });
    }
    if now > validity.not_after {
        return Err(CertificateRefusal::Expired { subject, at: validity.not_after.to_string() });
    }
    Ok(())
}
