//! Filters, which select the rows that clients see.

use hocon::{ScalarType, ScalarValue};
use regex::Regex;

use super::super::declaration::{config_variants, required};
use super::super::leaf::{LeafSetting, LeafValue};
use super::super::schema::{SettingKind, TEXT, TEXT_OR_EMPTY};

config_variants! {
    /// A condition on a row.
    pub enum FilterConfig("filter type") {
        /// Passes rows in which the column is equal to the value, by SQL's `=` for the column's
        /// type.
        FieldEquals["field-equals"] {
            /// The column.
            field: String = required("field", TEXT),
            /// The value.
            value: FilterValue = required("value", SettingKind::Scalar),
        },
        /// Passes rows in which the column is a text that begins with the prefix, by SQL's
        /// `LIKE 'prefix%'`.
        FieldPrefix["field-prefix"] {
            /// The column.
            field: String = required("field", TEXT),
            /// The prefix.
            prefix: String = required("prefix", TEXT_OR_EMPTY),
        },
        /// Passes rows in which the pattern matches somewhere in the column's text, as Struct rows
        /// show it.
        FieldRegex["field-regex"] {
            /// The column.
            field: String = required("field", TEXT),
            /// The [regular expression](https://docs.rs/regex/#syntax).
            pattern: PatternConfig = required("pattern", SettingKind::Pattern),
        },
    }
}

/// The value that a column is compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FilterValue {
    /// A text.
    String(String),
    /// A number as it was written, so that no digit is lost.
    Number(String),
    /// A boolean.
    Bool(bool),
    /// The NULL of SQL.
    #[default]
    Null,
}

/// A compiled regular expression.
#[derive(Debug, Clone)]
pub struct PatternConfig(pub Regex);

impl LeafSetting for FilterValue {
    fn from_leaf(value: LeafValue) -> Option<Self> {
        let LeafValue::Scalar(ScalarValue { raw, value_type, .. }) = value else { return None };
        Some(match value_type {
            ScalarType::Number => FilterValue::Number(raw),
            ScalarType::Boolean => FilterValue::Bool(raw == "true"),
            ScalarType::Null => FilterValue::Null,
            _ => FilterValue::String(raw),
        })
    }

    fn to_leaf(&self) -> LeafValue {
        LeafValue::Scalar(match self {
            FilterValue::String(text) => ScalarValue::new(text.clone(), ScalarType::String),
            FilterValue::Number(number) => ScalarValue::new(number.clone(), ScalarType::Number),
            FilterValue::Bool(flag) => ScalarValue::new(flag.to_string(), ScalarType::Boolean),
            FilterValue::Null => ScalarValue::null(),
        })
    }
}

impl Default for PatternConfig {
    fn default() -> Self {
        PatternConfig(Regex::new("").expect("the empty pattern is valid"))
    }
}

impl LeafSetting for PatternConfig {
    fn from_leaf(value: LeafValue) -> Option<Self> {
        Regex::new(&String::from_leaf(value)?).ok().map(PatternConfig)
    }

    fn to_leaf(&self) -> LeafValue {
        LeafValue::Text(self.0.as_str().to_owned())
    }
}

impl PartialEq for PatternConfig {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}
