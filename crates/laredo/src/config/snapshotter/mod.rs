//! The configuration of `laredo-snapshotter`.

mod aws;
mod destination;
mod event;
mod formats;
mod manifest_addresses;
mod schedule;
mod source;
mod table;

use std::collections::BTreeMap;

pub use aws::AwsConfig;
pub use destination::{DestinationConfig, S3Config};
pub use event::{EventConfig, EventTarget};
pub use formats::FormatsConfig;
pub use source::{IdentityConfig, SnapshotterSourceConfig, SnapshotterTlsConfig};
pub use table::ArchivedTableConfig;

use super::credentials::{self, CREDENTIALS, CredentialsConfig};
use super::diagnostics::{ConfigProblem, ConfigReport};
use super::fields::BlockFields;
use super::leaf::expected;
use super::load::ConfigLoader;
use super::schema::{BlockSchema, ConfigSchema, KeySchema, PORT, SettingKind};
use super::tree::ConfigNode;
use super::write;

/// The configuration of `laredo-snapshotter` after all checks: references exist, values are in
/// range, defaults are filled in, and no two archives share a place.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotterConfig {
    /// The tables, in the order of the configuration; at least one.
    pub tables: Vec<ArchivedTableConfig>,
    /// The TCP port of the HTTP API; 0 means any free one. Default 8080.
    pub http_port: u16,
    /// The credentials profiles that destinations and event sinks refer to.
    pub credentials: BTreeMap<String, CredentialsConfig>,
}

static SCHEMA: ConfigSchema = ConfigSchema {
    root: &ROOT,
    refused: &[],
    file_variable: "LAREDO_SNAPSHOTTER_CONFIG",
    variable_prefix: "LAREDO_SNAPSHOTTER",
    foreign_variables: &[],
};

static ROOT: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("snapshotter", SettingKind::Block(&SNAPSHOTTER)),
        KeySchema::new("source", INSIDE),
        KeySchema::new("destinations", INSIDE),
        KeySchema::new("tables", INSIDE),
        KeySchema::new("http", INSIDE),
        KeySchema::new("credentials", INSIDE),
    ],
};

const INSIDE: SettingKind = SettingKind::Refused(
    "belongs inside snapshotter { … }; where it is meant for laredo-server, give each program files of its own \
     (--config, --conf-dir)",
);

static SNAPSHOTTER: BlockSchema = BlockSchema { keys: &SNAPSHOTTER_KEYS };

/// The keys of a single table, which are an alternative to `tables`, and the keys of the whole
/// program.
static SNAPSHOTTER_KEYS: [KeySchema; table::KEYS.len() + 3] = {
    let [source, key_prefix, key_fields, diff, snapshot, formats, destinations, events, retention] = table::KEYS;
    [
        KeySchema { required: false, ..source },
        key_prefix,
        key_fields,
        diff,
        snapshot,
        formats,
        KeySchema { required: false, ..destinations },
        events,
        retention,
        KeySchema::new("tables", SettingKind::List(&SettingKind::Block(&table::TABLE))),
        KeySchema::new("http", SettingKind::Block(&HTTP)),
        KeySchema::new("credentials", CREDENTIALS),
    ]
};

static HTTP: BlockSchema = BlockSchema { keys: &[KeySchema::new("port", PORT)] };

impl SnapshotterConfig {
    /// Loads, merges and checks the configuration.
    ///
    /// # Errors
    ///
    /// A report of all problems of the configuration.
    pub fn load(loader: &ConfigLoader) -> Result<Self, ConfigReport> {
        loader.load(&SCHEMA, Self::read)
    }

    /// Returns the paths of all keys. `*` is a placeholder for names that the operator chooses, and
    /// list items have no number: `snapshotter.source.server`, `snapshotter.tables.source.server`.
    pub fn keys() -> Vec<String> {
        SCHEMA.keys()
    }

    /// Returns the effective configuration as HOCON. It loads to the same configuration, except for
    /// tokens, which are masked.
    pub fn to_hocon(&self) -> String {
        let mut out = write::HoconBlock::default();
        out.block("snapshotter", |out| {
            out.block("http", |out| out.put("port", self.http_port));
            credentials::write_all(&self.credentials, out);
            out.blocks("tables", &self.tables, |table, out| table.write(out));
        });
        out.into_document()
    }

    /// Returns warnings about settings that are allowed but probably not intended. Each is a
    /// sentence that names the table.
    pub fn warnings(&self) -> Vec<String> {
        self.tables
            .iter()
            .flat_map(|table| {
                let warnings = table.source.warnings().into_iter().chain(manifest_addresses::warnings(table));
                warnings.map(|warning| format!("{}: {warning}", table.source.name()))
            })
            .collect()
    }

    fn read(root: &ConfigNode, problems: &mut Vec<ConfigProblem>) -> SnapshotterConfig {
        let fields = BlockFields::root(root, &ROOT).block("snapshotter");
        let profiles = fields.names("credentials");
        let blocks = table_blocks(&fields, root, problems);
        let tables: Vec<_> = blocks.iter().map(|block| ArchivedTableConfig::read(block, &profiles, problems)).collect();
        manifest_addresses::check(&blocks, &tables, problems);
        SnapshotterConfig {
            tables,
            http_port: fields.block("http").port("port").unwrap_or(8080),
            credentials: credentials::read_all(&fields, problems),
        }
    }
}

/// Returns the blocks of the tables: the items of `tables`, or `snapshotter` itself as the only
/// one.
fn table_blocks<'a>(
    fields: &BlockFields<'a>,
    root: &'a ConfigNode,
    problems: &mut Vec<ConfigProblem>,
) -> Vec<BlockFields<'a>> {
    let given: Vec<_> = table::KEYS.iter().map(|key| key.name).filter(|name| fields.has(name)).collect();
    let mut complain = |key: &str, message: String| {
        problems.push(ConfigProblem::new(fields.place_of(key), &fields.path.key(key), message));
    };
    if fields.has("tables") {
        if !given.is_empty() {
            complain(
                "tables",
                format!(
                    "stands beside the keys of one table ({}); put them into an item of tables, or leave tables out",
                    given.join(", ")
                ),
            );
        } else if fields.item_count("tables") == 0 {
            complain("tables", "there is no table; name at least one to write".to_owned());
        }
        return fields.blocks("tables");
    }
    if given.is_empty() {
        if fields.is_block() {
            complain("tables", "is required, or the keys of one table (source, destinations) in its place".to_owned());
        }
        return Vec::new();
    }
    for key in table::KEYS.iter().filter(|key| key.required && !given.contains(&key.name)) {
        complain(key.name, format!("is required: {}", expected(&key.kind)));
    }
    vec![BlockFields::root(root, &ROOT).block("snapshotter")]
}
