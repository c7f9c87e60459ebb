//! The keys that every port has: its address, its TLS, and the hosts by which it may be called.

use std::path::PathBuf;

use laredo_server::ListenAddress;

use super::declaration::{ConfigBlock, ConfigKey, config_block, config_choice, custom, key, optional};
use super::fields::BlockFields;
use super::leaf::{LeafSetting, LeafValue};
use super::reader::ConfigReader;
use super::schema::{SettingKind, TEXT_OR_EMPTY};

/// The address that a port listens at.
pub(super) const ADDRESS: SettingKind = SettingKind::Text {
    accepts: |text| text.parse::<ListenAddress>().is_ok(),
    expected: "an IP address, unix:/PATH, or * for all addresses",
};

/// Declares the address of a port.
pub(super) const fn address() -> ConfigKey<ListenAddress> {
    key("address", ADDRESS, || ListenAddress::All)
}

/// A name by which a port may be called.
pub(super) const HOST: SettingKind = SettingKind::Text {
    accepts: is_host,
    expected: "the name of a host without a port, such as laredo.example.com or *.example.com, or *",
};

fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let is_label =
        |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    text == "*" || name.split('.').all(is_label)
}

/// Declares the TLS of a port; `None` if it is not enabled.
pub(super) const fn tls() -> ConfigKey<Option<PortTlsConfig>> {
    custom(
        "tls",
        PortTlsConfig::KIND,
        || None,
        |_, fields, reader| {
            let tls = fields.block("tls");
            Some(TLS_ENABLED.read(&tls, reader).then(|| PortTlsConfig::read(&tls, reader)))
        },
        |tls, _, out| {
            out.block("tls", |out| {
                TLS_ENABLED.write(&tls.is_some(), out);
                tls.iter().for_each(|tls| tls.write(out));
            });
        },
    )
}

const TLS_ENABLED: ConfigKey<bool> = key("enabled", SettingKind::Flag, || false).doc("True for TLS.");

config_block! {
    /// The server side of TLS. The files are read again when they change.
    pub struct PortTlsConfig [PortTlsConfig::check] {
        /// The certificate chain, PEM.
        pub cert_path: PathBuf = key("cert_path", TEXT_OR_EMPTY, PathBuf::new).defaults_to("required with TLS"),
        /// The private key, PEM.
        pub key_path: PathBuf = key("key_path", TEXT_OR_EMPTY, PathBuf::new).defaults_to("required with TLS"),
        /// The authorities, PEM, whose client certificates the server requests and accepts.
        pub client_ca_path: Option<PathBuf> =
            optional("client_ca_path", TEXT_OR_EMPTY, "none: the server requests no certificates"),
        /// The clients that must show a certificate of `client_ca_path`: all (`required`), or none,
        /// because [`access`](security.md#who-may-do-what) knows them by tokens as well
        /// (`optional`). Ours.
        pub client_certificates: CertificateDemand =
            key("client_certificates", CertificateDemand::KIND, || CertificateDemand::Required),
    }
    also [config_field!(TLS_ENABLED)]
}

config_choice! {
    /// The clients that must show a certificate.
    pub enum CertificateDemand {
        /// All clients.
        Required = "required",
        /// None. A certificate that a client shows is checked all the same.
        Optional = "optional",
    }
}

impl PortTlsConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        for (key, path) in [("cert_path", &self.cert_path), ("key_path", &self.key_path)] {
            if path.as_os_str().is_empty() {
                reader.report_at(fields, "enabled", key, "is required with enabled = true");
            }
        }
        if self.client_certificates == CertificateDemand::Optional && self.client_ca_path.is_none() {
            let message = "no client is asked for a certificate; set client_ca_path, or remove this key";
            reader.report(fields, "client_certificates", message);
        }
    }

    /// Refuses optional certificates at a port whose callers have no other proof of who they are.
    pub(super) fn refuse_optional(tls: Option<&PortTlsConfig>, fields: &BlockFields, reader: &mut ConfigReader) {
        if tls.is_some_and(|tls| tls.client_certificates == CertificateDemand::Optional) {
            let message = "without access rules, everyone would be let in without a certificate; write required, or \
                           remove client_ca_path";
            reader.report(fields, "client_certificates", message);
        }
    }
}

impl LeafSetting for ListenAddress {
    fn from_leaf(value: LeafValue) -> Option<Self> {
        String::from_leaf(value)?.parse().ok()
    }

    fn to_leaf(&self) -> LeafValue {
        LeafValue::Text(self.to_string())
    }
}
