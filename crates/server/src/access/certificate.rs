//! The names in a client's certificate.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::pattern::NamePattern;

/// Returns the first name of a certificate's subject alternative names that the pattern matches: a
/// URI, a DNS name or an e-mail address.
///
/// A star in the pattern matches a part of the name: of a URI's path, of a DNS name between its
/// dots, or of an address before or after its `@`. The handshake has verified the certificate.
pub(super) fn find_name(der: &[u8], pattern: &NamePattern) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = names;
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn names_of_each_kind_are_found() {
        let der = certificate(vec![
            SanType::DnsName("web.example.com".try_into().unwrap()),
            SanType::URI("spiffe://prod/ns/web/sa/reader".try_into().unwrap()),
            SanType::Rfc822Name("ops@example.com".try_into().unwrap()),
        ]);
        let find = |pattern: &str| find_name(&der, &NamePattern::new(pattern));
        for (pattern, name) in [
            ("spiffe://prod/ns/*/sa/reader", Some("spiffe://prod/ns/web/sa/reader")),
            ("*.example.com", Some("web.example.com")),
            ("*@example.com", Some("ops@example.com")),
            ("spiffe://prod/*", None),
            ("*.com", None),
            ("reader", None),
        ] {
            assert_eq!(find(pattern).as_deref(), name, "{pattern}");
        }
    }

    #[test]
    fn a_certificate_without_names_and_other_bytes_have_none() {
        let any = NamePattern::new("*");
        assert_eq!(find_name(&certificate(Vec::new()), &any), None, "the common name does not count");
        assert_eq!(find_name(b"no certificate", &any), None);
    }
}
