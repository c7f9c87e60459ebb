//! The journal: the recent changes that are kept for clients to resume from.

use std::time::Duration;

use super::super::declaration::{ConfigKey, config_block, config_field, group, key};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{AGE, AT_LEAST_ONE, FieldSchema, SettingKind};
use super::super::write::HoconBlock;
use super::store::{self, StoreConfig};

config_block! {
    /// The limits of a journal. Entries are removed when any limit is exceeded and a base covers
    /// them.
    pub struct JournalConfig {
        /// The maximum number of changes that are kept for clients to resume from.
        pub max_entries: u64 = key("max_entries", AT_LEAST_ONE, || 100_000),
        /// The maximum age of a change.
        pub max_age: Duration = key("max_age", AGE, || Duration::from_secs(24 * 3600)),
        /// The maximum size of the changes, in memory and in files together. For a client that is
        /// being sent a snapshot, up to twice this and twice `max_entries` is kept. Then the client
        /// is disconnected.
        pub max_bytes: u64 = key("max_bytes", BYTES, || 4 << 30),
        /// The maximum size of each table's changes in memory. The rest is in files, which are
        /// temporary with the memory store.
        pub memory_max_bytes: u64 = key("memory_max_bytes", BYTES, || 256 << 20),
        /// The place of the journal.
        pub store: JournalStoreConfig = group(
            STORE,
            || JournalStoreConfig::Memory,
            |_, fields, reader| Some(JournalStoreConfig::read(fields, reader)),
            |store, _, out| store.write(out),
        ),
    }
}

/// The place of a journal.
#[derive(Debug, Clone, PartialEq)]
pub enum JournalStoreConfig {
    /// Memory and temporary files: a restart begins a new journal. The default.
    Memory,
    /// Durable files: a restart continues the journal. The store is always [`StoreConfig::Local`].
    Durable(StoreConfig),
}

/// A size limit of a journal. A lower limit than this minimum would not fit one segment.
const BYTES: SettingKind = SettingKind::Size { min: 1 << 20, max: i64::MAX as u64 };

const STORE: &[FieldSchema] = &[config_field!(STORE_WORD), store::CONFIG_LOCAL];

const STORE_WORD: ConfigKey<&str> = key("store", SettingKind::Choice(&[&["memory"], &["local"]]), || "memory").doc(
    "The place of the journal. With `local` a restart continues the journal \
     ([how](guarantees.md#copies-and-restarts)); with `memory` the table is copied again. Two servers may not share a folder.",
);

impl JournalStoreConfig {
    fn read(fields: &BlockFields, reader: &mut ConfigReader) -> Self {
        match STORE_WORD.read(fields, reader) {
            "local" => JournalStoreConfig::Durable(StoreConfig::read(fields, reader)),
            _ => JournalStoreConfig::Memory,
        }
    }

    fn write(&self, out: &mut HoconBlock) {
        match self {
            JournalStoreConfig::Memory => STORE_WORD.write(&"memory", out),
            JournalStoreConfig::Durable(store) => store.write(out),
        }
    }
}
