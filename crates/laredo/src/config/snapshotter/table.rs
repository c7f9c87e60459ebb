//! A table: its source, and the archive that is written from it.

use laredo_archive::RebaseThresholds;

use super::super::declaration::{block, config_block, key, list, texts};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT};
use super::destination::{DestinationConfig, PREFIX};
use super::event::EventConfig;
use super::formats::FormatsConfig;
use super::schedule::{DiffScheduleConfig, EpochRetentionConfig};
use super::source::SnapshotterSourceConfig;

config_block! {
    /// A table and its archive.
    pub struct ArchivedTableConfig [ArchivedTableConfig::check] {
        /// The server that the rows and changes come from.
        pub source: SnapshotterSourceConfig = block("source").must_be_given(),
        /// The prefix of all names of the archive, after each destination's own prefix, used as
        /// given: `users/` makes `users/manifest.json`.
        pub key_prefix: String = key("key_prefix", PREFIX, String::new).defaults_to("`<table>/`"),
        /// The columns that identify a row, in any order. If the server's key has other columns,
        /// nothing is written, and the error names both keys.
        pub key_fields: Vec<String> = texts("key_fields", SettingKind::List(&TEXT), "the server's key"),
        /// The schedule of diffs.
        pub diff: DiffScheduleConfig = block("diff"),
        /// The thresholds at which a base is written instead of a diff. By default, an epoch has at
        /// most 128 to 1,000 diffs, depending on the size of its base.
        pub thresholds: RebaseThresholds = block("snapshot"),
        /// The formats of the artifacts.
        pub formats: FormatsConfig = block("formats"),
        /// The places of the archive, [as below](#destinations-and-events); at least one. An
        /// artifact is complete once all of them have it. The first one is authoritative.
        pub destinations: Vec<DestinationConfig> = list("destinations").must_be_given(),
        /// The topics, queues and streams that are notified of new artifacts,
        /// [as below](#destinations-and-events). An event is advisory, and is sent at least once.
        pub events: Vec<EventConfig> = list("events"),
        /// The number of epochs that are kept.
        pub retention: EpochRetentionConfig = block("retention"),
    }
}

impl ArchivedTableConfig {
    /// Returns true if one of the destinations is a folder. Its artifacts are also written there
    /// before they are finished.
    #[must_use]
    pub fn has_local_destination(&self) -> bool {
        self.destinations.iter().any(|destination| matches!(destination, DestinationConfig::Local { .. }))
    }

    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        reader.check_repeated(fields, "key_fields", &self.key_fields);
        if !fields.has("key_prefix") {
            self.key_prefix = format!("{}/", self.source.table);
        }
        if fields.has("destinations") && fields.item_count("destinations") == 0 {
            reader.report(fields, "destinations", "there is no destination; name at least one to write to");
        }
    }
}
