//! The place where each key was last written: the shape of the configuration without its values.
//!
//! The HOCON library returns values without positions, and syntax trees with positions but without
//! merging. `KeyPlaces` follows the merging closely enough to find the place of a value. A value
//! that came through a substitution has no mark; the nearest key above it takes its place in
//! errors.

use std::collections::BTreeMap;

use hocon::parser::{AstField, AstNode};

use super::diagnostics::ConfigProblem;
use super::document::{DocumentReader, OpenConfigFile};
use super::tree::{ConfigPlace, KeyPath};

/// The places of a key, of its value, and of everything inside.
#[derive(Debug, Clone)]
pub(crate) struct KeyPlaces {
    pub(crate) key_place: ConfigPlace,
    pub(crate) place: ConfigPlace,
    pub(crate) children: BTreeMap<String, KeyPlaces>,
    pub(crate) items: Vec<KeyPlaces>,
}

impl KeyPlaces {
    pub(crate) fn new(place: ConfigPlace) -> KeyPlaces {
        KeyPlaces { key_place: place.clone(), place, children: BTreeMap::new(), items: Vec::new() }
    }

    /// Marks a key as written at `place`, which is not in a file, together with its whole value.
    pub(crate) fn set(&mut self, path: &[String], place: &ConfigPlace) {
        let mut marks = self;
        for key in path {
            marks = marks.child(key, place);
        }
        marks.place = place.clone();
        // A list is replaced as a whole, with its items.
        marks.items.clear();
    }

    /// Enters a key of a block. If a list was there before, its items are removed.
    fn child(&mut self, key: &str, key_place: &ConfigPlace) -> &mut KeyPlaces {
        self.items.clear();
        let child = self.children.entry(key.to_owned()).or_insert_with(|| KeyPlaces::new(key_place.clone()));
        child.key_place = key_place.clone();
        child
    }
}

/// A marker that adds the fields of one file to the marks, in the order in which HOCON merges them.
/// The reader follows the file's includes.
pub(crate) struct PlaceRecorder<'a, 'r> {
    pub(crate) file: &'a OpenConfigFile,
    pub(crate) reader: &'a mut DocumentReader<'r>,
}

impl PlaceRecorder<'_, '_> {
    pub(crate) fn object(&mut self, fields: &[AstField], owner: &mut KeyPlaces, path: &[String]) {
        for field in fields {
            if field.key.is_empty() {
                self.reader.include(&field.value, self.file, owner, path);
                continue;
            }
            let key_place = self.place(&field.pos);
            let mut full = path.to_vec();
            let mut marks = &mut *owner;
            for key in &field.key {
                marks = marks.child(key, &key_place);
                full.push(key.clone());
            }
            marks.place = key_place;
            if field.append {
                let item = self.item(&field.value, &full);
                marks.items.push(item);
            } else {
                self.value(&field.value, marks, &full);
            }
        }
    }

    fn value(&mut self, value: &AstNode, marks: &mut KeyPlaces, path: &[String]) {
        match value {
            AstNode::Object { fields, .. } => {
                marks.items.clear();
                self.object(fields, marks, path);
            }
            AstNode::Array { items, .. } => {
                marks.children.clear();
                marks.place = self.value_place(value);
                marks.items = items.iter().map(|item| self.item(item, path)).collect();
            }
            AstNode::Concat { nodes, .. } => {
                marks.place = self.value_place(value);
                self.concatenation(nodes, marks, path);
            }
            AstNode::Scalar { pos, .. } => {
                marks.children.clear();
                marks.items.clear();
                marks.place = self.place(pos);
            }
            // A substitution may bring keys that merge with the ones that exist, so their marks
            // stay.
            AstNode::Substitution { pos, .. } => marks.place = self.place(pos),
            AstNode::Include { .. } => {}
        }
    }

    fn item(&mut self, item: &AstNode, path: &[String]) -> KeyPlaces {
        let mut marks = KeyPlaces::new(self.value_place(item));
        self.value(item, &mut marks, path);
        marks
    }

    fn concatenation(&mut self, nodes: &[AstNode], marks: &mut KeyPlaces, path: &[String]) {
        let is_text = |node: &AstNode| matches!(node, AstNode::Scalar { separator: false, .. });
        let is_block = |node: &AstNode| matches!(node, AstNode::Object { .. } | AstNode::Array { .. });
        if nodes.iter().any(is_text) && nodes.iter().any(is_block) {
            // HOCON's own error has no place.
            let message = "has a text and a block or list in one value; put a comma or a line's end between two keys";
            self.reader.problems.push(ConfigProblem::new(&marks.place, &KeyPath::from_keys(path), message));
        }
        let mut counted = true;
        for (i, node) in nodes.iter().enumerate() {
            match node {
                AstNode::Object { fields, .. } => self.object(fields, marks, path),
                AstNode::Array { items, .. } => {
                    if i == 0 {
                        marks.items.clear();
                    }
                    if counted {
                        let items: Vec<_> = items.iter().map(|item| self.item(item, path)).collect();
                        marks.items.extend(items);
                    }
                }
                // `a = ${a} [x]` appends to a list whose marks exist. The length of any other list
                // is unknown here.
                AstNode::Substitution { segments, .. } => {
                    let own = segments.iter().map(|s| &s.text).eq(path.iter());
                    if !own {
                        counted = false;
                        marks.items.clear();
                    }
                }
                _ => {}
            }
        }
    }

    fn place(&self, pos: &hocon::parser::Pos) -> ConfigPlace {
        ConfigPlace::File { source: self.file.source, line: pos.line, column: pos.col }
    }

    fn value_place(&self, value: &AstNode) -> ConfigPlace {
        match value {
            // The parser's positions of these two are one past the bracket.
            AstNode::Object { pos, .. } => self.reader.sources.bracket(self.place(pos), '{'),
            AstNode::Array { pos, .. } => self.reader.sources.bracket(self.place(pos), '['),
            AstNode::Scalar { pos, .. }
            | AstNode::Concat { pos, .. }
            | AstNode::Substitution { pos, .. }
            | AstNode::Include { pos, .. } => self.place(pos),
        }
    }
}
