//! The data that is kept in addition to the journal: snapshots for the next start, and an archive.

use std::time::Duration;

use super::super::diagnostics::Problem;
use super::super::fields::Fields;
use super::super::leaf::show_time;
use super::super::schema::{AGE, Block, Key, Kind, TEXT_OR_EMPTY};
use super::super::write::{self, text};
use super::Known;
use super::store::{self, Store};

/// The snapshots of a table, for the next start and for clients that download them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// The interval between two snapshots. Default 5 min.
    pub interval: Duration,
    /// The place of the snapshots. Always [`Store::Local`].
    pub store: Store,
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
    pub store: Store,
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
pub(super) static SNAPSHOT: Block = Block {
    keys: &[
        Key::new("interval", AGE),
        Key::required("store", Kind::Choice(&[&["local"]])),
        Key::new("store_config", Kind::Beside { tag: "store", variants: &[("local", &store::LOCAL)] }),
        Key::new("serializer", Kind::Choice(&[&["native"], &["jsonl"]])),
        Key::new("retention", Kind::Block(&RETENTION)),
    ],
};

static RETENTION: Block =
    Block { keys: &[Key::new("keep_count", Kind::Count { min: 1, max: 100_000 }), Key::new("max_age", AGE)] };

/// The schema of `archive`.
pub(super) static ARCHIVE: Block = Block {
    keys: &[
        Key::required("store", Kind::Choice(&[&["local"], &["s3"]])),
        Key::new(
            "store_config",
            Kind::Beside { tag: "store", variants: &[("local", &store::LOCAL), ("s3", &store::S3)] },
        ),
        Key::new("format", Kind::Choice(&[&["jsonl"], &["protobuf"]])),
        Key::new("key_prefix", TEXT_OR_EMPTY),
    ],
};

impl SnapshotConfig {
    pub(super) fn read(fields: &Fields, known: &Known, problems: &mut Vec<Problem>) -> Self {
        let retention = fields.block("retention");
        SnapshotConfig {
            interval: fields.time("interval").unwrap_or(Duration::from_secs(300)),
            store: Store::read(fields, known, problems),
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

    pub(super) fn write(&self, out: &mut write::Block) {
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
    pub(super) fn read(fields: &Fields, table: &str, known: &Known, problems: &mut Vec<Problem>) -> Self {
        ArchiveConfig {
            store: Store::read(fields, known, problems),
            format: match fields.word("format") {
                Some("protobuf") => ArchiveFormat::Protobuf,
                _ => ArchiveFormat::Jsonl,
            },
            key_prefix: fields.text("key_prefix").unwrap_or_else(|| format!("{table}/")),
        }
    }

    pub(super) fn write(&self, out: &mut write::Block) {
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
