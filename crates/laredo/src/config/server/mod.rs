//! The configuration of `laredo-server`.

mod endpoints;
mod fanout;
mod filters;
mod journal;
mod observability;
mod refused_keys;
mod snapshot_and_archive;
mod source;
mod source_password;
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
pub use observability::{LogLevel, LogType, LoggingConfig, MetricsConfig, MetricsType, ObservabilityConfig};
pub use snapshot_and_archive::{ArchiveConfig, ArchiveFormat, SnapshotConfig, SnapshotRetention, SnapshotSerializer};
pub use source::{DdlConfig, DdlWatchConfig, PostgresSourceConfig, PublicationConfig, ReconnectConfig, SlotConfig};
pub use source_password::SourcePasswordConfig;
pub use store::StoreConfig;
pub use table::ServedTableConfig;
pub use transforms::TransformConfig;
pub use verify::VerifyConfig;

use super::credentials::{self, CredentialsConfig};
use super::declaration::{ConfigBlock, block, config_block, config_field, map, optional};
use super::diagnostics::{ConfigProblem, ConfigReport};
use super::fields::BlockFields;
use super::load::ConfigLoader;
use super::reader::ConfigReader;
use super::schema::{BlockSchema, ConfigSchema, FieldSchema, SettingKind, TEXT_OR_EMPTY};
use super::tree::ConfigNode;
use super::write::HoconBlock;
use super::{declaration, reference};
use fanout::FANOUT_PORT;

config_block! {
    /// The configuration of `laredo-server`.
    ///
    /// A configuration that was loaded has passed all checks: references exist, values are in
    /// range, defaults are filled in. The default has neither sources nor tables.
    pub struct ServerConfig [ServerConfig::check] {
        /// The sources, by the name that tables use; at least one.
        pub sources: BTreeMap<String, PostgresSourceConfig> = map("sources").must_be_given(),
        /// The tables, in the order of the configuration; at least one, and no two with the same
        /// name.
        pub tables: Vec<ServedTableConfig> = declaration::list("tables").must_be_given(),
        /// The port of the OAM service, and TLS for every gRPC port.
        pub grpc: GrpcConfig = block("grpc"),
        /// The health endpoints.
        pub health: HealthConfig = block("health"),
        /// Metrics and logs.
        pub observability: ObservabilityConfig = block("observability"),
        /// The credentials profiles that object stores refer to.
        pub credentials: BTreeMap<String, CredentialsConfig> = map("credentials"),
        /// The folder for [temporary files](operations.md#limits), on a disk and not in memory.
        /// Ours.
        pub temp_dir: Option<PathBuf> = optional("temp_dir", TEXT_OR_EMPTY, "`$TMPDIR`, or `/tmp`"),
    }
    also [
        FieldSchema::of("fanout", SettingKind::Block(FANOUT)),
        FieldSchema::refused(
            "snapshot",
            "snapshots of the whole server have no meaning in this version; \
             write the snapshot block inside the target",
        ),
        FieldSchema::refused(
            "snapshotter",
            "is for laredo-snapshotter; give each program files of its own (--config, --conf-dir)",
        ),
    ]
}

const FANOUT: &BlockSchema = &BlockSchema { fields: &[FieldSchema::of("grpc", SettingKind::Block(FANOUT_GRPC))] };
const FANOUT_GRPC: &BlockSchema = &BlockSchema { fields: &[config_field!(FANOUT_PORT)] };

static SCHEMA: ConfigSchema = ConfigSchema {
    root: &BlockSchema { fields: ServerConfig::KIND.fields() },
    refused: refused_keys::KEYS,
    file_variable: "LAREDO_CONFIG",
    variable_prefix: "LAREDO_",
    foreign_variables: &["OAM", "SERVER", "SNAPSHOTTER", "SNAPSHOTTER_", "TEST_"],
};

impl ServerConfig {
    /// Loads, merges and checks the configuration.
    ///
    /// # Errors
    ///
    /// A report of all problems of the configuration.
    pub fn load(loader: &ConfigLoader) -> Result<Self, ConfigReport> {
        loader.load(&SCHEMA, Self::read_root)
    }

