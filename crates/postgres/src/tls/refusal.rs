//! The reasons for refusing a server's certificate, in words for the operator.

use std::sync::Arc;

use rustls::{CertificateError, OtherError};
use x509_parser::prelude::{X509Certificate, X509Name};

/// A reason for refusing a server's certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateRefusal {
    /// The bytes are not a certificate.
    #[error("the server's certificate cannot be read: {0}; issue another one")]
    Unreadable(String),
    /// The certificate is no longer valid.
    #[error("the certificate {subject} has expired at {at}; issue a new one")]
    Expired {
        /// The subject of the certificate.
        subject: String,
        /// The time of its expiry.
        at: String,
    },
    /// The certificate is not valid yet.
    #[error("the certificate {subject} is not valid before {from}; check the clocks, or issue a new one")]
    NotValidYet {
        /// The subject of the certificate.
        subject: String,
        /// The time of its beginning.
        from: String,
    },
    /// No trusted authority has issued the certificate.
    #[error(
        "the server's certificate {subject} was issued by {issuer}, and {place} does not lead to that authority; add \
         its certificate there, or let the server send the certificates between"
    )]
    UnknownIssuer {
        /// The subject of the certificate.
        subject: String,
        /// The authority that the certificate names.
        issuer: String,
        /// The place of the trusted authorities.
        place: String,
    },
    /// The certificate is signed by its own key, and is not trusted itself.
    #[error("the server's certificate {subject} is self-signed, and not in {place}; add it there")]
    SelfSigned {
        /// The subject of the certificate.
        subject: String,
        /// The place of the trusted authorities.
        place: String,
    },
    /// The authority's key is not the one that signed the certificate.
    #[error(
        "the server's certificate {subject} was not signed by the key that {place} has for its issuer {issuer}; add the \
         authority's present certificate there"
    )]
    WrongKey {
        /// The subject of the certificate.
        subject: String,
        /// The authority that the certificate names.
        issuer: String,
        /// The place of the trusted authorities.
        place: String,
    },
    /// The certificate is valid for other names.
    #[error(
        "the server's certificate is for {names}, and not for {host}; set host to a name of the certificate, or issue \
         one for this name"
    )]
    OtherName {
        /// The names that the certificate is valid for.
        names: String,
        /// The host of the connection string.
        host: String,
    },
    /// The common name does not count, because an authority restricts the names.
    #[error(
        "the server's certificate names {host} only as its common name, and an authority that issued it restricts \
         names; issue one with a subjectAltName"
    )]
    CommonNameRestricted {
        /// The host of the connection string.
        host: String,
    },
    /// Anything else.
    #[error("the certificate {subject} cannot be used: {problem}; issue another one")]
    Unusable {
        /// The subject of the certificate.
        subject: String,
        /// The problem, as a part of a sentence.
        problem: String,
    },
}

impl CertificateRefusal {
    pub(super) fn unusable(certificate: &X509Certificate<'_>, problem: impl ToString) -> CertificateRefusal {
        CertificateRefusal::Unusable { subject: shown(certificate.subject()), problem: problem.to_string() }
    }

    /// Returns the refusal of a certificate without a path to a trusted authority.
    pub(super) fn unknown_issuer(certificate: &X509Certificate<'_>, place: &str) -> CertificateRefusal {
        let (subject, place) = (shown(certificate.subject()), place.to_owned());
        match certificate.subject().as_raw() == certificate.issuer().as_raw() {
            true => CertificateRefusal::SelfSigned { subject, place },
            false => CertificateRefusal::UnknownIssuer { subject, issuer: shown(certificate.issuer()), place },
        }
    }

    /// Returns the refusal of a certificate that another key than the trusted one has signed.
    pub(super) fn wrong_key(certificate: &X509Certificate<'_>, place: &str) -> CertificateRefusal {
        let (subject, issuer) = (shown(certificate.subject()), shown(certificate.issuer()));
        CertificateRefusal::WrongKey { subject, issuer, place: place.to_owned() }
    }
}

/// Returns a name for a message. A stranger may have chosen it.
pub(super) fn shown(name: &X509Name<'_>) -> String {
    match printable(&name.to_string()) {
        text if text.is_empty() => "without a subject".to_owned(),
        text => format!("\"{text}\""),
    }
}

/// Replaces what could end or disguise a line of a log.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).take(200).collect()
}

impl From<CertificateRefusal> for rustls::Error {
    fn from(refusal: CertificateRefusal) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
    }
}
