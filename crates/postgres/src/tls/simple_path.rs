//! The path of certificates that webpki refuses and libpq accepts: those of X.509 version 1, and
//! authorities that are servers themselves.
//!
//! The rules are those of OpenSSL, without what such certificates do not need. A path with a
//! restriction of names, or with a critical extension that is not known here, is refused.

use std::cell::Cell;

use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use webpki::RawPublicKeyEntity;
use x509_parser::asn1_rs::ToDer as _;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};
use x509_parser::x509::AlgorithmIdentifier;

use super::algorithms::ALGORITHMS;
use super::authorities::check_time;
use super::refusal::CertificateRefusal;

/// The maximum number of authorities between a server's certificate and a trusted one.
const INTERMEDIATES_MAX: u32 = 8;
/// The maximum number of signatures that are checked, so that no server can keep a thread busy.
const SIGNATURES_MAX: u32 = 64;

/// A search for a path to a trusted authority.
pub(super) struct SimplePathSearch<'a> {
    place: &'a str,
    trusted: Vec<X509Certificate<'a>>,
    intermediates: Vec<X509Certificate<'a>>,
    now: UnixTime,
    signatures: Cell<u32>,
}

impl<'a> SimplePathSearch<'a> {
    pub(super) fn new(
        place: &'a str,
        trusted: &'a [CertificateDer<'_>],
        intermediates: &'a [CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SimplePathSearch<'a>, CertificateRefusal> {
        let parse = |der: &'a CertificateDer<'_>| X509Certificate::from_der(der).map(|(_, parsed)| parsed);
        // A certificate in a file of authorities that cannot be read is not one of this path.
        let trusted = trusted.iter().filter_map(|der| parse(der).ok()).collect();
        let sent: Result<Vec<_>, _> = intermediates.iter().map(parse).collect();
        let intermediates = sent.map_err(|error| CertificateRefusal::Unreadable(error.to_string()))?;
        Ok(SimplePathSearch { place, trusted, intermediates, now, signatures: Cell::new(0) })
    }

    /// Checks that the certificate is one of a server, and leads to a trusted authority.
    pub(super) fn verify(&self, server: &X509Certificate<'_>) -> Result<(), CertificateRefusal> {
        check_extensions(server)?;
        let usage = server.key_usage().map_err(|error| CertificateRefusal::unusable(server, error))?;
        let allows_tls = usage.is_none_or(|usage| {
            let usage = usage.value;
            usage.digital_signature() || usage.key_encipherment() || usage.key_agreement()
        });
        match allows_tls {
            true => self.find_authority(server, 0),
            false => Err(CertificateRefusal::unusable(server, "its keyUsage does not allow a server")),
        }
    }

