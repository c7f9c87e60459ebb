//! Destinations: the places where a table's archive is written.

use std::path::PathBuf;

use laredo_archive::S3Encryption;

use super::super::declaration::{
    ConfigKey, config_block, config_field, config_variants, flat, group, key, optional, required,
};
use super::super::fields::BlockFields;
use super::super::reader::ConfigReader;
use super::super::schema::{SettingKind, TEXT};
use super::super::write::HoconBlock;
use super::aws::AwsConfig;

config_variants! {
    /// A place for archives. The table's `key_prefix` is appended to it.
    pub enum DestinationConfig("destination type") {
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

/// The beginning of names. It cannot lead out of the destination, because no part may be `.` or
/// `..`.
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
