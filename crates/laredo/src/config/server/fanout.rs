//! The fan-out target: the data that is kept for clients, and the limits of serving them.

use std::time::Duration;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::show_time;
use super::super::schema::{AT_LEAST_ONE, BlockSchema, KeySchema, PORT, SettingKind, VariantSchema};
use super::super::write;
use super::ConfiguredNames;
use super::filters::{self, FilterConfig};
use super::journal::{self, JournalConfig, JournalStoreConfig};
use super::snapshot_and_archive::{self, ArchiveConfig, SnapshotConfig};
use super::transforms::{self, TransformConfig};

/// A `replication-fanout` target.
#[derive(Debug, Clone, PartialEq)]
pub struct FanoutConfig {
    /// The changes that are kept for clients to resume from.
    pub journal: JournalConfig,
    /// The snapshots that are kept for a restart and for downloads, if any.
    pub snapshot: Option<SnapshotConfig>,
    /// The port where clients connect, and their maximum number.
    pub grpc: FanoutGrpcConfig,
    /// The limit on how far a live client may be behind.
    pub client_buffer: ClientBufferConfig,
    /// The interval of heartbeats to an idle client. Default 5 s.
    pub heartbeat_interval: Duration,
    /// The archive that the server writes, if any.
    pub archive: Option<ArchiveConfig>,
    /// The filters. A row must pass all of them.
    pub filters: Vec<FilterConfig>,
    /// The transforms of rows, applied in order.
    pub transforms: Vec<TransformConfig>,
}

/// The port where the clients of a table connect, and their maximum number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FanoutGrpcConfig {
    /// The TCP port; 0 means any free one. Default 4002. Tables and the OAM service may share a
    /// port.
    pub port: u16,
    /// The maximum number of clients at once; `None`, the default, means no limit.
    pub max_clients: Option<u32>,
}

/// The limit on how far a live client may be behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientBufferConfig {
    /// The maximum number of entries behind the head (`max_size`). Default 50 000.
    pub max_entries: u64,
    /// The consequence of exceeding the limit.
    pub policy: BufferPolicyConfig,
}

/// The consequence for a client that is too far behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferPolicyConfig {
    /// A disconnect, after which the client resumes. The default.
    DropDisconnect,
    /// A slowdown of the source: for a while it is read no faster than the slowest client. Then
    /// that client is disconnected.
    SlowDown,
}

/// The schema of an item of `targets`.
pub(super) static TARGET: VariantSchema =
    VariantSchema { tag: "type", what: "target type", variants: &[(&["replication-fanout"], &FANOUT)] };

static FANOUT: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("type", SettingKind::Choice(&[&["replication-fanout"]])),
        KeySchema::new("journal", SettingKind::Block(&journal::JOURNAL)),
        KeySchema::new("snapshot", SettingKind::Block(&snapshot_and_archive::SNAPSHOT)),
        KeySchema::new("grpc", SettingKind::Block(&GRPC)),
        KeySchema::new("max_clients", MAX_CLIENTS),
        KeySchema::new("client_buffer", SettingKind::Block(&CLIENT_BUFFER)),
        KeySchema::new("heartbeat_interval", HEARTBEAT),
        KeySchema::new("archive", SettingKind::Block(&snapshot_and_archive::ARCHIVE)),
        KeySchema::new("filters", filters::FILTERS),
        KeySchema::new("transforms", transforms::TRANSFORMS),
    ],
};

static GRPC: BlockSchema =
    BlockSchema { keys: &[KeySchema::new("port", PORT), KeySchema::new("max_clients", MAX_CLIENTS)] };

static CLIENT_BUFFER: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("max_size", AT_LEAST_ONE),
        KeySchema::new("policy", SettingKind::Choice(&[&["drop_disconnect"], &["slow_down"]])),
    ],
};

const MAX_CLIENTS: SettingKind = SettingKind::Count { min: 1, max: u32::MAX as u64 };
const HEARTBEAT: SettingKind = SettingKind::Time { min: Duration::from_millis(100), max: Duration::from_secs(3600) };

