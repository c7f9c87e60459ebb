//! The kinds and formats of an archive's artifacts, and the names of its objects, relative to its
//! prefix.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The manifest's name.
pub const MANIFEST_NAME: &str = "manifest.json";

/// The maximum number of a table's columns in PostgreSQL.
pub(crate) const COLUMNS_MAX: usize = 1600;

/// The maximum size of a manifest in bytes, for some 500,000 artifacts. A larger one is not read.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// The kind of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactKind {
    /// All rows at a position.
    Snapshot,
    /// The net changes between two positions.
    Diff,
}

/// The format of an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactFormat {
    encoding: EntryEncoding,
    is_packed: bool,
}

/// The encoding of an artifact's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum EntryEncoding {
    Jsonl,
    Protobuf,
}

/// An error for the ID of an unknown format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no format `{0}`; use jsonl, jsonl.zst, protobuf or protobuf.zst")]
pub struct UnknownFormat(pub String);

impl ArtifactFormat {
    /// All formats.
    pub const ALL: [ArtifactFormat; 4] = [
        ArtifactFormat { encoding: EntryEncoding::Jsonl, is_packed: false },
        ArtifactFormat { encoding: EntryEncoding::Jsonl, is_packed: true },
        ArtifactFormat { encoding: EntryEncoding::Protobuf, is_packed: false },
        ArtifactFormat { encoding: EntryEncoding::Protobuf, is_packed: true },
    ];

    /// Uncompressed lines of JSON.
    pub const JSONL: ArtifactFormat = ArtifactFormat { encoding: EntryEncoding::Jsonl, is_packed: false };

    /// Returns the encoding of the entries.
    pub(crate) fn encoding(self) -> EntryEncoding {
        self.encoding
    }

    /// Returns true if the entries are compressed with zstd.
    pub(crate) fn is_packed(self) -> bool {
        self.is_packed
    }

    /// Returns the format's ID in manifests and configurations.
    #[must_use]
    pub fn id(self) -> &'static str {
        match (self.encoding, self.is_packed) {
            (EntryEncoding::Jsonl, false) => "jsonl",
            (EntryEncoding::Jsonl, true) => "jsonl.zst",
            (EntryEncoding::Protobuf, false) => "protobuf",
            (EntryEncoding::Protobuf, true) => "protobuf.zst",
        }
    }

    /// Returns the extension of objects' names, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match (self.encoding, self.is_packed) {
            (EntryEncoding::Jsonl, false) => "jsonl",
            (EntryEncoding::Jsonl, true) => "jsonl.zst",
            (EntryEncoding::Protobuf, false) => "pb",
            (EntryEncoding::Protobuf, true) => "pb.zst",
        }
    }
}

impl fmt::Display for ArtifactFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl FromStr for ArtifactFormat {
    type Err = UnknownFormat;

    fn from_str(id: &str) -> Result<ArtifactFormat, UnknownFormat> {
        ArtifactFormat::ALL.into_iter().find(|format| format.id() == id).ok_or_else(|| UnknownFormat(id.to_owned()))
    }
}

/// Returns an artifact's name, such as `epoch=1/snapshot-0_19F000.jsonl` or
/// `epoch=1/diff-0_19F000-0_1A2B3C.jsonl`. The positions are as a manifest spells them. Returns
/// `None` for a diff without `from`.
pub(crate) fn artifact_name(
    kind: ArtifactKind,
    epoch: u64,
    from: Option<&str>,
    to: &str,
    format: ArtifactFormat,
) -> Option<String> {
    let (to, extension) = (to.replace('/', "_"), format.extension());
    Some(match kind {
        ArtifactKind::Diff => format!("epoch={epoch}/diff-{}-{to}.{extension}", from?.replace('/', "_")),
        ArtifactKind::Snapshot => format!("epoch={epoch}/snapshot-{to}.{extension}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let (from, to) = ("0/19F000", "0/1A2B3C");
        let jsonl: ArtifactFormat = "jsonl".parse().unwrap();
        let packed: ArtifactFormat = "protobuf.zst".parse().unwrap();
        let name = |kind, epoch, from, to, format| artifact_name(kind, epoch, from, to, format).unwrap();
        assert_eq!(name(ArtifactKind::Snapshot, 1, None, from, jsonl), "epoch=1/snapshot-0_19F000.jsonl");
        assert_eq!(name(ArtifactKind::Diff, 1, Some(from), to, jsonl), "epoch=1/diff-0_19F000-0_1A2B3C.jsonl");
        assert_eq!(artifact_name(ArtifactKind::Diff, 1, None, to, jsonl), None);
        assert_eq!(name(ArtifactKind::Snapshot, 2, None, "16/B374D848", packed), "epoch=2/snapshot-16_B374D848.pb.zst");
    }
}
