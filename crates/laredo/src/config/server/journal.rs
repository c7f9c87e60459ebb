//! The journal: the recent changes that are kept for clients to resume from.

use std::time::Duration;

use super::super::diagnostics::Problem;
use super::super::fields::Fields;
use super::super::leaf::{show_size, show_time};
use super::super::schema::{AGE, AT_LEAST_ONE, Block, Key, Kind};
use super::super::write;
use super::Known;
use super::store::{self, Store};

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
    pub store: JournalStore,
}

/// The place of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalStore {
    /// Memory and temporary files: a restart begins a new journal. The default.
    Memory,
    /// Durable files: a restart continues the journal. The store is always [`Store::Local`].
    Durable(Store),
}

/// The schema of `journal`.
pub(super) static JOURNAL: Block = Block {
    keys: &[
        Key::new("max_entries", AT_LEAST_ONE),
        Key::new("max_age", AGE),
        Key::new("max_bytes", BYTES),
        Key::new("memory_max_bytes", BYTES),
        Key::new("store", Kind::Choice(&[&["memory"], &["local"]])),
        Key::new("store_config", Kind::Beside { tag: "store", variants: &[("local", &store::LOCAL)] }),
    ],
};

/// A size limit of a journal. A lower limit than this minimum would not fit one segment.
const BYTES: Kind = Kind::Size { min: 1 << 20, max: i64::MAX as u64 };

impl Default for JournalConfig {
    fn default() -> Self {
        JournalConfig {
            max_entries: 100_000,
            max_age: Duration::from_secs(24 * 3600),
            max_bytes: 4 << 30,
            memory_max_bytes: 256 << 20,
            store: JournalStore::Memory,
        }
    }
}

impl JournalConfig {
    pub(super) fn read(fields: &Fields, known: &Known, problems: &mut Vec<Problem>) -> Self {
        let default = JournalConfig::default();
        JournalConfig {
            max_entries: fields.count("max_entries").unwrap_or(default.max_entries),
            max_age: fields.time("max_age").unwrap_or(default.max_age),
            max_bytes: fields.size("max_bytes").unwrap_or(default.max_bytes),
            memory_max_bytes: fields.size("memory_max_bytes").unwrap_or(default.memory_max_bytes),
            store: match fields.word("store") {
                Some("local") => JournalStore::Durable(Store::read(fields, known, problems)),
                _ => JournalStore::Memory,
            },
        }
    }

    pub(super) fn write(&self, out: &mut write::Block) {
        out.put("max_entries", self.max_entries);
        out.put("max_age", show_time(self.max_age));
        out.put("max_bytes", show_size(self.max_bytes));
        out.put("memory_max_bytes", show_size(self.memory_max_bytes));
        match &self.store {
            JournalStore::Memory => out.put("store", "memory"),
            JournalStore::Durable(store) => store.write(out),
        }
    }
}
