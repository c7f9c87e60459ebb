//! Patterns with `*`, for the names of tables and of certificates.

use std::str::FromStr;

use laredo_core::TableName;

/// A text in which each `*` matches any number of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

/// A pattern for tables: one for the schema and one for the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    schema: NamePattern,
    table: NamePattern,
}

/// An error for a text that is not a pattern for tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a pattern for tables; write SCHEMA.TABLE, in which * matches any characters, or * for all tables")]
pub struct TablePatternError;

impl NamePattern {
    /// Returns the pattern of a text.
    pub fn new(text: impl Into<String>) -> NamePattern {
        NamePattern(text.into())
    }

    /// Returns the text of the pattern.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Returns true if the pattern is the name.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            // The earliest place leaves the most for the parts that follow.
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    /// Returns true if the pattern is the name, and no star matches the separator.
    pub(crate) fn matches_parts(&self, name: &str, separator: char) -> bool {
        let (mut patterns, mut parts) = (self.0.split(separator), name.split(separator));
        loop {
            match (patterns.next(), parts.next()) {
                (Some(pattern), Some(part)) if NamePattern::new(pattern).matches(part) => {}
                (ended, other) => return ended.is_none() && other.is_none(),
            }
        }
    }
}

impl TablePattern {
    /// Returns true if the table is one of the pattern's.
    #[must_use]
    pub fn matches(&self, table: &TableName) -> bool {
        self.schema.matches(&table.schema) && self.table.matches(&table.table)
    }
}

impl FromStr for TablePattern {
    type Err = TablePatternError;

    /// Reads `SCHEMA.TABLE` as [`TableName`] is read, or `*`.
    fn from_str(text: &str) -> Result<TablePattern, TablePatternError> {
        let name = match text {
            "*" => TableName::new("*", "*"),
            text => text.parse().map_err(|_| TablePatternError)?,
        };
        Ok(TablePattern { schema: NamePattern(name.schema), table: NamePattern(name.table) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a", "za", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("a*", "abc", true),
            ("a*", "za", false),
            ("*c", "abc", true),
            ("*c", "abcd", false),
            ("a*c", "abc", true),
            ("a*c", "ac", true),
            ("ab*bc", "abc", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a**c", "abc", true),
            ("spiffe://prod/ns/*/sa/reader", "spiffe://prod/ns/web/sa/reader", true),
            ("spiffe://prod/ns/*/sa/reader", "spiffe://test/ns/web/sa/reader", false),
            ("*ab*", "xaab", true),
        ] {
            assert_eq!(NamePattern::new(pattern).matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_star_in_a_part_does_not_reach_the_next_one() {
        for (pattern, name, separator, expected) in [
            ("spiffe://prod/ns/*/sa/reader", "spiffe://prod/ns/web/sa/reader", '/', true),
            ("spiffe://prod/ns/*/sa/reader", "spiffe://prod/ns/web/sa/x/sa/reader", '/', false),
            ("spiffe://prod/*", "spiffe://prod/ns/web", '/', false),
            ("*.example.com", "a.example.com", '.', true),
            ("*.example.com", "a.b.example.com", '.', false),
            ("*.example.com", "example.com", '.', false),
            ("*@example.com", "ops@example.com", '@', true),
            ("*", "a", '.', true),
            ("a", "a.b", '.', false),
            ("a.b", "a", '.', false),
        ] {
            assert_eq!(NamePattern::new(pattern).matches_parts(name, separator), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn tables_are_matched_by_schema_and_name() {
        for (pattern, schema, table, expected) in [
            ("public.orders", "public", "orders", true),
            ("public.orders", "public", "orders2", false),
            ("public.orders", "publicx", "orders", false),
            ("public.*", "public", "anything.else", true),
            ("public.*", "private", "orders", false),
            ("*.orders", "any", "orders", true),
            ("*", "any", "thing", true),
            ("\"acme.com\".*", "acme.com", "t", true),
        ] {
            let pattern: TablePattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(&TableName::new(schema, table)), expected, "{pattern:?} {schema} {table}");
        }
        for wrong in ["", "orders", "public.", ".orders"] {
            assert!(wrong.parse::<TablePattern>().is_err(), "{wrong}");
        }
    }
}
