//! The source of a table: the server that serves it, and the connection to that server.

use std::path::PathBuf;

use http::uri::Authority;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT, TEXT_OR_EMPTY};
use super::super::secret::{ConfigSecret, MASK};
use super::super::write::{self, text};

/// A table of a server, and the connection to that server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotterSourceConfig {
    /// The server's URL: `https://host:port` if `tls` is present, and `http://host:port` otherwise.
    pub server: String,
    /// The table's schema.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// The name of this client that the server's operator sees. Default `laredo-snapshotter`.
    pub client_id: String,
    /// The path of a local snapshot, which is accepted but not used: the state is rebuilt from the
    /// archive.
    pub local_snapshot_path: Option<PathBuf>,
    /// The settings of TLS; `None` for a server without TLS.
    pub tls: Option<SnapshotterTlsConfig>,
    /// The token for a server that requires one.
    pub token: Option<ConfigSecret>,
}

/// The client side of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotterTlsConfig {
    /// The authorities to check the server's certificate against, PEM; if missing, the system's.
    pub ca_path: Option<PathBuf>,
    /// The certificate for a server that requires one.
    pub identity: Option<IdentityConfig>,
}

/// A client's own certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityConfig {
    /// The certificate chain, PEM.
    pub cert_path: PathBuf,
    /// The certificate's private key, PEM.
    pub key_path: PathBuf,
}

/// The schema of `source`.
pub(super) static SOURCE: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("server", SERVER),
        KeySchema::required("schema", TEXT),
        KeySchema::required("table", TEXT),
        KeySchema::new("client_id", TEXT),
        KeySchema::new("local_snapshot_path", TEXT),
        KeySchema::new("tls", SettingKind::Block(&TLS)),
        KeySchema::new("token", SettingKind::Secret),
    ],
};

static TLS: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("enabled", SettingKind::Flag),
        KeySchema::new("ca_path", TEXT_OR_EMPTY),
        KeySchema::new("cert_path", TEXT_OR_EMPTY),
        KeySchema::new("key_path", TEXT_OR_EMPTY),
        KeySchema::new(
            "client_ca_path",
            SettingKind::Refused(
                "is a server's key, for the certificates of its clients; a client checks its server with ca_path",
            ),
        ),
    ],
};

const SERVER: SettingKind = SettingKind::Text {
    accepts: is_server,
    expected: "the address of a server, such as localhost:4001 or https://laredo.example:4001",
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
    pub(super) fn read(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        let server = fields.text("server");
        // Without an address, the settings that it needs are unknown.
        let (tls, address) = match server.as_deref().map(split) {
            Some((scheme, address)) => (SnapshotterTlsConfig::read(fields, scheme, problems), address),
            None => (None, ""),
        };
        let token = fields.text("token").map(ConfigSecret::new);
        if token.as_ref().is_some_and(|token| !token.expose().chars().all(|c| c.is_ascii_graphic())) {
            let message = "expected a token without spaces, of ASCII letters, digits and signs";
            problems.push(ConfigProblem::new(fields.place_of("token"), &fields.path.key("token"), message));
        }
        SnapshotterSourceConfig {
            server: format!("{}://{address}", if tls.is_some() { "https" } else { "http" }),
            schema: fields.text("schema").unwrap_or_default(),
            table: fields.text("table").unwrap_or_default(),
            client_id: fields.text("client_id").unwrap_or_else(|| "laredo-snapshotter".to_owned()),
            local_snapshot_path: fields.text("local_snapshot_path").map(PathBuf::from),
            tls,
            token,
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
                "source.token is sent without TLS, and who is on the way can read it; write https:// in server"
                    .to_owned(),
            );
        }
        warnings
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("server", text(&self.server));
        out.put("schema", text(&self.schema));
        out.put("table", text(&self.table));
        out.put("client_id", text(&self.client_id));
        let path = |path: &PathBuf| text(&path.to_string_lossy());
        out.put_if("local_snapshot_path", self.local_snapshot_path.as_ref().map(path));
        out.block("tls", |out| {
            out.put("enabled", self.tls.is_some());
            let Some(tls) = &self.tls else { return };
            out.put_if("ca_path", tls.ca_path.as_ref().map(path));
            if let Some(identity) = &tls.identity {
                out.put("cert_path", path(&identity.cert_path));
                out.put("key_path", path(&identity.key_path));
            }
        });
        out.put_if("token", self.token.as_ref().map(|_| text(MASK)));
    }
}

impl SnapshotterTlsConfig {
    /// Reads the settings of TLS. Returns `None` unless the server's scheme or `enabled` asks for
    /// TLS. If both are given, they must agree.
    fn read(source: &BlockFields, scheme: Option<bool>, problems: &mut Vec<ConfigProblem>) -> Option<Self> {
        let fields = source.block("tls");
        let enabled = fields.flag("enabled");
        let mut complain = |key: &str, message: &str| {
            problems.push(ConfigProblem::new(fields.place_of(key), &fields.path.key(key), message));
        };
        let path = |key: &str| fields.text_if_any(key).map(PathBuf::from);
        match (scheme, enabled) {
            (Some(true), Some(false)) => complain("enabled", "is false, but source.server begins with https://"),
            (Some(false), Some(true)) => complain("enabled", "is true, but source.server begins with http://"),
            _ => {}
        }
        if !scheme.or(enabled).unwrap_or(false) {
            let unused = ["ca_path", "cert_path", "key_path"].into_iter().filter(|key| path(key).is_some());
            if enabled.is_none() {
                unused.for_each(|key| {
                    complain(key, "has a meaning only with TLS: write https:// in source.server, or enabled = true");
                });
            }
            return None;
        }
        let identity = match (path("cert_path"), path("key_path")) {
            (Some(cert_path), Some(key_path)) => Some(IdentityConfig { cert_path, key_path }),
            (Some(_), None) => {
                complain("cert_path", "needs the key_path of its private key beside it");
                None
            }
            (None, Some(_)) => {
                complain("key_path", "needs the cert_path of its certificate beside it");
                None
            }
            (None, None) => None,
        };
        Some(SnapshotterTlsConfig { ca_path: path("ca_path"), identity })
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
