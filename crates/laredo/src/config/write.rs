//! The output of a configuration as HOCON, to print the effective configuration.

use std::fmt::Write;

/// A block that is being written. Keys are written in the order in which they were added.
#[derive(Default)]
pub(crate) struct HoconBlock {
    lines: Vec<String>,
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
        self.lines.push(format!("{} = {}", name(key), value.to_string()));
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
        self.lines.push(format!("{} {{", name(key)));
        self.lines.extend(inner.indented());
        self.lines.push("}".to_owned());
    }

    /// Adds a key and a list of blocks, each of which `fill` writes.
    pub(crate) fn blocks<T>(
        &mut self,
        key: &str,
        items: impl IntoIterator<Item = T>,
        mut fill: impl FnMut(T, &mut HoconBlock),
    ) {
        self.lines.push(format!("{} = [", name(key)));
        for item in items {
            let mut inner = HoconBlock::default();
            fill(item, &mut inner);
            self.lines.push("  {".to_owned());
            self.lines.extend(inner.indented().map(|line| format!("  {line}")));
            self.lines.push("  }".to_owned());
        }
        self.lines.push("]".to_owned());
    }

    /// Returns the block as a whole document.
    pub(crate) fn into_document(self) -> String {
        self.lines.into_iter().fold(String::new(), |mut out, line| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{line}");
            out
        })
    }

    /// Returns the value of the only key, or an empty text if nothing was written.
    pub(crate) fn into_value(self) -> String {
        let line = self.lines.into_iter().next().unwrap_or_default();
        line.split_once(" = ").map_or_else(String::new, |(_, value)| value.to_owned())
    }

    fn indented(self) -> impl Iterator<Item = String> {
        self.lines.into_iter().map(|line| format!("  {line}"))
    }
}

/// Formats a key, quoted where HOCON would take it for something else.
fn name(key: &str) -> String {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key != "include"
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain { key.to_owned() } else { text(key) }
}
