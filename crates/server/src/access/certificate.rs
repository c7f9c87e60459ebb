//! The names in a client's certificate, and its expiry.

use laredo_core::CommitTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::pattern::NamePattern;

/// A client's certificate, which the handshake has verified.
pub(super) struct CallerCertificate<'a>(X509Certificate<'a>);

/// The kinds of names in a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NameKind {
    Uri,
    Dns,
    Email,
}

impl NameKind {
    /// Returns the kind of the names that a pattern is for.
    fn of(pattern: &NamePattern) -> NameKind {
        match pattern.text() {
            text if text.contains("://") => NameKind::Uri,
            text if text.contains('@') => NameKind::Email,
            _ => NameKind::Dns,
        }
    }

    /// Returns the character between the parts of a name, which no star matches.
    fn separator(self) -> char {
        match self {
            NameKind::Uri => '/',
            NameKind::Dns => '.',
            NameKind::Email => '@',
        }
    }
}

impl<'a> CallerCertificate<'a> {
    /// Reads a certificate. Returns `None` if it is damaged.
    pub(super) fn read(der: &'a [u8]) -> Option<CallerCertificate<'a>> {
        X509Certificate::from_der(der).ok().map(|(_, certificate)| CallerCertificate(certificate))
    }

    /// Returns the first of the subject alternative names that the pattern matches.
    ///
    /// A pattern with `://` is for URIs, another one with `@` for e-mail addresses, and all others
    /// are for DNS names. A star matches a part of the name: of a URI between its slashes, of a DNS
    /// name between its dots, or of an address before or after its `@`. A name with control
    /// characters matches nothing.
    pub(super) fn find_name(&self, pattern: &NamePattern) -> Option<String> {
        let kind = NameKind::of(pattern);
        let names = self.0.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| {
            let (name, name_kind) = match name {
                GeneralName::URI(uri) => (*uri, NameKind::Uri),
                GeneralName::DNSName(name) => (*name, NameKind::Dns),
                GeneralName::RFC822Name(address) => (*address, NameKind::Email),
                _ => return None,
            };
            // A separator of the one kind is an ordinary character in the others, which a star
            // would match.
            let is_found =
                name_kind == kind && !name.contains(char::is_control) && pattern.matches_parts(name, kind.separator());
            is_found.then(|| name.to_owned())
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
            ("*", None),
        ] {
            assert_eq!(find(&der, pattern).as_deref(), name, "{pattern}");
        }
    }

    #[test]
    fn a_pattern_matches_names_of_its_own_kind_alone() {
        // Each kind can hold the text of every name, so only the kind keeps the others out.
        for (pattern, name, only) in [
            ("spiffe://prod/ns/*/sa/reader", "spiffe://prod/ns/web/sa/reader", "uri"),
            ("spiffe://prod/*@example.com", "spiffe://prod/ops@example.com", "uri"),
            ("*://*", "a://b", "uri"),
            ("*.example.com", "web.example.com", "dns"),
            ("*", "localhost", "dns"),
            ("web.example.com", "web.example.com", "dns"),
            ("*@example.com", "ops@example.com", "email"),
            ("ops@*", "ops@example.com", "email"),
            // A star of a kind must not match the separator of that kind in a name of another.
            ("spiffe://prod/ns/*/sa/reader", "spiffe://prod/ns/a/b/sa/reader", ""),
            ("*.example.com", "a.b.example.com", ""),
            ("*@example.com", "a@b@example.com", ""),
            // Addresses of machines have no patterns.
            ("10.0.0.*", "10.0.0.1", "dns"),
        ] {
            for kind in ["uri", "dns", "email"] {
                let name = name.try_into().unwrap();
                let der = certificate(vec![match kind {
                    "uri" => SanType::URI(name),
                    "dns" => SanType::DnsName(name),
                    _ => SanType::Rfc822Name(name),
                }]);
                assert_eq!(find(&der, pattern).is_some(), kind == only, "{pattern}, {kind}");
            }
        }
        let der = certificate(vec![SanType::IpAddress("10.0.0.1".parse().unwrap())]);
        assert_eq!(find(&der, "10.0.0.*"), None);
    }

    #[test]
    fn a_name_with_control_characters_is_ignored() {
        for (pattern, name) in [
            ("spiffe://prod/*", "spiffe://prod/a\nb"),
            ("*.example.com", "a\x1b[2J.example.com"),
            ("*.example.com", "a\0.example.com"),
            ("*@example.com", "a\x7f@example.com"),
        ] {
            let name: rcgen::string::Ia5String = name.try_into().unwrap();
            let names = vec![SanType::URI(name.clone()), SanType::DnsName(name.clone()), SanType::Rfc822Name(name)];
            assert_eq!(find(&certificate(names), pattern), None, "{pattern}");
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
