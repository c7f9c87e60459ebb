//! A table: its source, and the archive that is written from it.

use std::time::Duration;

use laredo_archive::{MANIFEST_EPOCHS, RebaseThresholds};

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::leaf::show_time;
use super::super::references::report_repeated;
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT};
use super::super::write::{self, list, text};
use super::destination::{DESTINATIONS, DestinationConfig, PREFIX};
use super::event::{EVENTS, EventConfig};
use super::formats::{FORMATS, FormatsConfig};
use super::schedule::{self, read_thresholds, write_thresholds};
use super::source::{self, SnapshotterSourceConfig};

/// A table and its archive.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchivedTableConfig {
    /// The server that the rows and changes come from.
    pub source: SnapshotterSourceConfig,
    /// The prefix of all names of the archive, after each destination's own prefix, used as given.
    /// Default `<table>/`.
    pub key_prefix: String,
    /// The columns that identify a row, if the table needs another key than the server's. Empty
    /// means the server's key.
    pub key_fields: Vec<String>,
    /// The interval between two diffs. Default 30 s.
    pub diff_interval: Duration,
    /// The thresholds at which a snapshot is written instead of a diff. By default, an epoch has at
    /// most 128 to 1,000 diffs, depending on the size of its snapshot.
    pub thresholds: RebaseThresholds,
    /// The formats of the artifacts.
    pub formats: FormatsConfig,
    /// The places of the archive; at least one. The first one is authoritative.
    pub destinations: Vec<DestinationConfig>,
    /// The event sinks that are notified of new artifacts.
    pub events: Vec<EventConfig>,
    /// The number of epochs to keep; `None`, the default, means all.
    pub keep_epochs: Option<u32>,
    /// The maximum number of epochs that `manifest.json` names. Default 8.
    pub manifest_epochs: u32,
}

/// The keys of a table.
pub(super) const KEYS: [KeySchema; 9] = [
    KeySchema::required("source", SettingKind::Block(&source::SOURCE)),
    KeySchema::new("key_prefix", PREFIX),
    KeySchema::new("key_fields", SettingKind::List(&TEXT)),
    KeySchema::new("diff", SettingKind::Block(&schedule::DIFF)),
    KeySchema::new("snapshot", SettingKind::Block(&schedule::SNAPSHOT)),
    KeySchema::new("formats", SettingKind::Block(&FORMATS)),
    KeySchema::required("destinations", DESTINATIONS),
    KeySchema::new("events", EVENTS),
    KeySchema::new("retention", SettingKind::Block(&schedule::RETENTION)),
];

/// The schema of an item of `tables`.
pub(super) static TABLE: BlockSchema = BlockSchema { keys: &KEYS };

impl ArchivedTableConfig {
    pub(super) fn read(fields: &BlockFields, profiles: &[&str], problems: &mut Vec<ConfigProblem>) -> Self {
        let source = SnapshotterSourceConfig::read(&fields.block("source"), problems);
        report_repeated(fields, "key_fields", problems);
        ArchivedTableConfig {
            key_prefix: fields.text("key_prefix").unwrap_or_else(|| format!("{}/", source.table)),
            key_fields: fields.texts("key_fields"),
            diff_interval: fields.block("diff").time("interval").unwrap_or(Duration::from_secs(30)),
            thresholds: read_thresholds(&fields.block("snapshot"), problems),
            formats: FormatsConfig::read(&fields.block("formats"), problems),
            destinations: DestinationConfig::read_all(fields, profiles, problems),
            events: EventConfig::read_all(fields, profiles, problems),
            keep_epochs: fields.block("retention").count_u32("keep_epochs"),
            manifest_epochs: fields.block("retention").count_u32("manifest_epochs").unwrap_or(MANIFEST_EPOCHS),
            source,
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.block("source", |out| self.source.write(out));
        out.put("key_prefix", text(&self.key_prefix));
        if !self.key_fields.is_empty() {
            out.put("key_fields", list(self.key_fields.iter().map(|field| text(field))));
        }
        out.block("diff", |out| out.put("interval", show_time(self.diff_interval)));
        out.block("snapshot", |out| write_thresholds(&self.thresholds, out));
        out.block("formats", |out| self.formats.write(out));
        out.blocks("destinations", &self.destinations, |destination, out| destination.write(out));
        if !self.events.is_empty() {
            out.blocks("events", &self.events, |event, out| event.write(out));
        }
        out.block("retention", |out| {
            out.put_if("keep_epochs", self.keep_epochs);
            out.put("manifest_epochs", self.manifest_epochs);
        });
    }
}
