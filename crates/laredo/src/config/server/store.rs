//! The stores of durable data.

use std::path::PathBuf;

use super::super::declaration::{ConfigKey, config_field, config_variants, group, key, optional, required};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{BlockVariant, FieldSchema, PROFILE, SettingKind, TEXT, TEXT_OR_EMPTY};
use super::super::write::HoconBlock;

config_variants! {
    /// A store of files: `store`, and the `store_config` next to it.
    pub enum StoreConfig() {
        /// A folder.
        Local["local"] {
            /// The folder. Tables may share it.
            path: PathBuf = required("path", TEXT),
        },
        /// A bucket.
        S3["s3"] {
            /// The bucket.
            bucket: String = required("bucket", TEXT),
            /// The prefix of every key in the bucket.
            prefix: String = key("prefix", TEXT_OR_EMPTY, String::new),
            /// The region of the bucket.
            region: Option<String> = optional("region", TEXT, "the environment's"),
            /// The credentials profile.
            credentials: Option<String> = optional("credentials", PROFILE, "the SDK's default chain"),
        },
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig::Local { path: PathBuf::new() }
    }
}

/// The `store_config` of a folder.
pub(super) const CONFIG_LOCAL: FieldSchema = config(LOCAL_VARIANT);
const LOCAL_VARIANT: &[BlockVariant] = &[StoreConfig::VARIANTS[0]];

/// A `store` that is a folder.
pub(super) const LOCAL: &[FieldSchema] = &[config_field!(LOCAL_WORD), CONFIG_LOCAL];
/// A `store` that is a folder or a bucket.
pub(super) const LOCAL_OR_S3: &[FieldSchema] = &[config_field!(ANY_WORD), config(StoreConfig::VARIANTS)];

const LOCAL_WORD: ConfigKey<&str> = required("store", SettingKind::Choice(&[&["local"]]))
    .doc("The kind of place. Two servers may not share a folder, and it may not be the journal's.");
const ANY_WORD: ConfigKey<&str> =
    required("store", SettingKind::Choice(&[&["local"], &["s3"]])).doc("The kind of place.");

/// Declares the `store_config` next to a `store`.
const fn config(variants: &'static [BlockVariant]) -> FieldSchema {
    FieldSchema::of("store_config", SettingKind::SiblingTagged { tag: "store", variants })
}

/// Declares a store whose keys are `fields`.
pub(super) const fn stored_in(fields: &'static [FieldSchema]) -> ConfigKey<StoreConfig> {
    group(
        fields,
        StoreConfig::default,
        |_, fields, reader| Some(StoreConfig::read(fields, reader)),
        |store, _, out| store.write(out),
    )
}

impl StoreConfig {
    /// Reads `store` and `store_config` of a block in which `store` is given.
    pub(super) fn read(fields: &BlockFields, reader: &mut ConfigReader) -> StoreConfig {
        let word = fields.leaf::<&str>("store");
        if word.is_some() && !fields.has("store_config") {
            reader.report_at(fields, "store", "store_config", "is required: where the store is");
        }
        StoreConfig::read_variant(word.unwrap_or("local"), &fields.block("store_config"), reader)
    }

    pub(super) fn write(&self, out: &mut HoconBlock) {
        out.put("store", self.word());
        out.block("store_config", |out| self.write_variant(out));
    }
}
