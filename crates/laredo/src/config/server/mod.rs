//! The configuration of `laredo-server`.

mod endpoints;
mod fanout;
mod filters;
mod journal;
mod observability;
mod refused_keys;
mod snapshot_and_archive;
mod source;
mod store;
mod table;
mod transforms;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use endpoints::{GrpcConfig, GrpcTlsConfig, HealthConfig};
pub use fanout::{BufferPolicyConfig, ClientBufferConfig, FanoutConfig, FanoutGrpcConfig};
pub use filters::{FilterConfig, FilterValue, PatternConfig};
pub use journal::{JournalConfig, JournalStoreConfig};
pub use observability::{LogLevel, LogType, LoggingConfig, MetricsConfig, ObservabilityConfig};
pub use snapshot_and_archive::{ArchiveConfig, ArchiveFormat, SnapshotConfig, SnapshotRetention, SnapshotSerializer};
pub use source::{DdlConfig, DdlWatchConfig, PostgresSourceConfig, PublicationConfig, ReconnectConfig, SlotConfig};
pub use store::StoreConfig;
pub use table::ServedTableConfig;
pub use transforms::TransformConfig;
pub use verify::VerifyConfig;

use super::credentials::{self, CREDENTIALS, CredentialsConfig};
use super::diagnostics::{ConfigProblem, ConfigReport};
use super::fields::BlockFields;
use super::load::ConfigLoader;
use super::schema::{BlockSchema, ConfigSchema, KeySchema, PORT, SettingKind, TEXT_OR_EMPTY};
use super::tree::ConfigNode;
use super::write;

/// The configuration of `laredo-server` after all checks: references exist, values are in range,
/// defaults are filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The sources, by the name that tables use; at least one.
    pub sources: BTreeMap<String, PostgresSourceConfig>,
    /// The tables, in the order of the configuration; at least one, and no two with the same name.
    pub tables: Vec<ServedTableConfig>,
    /// The port of the OAM service, and TLS for every gRPC port.
    pub grpc: GrpcConfig,
    /// The health endpoints.
    pub health: HealthConfig,
    /// Metrics and logs.
    pub observability: ObservabilityConfig,
    /// The credentials profiles that object stores refer to.
    pub credentials: BTreeMap<String, CredentialsConfig>,
    /// The folder for temporary files; `None` means the system's.
    pub temp_dir: Option<PathBuf>,
}

/// The port for clients, unless the configuration or a table sets another one.
const FANOUT_PORT_DEFAULT: u16 = 4002;

static SCHEMA: ConfigSchema = ConfigSchema {
    root: &ROOT,
    refused: refused_keys::KEYS,
    file_variable: "LAREDO_CONFIG",
    variable_prefix: "LAREDO_",
    foreign_variables: &["OAM", "SERVER", "SNAPSHOTTER", "SNAPSHOTTER_", "TEST_"],
};

static ROOT: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("sources", source::SOURCES),
        KeySchema::required("tables", SettingKind::List(&SettingKind::Block(&table::TABLE))),
        KeySchema::new("fanout", SettingKind::Block(&FANOUT)),
        KeySchema::new("grpc", SettingKind::Block(&endpoints::GRPC)),
        KeySchema::new("health", SettingKind::Block(&endpoints::HEALTH)),
        KeySchema::new("observability", SettingKind::Block(&observability::OBSERVABILITY)),
        KeySchema::new("credentials", CREDENTIALS),
        KeySchema::new("temp_dir", TEXT_OR_EMPTY),
        KeySchema::new(
            "snapshot",
            SettingKind::Refused(
                "snapshots of the whole server have no meaning in this version; \
                 write the snapshot block inside the target",
            ),
        ),
        KeySchema::new(
            "snapshotter",
            SettingKind::Refused(
                "is for laredo-snapshotter; give each program files of its own (--config, --conf-dir)",
            ),
        ),
    ],
};

static FANOUT: BlockSchema = BlockSchema { keys: &[KeySchema::new("grpc", SettingKind::Block(&FANOUT_GRPC))] };

static FANOUT_GRPC: BlockSchema = BlockSchema { keys: &[KeySchema::new("port", PORT)] };

impl ServerConfig {
    /// Loads, merges and checks the configuration.
    ///
    /// # Errors
    ///
    /// A report of all problems of the configuration.
    pub fn load(loader: &ConfigLoader) -> Result<Self, ConfigReport> {
        loader.load(&SCHEMA, Self::read)
    }

    /// Returns the paths of all keys. `*` is a placeholder for names that the operator chooses, and
    /// list items have no number: `sources.*.connection`, `tables.targets.grpc.port`.
    pub fn keys() -> Vec<String> {
        SCHEMA.keys()
    }

