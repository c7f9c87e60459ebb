//! The server's own endpoints: the OAM service and health.

use laredo_server::ListenAddress;

use super::super::declaration::{config_block, key, texts};
use super::super::fields::BlockFields;
use super::super::port::{self, PortTlsConfig};
use super::super::reader::ConfigReader;
use super::super::schema::{PORT, SettingKind, URL_PATH};

config_block! {
    /// The port of the OAM service, and TLS for every gRPC port.
    pub struct GrpcConfig {
        /// The port of the OAM service.
        pub port: u16 = key("port", PORT, || 4001),
        /// The address of this port. Ours.
        pub address: ListenAddress = port::address(),
        /// The maximum number of open connections of this port, and of each port for clients. More
        /// clients wait. Ours.
        pub max_connections: u32 = key("max_connections", CONNECTIONS, || CONNECTIONS_DEFAULT),
        /// The origins whose pages may call this port and the clients' ports from a browser, as in
        /// `["https://console.example"]`. `*` means all pages ([protocols](protocols.md#browsers)).
        /// Ours.
        pub allowed_origins: Vec<String> = texts("allowed_origins", SettingKind::List(&ORIGIN), "none"),
        /// TLS for this port and the clients' ports; `None` if it is not enabled.
        pub tls: Option<PortTlsConfig> = port::tls(),
    }
}

config_block! {
    /// The health endpoints.
    pub struct HealthConfig [HealthConfig::check] {
        /// The port of the health endpoints. `--health-port` sets it.
        pub http_port: u16 = key("http_port", PORT, || 8080),
        /// The address of this port. Ours.
        pub address: ListenAddress = port::address(),
        /// TLS for this port; `None` if it is not enabled. Ours.
        pub tls: Option<PortTlsConfig> = port::tls(),
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

const CONNECTIONS: SettingKind = SettingKind::Count { min: 1, max: u32::MAX as u64 };
const CONNECTIONS_DEFAULT: u32 = 10_000;

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
