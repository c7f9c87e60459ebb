//! The comparison of a certificate's names with the host, by the rules of libpq.

use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use super::refusal::{CertificateRefusal, printable};

/// The names of a certificate that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NamesAllowed {
    /// The alternative names, and the common name where libpq looks at it.
    All,
    /// The alternative names only.
    Alternative,
}

/// Checks that a certificate is for the host. The common name counts if the certificate has no
/// alternative name of the host's kind: a DNS name or an IP address.
pub(super) fn verify_name(
    certificate: &X509Certificate<'_>,
    host: &str,
    allowed: NamesAllowed,
) -> Result<(), CertificateRefusal> {
    let address = host.parse::<IpAddr>().ok();
    let octets = address.map(|address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    });
    let alternative = certificate.subject_alternative_name();
    let alternative = alternative.map_err(|error| CertificateRefusal::unusable(certificate, error))?;
    let (mut names, mut uses_common_name) = (Vec::new(), true);
    for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => {
                uses_common_name &= address.is_some();
                if matches_host(name, host) {
                    return Ok(());
                }
                names.push((*name).to_owned());
            }
            GeneralName::IPAddress(bytes) => {
                uses_common_name &= address.is_none();
                if octets.as_deref() == Some(bytes) {
                    return Ok(());
                }
                names.push(shown_address(bytes));
            }
            _ => {}
        }
    }
    let common_name = certificate.subject().iter_common_name().next();
    if let Some(name) = common_name.and_then(|name| std::str::from_utf8(name.as_slice()).ok())
        && uses_common_name
    {
        match (matches_host(name, host), allowed) {
            (true, NamesAllowed::All) => return Ok(()),
            (true, NamesAllowed::Alternative) => {
                return Err(CertificateRefusal::CommonNameRestricted { host: host.to_owned() });
            }
            (false, _) => names.push(name.to_owned()),
        }
    }
    let names = if names.is_empty() { "no host".to_owned() } else { printable(&names.join(", ")) };
    Err(CertificateRefusal::OtherName { names, host: host.to_owned() })
}

/// Returns true if a name is the host's, or a wildcard for the first label of it.
fn matches_host(name: &str, host: &str) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    let suffix = name.strip_prefix("*.").filter(|suffix| !suffix.is_empty());
    let parent = host.split_once('.').filter(|(label, _)| !label.is_empty()).map(|(_, parent)| parent);
    suffix.zip(parent).is_some_and(|(suffix, parent)| suffix.eq_ignore_ascii_case(parent))
}

fn shown_address(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.map_or_else(|_| "an invalid address".to_owned(), |address| address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label_at_the_beginning() {
        for (name, host, expected) in [
            ("db.example", "db.example", true),
            ("DB.Example", "db.example", true),
            ("*.example", "db.example", true),
            ("*.Example", "DB.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*", "localhost", false),
            ("*.", "localhost.", false),
            ("d*.example", "db.example", false),
            ("db.*", "db.example", false),
            ("*.*", "db.example", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("*.0.0.1", "127.0.0.1", true),
            ("", "", true),
            ("db.example\0.evil", "db.example", false),
        ] {
            assert_eq!(matches_host(name, host), expected, "{name} {host}");
        }
    }
}
