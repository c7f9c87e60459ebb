//! The output of a configuration as HOCON, to print the effective configuration.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A block that is being written. Keys are written in the order in which they were added.
#[derive(Default)]
pub(crate) struct HoconBlock {
    entries: Vec<(String, HoconEntry)>,
}

/// The value of a key.
enum HoconEntry {
    /// A value that is HOCON already.
    Leaf(String),
    Block(HoconBlock),
    Blocks(Vec<HoconBlock>),
}

/// Formats a string as HOCON, in quotes.
pub(crate) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Formats a list of values that are HOCON already.
pub(crate) fn list(items: impl IntoIterator<Item = String>) -> String {
    format!("[{}]", items.into_iter().collect::<Vec<_>>().join(", "))
}

impl HoconBlock {
    /// Adds a key and a value that is HOCON already.
    pub(crate) fn put(&mut self, key: &str, value: impl ToString) {
        self.entries.push((name(key), HoconEntry::Leaf(value.to_string())));
    }

    pub(crate) fn put_if(&mut self, key: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    /// Adds a key and the block that `fill` writes.
    pub(crate) fn block(&mut self, key: &str, fill: impl FnOnce(&mut HoconBlock)) {
        let mut inner = HoconBlock::default();
        fill(&mut inner);
        self.entries.push((name(key), HoconEntry::Block(inner)));
    }

    /// Adds a key and a list of blocks, each of which `fill` writes.
    pub(crate) fn blocks<T>(
        &mut self,
        key: &str,
        items: impl IntoIterator<Item = T>,
        mut fill: impl FnMut(T, &mut HoconBlock),
    ) {
        let items = items.into_iter().map(|item| {
            let mut inner = HoconBlock::default();
            fill(item, &mut inner);
            inner
        });
        self.entries.push((name(key), HoconEntry::Blocks(items.collect())));
    }

    /// Returns the block as a whole document.
    pub(crate) fn into_document(self) -> String {
        self.lines().into_iter().fold(String::new(), |mut out, line| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{line}");
            out
        })
    }

    /// Returns the value of the only key, or an empty text if nothing was written.
    pub(crate) fn into_value(self) -> String {
        match self.entries.into_iter().next() {
            Some((_, HoconEntry::Leaf(value))) => value,
            Some((_, HoconEntry::Blocks(_))) => "[".to_owned(),
            Some((_, HoconEntry::Block(_))) | None => String::new(),
        }
    }

    /// Returns the values of all keys, each with its path. Items of lists have numbers.
    pub(crate) fn into_settings(self) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        self.collect_settings("", &mut settings);
        settings
    }

    fn collect_settings(self, prefix: &str, settings: &mut BTreeMap<String, String>) {
        for (key, entry) in self.entries {
            let path = format!("{prefix}{key}");
            match entry {
                HoconEntry::Leaf(value) => drop(settings.insert(path, value)),
                HoconEntry::Block(block) => block.collect_settings(&format!("{path}."), settings),
                HoconEntry::Blocks(items) => {
                    for (number, item) in items.into_iter().enumerate() {
                        item.collect_settings(&format!("{path}[{number}]."), settings);
                    }
                }
            }
        }
    }

    fn lines(self) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, entry) in self.entries {
            match entry {
                HoconEntry::Leaf(value) => lines.push(format!("{key} = {value}")),
                HoconEntry::Block(block) => {
                    lines.push(format!("{key} {{"));
                    lines.extend(block.indented());
                    lines.push("}".to_owned());
                }
                HoconEntry::Blocks(items) => {
                    lines.push(format!("{key} = ["));
                    for item in items {
                        lines.push("  {".to_owned());
                        lines.extend(item.indented().map(|line| format!("  {line}")));
                        lines.push("  }".to_owned());
                    }
                    lines.push("]".to_owned());
                }
            }
        }
        lines
    }

    fn indented(self) -> impl Iterator<Item = String> {
        self.lines().into_iter().map(|line| format!("  {line}"))
    }
}

/// Formats a key, quoted where HOCON would take it for something else.
fn name(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key != "include"
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain { key.to_owned() } else { text(key) }
}
