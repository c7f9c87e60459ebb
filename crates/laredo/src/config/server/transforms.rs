//! Transforms, which change the columns that clients see.

use super::super::declaration::{config_variants, custom, key, texts};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT};
use super::super::write::text;

config_variants! {
    /// A change of a row's columns.
    pub enum TransformConfig("transform type") [TransformConfig::check] {
        /// Removes columns.
        DropFields["drop-fields"] {
            /// The columns.
            fields: Vec<String> = texts("fields", SettingKind::List(&TEXT), "").must_be_given(),
        },
        /// Gives columns other names.
        RenameFields["rename-fields"] {
            /// The old and the new name of each column, as a block.
            fields: Vec<(String, String)> = custom(
                "fields",
                SettingKind::Map(&TEXT),
                Vec::new,
                |_, fields, _| Some(fields.texts_by_name("fields")),
                |fields, _, out| {
                    out.block("fields", |out| fields.iter().for_each(|(old, new)| out.put(old, text(new))));
                },
            )
            .must_be_given(),
        },
        /// Adds the time of the commit as a column.
        AddTimestamp["add-timestamp"] {
            /// The name of the new column.
            field: String = key("field", TEXT, || "committed_at".to_owned()),
        },
    }
}

impl TransformConfig {
    /// Reports columns that would be renamed to the same name.
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        let TransformConfig::RenameFields { fields: renamed } = self else { return };
        for (i, (old, new)) in renamed.iter().enumerate() {
            if let Some((other, _)) = renamed[..i].iter().find(|(_, earlier)| earlier == new) {
                reader.report(fields, "fields", format!("{other} and {old} would both be named {new}"));
            }
        }
    }
}
