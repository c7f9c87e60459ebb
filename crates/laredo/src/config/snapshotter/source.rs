//! The source of a table: the server that serves it, and the connection to that server.

use std::path::PathBuf;

use http::uri::Authority;

use super::super::declaration::{
    ConfigBlock, ConfigKey, config_block, config_field, custom, group, key, optional, required,
};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{FieldSchema, SettingKind, TEXT, TEXT_OR_EMPTY};
use super::super::secret::ConfigSecret;
use super::super::write::HoconBlock;

config_block! {
    /// A table of a server, and the connection to that server.
    pub struct SnapshotterSourceConfig [SnapshotterSourceConfig::check] {
        /// The address of the server's `grpc.port` or of the table's own port. `https://…` means
        /// TLS, and so does `tls.enabled`.
        pub server: String = required("server", SERVER),
        /// The schema of the table.
        pub schema: String = required("schema", TEXT),
        /// The name of the table.
        pub table: String = required("table", TEXT),
        /// The name of this client that the server's operator sees.
        pub client_id: String = key("client_id", TEXT, || "laredo-snapshotter".to_owned()),
        /// The path of a local snapshot. Accepted but not used: the state is rebuilt from the
        /// archive.
        pub local_snapshot_path: Option<PathBuf> = optional("local_snapshot_path", TEXT, "none"),
        /// The settings of TLS; `None` for a server without TLS.
        pub tls: Option<SnapshotterTlsConfig> = custom(
            "tls",
            SnapshotterTlsConfig::KIND,
            || None,
            |_, fields, reader| Some(SnapshotterTlsConfig::read_if_used(fields, reader)),
            |tls, _, out| {
                out.block("tls", |out| {
                    TLS_ENABLED.write(&Some(tls.is_some()), out);
                    tls.iter().for_each(|tls| tls.write(out));
                });
            },
        ),
        /// The token for a server, or a proxy before it, that requires one. Each call sends it as
        /// `authorization: Bearer …`. Secret. Ours.
        pub token: Option<ConfigSecret> = optional("token", SettingKind::Secret, "none"),
    }
}

const TLS_ENABLED: ConfigKey<Option<bool>> =
    optional("enabled", SettingKind::Flag, "`true` for `https://`, else `false`")
        .doc("True for TLS to a `server` that is written without a scheme. Ours.");

config_block! {
    /// The client side of TLS.
    pub struct SnapshotterTlsConfig {
        /// The authorities to check the server's certificate against, PEM. Ours.
        pub ca_path: Option<PathBuf> = optional("ca_path", TEXT_OR_EMPTY, "the system's"),
        /// The certificate for a server that requires one.
        pub identity: Option<IdentityConfig> = group(
            &[config_field!(CERT_PATH), config_field!(KEY_PATH)],
            || None,
            |_, fields, reader| Some(IdentityConfig::read(fields, reader)),
            |identity, _, out| IdentityConfig::write(identity.as_ref(), out),
        ),
    }
    also [
        config_field!(TLS_ENABLED),
        FieldSchema::refused(
            "client_ca_path",
            "is a server's key, for the certificates of its clients; a client checks its server with ca_path",
        ),
    ]
}

/// A client's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityConfig {
    /// The certificate chain, PEM.
    pub cert_path: PathBuf,
    /// The certificate's private key, PEM.
    pub key_path: PathBuf,
}

const CERT_PATH: ConfigKey<Option<PathBuf>> = optional("cert_path", TEXT_OR_EMPTY, "none")
    .doc("The certificate chain for a server that requires one (its `client_ca_path`), PEM. Ours.");

const KEY_PATH: ConfigKey<Option<PathBuf>> = optional("key_path", TEXT_OR_EMPTY, "required with `cert_path`")
    .doc("The private key of the certificate, PEM. Ours.");

const SERVER: SettingKind = SettingKind::Text {
    accepts: is_server,
    expected: "the address of a server, such as localhost:4002 or https://laredo.example:4002",
};

fn is_server(text: &str) -> bool {
    let (scheme, address) = split(text);
    let Ok(authority) = address.parse::<Authority>() else { return false };
    let has_port = authority.port_u16().is_some();
    let may_lack_it = scheme.is_some() && authority.host() == address;
    !authority.host().is_empty() && !address.contains('@') && (has_port || may_lack_it)
}

