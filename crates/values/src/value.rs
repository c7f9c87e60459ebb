//! The values that cells are projected to.

use serde::{Serialize, Serializer};

use crate::decimal::Decimal;
use crate::problem::ValueMismatch;

/// A projected cell, limited to what a protobuf `Value` and JSON can represent.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// SQL NULL, and JSON's `null`.
    Null,
    /// A boolean.
    Bool(bool),
    /// A finite number.
    Number(f64),
    /// A string, also for everything that has no better form.
    String(String),
    /// An array.
    List(Vec<Value>),
    /// A composite or a JSON object. No name occurs twice, and the fields keep their order.
    Object(Vec<(String, Value)>),
}

/// The largest integer up to which every integer has its own double: 2^53.
pub(crate) const EXACT_INTEGER_MAX: u64 = 1 << 53;

impl Value {
    /// Converts JSON that [`Value::to_json`] made. A number that is not a double becomes the string
    /// of its digits.
    #[must_use]
    pub fn from_json(json: serde_json::Value) -> Value {
        match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(number) => match number.as_f64() {
                #[expect(clippy::cast_possible_truncation, reason = "only compared")]
                Some(value) if number.as_i64().is_none_or(|integer| integer == value as i64) => Value::Number(value),
                _ => Value::String(number.to_string()),
            },
            serde_json::Value::String(text) => Value::String(text),
            serde_json::Value::Array(items) => Value::List(items.into_iter().map(Value::from_json).collect()),
            serde_json::Value::Object(fields) => {
                Value::Object(fields.into_iter().map(|(name, value)| (name, Value::from_json(value))).collect())
            }
        }
    }

    /// Converts a number of JSON. It is native if the double's own digits are the number's, in any
    /// spelling (`1.10`, `1e2`), and otherwise the text itself.
    #[must_use]
    pub fn from_number(text: &str) -> Value {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() && is_same(text, value) => Value::Number(value),
            _ => Value::String(text.to_owned()),
        }
    }

    /// Converts the value to JSON. Whole numbers that a double holds exactly are written without a
    /// fraction. Infinite numbers and NaN, which no projection makes, become `null`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => match whole(*value) {
                Some(integer) => integer.into(),
                None => (*value).into(),
            },
            Value::String(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Value::to_json).collect(),
            Value::Object(fields) => fields.iter().map(|(name, v)| (name.clone(), v.to_json())).collect(),
        }
    }
}

/// Returns the text of a string.
pub(crate) fn string(value: &Value) -> Result<&str, ValueMismatch> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::List(_) | Value::Object(_) => {
            Err(ValueMismatch::Kind("a string"))
        }
    }
}

/// Appends a value as JSON.
pub(crate) fn push_json(value: &(impl Serialize + ?Sized), to: &mut Vec<u8>) {
    // Writing to a Vec cannot fail, and JSON can represent all values and strings here.
    let _ = serde_json::to_writer(to, value);
}

fn is_same(text: &str, value: f64) -> bool {
    // A double distinguishes all decimals of 15 digits.
    let plain = text.len() <= 15 && !text.contains(['e', 'E']);
    plain || Decimal::parse(text).is_some_and(|decimal| Decimal::of_double(value) == Some(decimal))
}

/// Serializes the same JSON as [`Value::to_json`], without building it.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => to.serialize_unit(),
            Value::Bool(value) => to.serialize_bool(*value),
            Value::Number(value) => match whole(*value) {
                Some(integer) => to.serialize_i64(integer),
                None if value.is_finite() => to.serialize_f64(*value),
                None => to.serialize_unit(),
            },
            Value::String(text) => to.serialize_str(text),
            Value::List(items) => to.collect_seq(items),
            Value::Object(fields) => to.collect_map(fields.iter().map(|(name, value)| (name, value))),
        }
    }
}

/// Returns a number as an integer, if no other double has the same integer. Minus zero has none.
fn whole(value: f64) -> Option<i64> {
    #[expect(clippy::cast_precision_loss, reason = "2^53 is a double")]
    let exact = value.fract() == 0.0 && value.abs() <= EXACT_INTEGER_MAX as f64;
    let minus_zero = value == 0.0 && value.is_sign_negative();
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and at most 2^53")]
    let integer = value as i64;
    (exact && !minus_zero).then_some(integer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_json_would() {
        let json = |v: f64| {
            let text = Value::Number(v).to_json().to_string();
            assert_eq!(serde_json::to_string(&Value::Number(v)).unwrap(), text);
            text
        };
        assert_eq!(json(5.0), "5");
        assert_eq!(json(-0.0), "-0.0");
        assert_eq!(json(0.1), "0.1");
        assert_eq!(json(9_007_199_254_740_992.0), "9007199254740992");
        assert_eq!(json(1e300), "1e+300");
        assert_eq!(json(f64::NAN), "null");
    }

    #[test]
    fn nested_values_stay_nested() {
        let value = Value::Object(vec![
            ("b".into(), Value::List(vec![Value::Null, Value::Bool(true)])),
            ("a".into(), Value::String("\u{1F600}\"".into())),
        ]);
        assert_eq!(value.to_json(), serde_json::json!({"b": [null, true], "a": "\u{1F600}\""}));
        assert_eq!(serde_json::to_value(&value).unwrap(), value.to_json());
    }
}
