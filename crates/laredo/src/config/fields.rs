//! The typed reading of a block that has been checked against its schema.
//!
//! A value that failed the check reads as missing. Its error has been reported, and the rest of the
//! configuration is still read to report its errors, too.

use std::time::Duration;

use super::leaf::LeafValue;
use super::schema::{BlockSchema, SettingKind};
use super::tree::{ConfigNode, ConfigPlace, KeyPath};

/// A block and its path. If the block is missing, so is every key.
pub(crate) struct BlockFields<'a> {
    node: Option<&'a ConfigNode>,
    block: &'static BlockSchema,
    pub(crate) path: KeyPath,
    /// The place of the block, or of the nearest block above it.
    pub(crate) place: ConfigPlace,
}

/// A block whose keys depend on one word, which is `tag`.
pub(crate) struct BlockVariant<'a> {
    pub(crate) tag: &'static str,
    pub(crate) fields: BlockFields<'a>,
}

impl<'a> BlockFields<'a> {
    pub(crate) fn root(node: &'a ConfigNode, block: &'static BlockSchema) -> Self {
        BlockFields { node: Some(node), block, path: KeyPath::default(), place: node.key_place.clone() }
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

    fn leaf(&self, name: &str) -> Option<LeafValue> {
        let (node, kind) = self.get(name);
        LeafValue::read(node?, kind).ok()
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

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        match self.leaf(name)? {
            LeafValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Reads a string in which empty means missing.
    pub(crate) fn text_if_any(&self, name: &str) -> Option<String> {
        self.text(name).filter(|text| !text.is_empty())
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        match self.leaf(name)? {
            LeafValue::Flag(flag) => Some(flag),
            _ => None,
        }
    }

    pub(crate) fn count(&self, name: &str) -> Option<u64> {
        match self.leaf(name)? {
            LeafValue::Count(count) => Some(count),
            _ => None,
        }
    }

    /// Reads a count whose schema limits it to 16 bits.
    pub(crate) fn port(&self, name: &str) -> Option<u16> {
        self.count(name).and_then(|port| u16::try_from(port).ok())
    }

    /// Reads a count whose schema limits it to 32 bits.
    pub(crate) fn count_u32(&self, name: &str) -> Option<u32> {
        self.count(name).and_then(|count| u32::try_from(count).ok())
    }

    pub(crate) fn ratio(&self, name: &str) -> Option<f64> {
        match self.leaf(name)? {
            LeafValue::Ratio(ratio) => Some(ratio),
            _ => None,
        }
    }

    pub(crate) fn time(&self, name: &str) -> Option<Duration> {
        match self.leaf(name)? {
            LeafValue::Time(time) => Some(time),
            _ => None,
        }
    }

    /// Reads a size in bytes.
    pub(crate) fn size(&self, name: &str) -> Option<u64> {
        match self.leaf(name)? {
            LeafValue::Size(size) => Some(size),
            _ => None,
        }
    }

    /// Reads a choice and returns its printed spelling.
    pub(crate) fn word(&self, name: &str) -> Option<&'static str> {
        match self.leaf(name)? {
            LeafValue::Word(word) => Some(word),
            _ => None,
        }
    }

    /// Returns the node of a `Scalar` key.
    pub(crate) fn scalar(&self, name: &str) -> Option<&'a ConfigNode> {
        self.get(name).0.filter(|node| node.scalar().is_some())
    }

    /// Returns a block. A missing block reads as empty.
    pub(crate) fn block(&self, name: &str) -> BlockFields<'a> {
        let (node, kind) = self.get(name);
        let block = match kind {
            SettingKind::Block(block) => block,
            SettingKind::Beside { tag, variants } => {
                let word = self.get(tag).0.and_then(ConfigNode::scalar).map(|s| &s.raw);
                variants
                    .iter()
                    .find(|(name, _)| word.is_some_and(|word| word == name))
                    .map_or(variants[0].1, |(_, block)| *block)
            }
            _ => unreachable!("{name} is a block in its schema"),
        };
        self.inner(node, block, self.path.key(name))
    }

