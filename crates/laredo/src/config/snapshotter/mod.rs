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
use std::path::PathBuf;

pub use aws::AwsConfig;
pub use destination::{DestinationConfig, S3Config};
pub use event::{EventConfig, EventTarget};
pub use formats::FormatsConfig;
pub use schedule::{DiffScheduleConfig, EpochRetentionConfig};
pub use source::{IdentityConfig, SnapshotterSourceConfig, SnapshotterTlsConfig};
pub use table::ArchivedTableConfig;

use laredo_server::ListenAddress;

use super::credentials::{self, CredentialsConfig};
use super::declaration::{ConfigBlock, block, config_block, custom, key, map, optional, texts};
use super::diagnostics::ConfigReport;
use super::fields::BlockFields;
use super::leaf::expected;
use super::load::ConfigLoader;
use super::port::{self, PortTlsConfig};
use super::reader::ConfigReader;
use super::reference;
use super::schema::{BlockSchema, ConfigSchema, FieldSchema, KeySchema, PORT, SettingKind, TEXT_OR_EMPTY};
use super::write::HoconBlock;

config_block! {
    /// The configuration of `laredo-snapshotter`.
    ///
    /// A configuration that was loaded has passed all checks: references exist, values are in
    /// range, defaults are filled in, and no two archives share a place. The default has no tables.
    pub struct SnapshotterConfig [SnapshotterConfig::check] {
        /// The HTTP API.
        pub http: HttpConfig = block("http"),
        /// The credentials profiles that destinations and event sinks refer to.
        pub credentials: BTreeMap<String, CredentialsConfig> = map("credentials"),
        /// The folder for [unfinished artifacts](snapshotter-runbook.md#unfinished-files), on a
        /// disk and not in memory. Only tables without a local destination use it. Ours.
        pub temp_dir: Option<PathBuf> = optional("temp_dir", TEXT_OR_EMPTY, "`$TMPDIR`, or `/tmp`"),
        /// The tables, in the order of the configuration; at least one. The keys of a single table
        /// may be directly in `snapshotter` instead.
        pub tables: Vec<ArchivedTableConfig> = custom(
            "tables",
            ArchivedTableConfig::LIST,
            Vec::new,
            |_, fields, reader| Some(read_tables(fields, reader)),
            |tables, _, out| out.blocks("tables", tables, |table, out| table.write(out)),
        )
        .defaults_to("the table in `snapshotter`"),
    }
    also [FieldSchema::Repeated(TABLE)]
}

/// The keys of a table.
const TABLE: &BlockSchema = &BlockSchema { fields: ArchivedTableConfig::KIND.fields() };

config_block! {
    /// The HTTP API.
    pub struct HttpConfig [HttpConfig::check] {
        /// The port of the HTTP API: health, status, metrics, orders. `--http-port` sets it.
        pub port: u16 = key("port", PORT, || 8080),
        /// The address of this port. Ours.
        pub address: ListenAddress = port::address(),
        /// TLS for this port; `None` if it is not enabled. Ours.
        pub tls: Option<PortTlsConfig> = port::tls(),
        /// The names by which clients may call this port in plain text, in addition to IP addresses
        /// and names that are not public ([why](security.md#names-of-the-server)). Ours.
        pub allowed_hosts: Vec<String> = texts("allowed_hosts", SettingKind::List(&port::HOST), "none"),
    }
}

static SCHEMA: ConfigSchema = ConfigSchema {
    root: &BlockSchema {
        fields: &[
            FieldSchema::Key(KeySchema::required("snapshotter", SnapshotterConfig::KIND)),
            FieldSchema::refused("source", INSIDE),
            FieldSchema::refused("destinations", INSIDE),
            FieldSchema::refused("tables", INSIDE),
            FieldSchema::refused("http", INSIDE),
            FieldSchema::refused("credentials", INSIDE),
            FieldSchema::refused("temp_dir", INSIDE),
        ],
    },
    refused: &[],
    file_variable: "LAREDO_SNAPSHOTTER_CONFIG",
    variable_prefix: "LAREDO_SNAPSHOTTER",
    foreign_variables: &[],
};

const INSIDE: &str = "belongs inside snapshotter { … }; where it is meant for laredo-server, give each program files of \
                      its own (--config, --conf-dir)";

impl HttpConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        PortTlsConfig::refuse_optional(self.tls.as_ref(), &fields.block("tls"), reader);
    }
}

impl SnapshotterConfig {
    /// Loads, merges and checks the configuration.
    ///
    /// # Errors
    ///
    /// A report of all problems of the configuration.
    pub fn load(loader: &ConfigLoader) -> Result<Self, ConfigReport> {
        loader.load(&SCHEMA, |root, problems| {
            let fields = BlockFields::root(root, SCHEMA.root).block("snapshotter");
            let mut reader = ConfigReader::new(problems);
            reader.profiles = fields.names("credentials").into_iter().map(str::to_owned).collect();
            SnapshotterConfig::read(&fields, &mut reader)
        })
    }

    /// Returns the files that the configuration is merged from, in their order, without those that
    /// they include.
    pub(crate) fn files(loader: &ConfigLoader) -> Vec<PathBuf> {
        loader.files(&SCHEMA)
    }

    /// Returns the paths of all keys. `*` is a placeholder for names that the operator chooses, and
    /// list items have no number: `snapshotter.source.server`, `snapshotter.tables.source.server`.
    pub fn keys() -> Vec<String> {
        SCHEMA.keys()
    }

    /// Returns the reference of the keys at a path, as a table of Markdown. Returns `None` if there
    /// is no such block.
    pub fn reference(path: &str) -> Option<String> {
        reference::table(&SCHEMA, path)
    }

    /// Returns the effective configuration as HOCON. It loads to the same configuration, except for
    /// tokens, which are masked.
    pub fn to_hocon(&self) -> String {
        let mut out = HoconBlock::default();
        out.block("snapshotter", |out| self.write(out));
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

    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        credentials::check_bases(fields, &self.credentials, reader);
        if fields.has("tables") {
            manifest_addresses::check(&fields.items("tables"), &self.tables, reader);
        } else {
            manifest_addresses::check(std::slice::from_ref(fields), &self.tables, reader);
        }
    }
}

/// Reads the tables: the items of `tables`, or `snapshotter` itself as the only one.
fn read_tables(fields: &BlockFields, reader: &mut ConfigReader) -> Vec<ArchivedTableConfig> {
    let given: Vec<_> = keys_of_a_table().filter(|key| fields.has(key.name)).map(|key| key.name).collect();
    if fields.has("tables") {
        if !given.is_empty() {
            let message = format!(
                "cannot be given together with the keys of one table ({}); put them into an item of tables, or leave tables out",
                given.join(", ")
            );
            reader.report(fields, "tables", message);
        } else if fields.item_count("tables") == 0 {
            reader.report(fields, "tables", "there is no table; name at least one to write");
        }
        return fields.items("tables").iter().map(|table| ArchivedTableConfig::read(table, reader)).collect();
    }
    if given.is_empty() {
        if fields.is_block() {
            let message = "is required, or the keys of one table (source, destinations) in its place";
            reader.report(fields, "tables", message);
        }
        return Vec::new();
    }
    for key in keys_of_a_table().filter(|key| key.required && !given.contains(&key.name)) {
        reader.report(fields, key.name, format!("is required: {}", expected(&key.kind)));
    }
    vec![ArchivedTableConfig::read(fields, reader)]
}

fn keys_of_a_table() -> impl Iterator<Item = &'static KeySchema> {
    TABLE.keys().into_iter()
}
