//! The identity of filters.

use super::{MatchCondition, Predicate};
use crate::value::Value;

/// A filter's identity. Filters with equal keys let the same rows through, so clients with equal
/// filters can share work. The order of predicates, of an IN list and of an object's fields does
/// not count, and neither do repetitions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilterKey(String);

impl FilterKey {
    /// Returns the key of predicates that must all hold.
    #[must_use]
    pub fn of(predicates: &[Predicate]) -> FilterKey {
        FilterKey(format!("[{}]", sorted(predicates.iter().map(predicate)).join(",")))
    }

    /// Returns the key as JSON. It is the same for the same filter in every process.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn predicate(predicate: &Predicate) -> String {
    let (kind, operand) = match &predicate.test {
        MatchCondition::Equals(value) => ("in", list([value].into_iter())),
        MatchCondition::In(values) => ("in", list(values.iter())),
        MatchCondition::Prefix(prefix) => ("prefix", quoted(prefix)),
        MatchCondition::Regex(pattern) => ("regex", quoted(pattern.as_str())),
    };
    format!("[{},\"{kind}\",{operand}]", quoted(&predicate.field))
}

fn list<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    format!("[{}]", sorted(values.map(canonical)).join(","))
}

fn canonical(value: &Value) -> String {
    match value {
        // Minus zero equals zero.
        Value::Number(number) if *number == 0.0 => "0".to_owned(),
        // JSON has no NaN or infinities. They differ from each other and from null, so they are
        // written as numbers that no finite number is written as.
        Value::Number(number) if number.is_nan() => "0e999".to_owned(),
        Value::Number(number) if number.is_infinite() => if *number > 0.0 { "1e999" } else { "-1e999" }.to_owned(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, v)| format!("{}:{}", quoted(name), canonical(v)));
            format!("{{{}}}", sorted(fields).join(","))
        }
        simple => simple.to_json().to_string(),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn sorted(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<String> = texts.collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}
