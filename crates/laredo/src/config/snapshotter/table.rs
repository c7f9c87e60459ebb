//! A table: where it comes from, and the archive that is made of it.

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
    /// Where its rows and changes come from.
    pub source: SourceConfig,
    /// What follows each destination's own prefix, as it is given. Default `<table>/`.
    pub key_prefix: String,
    /// The columns by which rows are told apart, where they are others than those that the server says. Empty: the server's.
    pub key_fields: Vec<String>,
    /// How often a diff is written. Default 30 s.
    pub diff_interval: Duration,
    /// When a base is written in the place of a diff. Default after 1,000 diffs.
    pub thresholds: Thresholds,
    /// What artifacts look like.
    pub formats: FormatsConfig,
    /// Where the archive is; at least one, and the first decides.
    pub destinations: Vec<DestinationConfig>,
    /// Who is told when it has grown.
    pub events: Vec<EventConfig>,
    /// How many epochs are kept; `None`, the default, is all.
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
