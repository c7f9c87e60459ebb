//! Destinations: the places where a table's archive is written.

use std::path::{Component, Path, PathBuf};

use laredo_archive::{DestinationOptions, DestinationUri, MANIFEST_NAME, S3Encryption};

use super::super::diagnostics::ConfigProblem;
use super::super::fields::{BlockFields, BlockVariant};
use super::super::schema::{BlockSchema, KeySchema, SettingKind, TEXT, VariantSchema};
use super::super::write::{self, text};
use super::aws::{self, AwsConfig};

/// A place for archives. The table's `key_prefix` is appended to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationConfig {
    /// A folder.
    Local {
        /// The folder's path, as it is given.
        path: PathBuf,
    },
    /// A bucket.
    S3(S3Config),
}

/// A bucket of S3, or of a compatible store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Config {
    /// The bucket's name.
    pub bucket: String,
    /// The prefix of every key in the bucket, used as given; empty by default.
    pub prefix: String,
    /// True if URLs have the bucket in their path and not in the host name. Default false.
    pub force_path_style: bool,
    /// The encryption of objects; `None`, the default, means that of the bucket.
    pub encryption: Option<S3Encryption>,
    /// The connection to the store.
    pub aws: AwsConfig,
}

/// The place of an archive: the address of its manifest, and the endpoint of a store that is not
/// AWS's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ManifestAddress {
    pub(super) endpoint: Option<String>,
    pub(super) manifest: String,
}

/// The schema of `destinations`.
pub(super) const DESTINATIONS: SettingKind = SettingKind::List(&SettingKind::Tagged(&VariantSchema {
    tag: "type",
    what: "destination type",
    variants: &[(&["local"], &LOCAL), (&["s3"], &S3)],
}));

static LOCAL: BlockSchema =
    BlockSchema { keys: &[KeySchema::required("type", TEXT), KeySchema::required("path", TEXT)] };

static S3: BlockSchema = BlockSchema {
    keys: &[
        KeySchema::required("type", TEXT),
        KeySchema::required("bucket", BUCKET),
        KeySchema::new("prefix", PREFIX),
        aws::REGION,
        aws::ENDPOINT,
        KeySchema::new("force_path_style", SettingKind::Flag),
        KeySchema::new("encryption", ENCRYPTION),
        KeySchema::new("kms_key_id", TEXT),
        aws::PROFILE,
    ],
};

const ENCRYPTION: SettingKind = SettingKind::Text {
    accepts: |text| S3Encryption::NAMES.contains(&text),
    expected: "\"AES256\", \"aws:kms\" or \"aws:kms:dsse\"",
};

const BUCKET: SettingKind = SettingKind::Text {
    accepts: |text| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !"/:?#".contains(c)),
    expected: "a bucket's name, without s3:// and without slashes",
};

/// The beginning of names. It cannot lead out of the destination, because no part may be `.` or
/// `..`.
pub(super) const PREFIX: SettingKind = SettingKind::Text {
    accepts: |text| !text.contains('\0') && text.split('/').all(|part| !matches!(part, "." | "..")),
    expected: "the beginning of names, such as users/, in which no part is . or ..",
};

/// Reads `encryption`, and the `kms_key_id` that belongs to it.
fn read_encryption(fields: &BlockFields, problems: &mut Vec<ConfigProblem>) -> Option<S3Encryption> {
    let (name, key) = (fields.text("encryption"), fields.text("kms_key_id"));
    if key.is_some() && name.as_deref().is_none_or(|name| name == S3Encryption::Store.name()) {
        let message = "names a key, which only encryption = \"aws:kms\" or \"aws:kms:dsse\" uses";
        problems.push(ConfigProblem::new(fields.place_of("kms_key_id"), &fields.path.key("kms_key_id"), message));
    }
    let [store, kms, _] = S3Encryption::NAMES;
    name.map(|name| match name {
        name if name == store => S3Encryption::Store,
        name if name == kms => S3Encryption::Kms(key),
        _ => S3Encryption::KmsTwice(key),
    })
}

impl DestinationConfig {
    pub(super) fn read_all(
        table: &BlockFields,
        profiles: &[&str],
        problems: &mut Vec<ConfigProblem>,
    ) -> Vec<DestinationConfig> {
        if table.has("destinations") && table.item_count("destinations") == 0 {
            let message = "there is no destination; name at least one to write to";
            problems.push(ConfigProblem::new(table.place_of("destinations"), &table.path.key("destinations"), message));
        }
        let destinations = table.variants("destinations");
        destinations.iter().map(|destination| Self::read(destination, profiles, problems)).collect()
    }