/// Splits a server's address. Returns true if the scheme means TLS, or `None` without a scheme, and
/// the rest of the address.
fn split(server: &str) -> (Option<bool>, &str) {
    for (scheme, is_tls) in [("https://", true), ("http://", false)] {
        if let Some(address) = server.strip_prefix(scheme) {
            return (Some(is_tls), address.strip_suffix('/').unwrap_or(address));
        }
    }
    (None, server)
}

impl SnapshotterSourceConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        let (_, address) = split(&self.server);
        self.server = format!("{}://{address}", if self.tls.is_some() { "https" } else { "http" });
        if self.token.as_ref().is_some_and(|token| !token.expose().chars().all(|c| c.is_ascii_graphic())) {
            reader.report(fields, "token", "expected a token without spaces, of ASCII letters, digits and signs");
        }
    }

    /// Returns the name, as `schema.table`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.local_snapshot_path.is_some() {
            warnings.push(
                "source.local_snapshot_path is not needed and not used: the state is rebuilt from the archive"
                    .to_owned(),
            );
        }
        if self.token.is_some() && self.tls.is_none() {
            warnings.push(
                "source.token is sent without TLS, so the network can read it; write https:// in source.server"
                    .to_owned(),
            );
        }
        warnings
    }
}

impl SnapshotterTlsConfig {
    /// Reads the settings of TLS. Returns `None` unless the server's scheme or `enabled` requires
    /// TLS. If both are given, they must agree.
    fn read_if_used(source: &BlockFields, reader: &mut ConfigReader) -> Option<Self> {
        // Without an address, the settings that it needs are unknown.
        let server = source.leaf::<String>("server")?;
        let (scheme, _) = split(&server);
        let fields = source.block("tls");
        let enabled = TLS_ENABLED.read(&fields, reader);
        match (scheme, enabled) {
            (Some(true), Some(false)) => {
                reader.report(&fields, "enabled", "is false, but source.server begins with https://");
            }
            (Some(false), Some(true)) => {
                reader.report(&fields, "enabled", "is true, but source.server begins with http://");
            }
            _ => {}
        }
        if scheme.or(enabled).unwrap_or(false) {
            return Some(SnapshotterTlsConfig::read(&fields, reader));
        }
        let unused =
            ["ca_path", "cert_path", "key_path"].into_iter().filter(|key| fields.leaf::<PathBuf>(key).is_some());
        if enabled.is_none() {
            for key in unused {
                let message = "has a meaning only with TLS: write https:// in source.server, or enabled = true";
                reader.report(&fields, key, message);
            }
        }
        None
    }
}

impl IdentityConfig {
    fn read(fields: &BlockFields, reader: &mut ConfigReader) -> Option<Self> {
        match (CERT_PATH.read(fields, reader), KEY_PATH.read(fields, reader)) {
            (Some(cert_path), Some(key_path)) => Some(IdentityConfig { cert_path, key_path }),
            (Some(_), None) => {
                reader.report(fields, CERT_PATH.name(), "requires key_path, the private key of this certificate");
                None
            }
            (None, Some(_)) => {
                reader.report(fields, KEY_PATH.name(), "requires cert_path, the certificate of this key");
                None
            }
            (None, None) => None,
        }
    }

    fn write(identity: Option<&Self>, out: &mut HoconBlock) {
        CERT_PATH.write(&identity.map(|identity| identity.cert_path.clone()), out);
        KEY_PATH.write(&identity.map(|identity| identity.key_path.clone()), out);
    }
}

#[cfg(test)]
mod tests {
    use super::is_server;

    #[test]
    fn an_address_is_a_host_and_a_port_and_perhaps_a_scheme() {
        for right in [
            "localhost:4001",
            "10.0.0.1:4001",
            "[::1]:4001",
            "http://localhost:4001",
            "https://laredo.example/",
            "https://[::1]",
        ] {
            assert!(is_server(right), "{right}");
        }
        for wrong in [
            "",
            "localhost",
            "localhost:",
            "localhost:70000",
            ":4001",
            "http://",
            "ftp://localhost:4001",
            "http://localhost:4001/path",
            "http://user@localhost:4001",
            "local host:4001",
            "a:1,b:2",
        ] {
            assert!(!is_server(wrong), "{wrong}");
        }
    }
}
