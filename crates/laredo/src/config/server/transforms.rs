//! Transforms, which change the columns that clients see.

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT, VariantSchema};
use super::super::write::{self, list, text};

/// A change of a row's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransformConfig {
    /// The removal of columns.
    DropFields {
        /// The columns.
        fields: Vec<String>,
    },
    /// The renaming of columns.
    RenameFields {
        /// The pairs of an old and a new name.
        fields: Vec<(String, String)>,
    },
    /// The addition of the commit time as a column.
    AddTimestamp {
        /// The new column.
        field: String,
    },
}

/// The column that `add-timestamp` adds unless another one is named.
const TIMESTAMP_FIELD_DEFAULT: &str = "committed_at";

/// The schema of `transforms`.
pub(super) const TRANSFORMS: SettingKind = SettingKind::List(&SettingKind::Tagged(&VariantSchema {
    tag: "type",
    what: "transform type",
    variants: &[
        (&["drop-fields"], &DROP_FIELDS),
        (&["rename-fields"], &RENAME_FIELDS),
        (&["add-timestamp"], &ADD_TIMESTAMP),
    ],
}));

static DROP_FIELDS: BlockSchema =
    BlockSchema { keys: &[KeySchema::required("type", TEXT), KeySchema::required("fields", SettingKind::List(&TEXT))] };

static RENAME_FIELDS: BlockSchema =
    BlockSchema { keys: &[KeySchema::required("type", TEXT), KeySchema::required("fields", SettingKind::Map(&TEXT))] };

static ADD_TIMESTAMP: BlockSchema =
    BlockSchema { keys: &[KeySchema::required("type", TEXT), KeySchema::new("field", TEXT)] };

impl TransformConfig {
    pub(super) fn read_all(target: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Vec<TransformConfig> {
        target
            .variants("transforms")
            .iter()
            .map(|transform| {
                let fields = &transform.fields;
                match transform.tag {
                    "drop-fields" => TransformConfig::DropFields { fields: fields.texts("fields") },
                    "rename-fields" => {
                        let renamed = fields.texts_by_name("fields");
                        check_new_names(fields, &renamed, problems);
                        TransformConfig::RenameFields { fields: renamed }
                    }
                    _ => TransformConfig::AddTimestamp {
                        field: fields.text("field").unwrap_or_else(|| TIMESTAMP_FIELD_DEFAULT.to_owned()),
                    },
                }
            })
            .collect()
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        match self {
            TransformConfig::DropFields { fields } => {
                out.put("type", "drop-fields");
                out.put("fields", list(fields.iter().map(|f| text(f))));
            }
            TransformConfig::RenameFields { fields } => {
                out.put("type", "rename-fields");
                out.block("fields", |out| {
                    for (old, new) in fields {
                        out.put(old, text(new));
                    }
                });
            }
            TransformConfig::AddTimestamp { field } => {
                out.put("type", "add-timestamp");
                out.put("field", text(field));
            }
        }
    }
}

/// Reports columns that would be renamed to the same name.
fn check_new_names(fields: &BlockFields, renamed: &[(String, String)], problems: &mut Vec<ConfigProblem>) {
    for (i, (old, new)) in renamed.iter().enumerate() {
        if let Some((other, _)) = renamed[..i].iter().find(|(_, earlier)| earlier == new) {
            problems.push(ConfigProblem::new(
                fields.place_of("fields"),
                &fields.path.key("fields"),
                format!("{other} and {old} would both be named {new}"),
            ));
        }
    }
}
