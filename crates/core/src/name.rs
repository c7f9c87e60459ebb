//! A table's name.

use std::fmt;
use std::str::FromStr;

/// A table's schema and name, exactly as the catalogue spells them (no quoting, no folding).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table's own name.
    pub table: String,
}

impl TableName {
    /// From the two names as the catalogue spells them.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> TableName {
        TableName { schema: schema.into(), table: table.into() }
    }

    /// The name as SQL wants it: both parts quoted.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("\"{}\".\"{}\"", self.schema.replace('"', "\"\""), self.table.replace('"', "\"\""))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// A text that is not `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a table name; write SCHEMA.TABLE, for example public.users")]
pub struct TableNameError(String);

impl FromStr for TableName {
    type Err = TableNameError;

    /// Splits at the first dot; neither part may be empty.
    fn from_str(text: &str) -> Result<Self, TableNameError> {
        match text.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => Ok(TableName::new(schema, table)),
            _ => Err(TableNameError(text.to_owned())),
        }
    }
}