    /// Finds the authority that has issued a certificate, and then the one of that, until one is
    /// trusted. `depth` is the number of authorities below.
    fn find_authority(&self, child: &X509Certificate<'_>, depth: u32) -> Result<(), CertificateRefusal> {
        let has_name = |candidate: &&X509Certificate<'_>| candidate.subject().as_raw() == child.issuer().as_raw();
        let mut refusal = CertificateRefusal::unknown_issuer(child, self.place);
        for authority in self.trusted.iter().filter(has_name) {
            match self.check_issued(child, authority, depth, true) {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error,
            }
        }
        for authority in self.intermediates.iter().filter(has_name) {
            if depth >= INTERMEDIATES_MAX {
                return Err(CertificateRefusal::unusable(child, "too many authorities are above it"));
            }
            let checked = self.check_issued(child, authority, depth, false);
            match checked.and_then(|()| self.find_authority(authority, depth + 1)) {
                Ok(()) => return Ok(()),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    /// Checks that an authority was allowed to issue a certificate, and has signed it.
    fn check_issued(
        &self,
        child: &X509Certificate<'_>,
        authority: &X509Certificate<'_>,
        depth: u32,
        is_trusted: bool,
    ) -> Result<(), CertificateRefusal> {
        let unusable = |problem: &str| CertificateRefusal::unusable(authority, problem);
        check_time(authority, self.now)?;
        check_extensions(authority)?;
        if authority.version() == X509Version::V3 {
            let constraints = authority.basic_constraints().map_err(|error| unusable(&error.to_string()))?;
            let constraints = constraints.map(|constraints| constraints.value).filter(|constraints| constraints.ca);
            let constraints = constraints.ok_or_else(|| unusable("it is not one of an authority"))?;
            if constraints.path_len_constraint.is_some_and(|max| depth > max) {
                return Err(unusable("its path length allows fewer authorities below it"));
            }
            let usage = authority.key_usage().map_err(|error| unusable(&error.to_string()))?;
            if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
                return Err(unusable("its keyUsage does not allow it to issue certificates"));
            }
        } else if !is_trusted {
            return Err(unusable("an authority of X.509 version 1 has to be trusted itself"));
        }
        self.check_signature(child, authority)
    }

    fn check_signature(
        &self,
        child: &X509Certificate<'_>,
        authority: &X509Certificate<'_>,
    ) -> Result<(), CertificateRefusal> {
        self.signatures.set(self.signatures.get() + 1);
        if self.signatures.get() > SIGNATURES_MAX {
            return Err(CertificateRefusal::unusable(child, "the server sent too many certificates"));
        }
        if child.signature_algorithm != child.tbs_certificate.signature || child.signature_value.unused_bits != 0 {
            return Err(CertificateRefusal::unusable(child, "it contradicts itself about its signature"));
        }
        let key = SubjectPublicKeyInfoDer::from(authority.public_key().raw);
        let key = RawPublicKeyEntity::try_from(&key);
        let key = key.map_err(|error| CertificateRefusal::unusable(authority, error))?;
        let algorithm = identifier(&child.signature_algorithm);
        let algorithms = ALGORITHMS.all.iter().filter(|known| algorithm.as_deref() == Some(&known.signature_alg_id()));
        let mut is_known = false;
        for algorithm in algorithms {
            match key.verify_signature(*algorithm, child.tbs_certificate.as_ref(), &child.signature_value.data) {
                Ok(()) => return Ok(()),
                Err(webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {}
                Err(_) => is_known = true,
            }
        }
        match is_known {
            true => Err(CertificateRefusal::wrong_key(child, self.place)),
            false => {
                let problem = "its signature has an algorithm that is unsupported or too weak";
                Err(CertificateRefusal::unusable(child, problem))
            }
        }
    }
}

/// Checks what the extensions of a server and of an authority have in common.
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), CertificateRefusal> {
    let unusable = |problem: &str| Err(CertificateRefusal::unusable(certificate, problem));
    if certificate.version() != X509Version::V3 && !certificate.extensions().is_empty() {
        return unusable("it has extensions, which its version of X.509 does not have");
    }
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_) => {}
            ParsedExtension::ExtendedKeyUsage(usage) if usage.any || usage.server_auth => {}
            ParsedExtension::ExtendedKeyUsage(_) => return unusable("its extendedKeyUsage does not allow a server"),
            ParsedExtension::NameConstraints(_) => return unusable("it restricts names"),
            ParsedExtension::ParseError { .. } => return unusable("one of its extensions cannot be read"),
            _ if extension.critical => return unusable("it has a critical extension that is unsupported"),
            _ => {}
        }
    }
    // Of two extensions of one kind, the other one could be meant.
    match certificate.extensions_map() {
        Ok(_) => Ok(()),
        Err(_) => unusable("it has an extension twice"),
    }
}

/// Returns the contents of an algorithm identifier, as the algorithms name themselves.
fn identifier(algorithm: &AlgorithmIdentifier<'_>) -> Option<Vec<u8>> {
    let mut bytes = algorithm.algorithm.to_der_vec().ok()?;
    if let Some(parameters) = &algorithm.parameters {
        bytes.extend(parameters.to_der_vec().ok()?);
    }
    Some(bytes)
}