    /// Returns the effective configuration as HOCON. It loads to the same configuration, except for
    /// the passwords of connections, which are masked.
    pub fn to_hocon(&self) -> String {
        let mut out = write::HoconBlock::default();
        out.block("sources", |out| {
            for (name, source) in &self.sources {
                out.block(name, |out| source.write(out));
            }
        });
        out.blocks("tables", &self.tables, |table, out| table.write(out));
        out.block("grpc", |out| self.grpc.write(out));
        out.block("health", |out| self.health.write(out));
        out.block("observability", |out| self.observability.write(out));
        credentials::write_all(&self.credentials, &mut out);
        out.put_if("temp_dir", self.temp_dir.as_ref().map(|path| write::text(&path.to_string_lossy())));
        out.into_document()
    }

    fn read(root: &ConfigNode, problems: &mut Vec<ConfigProblem>) -> ServerConfig {
        let root = BlockFields::root(root, &ROOT);
        let fanout_port = root.block("fanout").block("grpc").port("port").unwrap_or(FANOUT_PORT_DEFAULT);
        let sources = source::read_all(&root, problems);
        let credentials = credentials::read_all(&root, problems);
        let known =
            ConfiguredNames { sources: root.names("sources"), credentials: root.names("credentials"), fanout_port };
        let config = ServerConfig {
            sources,
            tables: table::read_all(&root, &known, problems),
            grpc: GrpcConfig::read(&root.block("grpc"), problems),
            health: HealthConfig::read(&root.block("health"), problems),
            observability: ObservabilityConfig::read(&root.block("observability")),
            credentials,
            temp_dir: root.text_if_any("temp_dir").map(PathBuf::from),
        };
        config.check_ports(&root, problems);
        config.check_paths(&root, problems);
        config
    }

    /// Checks that gRPC and HTTP do not share a port. A gRPC port may serve both the OAM service
    /// and clients.
    fn check_ports(&self, root: &BlockFields, problems: &mut Vec<ConfigProblem>) {
        let grpc = root.block("grpc");
        let mut taken = vec![(self.grpc.port, "grpc.port".to_owned(), grpc.place_of("port").clone())];
        for (i, (table, fields)) in self.tables.iter().zip(root.blocks("tables")).enumerate() {
            let of = format!("tables[{i}].targets[0].grpc.port");
            taken.push((table.fanout.grpc.port, of, fields.place_of("targets").clone()));
        }
        let health = (root.block("health"), "http_port", self.health.http_port);
        let metrics = root.block("observability").block("metrics");
        let metrics = (metrics, "port", self.observability.metrics.port);
        for (fields, key, port) in [health, metrics] {
            let path = fields.path.key(key);
            let twin = taken.iter().find(|(other, ..)| *other == port && port != 0);
            if let Some((_, of, place_of_twin)) = twin {
                // The key that was set explicitly is the one to change.
                let written = fields.has(key);
                let place = if written { fields.place_of(key) } else { place_of_twin };
                let message = format!("port {port} is taken by {of}; give each its own");
                problems.push(ConfigProblem::new(place, &path, message));
            }
            taken.push((port, path.to_string(), fields.place_of(key).clone()));
        }
    }

    /// Checks that the health and metrics endpoints have different paths, because the health port
    /// serves the metrics, too.
    fn check_paths(&self, root: &BlockFields, problems: &mut Vec<ConfigProblem>) {
        let (health, metrics) = (root.block("health"), root.block("observability").block("metrics"));
        let of_metrics = &self.observability.metrics.path;
        let of_health =
            [("readiness_path", &self.health.readiness_path), ("liveness_path", &self.health.liveness_path)];
        let mut complain = |fields: &BlockFields, key: &str, what: &str| {
            let message = format!("{what} has this path already; give each its own");
            problems.push(ConfigProblem::new(fields.place_of(key), &fields.path.key(key), message));
        };
        for (key, path) in of_health {
            if path == STARTUP_PATH {
                complain(&health, key, "the startup endpoint");
            }
            // The key that was set explicitly is the one to change.
            match path == of_metrics {
                true if metrics.has("path") => complain(&metrics, "path", &format!("health.{key}")),
                true => complain(&health, key, "observability.metrics.path"),
                false => {}
            }
        }
        if of_metrics == STARTUP_PATH {
            complain(&metrics, "path", "the startup endpoint");
        }
    }
}

/// The path at which the server reports if it has started. No key changes the path.
const STARTUP_PATH: &str = "/health/startup";

/// The names that a configuration may refer to, and the default port for clients.
struct ConfiguredNames<'a> {
    sources: Vec<&'a str>,
    credentials: Vec<&'a str>,
    fanout_port: u16,
}
