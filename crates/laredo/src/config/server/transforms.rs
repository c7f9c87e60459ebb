//! Transforms, which change the columns that clients see.

use std::path::PathBuf;

use laredo_engine::HashKey;

use super::super::declaration::{config_block, config_variants, custom, key, optional, texts};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT, TEXT_OR_EMPTY};
use super::super::secret::ConfigSecret;
use super::super::write::text;

config_variants! {
    /// A change of a row's columns.
    pub enum TransformConfig("transform type") [TransformConfig::check] {
        /// Removes columns.
        DropFields["drop-fields"] {
            /// The columns.
            fields: Vec<String> = texts("fields", SettingKind::List(&TEXT), "").must_be_given(),
        },
        /// Gives columns other names.
        RenameFields["rename-fields"] {
            /// The old and the new name of each column, as a block.
            fields: Vec<(String, String)> = custom(
                "fields",
                SettingKind::Map(&TEXT),
                Vec::new,
                |_, fields, _| Some(fields.texts_by_name("fields")),
                |fields, _, out| {
                    out.block("fields", |out| fields.iter().for_each(|(old, new)| out.put(old, text(new))));
                },
            )
            .must_be_given(),
        },
        /// Adds the time of the commit as a column.
        AddTimestamp["add-timestamp"] {
            /// The name of the new column.
            field: String = key("field", TEXT, || "committed_at".to_owned()),
        },
        /// Replaces values by [keyed hashes](#personal-data). Ours.
        Hash["hash"] (hash: HashConfig),
        /// Replaces values by [a mask](#personal-data). Ours.
        Mask["mask"] (mask: MaskConfig),
    }
}

config_variants! {
    /// The replacement of columns' values for the readers of a grant.
    pub enum ColumnMaskConfig("mask type") {
        /// Replaces values by [keyed hashes](#personal-data).
        Hash["hash"] (hash: HashConfig),
        /// Replaces values by [a mask](#personal-data).
        Mask["mask"] (mask: MaskConfig),
    }
}

config_block! {
    /// Columns whose values are replaced by keyed hashes.
    pub struct HashConfig [HashConfig::check] {
        /// The columns. A transform may hash those of the key, and a grant may not.
        pub fields: Vec<String> = texts("fields", SettingKind::List(&TEXT), "").must_be_given(),
        /// The key of the hash, at least 16 bytes. Secret.
        pub key: Option<ConfigSecret> = optional("key", SettingKind::Secret, "`key_file`"),
        /// The file that has the key. Line ends at its end do not count.
        pub key_file: Option<PathBuf> = optional("key_file", TEXT, "`key`"),
    }
}

config_block! {
    /// Columns whose values are replaced by a mask.
    pub struct MaskConfig [MaskConfig::check] {
        /// The columns. None may be part of the key.
        pub fields: Vec<String> = texts("fields", SettingKind::List(&TEXT), "").must_be_given(),
        /// A text that replaces each value.
        pub value: Option<String> = optional("value", TEXT_OR_EMPTY, "a partial mask"),
        /// The number of characters that are kept at the beginning.
        pub keep_first: Option<u32> = optional("keep_first", KEPT, "0"),
        /// The number of characters that are kept at the end.
        pub keep_last: Option<u32> = optional("keep_last", KEPT, "0"),
        /// The character that replaces each of the others.
        pub with: Option<String> = optional("with", CHARACTER, "`*`"),
    }
}

const KEPT: SettingKind = SettingKind::Count { min: 0, max: u32::MAX as u64 };

const CHARACTER: SettingKind =
    SettingKind::Text { accepts: |text| text.chars().count() == 1, expected: "a single character" };

impl TransformConfig {
    /// Reports what the schema of the keys cannot detect.
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        match self {
            TransformConfig::DropFields { fields: names } => reader.check_repeated(fields, "fields", names),
            TransformConfig::RenameFields { fields: renamed } => check_renamed(renamed, fields, reader),
            // Their own blocks are checked.
            TransformConfig::AddTimestamp { .. } | TransformConfig::Hash(_) | TransformConfig::Mask(_) => {}
        }
    }

    /// Returns the name of a transform that replaces values, and the columns; `None` for others.
    pub(super) fn replaced(&self) -> Option<(&'static str, &[String])> {
        match self {
            TransformConfig::Hash(hash) => Some(("hash", &hash.fields)),
            TransformConfig::Mask(mask) => Some(("mask", &mask.fields)),
            TransformConfig::DropFields { .. }
            | TransformConfig::RenameFields { .. }
            | TransformConfig::AddTimestamp { .. } => None,
        }
    }
}

