//! The server's own endpoints: the OAM service and health.

use std::path::PathBuf;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::schema::{BlockSchema, KeySchema, PORT, SettingKind, TEXT_OR_EMPTY, URL_PATH};
use super::super::write::{self, list, text};

/// The port of the OAM service, and TLS for every gRPC port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcConfig {
    /// The TCP port; 0 means any free one. Default 4001.
    pub port: u16,
    /// The origins whose pages may call this port and the clients' ports from a browser, spelled as
    /// by browsers (`https://console.example`); `*` means all. Default none.
    pub allowed_origins: Vec<String>,
    /// TLS for this port and the clients' ports; `None` if it is not enabled.
    pub tls: Option<GrpcTlsConfig>,
}

/// The server side of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcTlsConfig {
    /// The certificate chain, PEM.
    pub cert_path: PathBuf,
    /// The private key, PEM.
    pub key_path: PathBuf,
    /// The authorities, PEM, whose client certificates the server requests and accepts; if missing,
    /// it requests no certificates.
    pub client_ca_path: Option<PathBuf>,
}

/// The health endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// The TCP port; 0 means any free one. Default 8080.
    pub http_port: u16,
    /// The path of the readiness check. Default `/health/ready`.
    pub readiness_path: String,
    /// The path of the liveness check. Default `/health/live`.
    pub liveness_path: String,
    /// True if the server is ready only while every table is served. Default false: it is ready
    /// while every table that can be served is served.
    pub strict_readiness: bool,
}

/// The schema of `grpc`.
pub(super) static GRPC: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("port", PORT),
        KeySchema::new("allowed_origins", SettingKind::List(&ORIGIN)),
        KeySchema::new("tls", SettingKind::Block(&TLS)),
    ],
};

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

static TLS: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("enabled", SettingKind::Flag),
        KeySchema::new("cert_path", TEXT_OR_EMPTY),
        KeySchema::new("key_path", TEXT_OR_EMPTY),
        KeySchema::new("client_ca_path", TEXT_OR_EMPTY),
    ],
};

/// The schema of `health`.
pub(super) static HEALTH: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("http_port", PORT),
        KeySchema::new("readiness_path", URL_PATH),
        KeySchema::new("liveness_path", URL_PATH),
        KeySchema::new("strict_readiness", SettingKind::Flag),
    ],
};

impl GrpcConfig {
    pub(super) fn read(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        let tls = fields.block("tls");
        let enabled = tls.flag("enabled").unwrap_or(false);
        GrpcConfig {
            port: fields.port("port").unwrap_or(4001),
            allowed_origins: fields.texts("allowed_origins"),
            tls: enabled.then(|| GrpcTlsConfig::read(&tls, problems)),
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("port", self.port);
        if !self.allowed_origins.is_empty() {
            out.put("allowed_origins", list(self.allowed_origins.iter().map(|origin| text(origin))));
        }
        out.block("tls", |out| {
            out.put("enabled", self.tls.is_some());
            if let Some(tls) = &self.tls {
                let path = |path: &PathBuf| text(&path.to_string_lossy());
                out.put("cert_path", path(&tls.cert_path));
                out.put("key_path", path(&tls.key_path));
                out.put_if("client_ca_path", tls.client_ca_path.as_ref().map(path));
            }
        });
    }
}

impl GrpcTlsConfig {
    fn read(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        let mut required = |key: &str| {
            let path = fields.text_if_any(key);
            if path.is_none() {
                problems.push(ConfigProblem::new(
                    fields.place_of("enabled"),
                    &fields.path.key(key),
                    "is required with enabled = true",
                ));
            }
            PathBuf::from(path.unwrap_or_default())
        };
        GrpcTlsConfig {
            cert_path: required("cert_path"),
            key_path: required("key_path"),
            client_ca_path: fields.text_if_any("client_ca_path").map(PathBuf::from),
        }
    }
}

impl HealthConfig {
    pub(super) fn read(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Self {
        let path = |key: &str, default: &str| fields.text(key).unwrap_or_else(|| default.to_owned());
        let config = HealthConfig {
            http_port: fields.port("http_port").unwrap_or(8080),
            readiness_path: path("readiness_path", "/health/ready"),
            liveness_path: path("liveness_path", "/health/live"),
            strict_readiness: fields.flag("strict_readiness").unwrap_or(false),
        };
        if config.readiness_path == config.liveness_path {
            let key = if fields.has("readiness_path") { "readiness_path" } else { "liveness_path" };
            problems.push(ConfigProblem::new(
                fields.place_of(key),
                &fields.path.key(key),
                "readiness and liveness have the same path; a server that is not ready would be restarted",
            ));
        }
        config
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("http_port", self.http_port);
        out.put("readiness_path", text(&self.readiness_path));
        out.put("liveness_path", text(&self.liveness_path));
        out.put("strict_readiness", self.strict_readiness);
    }
}
