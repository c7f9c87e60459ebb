//! Names of tables.

use std::fmt;
use std::str::FromStr;

/// A table's schema and name, exactly as the catalog spells them, without quoting or folding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table's own name.
    pub table: String,
}

impl TableName {
    /// Returns a name from its two parts as the catalog spells them.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> TableName {
        TableName { schema: schema.into(), table: table.into() }
    }

    /// Returns the name in the form of SQL, with both parts quoted.
    #[must_use]
    pub fn quoted(&self) -> String {
        format!("\"{}\".\"{}\"", self.schema.replace('"', "\"\""), self.table.replace('"', "\"\""))
    }
}

impl fmt::Display for TableName {
    /// Writes `schema.table`, with quotes if [`FromStr`] would otherwise read another name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |name: &str| !name.starts_with('"');
        match is_plain(&self.schema) && !self.schema.contains('.') && is_plain(&self.table) {
            true => write!(f, "{}.{}", self.schema, self.table),
            false => f.write_str(&self.quoted()),
        }
    }
}

/// An error for a text that is not `schema.table`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a table name; write SCHEMA.TABLE, for example public.users, and a schema with a dot in double quotes, for \
     example \"acme.com\".users"
)]
pub struct TableNameError(String);

impl FromStr for TableName {
    type Err = TableNameError;

    /// Splits at the first dot that is not in double quotes. Neither part may be empty. A part that
    /// is completely in quotes is read as in SQL, and any other part literally.
    fn from_str(text: &str) -> Result<Self, TableNameError> {
        let error = || TableNameError(text.to_owned());
        let (schema, rest) = match quoted_part(text) {
            Some((schema, rest)) => (schema, rest.strip_prefix('.').ok_or_else(error)?),
            None => text.split_once('.').map(|(schema, rest)| (schema.to_owned(), rest)).ok_or_else(error)?,
        };
        let table = match quoted_part(rest) {
            Some((table, "")) => table,
            _ => rest.to_owned(),
        };
        if schema.is_empty() || table.is_empty() {
            return Err(error());
        }
        Ok(TableName { schema, table })
    }
}

/// Reads a name in double quotes at the beginning, and returns the rest.
fn quoted_part(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let (mut name, mut rest) = (String::new(), inside);
    loop {
        let (part, after) = rest.split_once('"')?;
        name.push_str(part);
        let Some(more) = after.strip_prefix('"') else {
            return Some((name, after)).filter(|(_, after)| after.is_empty() || after.starts_with('.'));
        };
        name.push('"');
        rest = more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_quotes() {
        for (text, schema, table) in [
            ("public.t", "public", "t"),
            ("public.a.b", "public", "a.b"),
            ("\"acme.com\".orders", "acme.com", "orders"),
            ("\"acme.com\".\"orders\"", "acme.com", "orders"),
            ("\"a\"\".b\".\"c\"\"\"", "a\".b", "c\""),
            ("public.\"T x\"", "public", "T x"),
            // A name that contains quotes is read literally.
            ("public.a\"b", "public", "a\"b"),
            ("a\"b.c", "a\"b", "c"),
            ("public.\"a\"b", "public", "\"a\"b"),
        ] {
            let name: TableName = text.parse().unwrap();
            assert_eq!(name, TableName::new(schema, table), "{text}");
            assert_eq!(name.quoted().parse(), Ok(name.clone()));
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for wrong in ["", "t", ".t", "public.", "\"acme.com\"", "\"\".t", "\"a.b\".\"\"", "\"a\"b"] {
            assert!(wrong.parse::<TableName>().is_err(), "{wrong}");
        }
    }
}
