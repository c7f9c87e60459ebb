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

/// Everything `laredo-server` is told, checked: references exist, values are in range, defaults are
/// filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The sources, by the name that tables use; at least one.
    pub sources: BTreeMap<String, SourceConfig>,
    /// The tables, in the order they are written; at least one, no two alike.
    pub tables: Vec<TableConfig>,
    /// The control port, and TLS for every gRPC port.
    pub grpc: GrpcConfig,
    /// The health endpoints.
    pub health: HealthConfig,
    /// Metrics and logs.
    pub observability: ObservabilityConfig,
    /// The profiles that object stores name.
    pub credentials: BTreeMap<String, Credentials>,
    /// The folder for temporary files; `None` for the system's.
    pub temp_dir: Option<PathBuf>,
}

/// Where clients are served unless a table says otherwise.
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
    /// Everything that is wrong with it, at once.
    pub fn load(loader: &Loader) -> Result<Self, Report> {
        loader.load(&SCHEMA, Self::read)
    }

    /// The paths of all keys, `*` standing for the names that a user chooses and list items without
    /// their number: `sources.*.connection`, `tables.targets.grpc.port`.
    pub fn keys() -> Vec<String> {
        SCHEMA.keys()
    }

    /// The effective configuration as HOCON that loads to the same again, but for the passwords of
    /// connections, which are masked.
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

    /// gRPC and HTTP cannot share a port; a gRPC port may serve both control and clients.
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
                // The one that was written down is the one to change.
                let written = fields.has(key);
                let place = if written { fields.place_of(key) } else { place_of_twin };
                let message = format!("port {port} is taken by {of}; give each its own");
                problems.push(Problem::new(place, &path, message));
            }
            taken.push((port, path.to_string(), fields.place_of(key).clone()));
        }
    }

    /// Health and metrics are served side by side, so each has a path of its own.
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
            // The one that was written down is the one to change.
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

/// Where the server tells whether it has started. No key moves it.
const STARTUP_PATH: &str = "/health/startup";

/// What the parts of a configuration may refer to.
struct Known<'a> {
    sources: Vec<&'a str>,
    credentials: Vec<&'a str>,
    fanout_port: u16,
}
