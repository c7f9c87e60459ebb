//! Filters, which select the rows that clients see.

use hocon::ScalarType;
use regex::Regex;

use super::super::diagnostics::Problem;
use super::super::fields::Fields;
use super::super::schema::{Block, Key, Kind, TEXT, TEXT_OR_EMPTY, Tagged};
use super::super::secret::mask_text;
use super::super::tree::Node;
use super::super::write::{self, text};

/// A condition on a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
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
        pattern: Pattern,
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
pub struct Pattern(pub Regex);

/// The schema of `filters`.
pub(super) const FILTERS: Kind = Kind::List(&Kind::Tagged(&Tagged {
    tag: "type",
    what: "filter type",
    variants: &[
        (&["field-equals"], &FIELD_EQUALS),
        (&["field-prefix"], &FIELD_PREFIX),
        (&["field-regex"], &FIELD_REGEX),
    ],
}));

static FIELD_EQUALS: Block =
    Block { keys: &[Key::required("type", TEXT), Key::required("field", TEXT), Key::required("value", Kind::Scalar)] };

static FIELD_PREFIX: Block = Block {
    keys: &[Key::required("type", TEXT), Key::required("field", TEXT), Key::required("prefix", TEXT_OR_EMPTY)],
};

static FIELD_REGEX: Block =
    Block { keys: &[Key::required("type", TEXT), Key::required("field", TEXT), Key::required("pattern", TEXT)] };

impl Filter {
    pub(super) fn read_all(target: &Fields, problems: &mut Vec<Problem>) -> Vec<Filter> {
        target
            .variants("filters")
            .iter()
            .filter_map(|filter| {
                let fields = &filter.fields;
                let field = fields.text("field").unwrap_or_default();
                match filter.tag {
                    "field-equals" => {
                        Some(Filter::FieldEquals { field, value: FilterValue::read(fields.scalar("value")?)? })
                    }
                    "field-prefix" => Some(Filter::FieldPrefix { field, prefix: fields.text("prefix")? }),
                    _ => Some(Filter::FieldRegex { field, pattern: Pattern::read(fields, problems)? }),
                }
            })
            .collect()
    }

    pub(super) fn write(&self, out: &mut write::Block) {
        match self {
            Filter::FieldEquals { field, value } => {
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
            Filter::FieldPrefix { field, prefix } => {
                out.put("type", "field-prefix");
                out.put("field", text(field));
                out.put("prefix", text(prefix));
            }
            Filter::FieldRegex { field, pattern } => {
                out.put("type", "field-regex");
                out.put("field", text(field));
                out.put("pattern", text(pattern.0.as_str()));
            }
        }
    }
}

impl FilterValue {
    fn read(node: &Node) -> Option<FilterValue> {
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

impl Pattern {
    fn read(fields: &Fields, problems: &mut Vec<Problem>) -> Option<Pattern> {
        let pattern = fields.text("pattern")?;
        match Regex::new(&pattern) {
            Ok(regex) => Some(Pattern(regex)),
            Err(error) => {
                // The library's message has several lines, of which the last one is the error.
                let error = error.to_string();
                let error = error.lines().last().unwrap_or_default().trim();
                let why = error.strip_prefix("error: ").unwrap_or(error);
                let message = format!("expected a regular expression, found \"{}\": {why}", mask_text(&pattern));
                let path = fields.path.key("pattern");
                problems.push(Problem::new(fields.place_of("pattern"), &path, message));
                None
            }
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}
