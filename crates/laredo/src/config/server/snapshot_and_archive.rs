//! The data that is kept in addition to the journal: snapshots for the next start, and an archive.

use std::time::Duration;

use super::super::declaration::{block, config_block, config_choice, key, optional};
use super::super::schema::{AGE, SettingKind, TEXT_OR_EMPTY};
use super::store::{self, StoreConfig, stored_in};

config_block! {
    /// The snapshots of a table, for the next start and for clients that download them.
    pub struct SnapshotConfig {
        /// The interval between two snapshots, if anything was committed in the database. Without a
        /// durable journal, PostgreSQL keeps its WAL from one snapshot to the next.
        pub interval: Duration = key("interval", AGE, || Duration::from_secs(300)),
        /// The place of the snapshots. Always [`StoreConfig::Local`].
        pub store: StoreConfig = stored_in(store::LOCAL),
        /// [The format](snapshot-format.md) of the snapshots: what clients are sent, or lines of
        /// JSON.
        pub serializer: SnapshotSerializer =
            key("serializer", SnapshotSerializer::KIND, || SnapshotSerializer::Native),
        /// The limits on old snapshots. The newest snapshot is always kept.
        pub retention: SnapshotRetention = block("retention"),
    }
}

config_choice! {
    /// The format of a snapshot.
    pub enum SnapshotSerializer {
        /// The frames that are sent to clients.
        Native = "native",
        /// JSON lines, with an object for each row.
        Jsonl = "jsonl",
    }
}

config_block! {
    /// The limits on old snapshots.
    pub struct SnapshotRetention {
        /// The maximum number of snapshots, including those that operators ordered.
        pub keep_count: u32 = key("keep_count", SettingKind::Count { min: 1, max: 100_000 }, || 5),
        /// The maximum age of a snapshot. The newest snapshot is always kept.
        pub max_age: Option<Duration> = optional("max_age", AGE, "no limit"),
    }
}

config_block! {
    /// The archive of the table that `laredo-snapshotter` writes, for the server to read.
    pub struct ArchiveConfig {
        /// The place of the archive.
        pub store: StoreConfig = stored_in(store::LOCAL_OR_S3),
        /// The format of snapshots and diffs.
        pub format: ArchiveFormat = key("format", ArchiveFormat::KIND, || ArchiveFormat::Jsonl),
        /// The prefix of all keys of this table.
        pub key_prefix: String = key("key_prefix", TEXT_OR_EMPTY, String::new).defaults_to("`<table>/`"),
    }
}

config_choice! {
    /// The format of an archive's artifacts.
    pub enum ArchiveFormat {
        /// JSON lines, with an object for each row.
        Jsonl = "jsonl",
        /// Length-prefixed protobuf messages.
        Protobuf = "protobuf",
    }
}
