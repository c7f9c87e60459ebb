//! The configuration of `laredo-server`.

mod access;
mod endpoints;
mod fanout;
mod filters;
mod journal;
mod jwt;
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

pub use access::{
    AccessConfig, AccessIdentityConfig, AuditConfig, EndpointAccess, ExpiryTime, LimitsConfig, ObserverConfig,
    OperatorConfig, ReaderConfig, TokenConfig,
};
pub(crate) use access::{RuleText, read_token_hashes, rule_text};
pub use endpoints::{GrpcConfig, HealthConfig};
pub use fanout::{BufferPolicyConfig, ClientBufferConfig, FanoutConfig, FanoutGrpcConfig, QueryIndexConfig};
pub use filters::{FilterConfig, FilterValue, PatternConfig};
pub use journal::{JournalConfig, JournalStoreConfig};
pub use jwt::JwtConfig;
pub(crate) use jwt::is_key_url;
pub use observability::{LogLevel, LogType, LoggingConfig, MetricsConfig, MetricsType, ObservabilityConfig};
pub use snapshot_and_archive::{ArchiveConfig, ArchiveFormat, SnapshotConfig, SnapshotRetention, SnapshotSerializer};
pub use source::{DdlConfig, DdlWatchConfig, PostgresSourceConfig, PublicationConfig, ReconnectConfig, SlotConfig};
pub use source_password::SourcePasswordConfig;
pub use store::StoreConfig;
pub use table::ServedTableConfig;
pub use transforms::{ColumnMaskConfig, HashConfig, MaskConfig, TransformConfig};
pub use verify::VerifyConfig;

use laredo_server::ListenAddress;

use super::credentials::{self, CredentialsConfig};
use super::declaration::{ConfigBlock, block, config_block, config_field, map, optional, optional_block, texts};
use super::diagnostics::{ConfigProblem, ConfigReport};
use super::fields::BlockFields;
use super::load::ConfigLoader;
use super::port::{HOST, PortTlsConfig};
use super::reader::ConfigReader;
use super::schema::{BlockSchema, ConfigSchema, FieldSchema, SettingKind, TEXT_OR_EMPTY};
use super::tree::{ConfigNode, ConfigPlace, KeyPath};
use super::write::HoconBlock;
use super::{declaration, reference};
use fanout::{FANOUT_ADDRESS, FANOUT_PORT};

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
        /// The names by which clients may call the ports in plain text, in addition to IP addresses
        /// and names that are not public. `*.example.com` means all names under it
        /// ([why](security.md#names-of-the-server)). Ours.
        pub allowed_hosts: Vec<String> = texts("allowed_hosts", SettingKind::List(&HOST), "none"),
        /// Metrics and logs.
        pub observability: ObservabilityConfig = block("observability"),
        /// The credentials profiles that object stores refer to.
        pub credentials: BTreeMap<String, CredentialsConfig> = map("credentials"),
        /// The callers and their grants. Ours.
        pub access: Option<AccessConfig> = optional_block("access").defaults_to("everyone may do everything"),
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
const FANOUT_GRPC: &BlockSchema = &BlockSchema { fields: &[config_field!(FANOUT_PORT), config_field!(FANOUT_ADDRESS)] };

