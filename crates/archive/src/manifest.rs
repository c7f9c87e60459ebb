//! The manifest: which artifacts there are, and which state their newest chain rebuilds.

mod columns;
mod histories;
mod marks;
mod rules;
mod sealed;
mod spelling;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::SystemTime;

use laredo_core::{Checksum, DefinitionVersion, Lsn, Schema};
use serde::{Deserialize, Deserializer, Serialize};

use crate::format::Format;
use crate::layout::spelled_name;

pub use columns::ColumnEntry;
use columns::SchemaEntry;
pub(crate) use columns::untyped;
pub(crate) use histories::Unlocated;
pub use histories::{ArchivedHistory, EpochHistory};
pub use marks::PositionMark;
pub use rules::Broken;
pub use sealed::SealedLink;
pub(crate) use sealed::SealedManifest;
use spelling::Spelling;

/// The only version there is.
pub const MANIFEST_VERSION: u32 = 1;

/// The index of a table's archive. Its key names are a contract with programs of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub manifest_version: u32,
    /// `schema.table`.
    pub table: String,
    /// The newest snapshot's epoch.
    pub epoch: u64,
    /// When it was written: RFC 3339, UTC.
    pub updated_at: String,
    /// The state that the newest chain rebuilds.
    #[serde(with = "position")]
    pub head_position: Option<Lsn>,
    /// Oldest first.
    #[serde(deserialize_with = "null_as_empty")]
    pub artifacts: Vec<Artifact>,
    /// The schema at head, as existing readers know it. Other writers may leave it out.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub columns: Vec<ColumnEntry>,
    /// Ours: the writer that holds the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<WriterId>,
    /// Ours: which database's WAL the positions are of; nothing where the writer was not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceId>,
    /// Ours: the definition that the rows at head are of; nothing where the writer was not told. The next writer resumes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<DefinitionVersion>,
    /// Ours: the newest sealed manifest, which names the epochs before those of `artifacts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<SealedLink>,
    /// Ours: the oldest epoch that the archive keeps, where sealed manifests name older ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_epoch: Option<u64>,
}

/// Who writes an archive. Of two the one with the higher number holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterId {
    /// Tells writers apart, for people.
    pub id: String,
    /// The fencing number: each writer that starts takes the next one.
    pub fence: u64,
}

/// A database and its history: positions of different ones cannot be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceId {
    /// PostgreSQL's `system_identifier`.
    pub system_identifier: String,
    /// The database's name.
    pub database: String,
    /// The timeline that its WAL is on.
    pub timeline: u32,
    /// Where earlier timelines were left, oldest first.
    pub history: Vec<TimelineSwitch>,
}

/// Where a timeline was left for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: u32,
    /// Where.
    #[serde(with = "exactly")]
    pub position: Lsn,
}

/// A snapshot or a diff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// What it is.
    pub kind: Kind,
    /// The epoch that it belongs to.
    pub epoch: u64,
    /// Where a diff begins; nothing for a snapshot.
    #[serde(default, with = "position")]
    pub from_position: Option<Lsn>,
    /// The state that it leads to. Archives of other writers may lack it.
    #[serde(default, with = "position")]
    pub to_position: Option<Lsn>,
    /// When it was written: RFC 3339, UTC.
    pub created_at: String,
    /// Rows of a snapshot.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub row_count: u64,
    /// Changes of a diff.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub change_count: u64,
    /// Ours: the checksum of the table's contents at `to_position`; nothing from writers that do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "checksum")]
    pub checksum: Option<Checksum>,
    /// Ours: the newest commit at or before `to_position`; nothing where the writer did not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<PositionMark>,
    /// Ours, of a snapshot: the history of the database that the positions of its epoch are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Box<EpochHistory>>,
    /// The objects that hold it, by the id of their format.
    pub formats: BTreeMap<String, Stored>,
    /// Ours, of a snapshot: the schema of its epoch with all its types, from which values are read back exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema: Option<Box<SchemaEntry>>,
    #[serde(skip)]
    spelling: Spelling,
}

