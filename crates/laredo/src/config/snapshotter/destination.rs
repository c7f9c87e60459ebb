//! Destinations: the places where a table's archive is written.

use std::path::PathBuf;

use laredo_archive::Encryption;

use super::super::diagnostics::Problem;
use super::super::fields::{Fields, Variant};
use super::super::schema::{Block, Key, Kind, TEXT, Tagged};
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
    pub encryption: Option<Encryption>,
    /// The connection to the store.
    pub aws: AwsConfig,
}

/// The schema of `destinations`.
pub(super) const DESTINATIONS: Kind = Kind::List(&Kind::Tagged(&Tagged {
    tag: "type",
    what: "destination type",
    variants: &[(&["local"], &LOCAL), (&["s3"], &S3)],
}));

static LOCAL: Block = Block { keys: &[Key::required("type", TEXT), Key::required("path", TEXT)] };

static S3: Block = Block {
    keys: &[
        Key::required("type", TEXT),
        Key::required("bucket", BUCKET),
        Key::new("prefix", PREFIX),
        aws::REGION,
        aws::ENDPOINT,
        Key::new("force_path_style", Kind::Flag),
        Key::new("encryption", ENCRYPTION),
        Key::new("kms_key_id", TEXT),
        aws::PROFILE,
    ],
};

const ENCRYPTION: Kind = Kind::Text {
    accepts: |text| Encryption::NAMES.contains(&text),
    expected: "\"AES256\", \"aws:kms\" or \"aws:kms:dsse\"",
};

const BUCKET: Kind = Kind::Text {
    accepts: |text| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() && !"/:?#".contains(c)),
    expected: "a bucket's name, without s3:// and without slashes",
};

/// The beginning of names. It cannot lead out of the destination, because no part may be `.` or
/// `..`.
pub(super) const PREFIX: Kind = Kind::Text {
    accepts: |text| !text.contains('\0') && text.split('/').all(|part| !matches!(part, "." | "..")),
    expected: "the beginning of names, such as users/, in which no part is . or ..",
};

/// Reads `encryption`, and the `kms_key_id` that belongs to it.
fn read_encryption(fields: &Fields, problems: &mut Vec<Problem>) -> Option<Encryption> {
    let (name, key) = (fields.text("encryption"), fields.text("kms_key_id"));
    if key.is_some() && name.as_deref().is_none_or(|name| name == Encryption::Store.name()) {
        let message = "names a key, which only encryption = \"aws:kms\" or \"aws:kms:dsse\" uses";
        problems.push(Problem::new(fields.place_of("kms_key_id"), &fields.path.key("kms_key_id"), message));
    }
    let [store, kms, _] = Encryption::NAMES;
    name.map(|name| match name {
        name if name == store => Encryption::Store,
        name if name == kms => Encryption::Kms(key),
        _ => Encryption::KmsTwice(key),
    })
}

impl DestinationConfig {
    pub(super) fn read_all(table: &Fields, profiles: &[&str], problems: &mut Vec<Problem>) -> Vec<DestinationConfig> {
        if table.has("destinations") && table.item_count("destinations") == 0 {
            let message = "there is no destination; name at least one to write to";
            problems.push(Problem::new(table.place_of("destinations"), &table.path.key("destinations"), message));
        }
        let destinations = table.variants("destinations");
        destinations.iter().map(|destination| Self::read(destination, profiles, problems)).collect()
    }

    fn read(destination: &Variant, profiles: &[&str], problems: &mut Vec<Problem>) -> DestinationConfig {
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

    pub(super) fn write(&self, out: &mut write::Block) {
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
