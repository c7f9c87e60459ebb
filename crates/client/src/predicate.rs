//! Which rows a replica wants.

use laredo_proto::replication::FieldPredicate;
use laredo_proto::replication::field_predicate::Match;
use prost_types::value::Kind;
use prost_types::{ListValue, Value};

/// A condition on one column that the server tests, so that other rows are never sent. Several must all hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate(FieldPredicate);

/// A value to compare a column with: a number, a boolean, or a text that SQL reads as a value of the column's type. What
/// the server cannot read as one, it refuses.
#[derive(Clone, Debug, PartialEq)]
pub struct PredicateValue(Value);

/// Integers beyond this cannot be told apart as doubles, and are sent as text.
const EXACT_MAX: u64 = 1 << 53;

impl Predicate {
    /// The column is equal to this value, as SQL's `=` has it for the column's type.
    pub fn equals(column: impl Into<String>, value: impl Into<PredicateValue>) -> Predicate {
        Predicate::new(column, Match::Equals(value.into().0))
    }

    /// The column is text and begins so, as SQL's `LIKE` has it.
    pub fn prefix(column: impl Into<String>, prefix: impl Into<String>) -> Predicate {
        Predicate::new(column, Match::Prefix(prefix.into()))
    }

    /// The column is equal to one of these values.
    pub fn any_of<V: Into<PredicateValue>>(
        column: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) -> Predicate {
        let values = values.into_iter().map(|value| value.into().0).collect();
        Predicate::new(column, Match::In(ListValue { values }))
    }

    pub(crate) fn into_wire(self) -> FieldPredicate {
        self.0
    }

    fn new(column: impl Into<String>, condition: Match) -> Predicate {
        Predicate(FieldPredicate { field: column.into(), r#match: Some(condition) })
    }
}

impl From<Kind> for PredicateValue {
    fn from(kind: Kind) -> PredicateValue {
        PredicateValue(Value { kind: Some(kind) })
    }
}

impl From<&str> for PredicateValue {
    fn from(text: &str) -> PredicateValue {
        Kind::StringValue(text.to_owned()).into()
    }
}

impl From<String> for PredicateValue {
    fn from(text: String) -> PredicateValue {
        Kind::StringValue(text).into()
    }
}

impl From<bool> for PredicateValue {
    fn from(value: bool) -> PredicateValue {
        Kind::BoolValue(value).into()
    }
}

impl From<f64> for PredicateValue {
    fn from(value: f64) -> PredicateValue {
        Kind::NumberValue(value).into()
    }
}

impl From<i32> for PredicateValue {
    fn from(value: i32) -> PredicateValue {
        Kind::NumberValue(value.into()).into()
    }
}

impl From<i64> for PredicateValue {
    fn from(value: i64) -> PredicateValue {
        match value {
            _ if value.unsigned_abs() <= EXACT_MAX => Kind::NumberValue(value as f64).into(),
            _ => value.to_string().into(),
        }
    }
}