/// What an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All rows at a position.
    Snapshot,
    /// What changed between two positions.
    Diff,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Where it is.
    pub uri: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Ours: the SHA-256 of its bytes, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON, or lacks a key.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version may mean another thing by the same words.
    #[error("the manifest is of version {0}, and this laredo knows version {MANIFEST_VERSION}; use a newer one")]
    Version(u64),
    /// Another table's archive.
    #[error("the manifest is of table {found}, not of {expected}; check the prefix")]
    Table {
        /// The table that it is of.
        found: String,
        /// The table that was asked for.
        expected: String,
    },
    /// It breaks a rule that every manifest keeps.
    #[error("the manifest breaks a rule: {0}")]
    Broken(#[from] Broken),
}

impl Manifest {
    /// The manifest of an archive in which there is nothing yet.
    #[must_use]
    pub fn empty(table: &str, updated_at: &str) -> Manifest {
        Manifest {
            manifest_version: MANIFEST_VERSION,
            table: table.to_owned(),
            epoch: 0,
            updated_at: updated_at.to_owned(),
            head_position: None,
            artifacts: Vec::new(),
            columns: Vec::new(),
            writer: None,
            source: None,
            definition: None,
            sealed: None,
            oldest_epoch: None,
        }
    }

    /// Reads a manifest, of `table` if one is given, and checks its rules.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8], table: Option<&str>) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            manifest_version: u64,
        }
        let Version { manifest_version } = serde_json::from_slice(bytes)?;
        if manifest_version != u64::from(MANIFEST_VERSION) {
            return Err(ManifestError::Version(manifest_version));
        }
        let mut manifest: Manifest = serde_json::from_slice(bytes)?;
        spelling::note(&mut manifest.artifacts, bytes)?;
        if let Some(expected) = table.filter(|expected| **expected != manifest.table) {
            return Err(ManifestError::Table { found: manifest.table, expected: expected.to_owned() });
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest's text.
    ///
    /// # Errors
    /// When it breaks a rule: such a one is never written.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        if !self.has_other_spellings() {
            return Ok(serde_json::to_vec_pretty(self)?);
        }
        let mut json = serde_json::to_value(self)?;
        spelling::restore(&self.artifacts, &mut json);
        // The head is the last artifact's end.
        if let Some(spelled) = self.artifacts.last().and_then(Artifact::other_end) {
            json["head_position"] = spelled.into();
        }
        Ok(serde_json::to_vec_pretty(&json)?)
    }

    /// The next manifest: a new base, which opens the next epoch.
    ///
    /// # Errors
    /// When it would break a rule.
    pub fn with_snapshot(&self, mut snapshot: Artifact, schema: &Schema) -> Result<Manifest, ManifestError> {
        let mut next = self.clone();
        next.epoch = snapshot.epoch;
        next.columns = columns::entries(schema);
        snapshot.schema = Some(Box::new(SchemaEntry::of(schema)));
        next.append(snapshot)
    }

    /// The next manifest: a diff behind the newest artifact.
    ///
    /// # Errors
    /// When it would break a rule.
    pub fn with_diff(&self, diff: Artifact) -> Result<Manifest, ManifestError> {
        self.clone().append(diff)
    }

    /// The next manifest: with so many epochs at most, the newest.
    #[must_use]
    pub fn keeping_epochs(mut self, count: usize) -> Manifest {
        let begin = self.openings().into_iter().rev().nth(count.saturating_sub(1));
        self.artifacts.drain(..begin.unwrap_or(0));
        self
    }

    fn append(mut self, artifact: Artifact) -> Result<Manifest, ManifestError> {
        self.head_position = artifact.to_position;
        self.updated_at.clone_from(&artifact.created_at);
        self.artifacts.push(artifact);
        self.check()?;
        Ok(self)
    }

    /// The schema of an epoch; nothing where the manifest does not say the columns. In an archive
    /// of another writer only the columns at head are known, and they stand for all epochs: rows
    /// that do not fit them are refused one by one. `key` names the key's columns where the
    /// manifest does not.
    ///
    /// # Errors
    /// When the columns are not those of a table, or `key` contradicts them.
    pub fn schema(&self, epoch: u64, key: &[String]) -> Result<Option<Schema>, Broken> {
        let opening = self.artifacts.iter().find(|artifact| artifact.epoch == epoch && artifact.kind == Kind::Snapshot);
        let schema = match opening.and_then(|opening| opening.schema.as_deref()) {
            Some(schema) => schema.to_schema()?,
            None if self.columns.is_empty() => return Ok(None),
            None => columns::schema_of(&self.columns, key)?,
        };
        columns::check_key(&schema, key)?;
        Ok(Some(schema))
    }

    /// The same manifest as it stands at another destination.
    #[must_use]
    pub fn located(&self, uri: impl Fn(&str) -> String) -> Manifest {
        let mut here = self.clone();
        here.artifacts.iter_mut().for_each(|artifact| artifact.locate(&uri));
        here.sealed.iter_mut().for_each(|link| link.locate(&uri));
        here
    }

    /// The newest snapshot and the diffs after it.
    #[must_use]
    pub fn chain(&self) -> &[Artifact] {
        self.artifacts.len().checked_sub(1).map_or(&[], |newest| self.chain_to(newest))
    }

    /// The artifacts that lead to the end of one of them.
    pub(crate) fn chain_to(&self, last: usize) -> &[Artifact] {
        let until = self.artifacts.get(..=last).unwrap_or_default();
        let begin = until.iter().rposition(|artifact| artifact.kind == Kind::Snapshot).unwrap_or(until.len());
        until.get(begin..).unwrap_or_default()
    }
}