impl HashConfig {
    /// Checks that there is one key, and that it is long enough. The file is read at the start.
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        reader.check_repeated(fields, "fields", &self.fields);
        let Some(key) = &self.key else {
            if self.key_file.is_none() && !fields.has("key") {
                reader.report(fields, "key", "is required, unless key_file is given");
            }
            return;
        };
        if self.key_file.is_some() {
            reader.report(fields, "key_file", "is given, and so is key; write one of them");
        }
        if let Err(error) = HashKey::new(key.expose().as_bytes()) {
            reader.report(fields, "key", error.to_string());
        }
    }
}

impl MaskConfig {
    /// Checks that the mask is either fixed or partial.
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        reader.check_repeated(fields, "fields", &self.fields);
        let (is_fixed, parts) = (self.value.is_some(), ["keep_first", "keep_last", "with"]);
        if !is_fixed && !fields.has("value") && !parts.iter().any(|part| fields.has(part)) {
            reader.report(fields, "value", "is required, unless keep_first, keep_last or with is given");
        }
        for part in parts.iter().filter(|part| is_fixed && fields.has(part)) {
            reader.report(fields, part, "has no effect, because value replaces the whole value; remove one of them");
        }
    }
}

impl ColumnMaskConfig {
    /// Returns the columns.
    fn fields(&self) -> &[String] {
        match self {
            ColumnMaskConfig::Hash(hash) => &hash.fields,
            ColumnMaskConfig::Mask(mask) => &mask.fields,
        }
    }
}

/// Reports columns of a grant that two masks would replace, or that are left out.
pub(super) fn check_masks(
    masks: &[ColumnMaskConfig],
    hidden: &[String],
    fields: &BlockFields,
    reader: &mut ConfigReader,
) {
    for ((number, mask), block) in masks.iter().enumerate().zip(fields.items("mask")) {
        for name in mask.fields() {
            if hidden.contains(name) {
                reader.report(
                    &block,
                    "fields",
                    format!("names {name}, which hide leaves out; remove it from one of them"),
                );
            } else if masks[..number].iter().any(|earlier| earlier.fields().contains(name)) {
                reader.report(&block, "fields", format!("names {name}, which an earlier mask replaces already"));
            }
        }
    }
}

/// Reports columns that would be renamed to the same name.
fn check_renamed(renamed: &[(String, String)], fields: &BlockFields, reader: &mut ConfigReader) {
    for (i, (old, new)) in renamed.iter().enumerate() {
        if let Some((other, _)) = renamed[..i].iter().find(|(_, earlier)| earlier == new) {
            reader.report(fields, "fields", format!("{other} and {old} would both be named {new}"));
        }
    }
}

/// Reports columns whose values two transforms would replace. The second one would replace what
/// the first one has made.
pub(super) fn check_replaced_once(transforms: &[TransformConfig], fields: &BlockFields, reader: &mut ConfigReader) {
    // The columns by their names after the transforms so far, each with the first transform.
    let mut replaced: Vec<(String, &'static str)> = Vec::new();
    for (transform, block) in transforms.iter().zip(fields.items("transforms")) {
        if let TransformConfig::RenameFields { fields: renamed } = transform {
            for (name, _) in &mut replaced {
                if let Some((_, new)) = renamed.iter().find(|(old, _)| old == name) {
                    name.clone_from(new);
                }
            }
        }
        let Some((step, names)) = transform.replaced() else { continue };
        for name in names {
            if let Some((_, earlier)) = replaced.iter().find(|(known, _)| known == name) {
                let message = format!("names {name}, whose values {earlier} replaces already");
                reader.report(&block, "fields", message);
            }
        }
        replaced.extend(names.iter().map(|name| (name.clone(), step)));
    }
}
