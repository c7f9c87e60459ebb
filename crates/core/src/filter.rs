//! Which rows a client wants to see.

mod key;
mod test;

#[cfg(test)]
mod tests;

use std::fmt;

use regex::Regex;

use crate::project::Value;
use crate::schema::Schema;
use crate::tuple::TupleRef;
pub use key::FilterKey;
use test::Test;

/// A condition on one column. A missing or NULL column fails it, and so does a cell that is not a value of its type.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    /// The column's name.
    pub field: String,
    /// What its value must be like.
    pub test: Match,
}

/// What a value must be like. It is compared as it is projected ([`crate::project_cell`]), except that number types
/// (`oid` and `xid8` among them) compare by value with numbers and with numbers in strings: 5, `5.00` and `"5"`
/// are one. NaN is never equal, NULL neither.
#[derive(Clone, Debug, PartialEq)]
pub enum Match {
    /// The same value.
    Equals(Value),
    /// A string that starts so; other values never do.
    Prefix(String),
    /// One of these values.
    In(Vec<Value>),
    /// A string in which this is found; it is not anchored. Other values never match.
    Regex(Pattern),
}

/// A regular expression; equal to another when their texts are.
#[derive(Clone)]
pub struct Pattern(Regex);

/// Predicates that must all hold, made ready for the rows of one schema.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Column numbers and tests.
    tests: Vec<(usize, Test)>,
    /// A predicate names a column that is not there.
    is_impossible: bool,
    schema: Schema,
}

/// What a change looks like through a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing happened.
    Nothing,
    /// A row appeared.
    Insert,
    /// A row changed.
    Update,
    /// A row disappeared.
    Delete,
}

impl Filter {
    /// Makes predicates ready for the rows of a schema. With none every row matches; with one on a column that the
    /// schema lacks, none does.
    #[must_use]
    pub fn bind(predicates: &[Predicate], schema: &Schema) -> Filter {
        let columns = predicates.iter().map(|p| schema.position_of(&p.field));
        let tests: Vec<_> = columns
            .zip(predicates)
            .filter_map(|(column, p)| column.map(|column| (column, Test::new(schema, column, &p.test))))
            .collect();
        Filter { is_impossible: tests.len() < predicates.len(), tests, schema: schema.clone() }
    }

    /// Whether every row matches because nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tests.is_empty() && !self.is_impossible
    }

    /// Whether a row of the schema matches.
    #[must_use]
    pub fn matches(&self, row: TupleRef<'_>) -> bool {
        let holds = |(column, test): &(usize, Test)| {
            let bytes = row.cell(*column).value();
            bytes.is_some_and(|bytes| test.holds(&self.schema, *column, bytes))
        };
        !self.is_impossible && self.tests.iter().all(holds)
    }

    /// What the change from one row to another looks like; `None` is a row that is not there.
    #[must_use]
    pub fn classify(&self, old: Option<TupleRef<'_>>, new: Option<TupleRef<'_>>) -> Seen {
        let seen = |row: Option<TupleRef<'_>>| row.is_some_and(|row| self.matches(row));
        match (seen(old), seen(new)) {
            (false, false) => Seen::Nothing,
            (false, true) => Seen::Insert,
            (true, true) => Seen::Update,
            (true, false) => Seen::Delete,
        }
    }
}

impl Pattern {
    /// Reads a regular expression, in the syntax of the `regex` crate.
    ///
    /// # Errors
    /// When it is none, or too large; the error shows where.
    pub fn new(text: &str) -> Result<Pattern, regex::Error> {
        Regex::new(text).map(Pattern)
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    fn is_found_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl From<Regex> for Pattern {
    fn from(regex: Regex) -> Pattern {
        Pattern(regex)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.as_str())
    }
}
