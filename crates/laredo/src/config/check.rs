//! The check of a tree against a schema: unknown keys, missing keys, wrong types, values out of
//! range.

use super::diagnostics::ConfigProblem;
use super::leaf::{LeafValue, expected, is_number, one_of};
use super::schema::{BlockSchema, BlockVariant, ConfigSchema, SettingKind, TAG, VariantSchema};
use super::secret::{is_secret_name, mask_text};
use super::suggestions::nearest;
use super::tree::{ConfigNode, ConfigValue, KeyPath};

/// Adds every violation of the schema in a tree to `problems`.
pub(crate) fn check(schema: &ConfigSchema, root: &ConfigNode, problems: &mut Vec<ConfigProblem>) {
    SchemaChecker { schema, problems, has_claims: false }.block(root, schema.root, &KeyPath::default());
}

/// Returns true if a text seems to contain a substitution. HOCON keeps it as text, which is never
/// intended.
fn has_placeholder(text: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    text.split("${").skip(1).any(|rest| {
        let inside = rest.split_once('}').map(|(inside, _)| inside.strip_prefix('?').unwrap_or(inside));
        inside.is_some_and(|name| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(is_name)
        })
    })
}

/// Returns the reason why a text is not a regular expression, after a colon.
fn pattern_error(text: &str) -> String {
    let error = regex::Regex::new(text).err().map(|error| error.to_string()).unwrap_or_default();
    // The library's message has several lines, of which the last one is the error.
    let error = error.lines().last().unwrap_or_default().trim();
    let why = error.strip_prefix("error: ").unwrap_or(error);
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

struct SchemaChecker<'a> {
    schema: &'a ConfigSchema,
    problems: &'a mut Vec<ConfigProblem>,
    /// True inside a key whose texts may be claims, which are no substitutions.
    has_claims: bool,
}