impl FanoutConfig {
    pub(super) fn read(
        fields: &BlockFields,
        table: &str,
        known: &ConfiguredNames,
        problems: &mut Vec<ConfigProblem>,
    ) -> Self {
        let journal = JournalConfig::read(&fields.block("journal"), known, problems);
        let snapshot = fields.has("snapshot").then(|| SnapshotConfig::read(&fields.block("snapshot"), known, problems));
        check_folders(fields, &journal, snapshot.as_ref(), problems);
        FanoutConfig {
            journal,
            snapshot,
            grpc: FanoutGrpcConfig::read(fields, known.fanout_port, problems),
            client_buffer: ClientBufferConfig::read(&fields.block("client_buffer")),
            heartbeat_interval: fields.time("heartbeat_interval").unwrap_or(Duration::from_secs(5)),
            archive: fields
                .has("archive")
                .then(|| ArchiveConfig::read(&fields.block("archive"), table, known, problems)),
            filters: FilterConfig::read_all(fields, problems),
            transforms: TransformConfig::read_all(fields, problems),
        }
    }

    /// Returns the configuration that replaces a target that could not be read.
    pub(super) fn with_defaults(port: u16) -> Self {
        FanoutConfig {
            journal: JournalConfig::default(),
            snapshot: None,
            grpc: FanoutGrpcConfig { port, max_clients: None },
            client_buffer: ClientBufferConfig::default(),
            heartbeat_interval: Duration::from_secs(5),
            archive: None,
            filters: Vec::new(),
            transforms: Vec::new(),
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("type", "replication-fanout");
        out.block("journal", |out| self.journal.write(out));
        if let Some(snapshot) = &self.snapshot {
            out.block("snapshot", |out| snapshot.write(out));
        }
        out.block("grpc", |out| {
            out.put("port", self.grpc.port);
            out.put_if("max_clients", self.grpc.max_clients);
        });
        out.block("client_buffer", |out| {
            out.put("max_size", self.client_buffer.max_entries);
            out.put(
                "policy",
                match self.client_buffer.policy {
                    BufferPolicyConfig::DropDisconnect => "drop_disconnect",
                    BufferPolicyConfig::SlowDown => "slow_down",
                },
            );
        });
        out.put("heartbeat_interval", show_time(self.heartbeat_interval));
        if let Some(archive) = &self.archive {
            out.block("archive", |out| archive.write(out));
        }
        if !self.filters.is_empty() {
            out.blocks("filters", &self.filters, |filter, out| filter.write(out));
        }
        if !self.transforms.is_empty() {
            out.blocks("transforms", &self.transforms, |transform, out| {
                transform.write(out);
            });
        }
    }
}

/// Checks that the journal and the snapshots of a table have different folders.
fn check_folders(
    fields: &BlockFields,
    journal: &JournalConfig,
    snapshot: Option<&SnapshotConfig>,
    problems: &mut Vec<ConfigProblem>,
) {
    let shared = snapshot.is_some_and(|snapshot| JournalStoreConfig::Durable(snapshot.store.clone()) == journal.store);
    if shared && fields.block("snapshot").has("store_config") {
        let store = fields.block("snapshot").block("store_config");
        let message = "is the journal's folder too (journal.store_config.path); give each its own";
        problems.push(ConfigProblem::new(store.place_of("path"), &store.path.key("path"), message));
    }
}

impl FanoutGrpcConfig {
    /// Reads the block. The limit may be in the target or in its `grpc` block; if it is in both,
    /// the values must be equal.
    fn read(target: &BlockFields, port: u16, problems: &mut Vec<ConfigProblem>) -> Self {
        let grpc = target.block("grpc");
        let outer = target.count_u32("max_clients");
        let inner = grpc.count_u32("max_clients");
        if let (Some(outer), Some(inner)) = (outer, inner)
            && outer != inner
        {
            problems.push(ConfigProblem::new(
                target.place_of("max_clients"),
                &target.path.key("max_clients"),
                format!("is {outer}, but grpc.max_clients is {inner}; write one of them"),
            ));
        }
        FanoutGrpcConfig { port: grpc.port("port").unwrap_or(port), max_clients: inner.or(outer) }
    }
}

impl Default for ClientBufferConfig {
    fn default() -> Self {
        ClientBufferConfig { max_entries: 50_000, policy: BufferPolicyConfig::DropDisconnect }
    }
}

impl ClientBufferConfig {
    fn read(fields: &BlockFields) -> Self {
        let default = ClientBufferConfig::default();
        ClientBufferConfig {
            max_entries: fields.count("max_size").unwrap_or(default.max_entries),
            policy: match fields.word("policy") {
                Some("slow_down") => BufferPolicyConfig::SlowDown,
                _ => default.policy,
            },
        }
    }
}