    fn read(destination: &BlockVariant, profiles: &[&str], problems: &mut Vec<ConfigProblem>) -> DestinationConfig {
        let fields = &destination.fields;
        match destination.tag {
            "s3" => DestinationConfig::S3(S3Config {
                bucket: fields.text("bucket").unwrap_or_default(),
                prefix: fields.text("prefix").unwrap_or_default(),
                force_path_style: fields.flag("force_path_style").unwrap_or(false),
                encryption: read_encryption(fields, problems),
                aws: AwsConfig::read(fields, profiles, problems),
            }),
            _ => DestinationConfig::Local { path: fields.text("path").unwrap_or_default().into() },
        }
    }

    pub(super) fn write(&self, out: &mut write::HoconBlock) {
        match self {
            DestinationConfig::Local { path } => {
                out.put("type", "local");
                out.put("path", text(&path.to_string_lossy()));
            }
            DestinationConfig::S3(s3) => {
                out.put("type", "s3");
                out.put("bucket", text(&s3.bucket));
                out.put("prefix", text(&s3.prefix));
                out.put("force_path_style", s3.force_path_style);
                if let Some(encryption) = &s3.encryption {
                    out.put("encryption", text(encryption.name()));
                    out.put_if("kms_key_id", encryption.key_id().map(text));
                }
                s3.aws.write(out);
            }
        }
    }
}

impl DestinationConfig {
    /// Returns the address, with the destination's own prefix.
    #[must_use]
    pub fn uri(&self) -> DestinationUri {
        match self {
            DestinationConfig::Local { path } => DestinationUri::Folder(path.clone()),
            DestinationConfig::S3(s3) => {
                DestinationUri::Bucket { bucket: s3.bucket.clone(), prefix: s3.prefix.clone() }
            }
        }
    }

    /// Returns the settings with which the destination is opened, without the credentials.
    #[must_use]
    pub fn options(&self) -> DestinationOptions {
        let mut options = DestinationOptions::default();
        match self {
            DestinationConfig::Local { .. } => {}
            DestinationConfig::S3(s3) => {
                options.s3.region.clone_from(&s3.aws.region);
                options.s3.endpoint.clone_from(&s3.aws.endpoint);
                options.s3.force_path_style = s3.force_path_style;
                options.s3.encryption.clone_from(&s3.encryption);
            }
        }
        options
    }

    /// Returns the connection to AWS, if the destination has one.
    #[must_use]
    pub fn aws(&self) -> Option<&AwsConfig> {
        match self {
            DestinationConfig::Local { .. } => None,
            DestinationConfig::S3(s3) => Some(&s3.aws),
        }
    }

    /// Returns the beginning of every name in the destination.
    pub(super) fn prefix(&self) -> &str {
        match self {
            DestinationConfig::Local { .. } => "",
            DestinationConfig::S3(s3) => &s3.prefix,
        }
    }

    /// Returns the place of an archive's manifest. Returns `None` if a required value is missing,
    /// which has been reported.
    pub(super) fn manifest_address(&self, key_prefix: &str) -> Option<ManifestAddress> {
        match self {
            DestinationConfig::Local { path } if path.as_os_str().is_empty() => None,
            DestinationConfig::Local { path } => {
                let manifest = format!("{}/{key_prefix}{MANIFEST_NAME}", path.display());
                Some(ManifestAddress { endpoint: None, manifest: plain(Path::new(&manifest)).display().to_string() })
            }
            DestinationConfig::S3(s3) if s3.bucket.is_empty() => None,
            DestinationConfig::S3(s3) => {
                let key = format!("{}{key_prefix}{MANIFEST_NAME}", s3.prefix);
                // Stores treat empty parts differently. Two keys that differ only in these may be
                // the same key.
                let parts: Vec<_> = key.split('/').filter(|part| !part.is_empty()).collect();
                let endpoint = s3.aws.endpoint.as_ref().map(|endpoint| endpoint.trim_end_matches('/').to_owned());
                Some(ManifestAddress { endpoint, manifest: format!("s3://{}/{}", s3.bucket, parts.join("/")) })
            }
        }
    }
}

/// Returns the absolute path without `.` and `..`. Symbolic links are not resolved.
fn plain(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}
