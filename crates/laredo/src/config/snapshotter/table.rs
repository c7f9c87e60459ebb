//! A table: its source, and the archive that is written from it.

use std::time::Duration;

use laredo_archive::{MANIFEST_EPOCHS, Thresholds};

use super::super::diagnostics::Problem;
use super::super::fields::Fields;
use super::super::leaf::show_time;
use super::super::references::repeated;
use super::super::schema::{Block, Key, Kind, TEXT};
use super::super::write::{self, list, text};
use super::destination::{DESTINATIONS, DestinationConfig, PREFIX};
use super::event::{EVENTS, EventConfig};
use super::formats::{FORMATS, FormatsConfig};
use super::schedule::{self, read_thresholds, write_thresholds};
use super::source::{self, SourceConfig};

/// A table and its archive.
#[derive(Debug, Clone, PartialEq)]
pub struct TableConfig {
    /// The server that the rows and changes come from.
    pub source: SourceConfig,
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
    pub thresholds: Thresholds,
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
pub(super) const KEYS: [Key; 9] = [
    Key::required("source", Kind::Block(&source::SOURCE)),
    Key::new("key_prefix", PREFIX),
    Key::new("key_fields", Kind::List(&TEXT)),
    Key::new("diff", Kind::Block(&schedule::DIFF)),
    Key::new("snapshot", Kind::Block(&schedule::SNAPSHOT)),
    Key::new("formats", Kind::Block(&FORMATS)),
    Key::required("destinations", DESTINATIONS),
    Key::new("events", EVENTS),
    Key::new("retention", Kind::Block(&schedule::RETENTION)),
];

/// The schema of an item of `tables`.
pub(super) static TABLE: Block = Block { keys: &KEYS };

impl TableConfig {
    pub(super) fn read(fields: &Fields, profiles: &[&str], problems: &mut Vec<Problem>) -> Self {
        let source = SourceConfig::read(&fields.block("source"), problems);
        repeated(fields, "key_fields", problems);
        TableConfig {
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

    pub(super) fn write(&self, out: &mut write::Block) {
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
