//! The check of a tree against a schema: unknown keys, missing keys, wrong types, values out of
//! range.

use super::diagnostics::Problem;
use super::leaf::{Leaf, expected, is_number, one_of};
use super::nearest::nearest;
use super::schema::{Block, Kind, Schema, Tagged};
use super::secret::mask_text;
use super::tree::{KeyPath, Node, Value};

/// Adds every violation of the schema in a tree to `problems`.
pub(crate) fn check(schema: &Schema, root: &Node, problems: &mut Vec<Problem>) {
    Checker { schema, problems }.block(root, schema.root, &KeyPath::default());
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

struct Checker<'a> {
    schema: &'a Schema,
    problems: &'a mut Vec<Problem>,
}

impl Checker<'_> {
    fn value(&mut self, node: &Node, kind: &Kind, path: &KeyPath, parent: &Node) {
        // The key is unset, or its substitution has no value, which has been reported already.
        let scalar_wanted = matches!(kind, Kind::Scalar);
        if matches!(node.value, Value::Unresolved) || (node.is_null() && !scalar_wanted) {
            return;
        }
        match kind {
            Kind::Refused(why) => {
                self.problems.push(Problem::new(&node.key_place, path, *why));
            }
            Kind::Block(block) => self.block(node, block, path),
            Kind::Tagged(tagged) => self.tagged(node, tagged, path),
            Kind::Beside { tag, variants } => self.beside(node, tag, variants, path, parent),
            Kind::Map(kind) => match node.object() {
                Some(entries) => {
                    for (name, entry) in entries {
                        self.value(entry, kind, &path.key(name), node);
                    }
                }
                None => self.mismatch(node, &Kind::Map(kind), path),
            },
            Kind::List(kind) => match node.items() {
                Some(items) => {
                    for (i, item) in items.into_iter().enumerate() {
                        self.value(item, kind, &path.index(i), node);
                    }
                }
                None => self.mismatch(node, &Kind::List(kind), path),
            },
            Kind::Scalar if node.scalar().is_some() => {}
            kind => match Leaf::read(node, kind) {
                Ok(Leaf::Text(text)) if has_placeholder(&text) => self.problems.push(
                    Problem::new(&node.place, path, "has ${…} inside quotes, where it is not replaced")
                        .help("end the quotes before it: \"postgresql://laredo:\"${PG_PASSWORD}\"@db/app\""),
                ),
                Ok(_) => {}
                Err(_) => self.mismatch(node, kind, path),
            },
        }
    }

    fn block(&mut self, node: &Node, block: &Block, path: &KeyPath) {
        let Some(fields) = node.object() else {
            self.problems.push(Problem::new(
                &node.place,
                path,
                format!("expected a block {{ … }}, found {}", mask_text(&node.describe())),
            ));
            return;
        };
        for (name, value) in fields {
            match block.key(name) {
                Some(key) => self.value(value, &key.kind, &path.key(name), node),
                None => self.unknown(name, value, block, path),
            }
        }
        for key in block.keys.iter().filter(|key| key.required) {
            let missing = fields.get(key.name).is_none_or(|value| value.is_null() && !matches!(key.kind, Kind::Scalar));
            if missing {
                self.problems.push(Problem::new(
                    &node.key_place,
                    &path.key(key.name),
                    format!("is required: {}", expected(&key.kind)),
                ));
            }
        }
    }

    fn unknown(&mut self, name: &str, value: &Node, block: &Block, path: &KeyPath) {
        let path = path.key(name);
        if let Some((_, why)) = self.schema.refused.iter().find(|(key, _)| *key == name) {
            self.problems.push(Problem::new(&value.key_place, &path, *why));
            return;
        }
        let help = match nearest(name, block.names()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("the keys here are {}", block.names().collect::<Vec<_>>().join(", ")),
        };
        self.problems.push(Problem::new(&value.key_place, &path, "unknown key").help(help));
    }

    fn tagged(&mut self, node: &Node, tagged: &Tagged, path: &KeyPath) {
        let Some(fields) = node.object() else {
            // The error is that of a block, whatever the variants are.
            self.mismatch(node, &Kind::Block(&Block { keys: &[] }), path);
            return;
        };
        let path_of_tag = path.key(tagged.tag);
        let words = || one_of(tagged.variants.iter().map(|(words, _)| words[0]));
        let Some(chosen) = fields.get(tagged.tag).filter(|node| !node.is_null()) else {
            self.problems.push(Problem::new(&node.key_place, &path_of_tag, format!("is required: {}", words())));
            return;
        };
        if matches!(chosen.value, Value::Unresolved) {
            return;
        }
        let word = chosen.scalar().map(|s| s.raw.as_str());
        match word.and_then(|word| tagged.variant(word)) {
            Some((_, block)) => self.block(node, block, path),
            None => {
                let found = mask_text(&chosen.describe());
                let message = format!("{found} is not a {} of this version; expected {}", tagged.what, words());
                let problem = Problem::new(&chosen.place, &path_of_tag, message);
                let near = word.and_then(|word| nearest(word, tagged.words()));
                self.problems.push(match near {
                    Some(near) => problem.help(format!("did you mean {near}?")),
                    None => problem,
                });
            }
        }
    }

    fn beside(&mut self, node: &Node, tag: &str, variants: &[(&str, &'static Block)], path: &KeyPath, parent: &Node) {
        let chosen = parent.object().and_then(|fields| fields.get(tag));
        let word = chosen.and_then(Node::scalar).map(|s| s.raw.as_str());
        match variants.iter().find(|(name, _)| Some(*name) == word) {
            Some((_, block)) => self.block(node, block, path),
            // A wrong word has an error of its own. A missing word, or one without such a block,
            // has no other error.
            None => {
                let words: Vec<_> = variants.iter().map(|(name, _)| *name).collect();
                self.problems.push(Problem::new(
                    &node.key_place,
                    path,
                    format!("has a meaning only beside {tag} = {}", words.join(" or ")),
                ));
            }
        }
    }

    fn mismatch(&mut self, node: &Node, kind: &Kind, path: &KeyPath) {
        let found = match kind {
            Kind::Secret => String::new(),
            _ => format!(", found {}", mask_text(&node.describe())),
        };
        let message = format!("expected {}{found}", expected(kind));
        let problem = Problem::new(&node.place, path, message);
        let help = match (kind, node.scalar()) {
            (Kind::Time { .. }, Some(_)) if is_number(node) => {
                Some("a number without a unit is milliseconds; write 5s, 10m or 24h".to_owned())
            }
            (Kind::Choice(words), Some(scalar)) => {
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