impl Artifact {
    /// An artifact without objects.
    #[must_use]
    pub fn new(kind: Kind, epoch: u64, from: Option<Lsn>, to: Lsn, created_at: &str) -> Artifact {
        Artifact {
            kind,
            epoch,
            from_position: from,
            to_position: Some(to),
            created_at: created_at.to_owned(),
            row_count: 0,
            change_count: 0,
            checksum: None,
            mark: None,
            history: None,
            formats: BTreeMap::new(),
            schema: None,
            spelling: Spelling::default(),
        }
    }

    /// The name of its object in a format that it is in. It follows from the positions; where another writer left them out, the end of the
    /// address has it.
    #[must_use]
    pub fn object(&self, format: Format) -> Option<String> {
        let stored = self.formats.get(format.id())?;
        let from = self.spelled_from();
        let named = self.to_spelled().and_then(|to| spelled_name(self.kind, self.epoch, from.as_deref(), &to, format));
        named.or_else(|| {
            let begin = stored.uri.rfind("epoch=")?;
            stored.uri.get(begin..).filter(|name| is_inside(name)).map(ToOwned::to_owned)
        })
    }

    /// Gives its objects the addresses that they have at a destination.
    fn locate(&mut self, uri: &impl Fn(&str) -> String) {
        let named: Vec<(String, String)> =
            self.known_formats().filter_map(|format| Some((format.id().to_owned(), self.object(format)?))).collect();
        for (id, object) in named {
            self.formats.entry(id).and_modify(|stored| stored.uri = uri(&object));
        }
    }

    /// When it was written, if that is a time.
    #[must_use]
    pub fn written_at(&self) -> Option<SystemTime> {
        let at: prost_types::Timestamp = self.created_at.parse().ok()?;
        at.try_into().ok()
    }

    /// The formats of ours that it is in.
    pub fn known_formats(&self) -> impl Iterator<Item = Format> {
        self.formats.keys().filter_map(|id| id.parse().ok())
    }
}

/// Whether a name that somebody wrote down is one of an epoch's: it must not lead out of the archive.
fn is_inside(name: &str) -> bool {
    let is_artifact = |file: &str| file.starts_with("snapshot-") || file.starts_with("diff-");
    matches!(name.split_once('/'), Some((_, file)) if !file.contains(['/', '\\']) && is_artifact(file))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A list, which other writers spell `null` where it is empty.
fn null_as_empty<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A position that is always there.
mod exactly {
    use laredo_core::Lsn;
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(position: &Lsn, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(position)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Lsn, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Checksums as 32 hexadecimal digits.
mod checksum {
    use laredo_core::Checksum;
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::{Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(checksum: &Option<Checksum>, to: S) -> Result<S::Ok, S::Error> {
        checksum.map(|checksum| checksum.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Checksum>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(|error| D::Error::custom(format!("{text}: {error}")))).transpose()
    }
}

/// Positions as PostgreSQL writes them; `null` and the empty text are none.
mod position {
    use laredo_core::Lsn;
    use serde::de::{Deserialize as _, Deserializer, Error as _};
    use serde::ser::{Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(position: &Option<Lsn>, to: S) -> Result<S::Ok, S::Error> {
        position.map(|position| position.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Lsn>, D::Error> {
        let text = Option::<String>::deserialize(from)?.filter(|text| !text.is_empty());
        text.map(|text| text.parse().map_err(|error| D::Error::custom(format!("{text}: {error}")))).transpose()
    }
}
