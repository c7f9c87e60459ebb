//! The data that is kept in addition to the journal: snapshots for the next start, and an archive.

use std::time::Duration;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::show_time;
use super::super::schema::{AGE, BlockSchema, KeySchema, SettingKind, TEXT_OR_EMPTY};
use super::super::write::{self, text};
use super::ConfiguredNames;
use super::store::{self, StoreConfig};

/// The snapshots of a table, for the next start and for clients that download them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// The interval between two snapshots. Default 5 min.
    pub interval: Duration,
    /// The place of the snapshots. Always [`StoreConfig::Local`].
    pub store: StoreConfig,
    /// The format of the snapshots. Default native.
    pub serializer: SnapshotSerializer,
    /// The limits on old snapshots. The newest snapshot is always kept.
    pub retention: SnapshotRetention,
}

/// The format of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotSerializer {
    /// The frames that are sent to clients.
    Native,
    /// JSON lines, with an object for each row.
    Jsonl,
}

/// The limits on old snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRetention {
    /// The maximum number of snapshots. Default 5.
    pub keep_count: u32,
    /// The maximum age of a snapshot; `None`, the default, means no limit.
    pub max_age: Option<Duration>,
}

/// An archive that the server itself writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// The place of the archive.
    pub store: StoreConfig,
    /// The format of snapshots and diffs. Default jsonl.
    pub format: ArchiveFormat,
    /// The prefix of all keys of this table. Default `<table>/`.
    pub key_prefix: String,
}

/// The format of an archive's artifacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// JSON lines, with an object for each row.
    Jsonl,
    /// Length-prefixed protobuf messages.
    Protobuf,
}

/// The schema of `snapshot`.
pub(super) static SNAPSHOT: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("interval", AGE),
        KeySchema::required("store", SettingKind::Choice(&[&["local"]])),
        KeySchema::new("store_config", SettingKind::Beside { tag: "store", variants: &[("local", &store::LOCAL)] }),
        KeySchema::new("serializer", SettingKind::Choice(&[&["native"], &["jsonl"]])),
        KeySchema::new("retention", SettingKind::Block(&RETENTION)),
    ],
};

static RETENTION: BlockSchema = BlockSchema {
    keys: &[KeySchema::new("keep_count", SettingKind::Count { min: 1, max: 100_000 }), KeySchema::new("max_age", AGE)],
};

/// The schema of `archive`.
pub(super) static ARCHIVE: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("store", SettingKind::Choice(&[&["local"], &["s3"]])),
        KeySchema::new(
            "store_config",
            SettingKind::Beside { tag: "store", variants: &[("local", &store::LOCAL), ("s3", &store::S3)] },
        ),
        KeySchema::new("format", SettingKind::Choice(&[&["jsonl"], &["protobuf"]])),
        KeySchema::new("key_prefix", TEXT_OR_EMPTY),
    ],
};

impl SnapshotConfig {
    pub(super) fn read(fields: &BlockFields, known: &ConfiguredNames, problems: &mut Vec<ConfigProblem>) -> Self {
        let retention = fields.block("retention");
        SnapshotConfig {
            interval: fields.time("interval").unwrap_or(Duration::from_secs(300)),
            store: StoreConfig::read(fields, known, problems),
            serializer: match fields.word("serializer") {
                Some("jsonl") => SnapshotSerializer::Jsonl,
                _ => SnapshotSerializer::Native,
            },
            retention: SnapshotRetention {
                keep_count: retention.count_u32("keep_count").unwrap_or(5),
                max_age: retention.time("max_age"),
            },
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("interval", show_time(self.interval));
        self.store.write(out);
        out.put(
            "serializer",
            match self.serializer {
                SnapshotSerializer::Jsonl => "jsonl",
                SnapshotSerializer::Native => "native",
            },
        );
        out.block("retention", |out| {
            out.put("keep_count", self.retention.keep_count);
            out.put_if("max_age", self.retention.max_age.map(show_time));
        });
    }
}

impl ArchiveConfig {
    pub(super) fn read(
        fields: &BlockFields,
        table: &str,
        known: &ConfiguredNames,
        problems: &mut Vec<ConfigProblem>,
    ) -> Self {
        ArchiveConfig {
            store: StoreConfig::read(fields, known, problems),
            format: match fields.word("format") {
                Some("protobuf") => ArchiveFormat::Protobuf,
                _ => ArchiveFormat::Jsonl,
            },
            key_prefix: fields.text("key_prefix").unwrap_or_else(|| format!("{table}/")),
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        self.store.write(out);
        out.put(
            "format",
            match self.format {
                ArchiveFormat::Jsonl => "jsonl",
                ArchiveFormat::Protobuf => "protobuf",
            },
        );
        out.put("key_prefix", text(&self.key_prefix));
    }
}