    /// Returns the entries of a map of blocks with variants, by name. Leaves out entries of an
    /// unknown variant.
    pub(crate) fn variants_by_name(&self, name: &str) -> Vec<(&'a str, BlockVariant<'a>)> {
        let (node, kind) = self.get(name);
        let SettingKind::Map(kind) = kind else { unreachable!("{name} is a map in its schema") };
        let path = self.path.key(name);
        node.and_then(ConfigNode::object)
            .into_iter()
            .flatten()
            .filter_map(|(name, node)| Some((name.as_str(), self.variant(node, kind, path.key(name))?)))
            .collect()
    }

    /// Returns the items of a list of blocks with variants. Leaves out items of an unknown variant.
    pub(crate) fn variants(&self, name: &str) -> Vec<BlockVariant<'a>> {
        let (node, kind) = self.get(name);
        let SettingKind::List(kind) = kind else { unreachable!("{name} is a list in its schema") };
        let path = self.path.key(name);
        let items = node.and_then(ConfigNode::items).unwrap_or_default();
        items.into_iter().enumerate().filter_map(|(i, node)| self.variant(node, kind, path.index(i))).collect()
    }

    /// Returns the items of a list of blocks.
    pub(crate) fn blocks(&self, name: &str) -> Vec<BlockFields<'a>> {
        let (node, kind) = self.get(name);
        let SettingKind::List(SettingKind::Block(block)) = kind else {
            unreachable!("{name} is a list of blocks in its schema")
        };
        let path = self.path.key(name);
        let items = node.and_then(ConfigNode::items).unwrap_or_default();
        items.into_iter().enumerate().map(|(i, node)| self.inner(Some(node), block, path.index(i))).collect()
    }

    /// Returns the names in a map, of valid and invalid entries.
    pub(crate) fn names(&self, name: &str) -> Vec<&'a str> {
        self.get(name).0.and_then(ConfigNode::object).into_iter().flatten().map(|(name, _)| name.as_str()).collect()
    }

    /// Returns the number of items in a list, valid or not.
    pub(crate) fn item_count(&self, name: &str) -> usize {
        self.get(name).0.and_then(ConfigNode::items).map_or(0, |items| items.len())
    }

    /// Returns the strings of a list.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        self.texts_and_places(name).into_iter().map(|(text, ..)| text).collect()
    }

    /// Returns the strings of a list, each with the path and the place of its item.
    pub(crate) fn texts_and_places(&self, name: &str) -> Vec<(String, KeyPath, &'a ConfigPlace)> {
        let (node, kind) = self.get(name);
        let SettingKind::List(kind) = kind else { unreachable!("{name} is a list in its schema") };
        let path = self.path.key(name);
        let items = node.and_then(ConfigNode::items).unwrap_or_default();
        items
            .into_iter()
            .enumerate()
            .filter_map(|(i, item)| match LeafValue::read(item, kind) {
                Ok(LeafValue::Text(text)) => Some((text, path.index(i), &item.place)),
                _ => None,
            })
            .collect()
    }

    /// Returns the strings of a map, by name.
    pub(crate) fn texts_by_name(&self, name: &str) -> Vec<(String, String)> {
        let (node, kind) = self.get(name);
        let SettingKind::Map(kind) = kind else { unreachable!("{name} is a map in its schema") };
        node.and_then(ConfigNode::object)
            .into_iter()
            .flatten()
            .filter_map(|(name, node)| match LeafValue::read(node, kind) {
                Ok(LeafValue::Text(text)) => Some((name.clone(), text)),
                _ => None,
            })
            .collect()
    }

    fn variant(&self, node: &'a ConfigNode, kind: &'static SettingKind, path: KeyPath) -> Option<BlockVariant<'a>> {
        let SettingKind::Tagged(tagged) = kind else { unreachable!("{path} has variants in its schema") };
        let word = &node.object()?.get(tagged.tag)?.scalar()?.raw;
        let (tag, block) = tagged.variant(word)?;
        Some(BlockVariant { tag, fields: self.inner(Some(node), block, path) })
    }

    fn inner(&self, node: Option<&'a ConfigNode>, block: &'static BlockSchema, path: KeyPath) -> BlockFields<'a> {
        BlockFields { node, block, path, place: node.map_or(&self.place, |node| &node.key_place).clone() }
    }
}
