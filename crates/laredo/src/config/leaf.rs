//! Single values: their reading, their output, and their types in Rust.

use std::path::PathBuf;
use std::time::Duration;

use hocon::{HoconValue, ScalarType, ScalarValue};
use serde::Deserialize;

use super::schema::SettingKind;
use super::secret::{ConfigSecret, MASK};
use super::tree::ConfigNode;
use super::write::text;

/// A value without keys or items.
#[derive(Debug, Clone)]
pub(crate) enum LeafValue {
    Text(String),
    Flag(bool),
    /// A count, a size in bytes, or a rate in bytes per second.
    Count(u64),
    Ratio(f64),
    Time(Duration),
    /// The printed spelling of a choice.
    Word(&'static str),
    /// A value whose type is the operator's choice.
    Scalar(ScalarValue),
}

/// A Rust type of single values. The kind of the key decides how they are written.
pub(crate) trait LeafSetting: Sized {
    /// Converts a value that was read. Returns `None` for a value of another type, and for an empty
    /// path.
    fn from_leaf(value: LeafValue) -> Option<Self>;
    fn to_leaf(&self) -> LeafValue;
}

impl LeafValue {
    /// Reads a node as a value of a kind.
    ///
    /// # Errors
    ///
    /// A description of the expected kind, in words that follow "expected".
    pub(crate) fn read(node: &ConfigNode, kind: &SettingKind) -> Result<LeafValue, String> {
        Self::parse(node, kind).ok_or_else(|| expected(kind))
    }

    fn parse(node: &ConfigNode, kind: &SettingKind) -> Option<LeafValue> {
        let scalar = node.scalar()?;
        // HOCON converts between strings, numbers and booleans where the reader expects another
        // type.
        let value = HoconValue::Scalar(scalar.clone());
        match kind {
            SettingKind::Text { accepts, .. } => accepts(&scalar.raw).then(|| LeafValue::Text(scalar.raw.clone())),
            SettingKind::Secret | SettingKind::Connection | SettingKind::Reference(_) => {
                (!scalar.raw.trim().is_empty()).then(|| LeafValue::Text(scalar.raw.clone()))
            }
            SettingKind::Pattern => {
                let is_pattern = !scalar.raw.trim().is_empty() && regex::Regex::new(&scalar.raw).is_ok();
                is_pattern.then(|| LeafValue::Text(scalar.raw.clone()))
            }
            SettingKind::Flag => value.as_bool().map(LeafValue::Flag),
            SettingKind::Count { min, max } => {
                let count = u64::try_from(value.as_i64()?).ok()?;
                (*min..=*max).contains(&count).then_some(LeafValue::Count(count))
            }
            SettingKind::Ratio { min, max } => {
                let ratio = value.as_f64()?;
                (*min..=*max).contains(&ratio).then_some(LeafValue::Ratio(ratio))
            }
            SettingKind::Time { min, max } => {
                let HoconDuration(time) = hocon::from_value(&value).ok()?;
                (*min..=*max).contains(&time).then_some(LeafValue::Time(time))
            }
            SettingKind::Size { min, max } => {
                let HoconBytes(size) = hocon::from_value(&value).ok()?;
                (*min..=*max).contains(&size).then_some(LeafValue::Count(size))
            }
            SettingKind::Rate { min, max } => {
                let bytes = scalar.raw.trim().strip_suffix("/s")?;
                let bytes = HoconValue::Scalar(ScalarValue::new(bytes.trim_end().to_owned(), ScalarType::String));
                let HoconBytes(rate) = hocon::from_value(&bytes).ok()?;
                (*min..=*max).contains(&rate).then_some(LeafValue::Count(rate))
            }
            SettingKind::Choice(words) => words
                .iter()
                .find(|spellings| spellings.contains(&scalar.raw.as_str()))
                .map(|spellings| LeafValue::Word(spellings[0])),
            SettingKind::Scalar => Some(LeafValue::Scalar(scalar.clone())),
            SettingKind::Block(_)
            | SettingKind::Map(_)
            | SettingKind::List(_)
            | SettingKind::Tagged(_)
            | SettingKind::SiblingTagged { .. }
            | SettingKind::Refused(_) => None,
        }
    }

