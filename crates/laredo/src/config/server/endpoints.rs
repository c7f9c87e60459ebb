//! The server's own endpoints: the OAM service and health.

use std::path::PathBuf;

use super::super::declaration::{ConfigBlock, ConfigKey, config_block, custom, key, optional, texts};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{PORT, SettingKind, TEXT_OR_EMPTY, URL_PATH};

config_block! {
    /// The port of the OAM service, and TLS for every gRPC port.
    pub struct GrpcConfig {
        /// The port of the OAM service.
        pub port: u16 = key("port", PORT, || 4001),
        /// The origins whose pages may call this port and the clients' ports from a browser, as in
        /// `["https://console.example"]`. `*` means all pages ([protocols](protocols.md#browsers)).
        /// Ours.
        pub allowed_origins: Vec<String> = texts("allowed_origins", SettingKind::List(&ORIGIN), "none"),
        /// TLS for this port and the clients' ports; `None` if it is not enabled.
        pub tls: Option<GrpcTlsConfig> = custom(
            "tls",
            GrpcTlsConfig::KIND,
            || None,
            |_, fields, reader| {
                let tls = fields.block("tls");
                Some(TLS_ENABLED.read(&tls, reader).then(|| GrpcTlsConfig::read(&tls, reader)))
            },
            |tls, _, out| {
                out.block("tls", |out| {
                    TLS_ENABLED.write(&tls.is_some(), out);
                    tls.iter().for_each(|tls| tls.write(out));
                });
            },
        ),
    }
}

const TLS_ENABLED: ConfigKey<bool> =
    key("enabled", SettingKind::Flag, || false).doc("True for TLS on this port and the clients' ports.");

config_block! {
    /// The server side of TLS.
    pub struct GrpcTlsConfig [GrpcTlsConfig::check] {
        /// The certificate chain, PEM.
        pub cert_path: PathBuf = key("cert_path", TEXT_OR_EMPTY, PathBuf::new).defaults_to("required with TLS"),
        /// The private key, PEM.
        pub key_path: PathBuf = key("key_path", TEXT_OR_EMPTY, PathBuf::new).defaults_to("required with TLS"),
        /// The authorities, PEM, whose client certificates the server requests and accepts.
        pub client_ca_path: Option<PathBuf> =
            optional("client_ca_path", TEXT_OR_EMPTY, "none: the server requests no certificates"),
    }
    also [config_field!(TLS_ENABLED)]
}

config_block! {
    /// The health endpoints.
    pub struct HealthConfig [HealthConfig::check] {
        /// The port of the health endpoints. `--health-port` sets it.
        pub http_port: u16 = key("http_port", PORT, || 8080),
        /// The path of the readiness check.
        pub readiness_path: String = key("readiness_path", URL_PATH, || "/health/ready".to_owned()),
        /// The path of the liveness check.
        pub liveness_path: String = key("liveness_path", URL_PATH, || "/health/live".to_owned()),
        /// True if the server is ready only while every table is served. By default, the server is
        /// ready while every table that can be served is served
        /// ([readiness](operations.md#readiness)). Ours.
        pub strict_readiness: bool = key("strict_readiness", SettingKind::Flag, || false),
    }
}

const ORIGIN: SettingKind = SettingKind::Text {
    accepts: is_origin,
    expected: "an origin as browsers name it, such as https://console.example (no path, no capital letters), or *",
};

/// Returns true if a text is `*`, or a scheme and a host with an optional port. An origin in
/// another spelling would never match.
fn is_origin(text: &str) -> bool {
    let is_plain = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_graphic() && !c.is_ascii_uppercase() && !"/?#@*,\"".contains(c))
    };
    text == "*" || text.split_once("://").is_some_and(|(scheme, host)| is_plain(scheme) && is_plain(host))
}

impl GrpcTlsConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        for (key, path) in [("cert_path", &self.cert_path), ("key_path", &self.key_path)] {
            if path.as_os_str().is_empty() {
                reader.report_at(fields, "enabled", key, "is required with enabled = true");
            }
        }
    }
}

impl HealthConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        if self.readiness_path == self.liveness_path {
            let key = if fields.has("readiness_path") { "readiness_path" } else { "liveness_path" };
            reader.report(
                fields,
                key,
                "readiness and liveness have the same path; a server that is not ready would be restarted",
            );
        }
    }
}
