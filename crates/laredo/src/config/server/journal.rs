//! The journal: the recent changes that are kept for clients to resume from.

use std::time::Duration;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::{show_size, show_time};
use super::super::schema::{AGE, AT_LEAST_ONE, BlockSchema, KeySchema, SettingKind};
use super::super::write;
use super::ConfiguredNames;
use super::store::{self, StoreConfig};

/// The limits of a journal. Entries are removed when any limit is exceeded and a base covers them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalConfig {
    /// The maximum number of entries. Default 100 000.
    pub max_entries: u64,
    /// The maximum age of an entry. Default 24 h.
    pub max_age: Duration,
    /// The maximum size in bytes, in memory and in files together. Default 4 GiB.
    pub max_bytes: u64,
    /// The maximum size in memory, in bytes. The rest is in files, which are temporary with the
    /// memory store. Default 256 MiB.
    pub memory_max_bytes: u64,
    /// The place of the journal.
    pub store: JournalStoreConfig,
}

/// The place of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalStoreConfig {
    /// Memory and temporary files: a restart begins a new journal. The default.
    Memory,
    /// Durable files: a restart continues the journal. The store is always [`StoreConfig::Local`].
    Durable(StoreConfig),
}

/// The schema of `journal`.
pub(super) static JOURNAL: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::new("max_entries", AT_LEAST_ONE),
        KeySchema::new("max_age", AGE),
        KeySchema::new("max_bytes", BYTES),
        KeySchema::new("memory_max_bytes", BYTES),
        KeySchema::new("store", SettingKind::Choice(&[&["memory"], &["local"]])),
        KeySchema::new("store_config", SettingKind::Beside { tag: "store", variants: &[("local", &store::LOCAL)] }),
    ],
};

/// A size limit of a journal. A lower limit than this minimum would not fit one segment.
const BYTES: SettingKind = SettingKind::Size { min: 1 << 20, max: i64::MAX as u64 };

impl Default for JournalConfig {
    fn default() -> Self {
        JournalConfig {
            max_entries: 100_000,
            max_age: Duration::from_secs(24 * 3600),
            max_bytes: 4 << 30,
            memory_max_bytes: 256 << 20,
            store: JournalStoreConfig::Memory,
        }
    }
}

impl JournalConfig {
    pub(super) fn read(fields: &BlockFields, known: &ConfiguredNames, problems: &mut Vec<ConfigProblem>) -> Self {
        let default = JournalConfig::default();
        JournalConfig {
            max_entries: fields.count("max_entries").unwrap_or(default.max_entries),
            max_age: fields.time("max_age").unwrap_or(default.max_age),
            max_bytes: fields.size("max_bytes").unwrap_or(default.max_bytes),
            memory_max_bytes: fields.size("memory_max_bytes").unwrap_or(default.memory_max_bytes),
            store: match fields.word("store") {
                Some("local") => JournalStoreConfig::Durable(StoreConfig::read(fields, known, problems)),
                _ => JournalStoreConfig::Memory,
            },
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("max_entries", self.max_entries);
        out.put("max_age", show_time(self.max_age));
        out.put("max_bytes", show_size(self.max_bytes));
        out.put("memory_max_bytes", show_size(self.memory_max_bytes));
        match &self.store {
            JournalStoreConfig::Memory => out.put("store", "memory"),
            JournalStoreConfig::Durable(store) => store.write(out),
        }
    }
}
