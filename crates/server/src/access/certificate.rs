//! The names in a client's certificate, and its expiry.

use laredo_core::CommitTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::pattern::NamePattern;

/// A client's certificate, which the handshake has verified.
pub(super) struct CallerCertificate<'a>(X509Certificate<'a>);

impl<'a> CallerCertificate<'a> {
    /// Reads a certificate. Returns `None` if it is damaged.
    pub(super) fn read(der: &'a [u8]) -> Option<CallerCertificate<'a>> {
        X509Certificate::from_der(der).ok().map(|(_, certificate)| CallerCertificate(certificate))
    }

    /// Returns the first of the subject alternative names that the pattern matches: a URI, a DNS
    /// name or an e-mail address.
    ///
    /// A star in the pattern matches a part of the name: of a URI's path, of a DNS name between its
    /// dots, or of an address before or after its `@`.
    pub(super) fn find_name(&self, pattern: &NamePattern) -> Option<String> {
        let names = self.0.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| {
            let (name, separator) = match name {
                GeneralName::URI(uri) => (*uri, '/'),
                GeneralName::DNSName(name) => (*name, '.'),
                GeneralName::RFC822Name(address) => (*address, '@'),
                _ => return None,
            };
            pattern.matches_parts(name, separator).then(|| name.to_owned())
        })
    }

    /// Returns the time from which on the certificate is no longer valid. The second that the
    /// certificate names is its last one.
    pub(super) fn expires_at(&self) -> CommitTime {
        let last = self.0.validity().not_after.timestamp();
        CommitTime::from_unix_us(last.saturating_add(1).saturating_mul(1_000_000))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = names;
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn find(der: &[u8], pattern: &str) -> Option<String> {
        CallerCertificate::read(der).unwrap().find_name(&NamePattern::new(pattern))
    }

    #[test]
    fn names_of_each_kind_are_found() {
        let der = certificate(vec![
            SanType::DnsName("web.example.com".try_into().unwrap()),
            SanType::URI("spiffe://prod/ns/web/sa/reader".try_into().unwrap()),
            SanType::Rfc822Name("ops@example.com".try_into().unwrap()),
        ]);
        for (pattern, name) in [
            ("spiffe://prod/ns/*/sa/reader", Some("spiffe://prod/ns/web/sa/reader")),
            ("*.example.com", Some("web.example.com")),
            ("*@example.com", Some("ops@example.com")),
            ("spiffe://prod/*", None),
            ("*.com", None),
            ("reader", None),
        ] {
            assert_eq!(find(&der, pattern).as_deref(), name, "{pattern}");
        }
    }

    #[test]
    fn a_certificate_without_names_and_other_bytes_have_none() {
        assert_eq!(find(&certificate(Vec::new()), "*"), None, "the common name does not count");
        assert!(CallerCertificate::read(b"no certificate").is_none());
    }

    #[test]
    fn the_second_that_a_certificate_names_is_its_last() {
        let der = certificate(Vec::new());
        let expires_at = CallerCertificate::read(&der).unwrap().expires_at();
        assert_eq!(expires_at.unix_us(), 2_208_988_801_000_000);
    }
}
