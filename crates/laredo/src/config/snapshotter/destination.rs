//! Destinations: the places where a table's archive is written.

use std::path::{Component, Path, PathBuf};

use laredo_archive::{
    DestinationOptions, DestinationReader as _, DestinationUri, FolderDestination, InvalidKeyPrefix, MANIFEST_NAME,
    S3Encryption, check_key_prefix,
};

use super::super::declaration::{
    ConfigKey, config_block, config_field, config_variants, flat, group, key, optional, required,
};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT};
use super::super::write::HoconBlock;
use super::aws::{AwsConfig, check_built_with_aws};

config_variants! {
    /// A place for archives. The table's `key_prefix` is appended to it.
    pub enum DestinationConfig("destination type") [DestinationConfig::check] {
        /// A folder.
        Local["local"] {
            /// The path of the folder.
            path: PathBuf = required("path", TEXT),
        },
        /// A bucket of S3, or of a compatible store.
        S3["s3"] (s3: S3Config),
    }
}

config_block! {
    /// A bucket of S3, or of a compatible store.
    pub struct S3Config {
        /// The bucket.
        pub bucket: String = required("bucket", BUCKET),
        /// The prefix of every key in the bucket, used as given.
        pub prefix: String = key("prefix", PREFIX, String::new),
        /// True if URLs have the bucket in their path and not in the host name. Ours.
        pub force_path_style: bool = key("force_path_style", SettingKind::Flag, || false),
        /// The encryption of objects; `None`, the default, means that of the bucket.
        pub encryption: Option<S3Encryption> = group(
            &[config_field!(ENCRYPTION), config_field!(KMS_KEY_ID)],
            || None,
            |_, fields, reader| Some(read_encryption(fields, reader)),
            |encryption, _, out| write_encryption(encryption.as_ref(), out),
        ),
        /// The connection to the store.
        pub aws: AwsConfig = flat(),
    }
}

/// The place of an archive: the address of its manifest, and the endpoint of a store that is not
/// AWS's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ManifestAddress {
    pub(super) endpoint: Option<String>,
    pub(super) manifest: String,
}

const ENCRYPTION: ConfigKey<Option<String>> = optional(
    "encryption",
    SettingKind::Text {
        accepts: |text| S3Encryption::NAMES.contains(&text),
        expected: "\"AES256\", \"aws:kms\" or \"aws:kms:dsse\"",
    },
    "that of the bucket",
)
.doc("The encryption of objects. Ours.");

const KMS_KEY_ID: ConfigKey<Option<String>> =
    optional("kms_key_id", TEXT, "AWS's own key").doc("The key of `aws:kms` and `aws:kms:dsse`. Ours.");

const BUCKET: SettingKind = SettingKind::Text {
    accepts: |text| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !"/:?#".contains(c)),
    expected: "a bucket's name, without s3:// and without slashes",
};

/// A part of the beginning of names. The whole beginning is checked with its destination.
pub(super) const PREFIX: SettingKind = SettingKind::Text {
    accepts: |text| !text.contains('\0') && text.split('/').all(|part| !matches!(part, "." | "..")),
    expected: "the beginning of names, such as users/, in which no part is . or ..",
};

/// Reads `encryption`, and the `kms_key_id` that belongs to it.
fn read_encryption(fields: &BlockFields, reader: &mut ConfigReader) -> Option<S3Encryption> {
    let (name, key) = (ENCRYPTION.read(fields, reader), KMS_KEY_ID.read(fields, reader));
    if key.is_some() && name.as_deref().is_none_or(|name| name == S3Encryption::Store.name()) {
        let message = "names a key, which only encryption = \"aws:kms\" or \"aws:kms:dsse\" uses";
        reader.report(fields, KMS_KEY_ID.name(), message);
    }
    let [store, kms, _] = S3Encryption::NAMES;
    name.map(|name| match name {
        name if name == store => S3Encryption::Store,
        name if name == kms => S3Encryption::Kms(key),
        _ => S3Encryption::KmsTwice(key),
    })
}

fn write_encryption(encryption: Option<&S3Encryption>, out: &mut HoconBlock) {
    ENCRYPTION.write(&encryption.map(|encryption| encryption.name().to_owned()), out);
    KMS_KEY_ID.write(&encryption.and_then(S3Encryption::key_id).map(str::to_owned), out);
}

impl DestinationConfig {
    fn check(&mut self, fields: &BlockFields, reader: &mut ConfigReader) {
        match self {
            DestinationConfig::Local { .. } => {}
            DestinationConfig::S3(_) => check_built_with_aws(fields, reader),
        }
    }

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
    ///
    /// # Errors
    /// If the names of the archive could lead out of the destination.
    pub(super) fn manifest_address(&self, key_prefix: &str) -> Result<Option<ManifestAddress>, InvalidKeyPrefix> {
        match self {
            DestinationConfig::Local { path } if path.as_os_str().is_empty() => Ok(None),
            DestinationConfig::Local { path } => {
                // The writer's own destination knows the place.
                let uri = FolderDestination::with_prefix(path, key_prefix)?.uri(MANIFEST_NAME);
                let path = Path::new(uri.strip_prefix("file://").unwrap_or(&uri));
                let manifest = plain(path).display().to_string();
                Ok(Some(ManifestAddress { endpoint: None, manifest }))
            }
            DestinationConfig::S3(s3) if s3.bucket.is_empty() => Ok(None),
            DestinationConfig::S3(s3) => {
                let prefix = format!("{}{key_prefix}", s3.prefix);
                check_key_prefix(&prefix)?;
                let endpoint = s3.aws.endpoint.as_ref().map(|endpoint| endpoint.trim_end_matches('/').to_owned());
                Ok(Some(ManifestAddress { endpoint, manifest: format!("s3://{}/{prefix}{MANIFEST_NAME}", s3.bucket) }))
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
