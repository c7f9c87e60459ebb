//! Transforms, which change the columns that clients see.

use super::super::diagnostics::Problem;
use super::super::fields::Fields;
use super::super::schema::{Block, Key, Kind, TEXT, Tagged};
use super::super::write::{self, list, text};

/// A change of a row's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transform {
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
pub(super) const TRANSFORMS: Kind = Kind::List(&Kind::Tagged(&Tagged {
    tag: "type",
    what: "transform type",
    variants: &[
        (&["drop-fields"], &DROP_FIELDS),
        (&["rename-fields"], &RENAME_FIELDS),
        (&["add-timestamp"], &ADD_TIMESTAMP),
    ],
}));

static DROP_FIELDS: Block = Block { keys: &[Key::required("type", TEXT), Key::required("fields", Kind::List(&TEXT))] };

static RENAME_FIELDS: Block = Block { keys: &[Key::required("type", TEXT), Key::required("fields", Kind::Map(&TEXT))] };

static ADD_TIMESTAMP: Block = Block { keys: &[Key::required("type", TEXT), Key::new("field", TEXT)] };

impl Transform {
    pub(super) fn read_all(target: &Fields, problems: &mut Vec<Problem>) -> Vec<Transform> {
        target
            .variants("transforms")
            .iter()
            .map(|transform| {
                let fields = &transform.fields;
                match transform.tag {
                    "drop-fields" => Transform::DropFields { fields: fields.texts("fields") },
                    "rename-fields" => {
                        let renamed = fields.texts_by_name("fields");
                        check_new_names(fields, &renamed, problems);
                        Transform::RenameFields { fields: renamed }
                    }
                    _ => Transform::AddTimestamp {
                        field: fields.text("field").unwrap_or_else(|| TIMESTAMP_FIELD_DEFAULT.to_owned()),
                    },
                }
            })
            .collect()
    }

    pub(super) fn write(&self, out: &mut write::Block) {
        match self {
            Transform::DropFields { fields } => {
                out.put("type", "drop-fields");
                out.put("fields", list(fields.iter().map(|f| text(f))));
            }
            Transform::RenameFields { fields } => {
                out.put("type", "rename-fields");
                out.block("fields", |out| {
                    for (old, new) in fields {
                        out.put(old, text(new));
                    }
                });
            }
            Transform::AddTimestamp { field } => {
                out.put("type", "add-timestamp");
                out.put("field", text(field));
            }
        }
    }
}

/// Reports columns that would be renamed to the same name.
fn check_new_names(fields: &Fields, renamed: &[(String, String)], problems: &mut Vec<Problem>) {
    for (i, (old, new)) in renamed.iter().enumerate() {
        if let Some((other, _)) = renamed[..i].iter().find(|(_, earlier)| earlier == new) {
            problems.push(Problem::new(
                fields.place_of("fields"),
                &fields.path.key("fields"),
                format!("{other} and {old} would both be named {new}"),
            ));
        }
    }
}
