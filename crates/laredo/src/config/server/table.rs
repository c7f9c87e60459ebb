//! Tables: the source of each table, its key, and its fan-out.

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::references::{report_dangling, report_repeated};
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT};
use super::super::write::{self, list, text};
use super::ConfiguredNames;
use super::fanout::{FanoutConfig, TARGET};
use super::transforms::TransformConfig;
use super::verify::{self, VerifyConfig};

/// A table and the fan-out that serves it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServedTableConfig {
    /// The name of the table's source in `sources`.
    pub source: String,
    /// The table's schema in the database.
    pub schema: String,
    /// The table's name.
    pub table: String,
    /// The columns that identify a row, for a table without a usable replica identity. Empty means
    /// the table's own key.
    pub key_fields: Vec<String>,
    /// The verification of the table in the background.
    pub verify: VerifyConfig,
    /// The fan-out to clients.
    pub fanout: FanoutConfig,
}

/// The schema of an item of `tables`.
pub(super) static TABLE: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("source", TEXT),
        KeySchema::required("schema", TEXT),
        KeySchema::required("table", TEXT),
        KeySchema::new("key_fields", SettingKind::List(&TEXT)),
        KeySchema::new("verify", SettingKind::Block(&verify::VERIFY)),
        KeySchema::required("targets", SettingKind::List(&SettingKind::Tagged(&TARGET))),
    ],
};

pub(super) fn read_all(
    root: &BlockFields,
    known: &ConfiguredNames,
    problems: &mut Vec<ConfigProblem>,
) -> Vec<ServedTableConfig> {
    let all = root.blocks("tables");
    if root.has("tables") && all.is_empty() && root.item_count("tables") == 0 {
        problems.push(ConfigProblem::new(
            root.place_of("tables"),
            &root.path.key("tables"),
            "there is no table; name at least one to serve",
        ));
    }
    let mut tables: Vec<ServedTableConfig> = Vec::new();
    for fields in all {
        let table = ServedTableConfig::read(&fields, known, problems);
        // Clients ask by schema and table alone, so a server can have only one table of each name.
        let twin = tables.iter().position(|t| (&t.schema, &t.table) == (&table.schema, &table.table));
        if let Some(twin) = twin
            && !table.table.is_empty()
        {
            problems.push(ConfigProblem::new(
                fields.place_of("table"),
                &fields.path.key("table"),
                format!(
                    "{}.{} is served by tables[{twin}] already; clients could not tell them apart",
                    table.schema, table.table
                ),
            ));
        }
        tables.push(table);
    }
    tables
}

impl ServedTableConfig {
    fn read(fields: &BlockFields, known: &ConfiguredNames, problems: &mut Vec<ConfigProblem>) -> Self {
        let source = fields.text("source").unwrap_or_default();
        if fields.text("source").is_some() {
            report_dangling(fields, "source", &source, &known.sources, "source", problems);
        }
        let count = fields.item_count("targets");
        if fields.has("targets") && count != 1 {
            problems.push(ConfigProblem::new(
                fields.place_of("targets"),
                &fields.path.key("targets"),
                format!("a table has exactly one replication-fanout target, not {count}"),
            ));
        }
        let table = fields.text("table").unwrap_or_default();
        let targets = fields.variants("targets");
        let fanout = match targets.first() {
            Some(target) => FanoutConfig::read(&target.fields, &table, known, problems),
            // The missing target has been reported.
            None => FanoutConfig::with_defaults(known.fanout_port),
        };
        let config = ServedTableConfig {
            source,
            schema: fields.text("schema").unwrap_or_default(),
            table,
            key_fields: fields.texts("key_fields"),
            verify: VerifyConfig::read(&fields.block("verify")),
            fanout,
        };
        config.check_key(fields, problems);
        config
    }

    /// Checks that the key names each column once, and that no transform drops a column of it.
    fn check_key(&self, fields: &BlockFields, problems: &mut Vec<ConfigProblem>) {
        report_repeated(fields, "key_fields", problems);
        let path = fields.path.key("key_fields");
        for field in &self.key_fields {
            let dropped =
                self.fanout.transforms.iter().any(
                    |transform| matches!(transform, TransformConfig::DropFields { fields } if fields.contains(field)),
                );
            if dropped {
                problems.push(ConfigProblem::new(
                    fields.place_of("key_fields"),
                    &path,
                    format!("{field} is dropped by a transform; clients need the key"),
                ));
            }
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        out.put("source", text(&self.source));
        out.put("schema", text(&self.schema));
        out.put("table", text(&self.table));
        if !self.key_fields.is_empty() {
            out.put("key_fields", list(self.key_fields.iter().map(|f| text(f))));
        }
        out.block("verify", |out| self.verify.write(out));
        out.blocks("targets", [&self.fanout], |fanout, out| fanout.write(out));
    }
}