    /// Returns warnings about settings that are allowed but probably not intended. Each is a
    /// sentence that names its key.
    pub fn warnings(&self) -> Vec<String> {
        let warning = |(name, source): (&String, &PostgresSourceConfig)| {
            source.warning().map(|warning| format!("sources.{name}.connection: {warning}"))
        };
        self.sources.iter().filter_map(warning).collect()
    }

    /// Returns the paths of all keys. `*` is a placeholder for names that the operator chooses, and
    /// list items have no number: `sources.*.connection`, `tables.targets.grpc.port`.
    pub fn keys() -> Vec<String> {
        SCHEMA.keys()
    }

    /// Returns the reference of the keys at a path, as a table of Markdown. Returns `None` if there
    /// is no such block.
    pub fn reference(path: &str) -> Option<String> {
        reference::table(&SCHEMA, path)
    }

    /// Returns the effective configuration as HOCON. It loads to the same configuration, except for
    /// the passwords of connections, which are masked.
    pub fn to_hocon(&self) -> String {
        let mut out = HoconBlock::default();
        self.write(&mut out);
        out.into_document()
    }

    fn read_root(root: &ConfigNode, problems: &mut Vec<ConfigProblem>) -> ServerConfig {
        let root = BlockFields::root(root, SCHEMA.root);
        let mut reader = ConfigReader::new(problems);
        reader.sources = root.names("sources").into_iter().map(str::to_owned).collect();
        reader.profiles = root.names("credentials").into_iter().map(str::to_owned).collect();
        ServerConfig::read(&root, &mut reader)
    }

    fn check(&mut self, root: &BlockFields, reader: &mut ConfigReader) {
        source::check_names(root, reader);
        table::check_names(root, &self.tables, reader);
        credentials::check_bases(root, &self.credentials, reader);
        self.fill_ports(root, reader);
        self.check_ports(root, reader);
        self.check_paths(root, reader);
    }

    /// Fills in the port for clients of targets without a port of their own.
    fn fill_ports(&mut self, root: &BlockFields, reader: &mut ConfigReader) {
        let port = FANOUT_PORT.read(&root.block("fanout").block("grpc"), reader);
        for (table, fields) in self.tables.iter_mut().zip(root.items("tables")) {
            let targets = fields.items("targets");
            if !targets.first().is_some_and(|target| target.block("grpc").has("port")) {
                table.fanout.grpc.port = port;
            }
        }
    }

    /// Checks that gRPC and HTTP do not share a port. A gRPC port may serve both the OAM service
    /// and clients.
    fn check_ports(&self, root: &BlockFields, reader: &mut ConfigReader) {
        let grpc = root.block("grpc");
        let mut used = vec![(self.grpc.port, "grpc.port".to_owned(), grpc.place_of("port").clone())];
        for (i, (table, fields)) in self.tables.iter().zip(root.items("tables")).enumerate() {
            let of = format!("tables[{i}].targets[0].grpc.port");
            used.push((table.fanout.grpc.port, of, fields.place_of("targets").clone()));
        }
        let health = (root.block("health"), "http_port", self.health.http_port);
        let metrics = root.block("observability").block("metrics");
        let metrics = (metrics, "port", self.observability.metrics.port);
        for (fields, key, port) in [health, metrics] {
            let path = fields.path.key(key);
            let twin = used.iter().find(|(other, ..)| *other == port && port != 0);
            if let Some((_, of, place_of_twin)) = twin {
                // The key that was set explicitly is the one to change.
                let written = fields.has(key);
                let place = if written { fields.place_of(key) } else { place_of_twin };
                let message = format!("port {port} is taken by {of}; give each its own");
                reader.problems.push(ConfigProblem::new(place, &path, message));
            }
            used.push((port, path.to_string(), fields.place_of(key).clone()));
        }
    }

    /// Checks that the health and metrics endpoints have different paths, because the health port
    /// serves the metrics, too.
    fn check_paths(&self, root: &BlockFields, reader: &mut ConfigReader) {
        let (health, metrics) = (root.block("health"), root.block("observability").block("metrics"));
        let of_metrics = &self.observability.metrics.path;
        let of_health =
            [("readiness_path", &self.health.readiness_path), ("liveness_path", &self.health.liveness_path)];
        let mut complain = |fields: &BlockFields, key: &str, what: &str| {
            let message = format!("{what} has this path already; give each its own");
            reader.report(fields, key, message);
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
