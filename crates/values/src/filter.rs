//! Filters: the conditions that select the rows that a client requests.

mod column_test;
mod key;

#[cfg(test)]
mod tests;

use std::fmt;

use laredo_core::{Schema, TupleRef};
use regex::Regex;

use crate::problem::ValueMismatch;
use crate::value::Value;
use column_test::ColumnTest;
pub use key::FilterKey;

/// A condition on one column. A missing column, a NULL, and a cell that is not a value of its type
/// all fail it.
///
/// The values are read once, when the filter is bound to a schema, as SQL reads literals of the
/// column's type. Comparisons have the meaning of SQL's `=`, `IN` and `LIKE 'prefix%'` for that
/// type. Numbers may be given as numbers or as strings of their digits.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    /// The column's name.
    pub field: String,
    /// The condition.
    pub test: MatchCondition,
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MatchCondition {
    /// The value is equal to this one. NULL is equal to nothing.
    Equals(Value),
    /// The value is text and begins with this prefix. Text types are `text`, `varchar`, `char`,
    /// `name`, `citext`, `ltree` and enums.
    Prefix(String),
    /// The value is equal to one of these.
    In(Vec<Value>),
    /// The pattern matches anywhere in the value's text, as rows show it. It is not anchored.
    Regex(Pattern),
}

/// An error for a predicate that has no meaning for its column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column `{column}` is of type {type_name}: {problem}")]
pub struct FilterError {
    /// The predicate's index in the list.
    pub index: usize,
    /// The column's name.
    pub column: String,
    /// The name of the column's type.
    pub type_name: String,
    /// The cause.
    pub problem: FilterProblem,
}

/// The cause of a [`FilterError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilterProblem {
    /// A value that is not a value of the column's type.
    #[error("{value} is not one of its values: {mismatch}")]
    Value {
        /// The beginning of the value, as JSON.
        value: String,
        /// The cause.
        mismatch: ValueMismatch,
    },
    /// A type without an equality that can be tested.
    #[error("{0}; filter by another column")]
    Incomparable(&'static str),
    /// A condition on text, for a column that is not text.
    #[error("it is not text, which prefixes and patterns need; filter by equal values")]
    NotText,
    /// A pattern that becomes too large when it ignores case.
    #[error("the pattern is too large; shorten it")]
    TooLarge,
}

impl FilterProblem {
    fn value(value: &Value, mismatch: ValueMismatch) -> FilterProblem {
        let value = value.to_json().to_string().chars().take(100).collect();
        FilterProblem::Value { value, mismatch }
    }
}

/// A regular expression. Two are equal if their texts are equal.
#[derive(Clone)]
pub struct Pattern(Regex);

/// Predicates that must all hold, bound to the rows of one schema.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The column numbers and tests. A column has at most one test of each kind, except for
    /// patterns of text.
    tests: Vec<(usize, ColumnTest)>,
    /// True if a predicate names a column that does not exist.
    is_impossible: bool,
    schema: Schema,
}

/// The effect of a change as seen through a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisibleEffect {
    /// No visible effect.
    Nothing,
    /// A row appeared.
    Insert,
    /// A row changed.
    Update,
    /// A row disappeared.
    Delete,
}

impl Filter {
    /// Binds predicates to a schema. Without predicates every row matches. If a predicate names a
    /// column that the schema lacks, no row matches.
    ///
    /// # Errors
    /// Returns an error if a value is not a value of its column's type, or a condition has no
    /// meaning for the type.
    pub fn bind(predicates: &[Predicate], schema: &Schema) -> Result<Filter, FilterError> {
        let (mut tests, mut is_impossible) = (Vec::new(), false);
        for (index, predicate) in predicates.iter().enumerate() {
            let Some(column) = schema.position_of(&predicate.field) else {
                is_impossible = true;
                continue;
            };
            let test = ColumnTest::new(schema, column, &predicate.test).map_err(|problem| FilterError {
                index,
                column: predicate.field.clone(),
                type_name: schema.columns()[column].type_name.clone(),
                problem,
            })?;
            add_test(&mut tests, column, test);
        }
        Ok(Filter { tests, is_impossible, schema: schema.clone() })
    }

    /// Returns true if there are no predicates, so that every row matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tests.is_empty() && !self.is_impossible
    }

    /// Returns true if a row of the schema matches.
    #[must_use]
    pub fn matches(&self, row: TupleRef<'_>) -> bool {
        let holds = |(column, test): &(usize, ColumnTest)| {
            let bytes = row.cell(*column).value();
            bytes.is_some_and(|bytes| test.holds(&self.schema, *column, bytes))
        };
        !self.is_impossible && self.tests.iter().all(holds)
    }

    /// Returns the visible effect of a change from one row to another. `None` is a row that does
    /// not exist.
    #[must_use]
    pub fn classify(&self, old: Option<TupleRef<'_>>, new: Option<TupleRef<'_>>) -> VisibleEffect {
        let seen = |row: Option<TupleRef<'_>>| row.is_some_and(|row| self.matches(row));
        match (seen(old), seen(new)) {
            (false, false) => VisibleEffect::Nothing,
            (false, true) => VisibleEffect::Insert,
            (true, true) => VisibleEffect::Update,
            (true, false) => VisibleEffect::Delete,
        }
    }
}

/// Adds the test of a column to those of all columns. If possible, it is joined with an earlier
/// test of its column.
fn add_test(tests: &mut Vec<(usize, ColumnTest)>, column: usize, test: ColumnTest) {
    let mut rest = Some(test);
    for (_, earlier) in tests.iter_mut().filter(|(other, _)| *other == column) {
        rest = rest.and_then(|test| earlier.narrow(test));
    }
    tests.extend(rest.map(|test| (column, test)));
}

impl Pattern {
    /// Parses a regular expression in the syntax of the `regex` crate.
    ///
    /// # Errors
    /// Returns an error if the expression is invalid or too large. The error shows the position.
    pub fn new(text: &str) -> Result<Pattern, regex::Error> {
        Regex::new(text).map(Pattern)
    }

    /// Returns the expression's text.
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
