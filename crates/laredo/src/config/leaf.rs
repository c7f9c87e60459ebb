//! The reading of single values. The result is the value of a node, or a description of the kind
//! that was expected.

use std::time::Duration;

use hocon::{HoconValue, ScalarType, ScalarValue};
use serde::Deserialize;

use super::schema::Kind;
use super::tree::Node;

/// A value without keys or items.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Leaf {
    Text(String),
    Flag(bool),
    Count(u64),
    Ratio(f64),
    Time(Duration),
    /// A number of bytes, or of bytes per second.
    Size(u64),
    /// The printed spelling of a choice.
    Word(&'static str),
}

impl Leaf {
    /// Reads a node as a value of a kind.
    ///
    /// # Errors
    ///
    /// A description of the expected kind, in words that follow "expected".
    pub(crate) fn read(node: &Node, kind: &Kind) -> Result<Leaf, String> {
        Self::parse(node, kind).ok_or_else(|| expected(kind))
    }

    fn parse(node: &Node, kind: &Kind) -> Option<Leaf> {
        let scalar = node.scalar()?;
        // HOCON converts between strings, numbers and booleans where the reader expects another
        // type.
        let value = HoconValue::Scalar(scalar.clone());
        match kind {
            Kind::Text { accepts, .. } => accepts(&scalar.raw).then(|| Leaf::Text(scalar.raw.clone())),
            Kind::Secret => (!scalar.raw.trim().is_empty()).then(|| Leaf::Text(scalar.raw.clone())),
            Kind::Flag => value.as_bool().map(Leaf::Flag),
            Kind::Count { min, max } => {
                let count = u64::try_from(value.as_i64()?).ok()?;
                (*min..=*max).contains(&count).then_some(Leaf::Count(count))
            }
            Kind::Ratio { min, max } => {
                let ratio = value.as_f64()?;
                (*min..=*max).contains(&ratio).then_some(Leaf::Ratio(ratio))
            }
            Kind::Time { min, max } => {
                let InTime(time) = hocon::from_value(&value).ok()?;
                (*min..=*max).contains(&time).then_some(Leaf::Time(time))
            }
            Kind::Size { min, max } => {
                let InBytes(size) = hocon::from_value(&value).ok()?;
                (*min..=*max).contains(&size).then_some(Leaf::Size(size))
            }
            Kind::Rate { min, max } => {
                let bytes = scalar.raw.trim().strip_suffix("/s")?;
                let bytes = HoconValue::Scalar(ScalarValue::new(bytes.trim_end().to_owned(), ScalarType::String));
                let InBytes(rate) = hocon::from_value(&bytes).ok()?;
                (*min..=*max).contains(&rate).then_some(Leaf::Size(rate))
            }
            Kind::Choice(words) => words
                .iter()
                .find(|spellings| spellings.contains(&scalar.raw.as_str()))
                .map(|spellings| Leaf::Word(spellings[0])),
            _ => None,
        }
    }
}

/// Returns true if a node's value is written as a number.
pub(crate) fn is_number(node: &Node) -> bool {
    node.scalar().is_some_and(|s| s.value_type == ScalarType::Number)
}

#[derive(Deserialize)]
#[serde(transparent)]
struct InTime(#[serde(with = "hocon::serde::duration")] Duration);

#[derive(Deserialize)]
#[serde(transparent)]
struct InBytes(#[serde(with = "hocon::serde::bytes")] u64);

/// Describes the values that a kind accepts, in words that follow "expected".
pub(crate) fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Text { expected, .. } => (*expected).to_owned(),
        Kind::Secret => "a string that is not empty".to_owned(),
        Kind::Flag => "true or false".to_owned(),
        Kind::Count { min, max } if *max == i64::MAX as u64 => {
            format!("a whole number, {min} or more")
        }
        Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
        Kind::Ratio { min: f64::MIN_POSITIVE, max: f64::MAX } => "a number above 0".to_owned(),
        Kind::Ratio { min, max } => format!("a number from {min} to {max}"),
        Kind::Time { min, max } => format!("a duration with a unit, from {} to {}", show_time(*min), show_time(*max)),
        Kind::Size { min, .. } if *min == 0 => "a size such as 32MiB".to_owned(),
        Kind::Size { min, .. } => format!("a size such as 32MiB, at least {}", show_size(*min)),
        Kind::Rate { min, .. } => format!("a rate such as 20MiB/s, at least {}", show_rate(*min)),
        Kind::Choice(words) => one_of(words.iter().map(|spellings| spellings[0])),
        Kind::Scalar => "a string, a number, true, false or null".to_owned(),
        Kind::Block(_) | Kind::Map(_) | Kind::Tagged(_) | Kind::Beside { .. } => "a block { … }".to_owned(),
        Kind::List(_) => "a list [ … ]".to_owned(),
        Kind::Refused(_) => "nothing".to_owned(),
    }
}

/// Joins words as `a`, `a or b`, or `a, b or c`.
pub(crate) fn one_of(words: impl IntoIterator<Item = &'static str>) -> String {
    let words: Vec<_> = words.into_iter().collect();
    match words.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Formats a duration as in a configuration, in the largest unit that is exact.
pub(crate) fn show_time(time: Duration) -> String {
    let nanos = time.as_nanos();
    [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
    ]
    .iter()
    .find(|(unit, _)| nanos >= *unit && nanos.is_multiple_of(*unit))
    .map_or_else(|| format!("{nanos}ns"), |(unit, name)| format!("{}{name}", nanos / unit))
}

/// Formats a size as in a configuration, in the largest binary unit that is exact.
pub(crate) fn show_size(bytes: u64) -> String {
    [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")]
        .iter()
        .find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(|| format!("{bytes}B"), |(shift, name)| format!("{}{name}", bytes >> shift))
}

/// Formats a rate as in a configuration.
pub(crate) fn show_rate(bytes_per_second: u64) -> String {
    format!("{}/s", show_size(bytes_per_second))
}

#[cfg(test)]
mod tests;
