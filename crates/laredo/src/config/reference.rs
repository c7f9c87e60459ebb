//! The reference of the keys, as Markdown, for `docs/configuration.md`.

use super::leaf::expected;
use super::schema::{BlockSchema, BlockVariant, ConfigSchema, KeySchema, SettingKind, TAG};

/// Returns the table of the keys at a path, such as `tables.targets` or an empty one for the root.
/// Returns `None` if there is no such block.
pub(crate) fn table(schema: &ConfigSchema, path: &str) -> Option<String> {
    let mut kind = SettingKind::Block(schema.root);
    for name in path.split('.').filter(|name| !name.is_empty()) {
        let key = kind.blocks().into_iter().find_map(|block| block.key(name))?;
        kind = match key.kind {
            SettingKind::Map(inner) | SettingKind::List(inner) => *inner,
            kind => kind,
        };
    }
    let mut table = ReferenceTable { rows: Vec::new(), has_own_tables: path.is_empty() };
    table.add(&kind, "");
    let head = ["| Key | Value | Default | Meaning |".to_owned(), "|---|---|---|---|".to_owned()];
    let lines: Vec<String> = head.into_iter().chain(table.rows).collect();
    Some(lines.join("\n"))
}

struct ReferenceTable {
    rows: Vec<String>,
    /// True if the lists and maps of blocks are left out, because the page has a section for each.
    has_own_tables: bool,
}

impl ReferenceTable {
    fn add(&mut self, kind: &SettingKind, prefix: &str) {
        match kind {
            SettingKind::Block(block) => self.add_block(block, prefix),
            SettingKind::Tagged(tagged) if tagged.variants.len() > 1 => {
                let words: Vec<_> = tagged.names().map(code).collect();
                let meanings = tagged.variants.iter();
                let meanings: Vec<_> = meanings.map(|v| format!("{}: {}", code(v.words[0]), v.doc.trim())).collect();
                self.row(&format!("{prefix}{TAG}"), &words.join(", "), "required", &meanings.join(" "));
                self.add_variants(tagged.variants, prefix);
            }
            SettingKind::Tagged(tagged) => self.add_block(tagged.variants[0].block, prefix),
            SettingKind::SiblingTagged { variants, .. } => {
                for variant in *variants {
                    let condition = format!("With {}: ", code(variant.words[0]));
                    variant.block.own_keys().into_iter().for_each(|key| self.add_key(key, prefix, &condition));
                }
            }
            _ => {}
        }
    }

    fn add_block(&mut self, block: &'static BlockSchema, prefix: &str) {
        block.own_keys().into_iter().for_each(|key| self.add_key(key, prefix, ""));
    }

    /// Adds the keys of all variants. A key that is not in all of them names its variant.
    fn add_variants(&mut self, variants: &[BlockVariant], prefix: &str) {
        let is_common = |key: &KeySchema| variants.iter().all(|variant| variant.block.key(key.name).is_some());
        for (i, variant) in variants.iter().enumerate() {
            for key in variant.block.own_keys().into_iter().filter(|key| key.name != TAG) {
                if !is_common(key) {
                    self.add_key(key, prefix, &format!("With {}: ", code(variant.words[0])));
                } else if i == 0 {
                    self.add_key(key, prefix, "");
                }
            }
        }
    }

    fn add_key(&mut self, key: &KeySchema, prefix: &str, condition: &str) {
        let name = format!("{prefix}{}", key.name);
        let value = match key.kind {
            SettingKind::Refused(_) => return,
            // A block that may be missing has a meaning of its own.
            SettingKind::Block(_) if key.default_text.is_empty() => None,
            SettingKind::SiblingTagged { .. } => None,
            SettingKind::Map(inner) | SettingKind::List(inner) if self.has_own_tables && !inner.blocks().is_empty() => {
                return;
            }
            kind => Some(described(&kind)),
        };
        if let Some(value) = value {
            let default = match (key.required, key.default_text) {
                (true, _) => "required".to_owned(),
                (false, "") => match (key.default)().trim_matches('"') {
                    "" => "empty".to_owned(),
                    value => code(value),
                },
                (false, text) => text.to_owned(),
            };
            self.row(&name, &value, &default, &format!("{condition}{}", key.doc.trim()));
        }
        if matches!(key.kind, SettingKind::Block(_) | SettingKind::SiblingTagged { .. }) {
            self.add(&key.kind, &format!("{name}."));
        }
    }

    fn row(&mut self, name: &str, value: &str, default: &str, meaning: &str) {
        self.rows.push(format!("| {} | {value} | {default} | {meaning} |", code(name)));
    }
}

/// Describes the values of a kind.
fn described(kind: &SettingKind) -> String {
    match kind {
        SettingKind::Choice(words) => {
            words.iter().flat_map(|spellings| *spellings).map(|word| code(word)).collect::<Vec<_>>().join(", ")
        }
        SettingKind::Reference(target) => format!("a name in {}", code(target.block())),
        SettingKind::Block(_) => "a block".to_owned(),
        SettingKind::List(inner) if inner.blocks().is_empty() => format!("a list, each item {}", described(inner)),
        SettingKind::List(_) => "a list of blocks".to_owned(),
        SettingKind::Map(inner) if inner.blocks().is_empty() => format!("a block, each value {}", described(inner)),
        SettingKind::Map(_) => "blocks by name".to_owned(),
        kind => expected(kind),
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}
