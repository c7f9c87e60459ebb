//! Filters for the rows of a replica.

use laredo_proto::replication::FieldPredicate;
use laredo_proto::replication::field_predicate::Match;
use prost_types::value::Kind;
use prost_types::{ListValue, Value};

/// A condition on one column, which the server tests so that other rows are never sent. A row must
/// satisfy all predicates of a replica.
///
/// ```
/// use laredo_client::ColumnPredicate;
///
/// let open = ColumnPredicate::equals("status", "open");
/// let ours = ColumnPredicate::any_of("owner", [7, 8]);
/// let europe = ColumnPredicate::prefix("region", "eu-");
/// assert_ne!(open, ours);
/// # assert_ne!(ours, europe);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnPredicate(FieldPredicate);

/// A value to compare a column with: a number, a boolean, or a text. A text must have the form that
/// SQL reads as a value of the column's type. The server refuses a value that it cannot read.
#[derive(Clone, Debug, PartialEq)]
pub struct PredicateValue(Value);

/// The largest integer that is sent as a double. Larger ones are sent as text, because doubles
/// cannot represent all of them.
const EXACT_MAX: u64 = 1 << 53;

impl ColumnPredicate {
    /// Requires that the column equals this value, by SQL's `=` for the column's type.
    pub fn equals(column: impl Into<String>, value: impl Into<PredicateValue>) -> ColumnPredicate {
        ColumnPredicate::new(column, Match::Equals(value.into().0))
    }

    /// Requires that the column is a text that begins with this prefix, as SQL's `LIKE` would.
    pub fn prefix(column: impl Into<String>, prefix: impl Into<String>) -> ColumnPredicate {
        ColumnPredicate::new(column, Match::Prefix(prefix.into()))
    }

    /// Requires that the column equals one of these values.
    pub fn any_of<V: Into<PredicateValue>>(
        column: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) -> ColumnPredicate {
        let values = values.into_iter().map(|value| value.into().0).collect();
        ColumnPredicate::new(column, Match::In(ListValue { values }))
    }

    pub(crate) fn into_wire(self) -> FieldPredicate {
        self.0
    }

    fn new(column: impl Into<String>, condition: Match) -> ColumnPredicate {
        ColumnPredicate(FieldPredicate { field: column.into(), r#match: Some(condition) })
    }
}

impl PredicateValue {
    fn new(kind: Kind) -> PredicateValue {
        PredicateValue(Value { kind: Some(kind) })
    }
}

impl From<&str> for PredicateValue {
    fn from(text: &str) -> PredicateValue {
        PredicateValue::new(Kind::StringValue(text.to_owned()))
    }
}

impl From<String> for PredicateValue {
    fn from(text: String) -> PredicateValue {
        PredicateValue::new(Kind::StringValue(text))
    }
}

impl From<bool> for PredicateValue {
    fn from(value: bool) -> PredicateValue {
        PredicateValue::new(Kind::BoolValue(value))
    }
}

impl From<f64> for PredicateValue {
    fn from(value: f64) -> PredicateValue {
        PredicateValue::new(Kind::NumberValue(value))
    }
}

impl From<i32> for PredicateValue {
    fn from(value: i32) -> PredicateValue {
        PredicateValue::new(Kind::NumberValue(value.into()))
    }
}

impl From<i64> for PredicateValue {
    fn from(value: i64) -> PredicateValue {
        match value {
            _ if value.unsigned_abs() <= EXACT_MAX => PredicateValue::new(Kind::NumberValue(value as f64)),
            _ => value.to_string().into(),
        }
    }
}
