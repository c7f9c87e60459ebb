//! Filters, which select the rows that clients see.

use hocon::ScalarType;
use regex::Regex;

use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT, TEXT_OR_EMPTY, VariantSchema};
use super::super::secret::mask_text;
use super::super::tree::ConfigNode;
use super::super::write::{self, text};

/// A condition on a row.
#[derive(Debug, Clone, PartialEq)]
pub enum FilterConfig {
    /// A condition that a column has a value.
    FieldEquals {
        /// The column.
        field: String,
        /// The value.
        value: FilterValue,
    },
    /// A condition that a column's text begins with a prefix.
    FieldPrefix {
        /// The column.
        field: String,
        /// The prefix.
        prefix: String,
    },
    /// A condition that a regular expression matches somewhere in a column's text.
    FieldRegex {
        /// The column.
        field: String,
        /// The expression.
        pattern: PatternConfig,
    },
}

/// The value that a column is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterValue {
    /// A text.
    String(String),
    /// A number as it was written, so that no digit is lost.
    Number(String),
    /// A boolean.
    Bool(bool),
    /// The NULL of SQL.
    Null,
}

/// A compiled regular expression.
#[derive(Debug, Clone)]
pub struct PatternConfig(pub Regex);

/// The schema of `filters`.
pub(super) const FILTERS: SettingKind = SettingKind::List(&SettingKind::Tagged(&VariantSchema {
    tag: "type",
    what: "filter type",
    variants: &[
        (&["field-equals"], &FIELD_EQUALS),
        (&["field-prefix"], &FIELD_PREFIX),
        (&["field-regex"], &FIELD_REGEX),
    ],
}));

static FIELD_EQUALS: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("type", TEXT),
        KeySchema::required("field", TEXT),
        KeySchema::required("value", SettingKind::Scalar),
    ],
};

static FIELD_PREFIX: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("type", TEXT),
        KeySchema::required("field", TEXT),
        KeySchema::required("prefix", TEXT_OR_EMPTY),
    ],
};

static FIELD_REGEX: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("type", TEXT),
        KeySchema::required("field", TEXT),
        KeySchema::required("pattern", TEXT),
    ],
};

impl FilterConfig {
    pub(super) fn read_all(target: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Vec<FilterConfig> {
        target
            .variants("filters")
            .iter()
            .filter_map(|filter| {
                let fields = &filter.fields;
                let field = fields.text("field").unwrap_or_default();
                match filter.tag {
                    "field-equals" => {
                        Some(FilterConfig::FieldEquals { field, value: FilterValue::read(fields.scalar("value")?)? })
                    }
                    "field-prefix" => Some(FilterConfig::FieldPrefix { field, prefix: fields.text("prefix")? }),
                    _ => Some(FilterConfig::FieldRegex { field, pattern: PatternConfig::read(fields, problems)? }),
                }
            })
            .collect()
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        match self {
            FilterConfig::FieldEquals { field, value } => {
                out.put("type", "field-equals");
                out.put("field", text(field));
                out.put(
                    "value",
                    match value {
                        FilterValue::String(value) => text(value),
                        FilterValue::Number(value) => value.clone(),
                        FilterValue::Bool(value) => value.to_string(),
                        FilterValue::Null => "null".to_owned(),
                    },
                );
            }
            FilterConfig::FieldPrefix { field, prefix } => {
                out.put("type", "field-prefix");
                out.put("field", text(field));
                out.put("prefix", text(prefix));
            }
            FilterConfig::FieldRegex { field, pattern } => {
                out.put("type", "field-regex");
                out.put("field", text(field));
                out.put("pattern", text(pattern.0.as_str()));
            }
        }
    }
}

impl FilterValue {
    fn read(node: &ConfigNode) -> Option<FilterValue> {
        let scalar = node.scalar()?;
        let raw = scalar.raw.clone();
        Some(match scalar.value_type {
            ScalarType::Number => FilterValue::Number(raw),
            ScalarType::Boolean => FilterValue::Bool(raw == "true"),
            ScalarType::Null => FilterValue::Null,
            _ => FilterValue::String(raw),
        })
    }
}

impl PatternConfig {
    fn read(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Option<PatternConfig> {
        let pattern = fields.text("pattern")?;
        match Regex::new(&pattern) {
            Ok(regex) => Some(PatternConfig(regex)),
            Err(error) => {
                // The library's message has several lines, of which the last one is the error.
                let error = error.to_string();
                let error = error.lines().last().unwrap_or_default().trim();
                let why = error.strip_prefix("error: ").unwrap_or(error);
                let message = format!("expected a regular expression, found \"{}\": {why}", mask_text(&pattern));
                let path = fields.path.key("pattern");
                problems.push(ConfigProblem::new(fields.place_of("pattern"), &path, message));
                None
            }
        }
    }
}

impl PartialEq for PatternConfig {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}