impl SchemaChecker<'_> {
    fn value(&mut self, node: &ConfigNode, kind: &SettingKind, path: &KeyPath, parent: &ConfigNode) {
        // The key is unset, or its substitution has no value, which has been reported already.
        let scalar_wanted = matches!(kind, SettingKind::Scalar);
        if matches!(node.value, ConfigValue::Unresolved) || (node.is_null() && !scalar_wanted) {
            return;
        }
        match kind {
            SettingKind::Refused(why) => {
                self.problems.push(ConfigProblem::new(&node.key_place, path, *why));
            }
            SettingKind::Block(block) => self.block(node, block, path),
            SettingKind::Tagged(tagged) => self.tagged(node, tagged, path),
            SettingKind::SiblingTagged { tag, variants } => self.sibling_tagged(node, tag, variants, path, parent),
            SettingKind::Map(kind) => match node.object() {
                Some(entries) => {
                    for (name, entry) in entries {
                        self.value(entry, kind, &path.key(name), node);
                    }
                }
                None => self.mismatch(node, &SettingKind::Map(kind), path),
            },
            SettingKind::List(kind) => match node.items() {
                Some(items) => {
                    for (i, item) in items.into_iter().enumerate() {
                        self.value(item, kind, &path.index(i), node);
                    }
                }
                None => self.mismatch(node, &SettingKind::List(kind), path),
            },
            SettingKind::Scalar if node.scalar().is_some() => {}
            kind => match LeafValue::read(node, kind) {
                Ok(LeafValue::Text(text)) if has_placeholder(&text) && !self.has_claims => self.problems.push(
                    ConfigProblem::new(&node.place, path, "has ${…} inside quotes, where it is not replaced")
                        .help("end the quotes before it: \"postgresql://laredo:\"${PG_PASSWORD}\"@db/app\""),
                ),
                Ok(_) => {}
                Err(_) => self.mismatch(node, kind, path),
            },
        }
    }

    fn block(&mut self, node: &ConfigNode, block: &'static BlockSchema, path: &KeyPath) {
        let Some(fields) = node.object() else {
            self.problems.push(ConfigProblem::new(
                &node.place,
                path,
                format!("expected a block {{ … }}, found {}", mask_text(&node.describe())),
            ));
            return;
        };
        for (name, value) in fields {
            match block.key(name) {
                Some(key) => {
                    let around = self.has_claims;
                    self.has_claims |= key.has_claims;
                    self.value(value, &key.kind, &path.key(name), node);
                    self.has_claims = around;
                }
                None => self.unknown(name, value, block, path),
            }
        }
        for key in block.own_keys().into_iter().filter(|key| key.required) {
            let missing =
                fields.get(key.name).is_none_or(|value| value.is_null() && !matches!(key.kind, SettingKind::Scalar));
            if missing {
                self.problems.push(ConfigProblem::new(
                    &node.key_place,
                    &path.key(key.name),
                    format!("is required: {}", expected(&key.kind)),
                ));
            }
        }
    }

    fn unknown(&mut self, name: &str, value: &ConfigNode, block: &'static BlockSchema, path: &KeyPath) {
        let path = path.key(name);
        if let Some((_, why)) = self.schema.refused.iter().find(|(key, _)| *key == name) {
            self.problems.push(ConfigProblem::new(&value.key_place, &path, *why));
            return;
        }
        let help = match nearest(name, block.names()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("the keys here are {}", block.names().collect::<Vec<_>>().join(", ")),
        };
        self.problems.push(ConfigProblem::new(&value.key_place, &path, "unknown key").help(help));
    }

    fn tagged(&mut self, node: &ConfigNode, tagged: &VariantSchema, path: &KeyPath) {
        let Some(fields) = node.object() else {
            // The error is that of a block, whatever the variants are.
            self.mismatch(node, &SettingKind::Block(&BlockSchema { fields: &[] }), path);
            return;
        };
        let path_of_tag = path.key(TAG);
        let words = || one_of(tagged.names());
        let Some(chosen) = fields.get(TAG).filter(|node| !node.is_null()) else {
            self.problems.push(ConfigProblem::new(&node.key_place, &path_of_tag, format!("is required: {}", words())));
            return;
        };
        if matches!(chosen.value, ConfigValue::Unresolved) {
            return;
        }
        let word = chosen.scalar().map(|s| s.raw.as_str());
        match word.and_then(|word| tagged.variant(word)) {
            Some(variant) => self.block(node, variant.block, path),
            None => {
                let found = mask_text(&chosen.describe());
                let message = format!("{found} is not a {} of this version; expected {}", tagged.what, words());
                let problem = ConfigProblem::new(&chosen.place, &path_of_tag, message);
                let near = word.and_then(|word| nearest(word, tagged.words()));
                self.problems.push(match near {
                    Some(near) => problem.help(format!("did you mean {near}?")),
                    None => problem,
                });
            }
        }
    }

    fn sibling_tagged(
        &mut self,
        node: &ConfigNode,
        tag: &str,
        variants: &[BlockVariant],
        path: &KeyPath,
        parent: &ConfigNode,
    ) {
        let chosen = parent.object().and_then(|fields| fields.get(tag));
        let word = chosen.and_then(ConfigNode::scalar).map(|s| s.raw.as_str());
        match variants.iter().find(|variant| Some(variant.words[0]) == word) {
            Some(variant) => self.block(node, variant.block, path),
            // A wrong word has an error of its own. A missing word, or one without such a block,
            // has no other error.
            None => {
                let words: Vec<_> = variants.iter().map(|variant| variant.words[0]).collect();
                self.problems.push(ConfigProblem::new(
                    &node.key_place,
                    path,
                    format!("is used only with {tag} = {}", words.join(" or ")),
                ));
            }
        }
    }

    fn mismatch(&mut self, node: &ConfigNode, kind: &SettingKind, path: &KeyPath) {
        let found = match kind {
            SettingKind::Secret | SettingKind::Connection | SettingKind::List(SettingKind::Secret) => String::new(),
            _ if path.last_key().is_some_and(is_secret_name) => String::new(),
            _ => format!(", found {}", mask_text(&node.describe())),
        };
        let found = match (kind, node.scalar()) {
            (SettingKind::Pattern, Some(scalar)) => format!("{found}{}", pattern_error(&scalar.raw)),
            _ => found,
        };
        let message = format!("expected {}{found}", expected(kind));
        let problem = ConfigProblem::new(&node.place, path, message);
        let help = match (kind, node.scalar()) {
            (SettingKind::Time { .. }, Some(_)) if is_number(node) => {
                Some("a number without a unit is milliseconds; write 5s, 10m or 24h".to_owned())
            }
            (SettingKind::Choice(words), Some(scalar)) => {
                let words = words.iter().flat_map(|spellings| spellings.iter().copied());
                nearest(&scalar.raw, words).map(|near| format!("did you mean {near}?"))
            }
            _ => None,
        };
        self.problems.push(match help {
            Some(help) => problem.help(help),
            None => problem,
        });
    }
}