    /// Formats the value as HOCON of a kind. Secrets are masked.
    pub(crate) fn to_hocon(&self, kind: &SettingKind) -> String {
        match (self, kind) {
            (LeafValue::Text(_), SettingKind::Secret) => text(MASK),
            (LeafValue::Text(value), SettingKind::Connection) => {
                text(&ConfigSecret::new(value.as_str()).masked_connection())
            }
            (LeafValue::Text(value), _) => text(value),
            (LeafValue::Flag(flag), _) => flag.to_string(),
            (LeafValue::Count(size), SettingKind::Size { .. }) => show_size(*size),
            (LeafValue::Count(rate), SettingKind::Rate { .. }) => show_rate(*rate),
            (LeafValue::Count(count), _) => count.to_string(),
            (LeafValue::Ratio(ratio), _) => ratio.to_string(),
            (LeafValue::Time(time), _) => show_time(*time),
            (LeafValue::Word(word), _) => (*word).to_owned(),
            (LeafValue::Scalar(scalar), _) if scalar.value_type == ScalarType::String => text(&scalar.raw),
            (LeafValue::Scalar(scalar), _) => scalar.raw.clone(),
        }
    }
}

/// Implements [`LeafSetting`] for the type of a variant.
macro_rules! leaf_setting {
    ($($variant:ident: $type:ty),*) => {
        $(impl LeafSetting for $type {
            fn from_leaf(value: LeafValue) -> Option<Self> {
                match value {
                    LeafValue::$variant(value) => Some(value),
                    _ => None,
                }
            }

            fn to_leaf(&self) -> LeafValue {
                LeafValue::$variant(<$type as Clone>::clone(self))
            }
        })*
    };
}

leaf_setting!(Text: String, Flag: bool, Count: u64, Ratio: f64, Time: Duration, Word: &'static str);

/// Implements [`LeafSetting`] for a whole number that has at least the range of its key.
macro_rules! count_setting {
    ($($number:ty),*) => {
        $(impl LeafSetting for $number {
            fn from_leaf(value: LeafValue) -> Option<Self> {
                u64::from_leaf(value).and_then(|count| count.try_into().ok())
            }

            fn to_leaf(&self) -> LeafValue {
                LeafValue::Count(u64::from(*self))
            }
        })*
    };
}

count_setting!(u16, u32);

impl LeafSetting for PathBuf {
    fn from_leaf(value: LeafValue) -> Option<Self> {
        String::from_leaf(value).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn to_leaf(&self) -> LeafValue {
        LeafValue::Text(self.to_string_lossy().into_owned())
    }
}

impl LeafSetting for ConfigSecret {
    fn from_leaf(value: LeafValue) -> Option<Self> {
        String::from_leaf(value).map(ConfigSecret::new)
    }

    fn to_leaf(&self) -> LeafValue {
        LeafValue::Text(self.expose().to_owned())
    }
}

/// Returns true if a node's value is written as a number.
pub(crate) fn is_number(node: &ConfigNode) -> bool {
    node.scalar().is_some_and(|s| s.value_type == ScalarType::Number)
}

#[derive(Deserialize)]
#[serde(transparent)]
struct HoconDuration(#[serde(with = "hocon::serde::duration")] Duration);

#[derive(Deserialize)]
#[serde(transparent)]
struct HoconBytes(#[serde(with = "hocon::serde::bytes")] u64);

/// Describes the values that a kind accepts, in words that follow "expected".
pub(crate) fn expected(kind: &SettingKind) -> String {
    match kind {
        SettingKind::Text { expected, .. } => (*expected).to_owned(),
        SettingKind::Secret | SettingKind::Connection | SettingKind::Reference(_) => {
            "a string that is not empty".to_owned()
        }
        SettingKind::Pattern => "a regular expression".to_owned(),
        SettingKind::Flag => "true or false".to_owned(),
        SettingKind::Count { min, max } if *max == i64::MAX as u64 => {
            format!("a whole number, {min} or more")
        }
        SettingKind::Count { min, max } => format!("a whole number from {min} to {max}"),
        SettingKind::Ratio { min: f64::MIN_POSITIVE, max: f64::MAX } => "a number above 0".to_owned(),
        SettingKind::Ratio { min, max } => format!("a number from {min} to {max}"),
        SettingKind::Time { min, max } => {
            format!("a duration with a unit, from {} to {}", show_time(*min), show_time(*max))
        }
        SettingKind::Size { min, .. } if *min == 0 => "a size such as 32MiB".to_owned(),
        SettingKind::Size { min, .. } => format!("a size such as 32MiB, at least {}", show_size(*min)),
        SettingKind::Rate { min, .. } => format!("a rate such as 20MiB/s, at least {}", show_rate(*min)),
        SettingKind::Choice(words) => one_of(words.iter().map(|spellings| spellings[0])),
        SettingKind::Scalar => "a string, a number, true, false or null".to_owned(),
        SettingKind::Block(_) | SettingKind::Map(_) | SettingKind::Tagged(_) | SettingKind::SiblingTagged { .. } => {
            "a block { … }".to_owned()
        }
        SettingKind::List(_) => "a list [ … ]".to_owned(),
        SettingKind::Refused(_) => "nothing".to_owned(),
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
    if nanos == 0 {
        return "0s".to_owned();
    }
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