static SCHEMA: ConfigSchema = ConfigSchema {
    root: &BlockSchema { fields: ServerConfig::KIND.fields() },
    refused: refused_keys::KEYS,
    file_variable: "LAREDO_CONFIG",
    variable_prefix: "LAREDO_",
    foreign_variables: &["OAM", "SERVER", "SNAPSHOTTER", "SNAPSHOTTER_", "TEST_", "TOKEN"],
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

    /// Returns the files that the configuration is merged from, in their order, without those that
    /// they include.
    pub(crate) fn files(loader: &ConfigLoader) -> Vec<PathBuf> {
        loader.files(&SCHEMA)
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

    /// Returns the values of all keys outside of tables and access rules, by their paths. Secrets
    /// are masked.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        settings_of(&ServerConfig { tables: Vec::new(), access: None, ..self.clone() })
    }

    /// Returns warnings about settings that are allowed but probably not intended, each a sentence
    /// that names the key.
    pub fn warnings(&self) -> Vec<String> {
        let open = self.row_ports().into_iter().filter(|port| !port.address.is_local() && self.grpc.tls.is_none());
        let of_port = |port: RowPort<'_>| {
            format!(
                "{} ({}): rows are served in plain text to every host that reaches this port; enable grpc.tls, or set {} = \
                 \"127.0.0.1\"",
                port.key,
                port.address.with_port(port.port),
                port.key.replace("grpc.port", "grpc.address"),
            )
        };
        let of_source = |(name, source): (&String, &PostgresSourceConfig)| {
            source.warning().map(|warning| format!("sources.{name}.connection: {warning}"))
        };
        self.sources.iter().filter_map(of_source).chain(open.map(of_port)).collect()
    }

    /// Returns the ports that serve rows, each once: that of the OAM service, and those of clients.
    pub(crate) fn row_ports(&self) -> Vec<RowPort<'_>> {
        let oam = RowPort { key: "grpc.port".to_owned(), address: &self.grpc.address, port: self.grpc.port };
        let mut ports = vec![oam];
        for (i, table) in self.tables.iter().enumerate() {
            let (address, port) = (&table.fanout.grpc.address, table.fanout.grpc.port);
            if !ports.iter().any(|known| address.is_same(port, known.address, known.port)) {
                ports.push(RowPort { key: format!("tables[{i}].targets[0].grpc.port"), address, port });
            }
        }
        ports
    }

    fn read_root(root: &ConfigNode, problems: &mut Vec<ConfigProblem>) -> ServerConfig {
        let root = BlockFields::root(root, SCHEMA.root);
        let mut reader = ConfigReader::new(problems);
        reader.sources = root.names("sources").into_iter().map(str::to_owned).collect();
        reader.identities = root.block("access").names("identities").into_iter().map(str::to_owned).collect();
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
        self.check_certificates(root, reader);
    }

    /// Checks that clients are asked for their certificates if an identity needs one, and that a
    /// port demands them if no access rules do.
    fn check_certificates(&self, root: &BlockFields, reader: &mut ConfigReader) {
        if self.access.is_none() {
            let metrics = root.block("observability").block("metrics");
            for (tls, fields) in [
                (&self.grpc.tls, root.block("grpc")),
                (&self.health.tls, root.block("health")),
                (&self.observability.metrics.tls, metrics),
            ] {
                PortTlsConfig::refuse_optional(tls.as_ref(), &fields.block("tls"), reader);
            }
        }
        let has_authority = self.grpc.tls.as_ref().is_some_and(|tls| tls.client_ca_path.is_some());
        if self.access.as_ref().is_some_and(AccessConfig::uses_certificates) && !has_authority {
            let message = "an identity has certificates, but the server asks clients for none; \
                           set grpc.tls.enabled and grpc.tls.client_ca_path";
            reader.report(&root.block("access"), "identities", message);
        }
    }

    /// Fills in the port and address for clients of targets without their own.
    fn fill_ports(&mut self, root: &BlockFields, reader: &mut ConfigReader) {
        let fanout = root.block("fanout").block("grpc");
        let (port, address) = (FANOUT_PORT.read(&fanout, reader), FANOUT_ADDRESS.read(&fanout, reader));
        for (table, fields) in self.tables.iter_mut().zip(root.items("tables")) {
            let own = fields.items("targets").into_iter().next().map(|target| target.block("grpc"));
            let has = |key: &str| own.as_ref().is_some_and(|own| own.has(key));
            if !has("port") {
                table.fanout.grpc.port = port;
            }
            if !has("address") {
                table.fanout.grpc.address = address.clone();
            }
        }
    }

    /// Checks that no two listeners need the same port of an address. A gRPC port may serve both
    /// the OAM service and clients; it then has one address.
    fn check_ports(&self, root: &BlockFields, reader: &mut ConfigReader) {
        let mut used: Vec<UsedPort> = Vec::new();
        let grpc = root.block("grpc");
        used.push(UsedPort::new(&grpc, "port", &self.grpc.address, self.grpc.port));
        for (table, fields) in self.tables.iter().zip(root.items("tables")) {
            let Some(target) = fields.items("targets").into_iter().next() else { continue };
            let of = &table.fanout.grpc;
            let new = UsedPort::new(&target.block("grpc"), "port", &of.address, of.port);
            if !used.iter().any(|other| of.address.is_same(of.port, &other.address, other.port)) {
                new.check(&used, "give both the same address, or each a port of its own", reader);
            }
            used.push(new);
        }
        let health = (root.block("health"), "http_port", &self.health.address, self.health.http_port);
        let metrics = &self.observability.metrics;
        let metrics = (root.block("observability").block("metrics"), "port", &metrics.address, metrics.port);
        for (fields, key, address, port) in [health, metrics] {
            let new = UsedPort::new(&fields, key, address, port);
            new.check(&used, "give each its own", reader);
            used.push(new);
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

impl AccessConfig {
    /// Returns the values of all keys by their paths in the block. Secrets are masked.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        settings_of(self)
    }
}

impl ServedTableConfig {
    /// Returns the values of all keys by their paths in the table's block. Secrets are masked.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        settings_of(self)
    }
}

fn settings_of(block: &impl ConfigBlock) -> BTreeMap<String, String> {
    let mut out = HoconBlock::default();
    block.write(&mut out);
    out.into_settings()
}

/// A port that serves rows.
pub(crate) struct RowPort<'a> {
    /// The path of its key.
    pub(crate) key: String,
    pub(crate) address: &'a ListenAddress,
    pub(crate) port: u16,
}

/// A port that a key takes.
struct UsedPort {
    address: ListenAddress,
    port: u16,
    path: KeyPath,
    place: ConfigPlace,
    /// True if the key or the address is written in the configuration.
    is_written: bool,
}

impl UsedPort {
    fn new(fields: &BlockFields, key: &str, address: &ListenAddress, port: u16) -> UsedPort {
        // A port is in use because of its number or of its address.
        let written = [key, "address"].into_iter().find(|key| fields.has(key));
        let (path, place) = (fields.path.key(key), fields.place_of(written.unwrap_or(key)).clone());
        UsedPort { address: address.clone(), port, path, place, is_written: written.is_some() }
    }

    fn check(&self, used: &[UsedPort], what_to_do: &str, reader: &mut ConfigReader) {
        let Some(twin) = used.iter().find(|other| self.address.overlaps(self.port, &other.address, other.port)) else {
            return;
        };
        // The key that was set explicitly is the one to change.
        let place = if self.is_written { &self.place } else { &twin.place };
        let taken = match &self.address {
            ListenAddress::Unix(path) => path.display().to_string(),
            ListenAddress::All | ListenAddress::Ip(_) => format!("port {}", self.port),
        };
        let message = format!("{taken} is taken by {}; {what_to_do}", twin.path);
        reader.problems.push(ConfigProblem::new(place, &self.path, message));
    }
}

/// The path at which the server reports if it has started. No key changes the path.
const STARTUP_PATH: &str = "/health/startup";
