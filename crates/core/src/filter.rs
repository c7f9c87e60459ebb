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
use crate::unproject::Mismatch;
pub use key::FilterKey;
use test::Test;

/// A condition on one column. A missing or NULL column fails it, and so does a cell that is not a value of its type.
///
/// Values are read as SQL reads a literal of the column's type, once, when the filter is bound to a schema, and mean
/// what SQL's `=`, `IN` and `LIKE 'prefix%'` mean for that type. Numbers may be given as numbers or as their digits.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    /// The column's name.
    pub field: String,
    /// The condition.
    pub test: Match,
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Match {
    /// The value is equal to this one. NULL is equal to nothing.
    Equals(Value),
    /// The value is text and begins so: `text`, `varchar`, `char`, `name`, `citext`, `ltree` and enums.
    Prefix(String),
    /// The value is equal to one of these.
    In(Vec<Value>),
    /// This is found in the value's text, as rows show it; it is not anchored.
    Regex(Pattern),
}

/// A predicate that means nothing for its column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` is of type {type_name}: {problem}")]
pub struct FilterError {
    /// The predicate's place in the list.
    pub index: usize,
    /// The column.
    pub column: String,
    /// The column's type.
    pub type_name: String,
    /// The cause.
    pub problem: FilterProblem,
}

/// The cause of a [`FilterError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterProblem {
    /// A value is none of the column's type.
    #[error("{value} is none of its values: {mismatch}")]
    Value {
        /// The start of the value, as JSON.
        value: String,
        /// The cause.
        mismatch: Mismatch,
    },
    /// The type has no equality that could be tested.
    #[error("{0}; filter by another column")]
    Incomparable(&'static str),
    /// The condition is one on text.
    #[error("it is not text, so no value of it begins with or matches anything; ask for values that are equal")]
    NotText,
    /// A pattern is too large where upper and lower case are one.
    #[error("the pattern is too large; shorten it")]
    TooLarge,
}

impl FilterProblem {
    fn value(value: &Value, mismatch: Mismatch) -> FilterProblem {
        let value = value.to_json().to_string().chars().take(100).collect();
        FilterProblem::Value { value, mismatch }
    }
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
    ///
    /// # Errors
    /// When a predicate's value is none of its column's type, or its condition means nothing for that type.
    pub fn bind(predicates: &[Predicate], schema: &Schema) -> Result<Filter, FilterError> {
        let mut tests = Vec::with_capacity(predicates.len());
        for (index, predicate) in predicates.iter().enumerate() {
            let Some(column) = schema.position_of(&predicate.field) else { continue };
            let test = Test::new(schema, column, &predicate.test).map_err(|problem| FilterError {
                index,
                column: predicate.field.clone(),
                type_name: schema.columns()[column].type_name.clone(),
                problem,
            })?;
            tests.push((column, test));
        }
        Ok(Filter { is_impossible: tests.len() < predicates.len(), tests, schema: schema.clone() })
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
