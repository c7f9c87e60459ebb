//! The values of a block that has been checked against its schema.
//!
//! A value that failed the check reads as missing. Its error has been reported, and the rest of the
//! configuration is still read to report its errors, too.

use super::leaf::{LeafSetting, LeafValue};
use super::schema::{BlockSchema, SettingKind, TAG};
use super::tree::{ConfigNode, ConfigPlace, KeyPath};

/// A block and its path. If the block is missing, so is every key.
pub(crate) struct BlockFields<'a> {
    node: Option<&'a ConfigNode>,
    block: &'static BlockSchema,
    /// The printed word of the variant, in a block that has variants.
    pub(crate) tag: &'static str,
    pub(crate) path: KeyPath,
    /// The place of the block, or of the nearest block above it.
    pub(crate) place: ConfigPlace,
}

impl<'a> BlockFields<'a> {
    pub(crate) fn root(node: &'a ConfigNode, block: &'static BlockSchema) -> Self {
        BlockFields { node: Some(node), block, tag: "", path: KeyPath::default(), place: node.key_place.clone() }
    }

    fn get(&self, name: &str) -> (Option<&'a ConfigNode>, &'static SettingKind) {
        let key = self.block.key(name).expect("only keys of the block's own schema are read");
        let node = self
            .node
            .and_then(ConfigNode::object)
            .and_then(|fields| fields.get(name))
            .filter(|node| !node.is_null() || matches!(key.kind, SettingKind::Scalar));
        (node, &key.kind)
    }

    /// Reads a single value.
    pub(crate) fn leaf<T: LeafSetting>(&self, name: &str) -> Option<T> {
        let (node, kind) = self.get(name);
        LeafValue::read(node?, kind).ok().and_then(T::from_leaf)
    }

    /// Returns true if the block is present.
    pub(crate) fn is_block(&self) -> bool {
        self.node.is_some_and(|node| node.object().is_some())
    }

    /// Returns true if the key is given, valid or not.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).0.is_some()
    }

    /// Returns the place of a key's value, or the place of the block if the key is missing.
    pub(crate) fn place_of(&self, name: &str) -> &ConfigPlace {
        self.get(name).0.map_or(&self.place, |node| &node.place)
    }

    /// Returns the last key of the path. In a map of blocks, it is the name of the entry.
    pub(crate) fn name(&self) -> &str {
        self.path.last_key().unwrap_or_default()
    }

    /// Returns a block. A missing block reads as empty.
    pub(crate) fn block(&self, name: &str) -> BlockFields<'a> {
        let (node, kind) = self.get(name);
        let block = match kind {
            SettingKind::Block(block) => block,
            SettingKind::SiblingTagged { tag, variants } => {
                let word = self.get(tag).0.and_then(ConfigNode::scalar).map(|scalar| scalar.raw.as_str());
                variants.iter().find(|variant| Some(variant.words[0]) == word).unwrap_or(&variants[0]).block
            }
            _ => unreachable!("{name} is a block in its schema"),
        };
        self.inner(node, "", block, self.path.key(name))
    }

    /// Returns the blocks of a map, by name. Leaves out blocks of an unknown variant.
    pub(crate) fn entries(&self, name: &str) -> Vec<(&'a str, BlockFields<'a>)> {
        let (node, kind) = self.get(name);
        let SettingKind::Map(kind) = kind else { unreachable!("{name} is a map in its schema") };
        let path = self.path.key(name);
        let entries = node.and_then(ConfigNode::object).into_iter().flatten();
        entries.filter_map(|(name, node)| Some((name.as_str(), self.item(node, kind, path.key(name))?))).collect()
    }

    /// Returns the blocks of a list. Leaves out blocks of an unknown variant.
    pub(crate) fn items(&self, name: &str) -> Vec<BlockFields<'a>> {
        let (node, kind) = self.get(name);
        let SettingKind::List(kind) = kind else { unreachable!("{name} is a list in its schema") };
        let path = self.path.key(name);
        let items = node.and_then(ConfigNode::items).unwrap_or_default();
        items.into_iter().enumerate().filter_map(|(i, node)| self.item(node, kind, path.index(i))).collect()
    }

    /// Returns the names in a map, of valid and invalid entries.
    pub(crate) fn names(&self, name: &str) -> Vec<&'a str> {
        self.get(name).0.and_then(ConfigNode::object).into_iter().flatten().map(|(name, _)| name.as_str()).collect()
    }

    /// Returns the number of items in a list, valid or not.
    pub(crate) fn item_count(&self, name: &str) -> usize {
        self.get(name).0.and_then(ConfigNode::items).map_or(0, |items| items.len())
    }

    /// Returns the strings of a list, each with the path and the place of its item.
    pub(crate) fn texts(&self, name: &str) -> Vec<(String, KeyPath, &'a ConfigPlace)> {
        let (node, kind) = self.get(name);
        let SettingKind::List(kind) = kind else { unreachable!("{name} is a list in its schema") };
        let path = self.path.key(name);
        let items = node.and_then(ConfigNode::items).unwrap_or_default().into_iter().enumerate();
        items
            .filter_map(|(i, item)| {
                let text = LeafValue::read(item, kind).ok().and_then(String::from_leaf)?;
                Some((text, path.index(i), &item.place))
            })
            .collect()
    }

    /// Returns the strings of a map, by name.
    pub(crate) fn texts_by_name(&self, name: &str) -> Vec<(String, String)> {
        let (node, kind) = self.get(name);
        let SettingKind::Map(kind) = kind else { unreachable!("{name} is a map in its schema") };
        let entries = node.and_then(ConfigNode::object).into_iter().flatten();
        entries
            .filter_map(|(name, node)| {
                let text = LeafValue::read(node, kind).ok().and_then(String::from_leaf)?;
                Some((name.clone(), text))
            })
            .collect()
    }

    fn item(&self, node: &'a ConfigNode, kind: &'static SettingKind, path: KeyPath) -> Option<BlockFields<'a>> {
        match kind {
            SettingKind::Block(block) => Some(self.inner(Some(node), "", block, path)),
            SettingKind::Tagged(tagged) => {
                let variant = tagged.variant(&node.object()?.get(TAG)?.scalar()?.raw)?;
                Some(self.inner(Some(node), variant.words[0], variant.block, path))
            }
            _ => unreachable!("{path} is a block in its schema"),
        }
    }

    fn inner(
        &self,
        node: Option<&'a ConfigNode>,
        tag: &'static str,
        block: &'static BlockSchema,
        path: KeyPath,
    ) -> BlockFields<'a> {
        BlockFields { node, block, tag, path, place: node.map_or(&self.place, |node| &node.key_place).clone() }
    }
}
