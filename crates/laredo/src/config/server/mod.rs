//! The configuration of `laredo-server`.

mod fanout;
mod filters;
mod journal;
mod keeping;
mod observability;
mod refused;
mod services;
mod source;
mod store;
mod table;
mod transforms;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use fanout::{BufferPolicy, ClientBuffer, FanoutConfig, FanoutGrpc};
pub use filters::{Filter, FilterValue, Pattern};
pub use journal::{JournalConfig, JournalStore};
pub use keeping::{ArchiveConfig, ArchiveFormat, SnapshotConfig, SnapshotRetention, SnapshotSerializer};
pub use observability::{LogLevel, LogType, LoggingConfig, MetricsConfig, ObservabilityConfig};
pub use services::{GrpcConfig, HealthConfig, TlsConfig};
pub use source::{DdlConfig, DdlWatchConfig, PublicationConfig, ReconnectConfig, SlotConfig, SourceConfig};
pub use store::Store;
pub use table::TableConfig;
pub use transforms::Transform;
pub use verify::VerifyConfig;

use super::credentials::{self, CREDENTIALS, Credentials};
use super::diagnostics::{Problem, Report};
use super::fields::Fields;
use super::load::Loader;
use super::schema::{Block, Key, Kind, PORT, Schema, TEXT_OR_EMPTY};
use super::tree::Node;
use super::write;

/// The configuration of `laredo-server` after all checks: references exist, values are in range,
/// defaults are filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The sources, by the name that tables use; at least one.
    pub sources: BTreeMap<String, SourceConfig>,
    /// The tables, in the order of the configuration; at least one, and no two with the same name.
    pub tables: Vec<TableConfig>,
    /// The port of the OAM service, and TLS for every gRPC port.
    pub grpc: GrpcConfig,
    /// The health endpoints.
    pub health: HealthConfig,
    /// Metrics and logs.
    pub observability: ObservabilityConfig,
    /// The credentials profiles that object stores refer to.
    pub credentials: BTreeMap<String, Credentials>,
    /// The folder for temporary files; `None` means the system's.
    pub temp_dir: Option<PathBuf>,
}

/// The port for clients, unless the configuration or a table sets another one.
const FANOUT_PORT_DEFAULT: u16 = 4002;

static SCHEMA: Schema = Schema {
    root: &ROOT,
    refused: refused::KEYS,
    file_variable: "LAREDO_CONFIG",
    variable_prefix: "LAREDO_",
    foreign_variables: &["OAM", "SERVER", "SNAPSHOTTER", "SNAPSHOTTER_", "TEST_"],
};

static ROOT: Block = Block {
    keys: &[
        Key::required("sources", source::SOURCES),
        Key::required("tables", Kind::List(&Kind::Block(&table::TABLE))),
        Key::new("fanout", Kind::Block(&FANOUT)),
        Key::new("grpc", Kind::Block(&services::GRPC)),
        Key::new("health", Kind::Block(&services::HEALTH)),
        Key::new("observability", Kind::Block(&observability::OBSERVABILITY)),
        Key::new("credentials", CREDENTIALS),
        Key::new("temp_dir", TEXT_OR_EMPTY),
        Key::new(
            "snapshot",
            Kind::Refused(
                "snapshots of the whole server have no meaning in this version; \
                 write the snapshot block inside the target",
            ),
        ),
        Key::new(
            "snapshotter",
            Kind::Refused("is for laredo-snapshotter; give each program files of its own (--config, --conf-dir)"),
        ),
    ],
};

static FANOUT: Block = Block { keys: &[Key::new("grpc", Kind::Block(&FANOUT_GRPC))] };

static FANOUT_GRPC: Block = Block { keys: &[Key::new("port", PORT)] };

impl ServerConfig {
    /// Loads, merges and checks the configuration.
    ///
    /// # Errors
    ///
    /// A report of all problems of the configuration.
    pub fn load(loader: &Loader) -> Result<Self, Report> {
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
        let mut out = write::Block::default();
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

    fn read(root: &Node, problems: &mut Vec<Problem>) -> ServerConfig {
        let root = Fields::root(root, &ROOT);
        let fanout_port = root.block("fanout").block("grpc").port("port").unwrap_or(FANOUT_PORT_DEFAULT);
        let sources = source::read_all(&root, problems);
        let credentials = credentials::read_all(&root, problems);
        let known = Known { sources: root.names("sources"), credentials: root.names("credentials"), fanout_port };
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
    fn check_ports(&self, root: &Fields, problems: &mut Vec<Problem>) {
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
                problems.push(Problem::new(place, &path, message));
            }
            taken.push((port, path.to_string(), fields.place_of(key).clone()));
        }
    }

    /// Checks that the health and metrics endpoints have different paths, because the health port
    /// serves the metrics, too.
    fn check_paths(&self, root: &Fields, problems: &mut Vec<Problem>) {
        let (health, metrics) = (root.block("health"), root.block("observability").block("metrics"));
        let of_metrics = &self.observability.metrics.path;
        let of_health =
            [("readiness_path", &self.health.readiness_path), ("liveness_path", &self.health.liveness_path)];
        let mut complain = |fields: &Fields, key: &str, what: &str| {
            let message = format!("{what} has this path already; give each its own");
            problems.push(Problem::new(fields.place_of(key), &fields.path.key(key), message));
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
struct Known<'a> {
    sources: Vec<&'a str>,
    credentials: Vec<&'a str>,
    fanout_port: u16,
}
