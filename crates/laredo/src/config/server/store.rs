//! The stores of durable data.

use std::path::PathBuf;

use super::super::credentials;
use super::super::diagnostics::ConfigProblem;
use super::super::fields::BlockFields;
use super::super::schema::{BlockSchema, KeySchema, TEXT, TEXT_OR_EMPTY};
use super::super::write::{self, text};
use super::ConfiguredNames;

/// A store of files: `store`, and the `store_config` next to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreConfig {
    /// A folder.
    Local {
        /// The folder's path.
        path: PathBuf,
    },
    /// A bucket.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The prefix of every key in the bucket; empty by default.
        prefix: String,
        /// The bucket's region; if missing, that of the environment.
        region: Option<String>,
        /// The credentials profile; if missing, the SDK's default chain.
        credentials: Option<String>,
    },
}

/// The `store_config` of a local store.
pub(super) static LOCAL: BlockSchema = BlockSchema { keys: &[KeySchema::required("path", TEXT)] };

/// The `store_config` of an S3 store.
pub(super) static S3: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("bucket", TEXT),
        KeySchema::new("prefix", TEXT_OR_EMPTY),
        KeySchema::new("region", TEXT),
        KeySchema::new("credentials", TEXT),
    ],
};

impl StoreConfig {
    /// Reads `store` and `store_config` of a block in which `store` is given.
    pub(super) fn read(
        fields: &BlockFields,
        known: &ConfiguredNames,
        problems: &mut Vec<ConfigProblem>,
    ) -> StoreConfig {
        if !fields.has("store_config") && fields.word("store").is_some() {
            problems.push(ConfigProblem::new(
                fields.place_of("store"),
                &fields.path.key("store_config"),
                "is required: where the store is",
            ));
        }
        let config = fields.block("store_config");
        if fields.word("store") == Some("s3") {
            StoreConfig::S3 {
                bucket: config.text("bucket").unwrap_or_default(),
                prefix: config.text("prefix").unwrap_or_default(),
                region: config.text("region"),
                credentials: credentials::read_name(&config, &known.credentials, problems),
            }
        } else {
            StoreConfig::Local { path: config.text("path").unwrap_or_default().into() }
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        match self {
            StoreConfig::Local { path } => {
                out.put("store", "local");
                out.block("store_config", |out| {
                    out.put("path", text(&path.to_string_lossy()));
                });
            }
            StoreConfig::S3 { bucket, prefix, region, credentials } => {
                out.put("store", "s3");
                out.block("store_config", |out| {
                    out.put("bucket", text(bucket));
                    out.put("prefix", text(prefix));
                    out.put_if("region", region.as_deref().map(text));
                    out.put_if("credentials", credentials.as_deref().map(text));
                });
            }
        }
    }
}
