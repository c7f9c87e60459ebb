//! The merged configuration as a tree. Every value has the place where it was written.

use std::collections::BTreeMap;
use std::fmt;

use hocon::{HoconValue, ScalarType, ScalarValue};

use super::key_places::KeyPlaces;

/// A value, its place, and the place of its key.
#[derive(Debug, Clone)]
pub(crate) struct ConfigNode {
    pub(crate) value: ConfigValue,
    /// The place where the value was written, for errors about the value.
    pub(crate) place: ConfigPlace,
    /// The place where the key was written, for errors about the key (unknown, or missing inside).
    pub(crate) key_place: ConfigPlace,
}

/// The value of a key.
#[derive(Debug, Clone)]
pub(crate) enum ConfigValue {
    Object(BTreeMap<String, ConfigNode>),
    List(Vec<ConfigNode>),
    Scalar(ScalarValue),
    /// A substitution without a value. It has been reported, so no other error follows.
    Unresolved,
}

/// A place where something was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConfigPlace {
    /// A place in a file: its index in `ConfigTexts`, and the line and column. These count from 1,
    /// the column in characters.
    File { source: usize, line: usize, column: usize },
    /// An environment variable, by name.
    Variable(String),
    /// A command-line argument, without its value: `--set grpc.port`.
    Argument(String),
    /// No place: for a missing key of a configuration without files.
    Nowhere,
}

/// The path of a key from the root: `tables[0].targets[0].grpc.port`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyPath(Vec<KeyPathStep>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyPathStep {
    Key(String),
    Index(usize),
}

impl ConfigNode {
    /// Joins the resolved values with the places where they were written. A value without a mark of
    /// its own, because it came through a substitution, has the place of the nearest key above it.
    pub(crate) fn join(value: &HoconValue, marks: Option<&KeyPlaces>, above: &ConfigPlace) -> ConfigNode {
        let place = marks.map_or(above, |m| &m.place).clone();
        let key_place = marks.map_or(above, |m| &m.key_place).clone();
        let value = match value {
            HoconValue::Object(fields) => ConfigValue::Object(
                fields
                    .iter()
                    .map(|(key, value)| {
                        let marks = marks.and_then(|m| m.children.get(key));
                        (key.clone(), ConfigNode::join(value, marks, &key_place))
                    })
                    .collect(),
            ),
            HoconValue::Array(items) => ConfigValue::List(
                items
                    .iter()
                    .enumerate()
                    .map(|(i, item)| ConfigNode::join(item, marks.and_then(|m| m.items.get(i)), &place))
                    .collect(),
            ),
            HoconValue::Scalar(scalar) => ConfigValue::Scalar(scalar.clone()),
            _ => ConfigValue::Unresolved,
        };
        ConfigNode { value, place, key_place }
    }

    /// Makes an empty block.
    pub(crate) fn empty(place: ConfigPlace) -> ConfigNode {
        ConfigNode { value: ConfigValue::Object(BTreeMap::new()), key_place: place.clone(), place }
    }

    pub(crate) fn object(&self) -> Option<&BTreeMap<String, ConfigNode>> {
        match &self.value {
            ConfigValue::Object(fields) => Some(fields),
            _ => None,
        }
    }

    /// Returns the items of a list. In HOCON, an object whose keys are all numbers is a list, too.
    pub(crate) fn items(&self) -> Option<Vec<&ConfigNode>> {
        match &self.value {
            ConfigValue::List(items) => Some(items.iter().collect()),
            ConfigValue::Object(fields) if !fields.is_empty() => {
                let mut numbered = fields
                    .iter()
                    .map(|(key, node)| key.parse::<u32>().ok().map(|n| (n, node)))
                    .collect::<Option<Vec<_>>>()?;
                numbered.sort_by_key(|(n, _)| *n);
                Some(numbered.into_iter().map(|(_, node)| node).collect())
            }
            _ => None,
        }
    }

    pub(crate) fn scalar(&self) -> Option<&ScalarValue> {
        match &self.value {
            ConfigValue::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    /// Returns true if this is an explicit `null`, which unsets a key.
    pub(crate) fn is_null(&self) -> bool {
        self.scalar().is_some_and(|s| s.value_type == ScalarType::Null)
    }

    /// Describes the value, for "found …" in an error. The caller masks the result.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            ConfigValue::Object(_) => "a block { … }".to_owned(),
            ConfigValue::List(_) => "a list [ … ]".to_owned(),
            ConfigValue::Unresolved => "a substitution without a value".to_owned(),
            ConfigValue::Scalar(s) if s.value_type == ScalarType::String => {
                let mut shown: String = s.raw.chars().take(60).collect();
                if shown.len() < s.raw.len() {
                    shown.push('…');
                }
                format!("\"{shown}\"")
            }
            ConfigValue::Scalar(s) => s.raw.clone(),
        }
    }
}

impl KeyPath {
    pub(crate) fn key(&self, key: &str) -> KeyPath {
        let mut steps = self.0.clone();
        steps.push(KeyPathStep::Key(key.to_owned()));
        KeyPath(steps)
    }

    pub(crate) fn index(&self, index: usize) -> KeyPath {
        let mut steps = self.0.clone();
        steps.push(KeyPathStep::Index(index));
        KeyPath(steps)
    }

    /// Returns the last step, unless it is an index.
    pub(crate) fn last_key(&self) -> Option<&str> {
        match self.0.last()? {
            KeyPathStep::Key(key) => Some(key),
            KeyPathStep::Index(_) => None,
        }
    }

    pub(crate) fn from_keys(keys: &[String]) -> KeyPath {
        KeyPath(keys.iter().cloned().map(KeyPathStep::Key).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                KeyPathStep::Index(index) => write!(f, "[{index}]")?,
                KeyPathStep::Key(key) => {
                    if i > 0 {
                        f.write_str(".")?;
                    }
                    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
                    if plain {
                        f.write_str(key)?;
                    } else {
                        write!(f, "{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
