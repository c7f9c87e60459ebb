//! Tables: the source of each table, its key, and its fan-out.

use laredo_core::TableName;

use super::super::declaration::{ConfigBlock, block, config_block, custom, required, texts};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{ReferenceTarget, SettingKind, TEXT};
use super::fanout::FanoutConfig;
use super::transforms::TransformConfig;
use super::verify::VerifyConfig;

config_block! {
    /// A table and the fan-out that serves it.
    pub struct ServedTableConfig [ServedTableConfig::check] {
        /// The source of the table.
        pub source: String = required("source", SettingKind::Reference(ReferenceTarget::Source)),
        /// The schema of the table in the database.
        pub schema: String = required("schema", TEXT),
        /// The name of the table.
        pub table: String = required("table", TEXT),
        /// The columns that identify a row, for a table without a usable key.
        pub key_fields: Vec<String> =
            texts("key_fields", SettingKind::List(&TEXT), "the table's replica identity key"),
        /// [The comparison with the database](operations.md#verification) in the background.
        pub verify: VerifyConfig = block("verify"),
        /// The fan-out to clients, as a list of exactly one [target](#fan-out-targets).
        pub fanout: FanoutConfig = custom(
            "targets",
            FanoutConfig::LIST,
            FanoutConfig::default,
            |_, fields, reader| fields.items("targets").first().map(|target| FanoutConfig::read(target, reader)),
            |fanout, _, out| out.blocks("targets", [fanout], |fanout, out| fanout.write(out)),
        )
        .must_be_given(),
    }
}

/// Checks that there is a table, and that no two tables have the same name. Clients ask by schema
/// and table alone.
pub(super) fn check_names(root: &BlockFields, tables: &[ServedTableConfig], reader: &mut ConfigReader) {
    if root.has("tables") && root.item_count("tables") == 0 && root.items("tables").is_empty() {
        reader.report(root, "tables", "there is no table; name at least one to serve");
    }
    for (i, (table, fields)) in tables.iter().zip(root.items("tables")).enumerate() {
        let name = (&table.schema, &table.table);
        let twin = tables[..i].iter().position(|other| (&other.schema, &other.table) == name);
        if let Some(twin) = twin
            && !table.table.is_empty()
        {
            let (schema, table) = name;
            let message =
                format!("{schema}.{table} is served by tables[{twin}] already; clients could not tell them apart");
            reader.report(&fields, "table", message);
        }
    }
}

impl ServedTableConfig {
    /// Returns the name of the table in the database.
    pub(crate) fn name(&self) -> TableName {
        TableName::new(&self.schema, &self.table)
    }

    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        let count = fields.item_count("targets");
        if fields.has("targets") && count != 1 {
            let message = format!("a table has exactly one replication-fanout target, not {count}");
            reader.report(fields, "targets", message);
        }
        for (archive, target) in self.fanout.archive.iter_mut().zip(fields.items("targets")) {
            if !target.block("archive").has("key_prefix") {
                archive.key_prefix = format!("{}/", self.table);
            }
        }
        self.check_key(fields, reader);
    }

    /// Checks that the key names each column once, and that no transform drops or masks a column
    /// of it.
    fn check_key(&self, fields: &BlockFields, reader: &mut ConfigReader) {
        reader.check_repeated(fields, "key_fields", &self.key_fields);
        let transforms = &self.fanout.transforms;
        for field in &self.key_fields {
            let drops = |transform: &TransformConfig| matches!(transform, TransformConfig::DropFields { fields } if fields.contains(field));
            let masks = |transform: &TransformConfig| matches!(transform, TransformConfig::Mask(mask) if mask.fields.contains(field));
            if transforms.iter().any(drops) {
                reader.report(fields, "key_fields", format!("{field} is dropped by a transform; clients need the key"));
            }
            if transforms.iter().any(masks) {
                let message = format!("{field} is masked by a transform; use hash, which keeps keys distinct");
                reader.report(fields, "key_fields", message);
            }
        }
    }
}
