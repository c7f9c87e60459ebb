//! The mapping of environment variables to keys.
//!
//! `LAREDO_SOURCES_PG_MAIN_CONNECTION` is `sources.pg_main.connection`. An underscore may be a dot
//! or part of a name. So a variable is matched against the schema and the names that the files use.

use super::key_places::KeyPlaces;
use super::schema::{BlockSchema, ConfigSchema, SettingKind};

/// The prefix of every variable that sets a key. The rest of the name is the key's path.
pub(crate) const PREFIX: &str = "LAREDO_";

/// Returns true if a variable is meant for this program's configuration.
///
/// Kubernetes gives every pod variables for the services of its namespace. Those of a service named
/// `laredo`, `laredo-server` or `laredo-snapshotter` have the same prefix.
pub(crate) fn is_ours(schema: &ConfigSchema, name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX).filter(|_| name.starts_with(schema.variable_prefix)) else {
        return false;
    };
    let address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let of_service = rest.ends_with("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| {
            ["", "_PROTO", "_PORT", "_ADDR"].iter().any(|end| rest.ends_with(&format!("{protocol}{end}")))
        })
        || (address && rest.ends_with("PORT"));
    let is_foreign = |foreign: &&str| rest == *foreign || (foreign.ends_with('_') && rest.starts_with(foreign));
    name != schema.file_variable && !of_service && !schema.foreign_variables.iter().any(is_foreign)
}

/// Returns the keys that a variable may mean. If it matches a name that the files use, new names
/// are not considered.
pub(crate) fn keys(schema: &ConfigSchema, variable: &str, marks: &KeyPlaces) -> Vec<Vec<String>> {
    let rest = variable.strip_prefix(PREFIX).unwrap_or(variable);
    let mut search = VariableSearch { found: Vec::new(), path: Vec::new() };
    search.block(rest, &SettingKind::Block(schema.root), Some(marks));
    search.found.sort();
    search.found.dedup();
    search.found
}

/// Returns all variables that set a key of the schema, for "did you mean". A list has the variables
/// of its items, or of a first item if it is empty.
pub(crate) fn names(schema: &ConfigSchema, marks: &KeyPlaces) -> Vec<String> {
    let mut names = Vec::new();
    collect(&SettingKind::Block(schema.root), Some(marks), "LAREDO", &mut names);
    names.sort();
    names.dedup();
    names
}

struct VariableSearch {
    found: Vec<Vec<String>>,
    path: Vec<String>,
}

impl VariableSearch {
    fn value(&mut self, rest: &str, kind: &SettingKind, marks: Option<&KeyPlaces>) {
        if rest.is_empty() {
            self.found.push(self.path.clone());
        } else {
            self.block(rest, kind, marks);
        }
    }

    /// Removes the next key from the front of `rest`, which is the remaining part of the variable's
    /// name.
    fn block(&mut self, rest: &str, kind: &SettingKind, marks: Option<&KeyPlaces>) {
        let child = |name: &str| marks.and_then(|m| m.children.get(name));
        match kind {
            SettingKind::Map(kind) => {
                let before = self.found.len();
                for (name, marks) in marks.iter().flat_map(|m| &m.children) {
                    self.step(rest, name, kind, Some(marks));
                }
                if self.found.len() == before {
                    for (i, _) in rest.match_indices('_') {
                        self.path.push(rest[..i].to_ascii_lowercase());
                        self.block(&rest[i + 1..], kind, None);
                        self.path.pop();
                    }
                }
            }
            SettingKind::List(kind) => {
                let digits = rest.split('_').next().unwrap_or_default();
                if let Ok(index) = digits.parse::<usize>() {
                    let marks = marks.and_then(|m| m.items.get(index));
                    self.step(rest, digits, kind, marks);
                }
            }
            _ => {
                for key in kind.blocks().into_iter().flat_map(BlockSchema::keys) {
                    self.step(rest, key.name, &key.kind, child(key.name));
                }
            }
        }
    }

    fn step(&mut self, rest: &str, name: &str, kind: &SettingKind, marks: Option<&KeyPlaces>) {
        let Some(rest) = rest.strip_prefix(&capitals(name)) else {
            return;
        };
        let rest = match rest.strip_prefix('_') {
            Some(rest) if !rest.is_empty() => rest,
            None if rest.is_empty() => rest,
            _ => return,
        };
        self.path.push(name.to_owned());
        self.value(rest, kind, marks);
        self.path.pop();
    }
}

fn collect(kind: &SettingKind, marks: Option<&KeyPlaces>, prefix: &str, names: &mut Vec<String>) {
    let named = |name: &str| format!("{prefix}_{}", capitals(name));
    match kind {
        SettingKind::Refused(_) => {}
        SettingKind::Map(kind) => {
            for (name, marks) in marks.iter().flat_map(|m| &m.children) {
                collect(kind, Some(marks), &named(name), names);
            }
        }
        SettingKind::List(kind) => {
            let items = marks.map_or(0, |m| m.items.len()).max(1);
            for i in 0..items {
                let marks = marks.and_then(|m| m.items.get(i));
                collect(kind, marks, &format!("{prefix}_{i}"), names);
            }
        }
        _ => {
            let blocks = kind.blocks();
            if blocks.is_empty() {
                names.push(prefix.to_owned());
            }
            for key in blocks.into_iter().flat_map(BlockSchema::keys) {
                let marks = marks.and_then(|m| m.children.get(key.name));
                collect(&key.kind, marks, &named(key.name), names);
            }
        }
    }
}

fn capitals(name: &str) -> String {
    name.chars()
        .map(|c| match c {
            '-' | '.' => '_',
            c => c.to_ascii_uppercase(),
        })
        .collect()
}
