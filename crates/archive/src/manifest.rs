//! The manifest: the artifacts of an archive, and the state that their newest chain rebuilds.

mod columns;
mod histories;
mod marks;
mod rules;
mod sealed;
mod spelling;
#[cfg(all(test, feature = "writer"))]
mod tests;

use std::collections::BTreeMap;
use std::time::SystemTime;

use laredo_core::{Checksum, DefinitionVersion, Lsn, Schema, ScopedMark, SourceIdentity};
use serde::{Deserialize, Deserializer, Serialize};

use crate::layout::{ArtifactFormat, ArtifactKind, artifact_name};

pub use columns::ColumnEntry;
use columns::SchemaEntry;
pub(crate) use columns::untyped;
pub(crate) use histories::LocateError;
pub use histories::{ArchivedHistory, EpochHistory};
#[cfg(feature = "writer")]
pub(crate) use rules::next_number;
pub use rules::{MANIFEST_NUMBER_MAX, ManifestViolation};
pub use sealed::SealedLink;
pub(crate) use sealed::SealedManifest;
use spelling::PositionSpelling;

/// The maximum number of artifacts of older epochs that `manifest.json` names, in addition to the
/// limit on epochs.
#[cfg(feature = "writer")]
const OLDER_ARTIFACTS_MAX: usize = 128;
/// The only manifest version so far.
pub const MANIFEST_VERSION: u32 = 1;

/// The index of a table's archive. Its JSON keys are a contract with other programs. Fields marked
/// "laredo only" are not known to other writers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the manifest; always [`MANIFEST_VERSION`].
    pub manifest_version: u32,
    /// `schema.table`.
    pub table: String,
    /// The newest snapshot's epoch.
    pub epoch: u64,
    /// The time when the newest artifact was added, or when the manifest was created: RFC 3339,
    /// UTC.
    pub updated_at: String,
    /// The position of the state that the newest chain rebuilds.
    #[serde(with = "position")]
    pub head_position: Option<Lsn>,
    /// The artifacts, oldest first.
    #[serde(deserialize_with = "null_as_empty")]
    pub artifacts: Vec<Artifact>,
    /// The columns at head, in the form that existing readers know. Other writers may leave them
    /// out.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub columns: Vec<ColumnEntry>,
    /// The writer that holds the archive (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<WriterId>,
    /// The database and history that the positions belong to; `None` if the writer does not know
    /// them (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceIdentity>,
    /// The definition version of the rows at head, with which the next writer resumes; `None` if
    /// the writer does not know it (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<DefinitionVersion>,
    /// The newest sealed manifest, which names the epochs before those of `artifacts` (laredo
    /// only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<SealedLink>,
    /// The oldest epoch that the archive keeps, if sealed manifests name older ones (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_epoch: Option<u64>,
}

/// The identity of a writer. Of two writers, the one with the higher number holds the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterId {
    /// The name of this run of the writer, by which people tell writers apart.
    pub id: String,
    /// The fencing number. Each writer that starts takes the next one.
    pub fence: u64,
}

/// A snapshot or a diff. Fields marked "laredo only" are not known to other writers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// The kind of the artifact.
    pub kind: ArtifactKind,
    /// The epoch that the artifact belongs to.
    pub epoch: u64,
    /// The position where a diff begins; `None` for a snapshot.
    #[serde(default, with = "position")]
    pub from_position: Option<Lsn>,
    /// The position of the state that the artifact leads to. Archives of other writers may lack it.
    #[serde(default, with = "position")]
    pub to_position: Option<Lsn>,
    /// The time when the artifact was written: RFC 3339, UTC.
    pub created_at: String,
    /// The number of rows of a snapshot; 0 for a diff. Other writers may leave it out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub row_count: u64,
    /// The number of changes of a diff; 0 for a snapshot. Other writers may leave it out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub change_count: u64,
    /// The checksum of the table's rows at `to_position`; `None` from writers that do not know it
    /// (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "checksum")]
    pub checksum: Option<Checksum>,
    /// The newest commit at or before `to_position`; `None` if the writer did not know it (laredo
    /// only).
    #[serde(default, skip_serializing_if = "Option::is_none", with = "marks")]
    pub mark: Option<ScopedMark>,
    /// The history that the positions of a snapshot's epoch belong to (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Box<EpochHistory>>,
    /// The objects with the artifact's contents, by the ID of their format.
    pub formats: BTreeMap<String, ArtifactObject>,
    /// The schema of a snapshot's epoch with all its types, which allow reading values back exactly
    /// (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema: Option<Box<SchemaEntry>>,
    #[serde(skip)]
    spelling: PositionSpelling,
}

/// An object at a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactObject {
    /// The object's address.
    pub uri: String,
    /// The object's size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of the object's bytes, in hex (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The size of the object's contents in bytes, uncompressed (laredo only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked_bytes: Option<u64>,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The manifest is not JSON, or lacks a key.
    #[error("the manifest cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// The manifest has another version, in which the same keys may mean something else.
    #[error("the manifest is of version {0}, and this laredo knows version {MANIFEST_VERSION}; use a newer one")]
    Version(u64),
    /// The manifest is of another table.
    #[error("the manifest is of table {found}, not of {expected}; check the prefix")]
    Table {
        /// The table of the manifest.
        found: String,
        /// The expected table.
        expected: String,
    },
    /// The manifest breaks a rule that every manifest keeps.
    #[error("the manifest breaks a rule: {0}")]
    Broken(#[from] ManifestViolation),
}

impl Manifest {
    /// Returns the manifest of an archive without artifacts.
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

    /// Parses a manifest and checks its rules. If `table` is given, the manifest must be of that
    /// table.
    ///
    /// # Errors
    /// [`ManifestError`] if it cannot be used.
    pub fn parse(bytes: &[u8], table: Option<&str>) -> Result<Manifest, ManifestError> {
        #[derive(Deserialize)]
        struct ManifestVersion {
            manifest_version: u64,
        }
        let ManifestVersion { manifest_version } = serde_json::from_slice(bytes)?;
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

    /// Returns the manifest's text.
    ///
    /// # Errors
    /// If the manifest breaks a rule. Such a manifest is never written.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        self.check()?;
        if !self.has_other_spellings() {
            return Ok(serde_json::to_vec_pretty(self)?);
        }
        let mut json = serde_json::to_value(self)?;
        spelling::restore(&self.artifacts, &mut json);
        // The head is the end of the last artifact.
        if let Some(spelled) = self.artifacts.last().and_then(|last| last.spelling.other_end()) {
            json["head_position"] = spelled.into();
        }
        Ok(serde_json::to_vec_pretty(&json)?)
    }

    /// Returns the schema of an epoch, or `None` if the manifest has no columns. An archive of
    /// another writer has only the columns at head, which then apply to all epochs. Rows that do
    /// not fit them are refused one by one. `key` names the key's columns in case the manifest does
    /// not.
    ///
    /// # Errors
    /// If the columns are not those of a table, or if `key` contradicts them.
    pub fn schema(&self, epoch: u64, key: &[String]) -> Result<Option<Schema>, ManifestViolation> {
        let opening =
            self.artifacts.iter().find(|artifact| artifact.epoch == epoch && artifact.kind == ArtifactKind::Snapshot);
        let schema = match opening.and_then(|opening| opening.schema.as_deref()) {
            Some(schema) => schema.to_schema()?,
            None if self.columns.is_empty() => return Ok(None),
            None => columns::schema_of(&self.columns, key)?,
        };
        columns::check_key(&schema, key)?;
        Ok(Some(schema))
    }

    /// Returns the same manifest with the addresses of another destination. `uri` converts an
    /// object's name to its address.
    #[must_use]
    pub fn located(&self, uri: impl Fn(&str) -> String) -> Manifest {
        let mut here = self.clone();
        here.artifacts.iter_mut().for_each(|artifact| artifact.locate(&uri));
        here.sealed.iter_mut().for_each(|link| link.locate(&uri));
        here
    }

    /// Checks that the manifest keeps all rules.
    ///
    /// # Errors
    /// The first rule that the manifest breaks.
    pub fn check(&self) -> Result<(), ManifestViolation> {
        rules::check_number("epoch", self.epoch)?;
        rules::check_number("oldest_epoch", self.oldest_epoch.unwrap_or(0))?;
        rules::check_number("writer's fence", self.writer.as_ref().map_or(0, |writer| writer.fence))?;
        self.sealed.as_ref().map_or(Ok(()), SealedLink::check)?;
        let mut before: Option<&Artifact> = None;
        for artifact in &self.artifacts {
            rules::check_order(before, artifact)?;
            before = Some(artifact);
        }
        match before {
            None if self.head_position.is_some() => Err(ManifestViolation::Head("head_position")),
            Some(last) if last.to_position != self.head_position => Err(ManifestViolation::Head("head_position")),
            Some(last) if last.epoch != self.epoch => Err(ManifestViolation::Head("epoch")),
            _ => Ok(()),
        }
    }

    /// Returns the manifest as it would be if nothing had been sealed.
    pub(crate) fn unsealed(mut self, sealed: Vec<Artifact>) -> Manifest {
        let oldest = self.oldest_epoch.take().unwrap_or(0);
        let named = std::mem::take(&mut self.artifacts);
        self.artifacts = sealed.into_iter().filter(|artifact| artifact.epoch >= oldest).chain(named).collect();
        self.sealed = None;
        self
    }

    fn has_other_spellings(&self) -> bool {
        self.artifacts.iter().any(|artifact| !artifact.spelling.is_usual())
    }

    /// Returns the newest snapshot and the diffs after it.
    #[must_use]
    pub fn chain(&self) -> &[Artifact] {
        self.artifacts.len().checked_sub(1).map_or(&[], |newest| self.chain_to(newest))
    }

    /// Returns the artifacts that lead to the end of the artifact at index `last`.
    pub(crate) fn chain_to(&self, last: usize) -> &[Artifact] {
        let until = self.artifacts.get(..=last).unwrap_or_default();
        let begin = until.iter().rposition(|artifact| artifact.kind == ArtifactKind::Snapshot).unwrap_or(until.len());
        until.get(begin..).unwrap_or_default()
    }
}

#[cfg(feature = "writer")]
impl Manifest {
    /// Returns the next manifest with a new snapshot, which opens the next epoch.
    ///
    /// # Errors
    /// If the next manifest would break a rule.
    pub fn with_snapshot(&self, mut snapshot: Artifact, schema: &Schema) -> Result<Manifest, ManifestError> {
        let mut next = self.clone();
        next.epoch = snapshot.epoch;
        next.columns = columns::entries(schema);
        snapshot.schema = Some(Box::new(SchemaEntry::of(schema)));
        next.append(snapshot)
    }

    /// Returns the next manifest with a diff after the newest artifact.
    ///
    /// # Errors
    /// If the next manifest would break a rule.
    pub fn with_diff(&self, diff: Artifact) -> Result<Manifest, ManifestError> {
        self.clone().append(diff)
    }

    /// Returns the manifest with only the newest `count` epochs, but at least one.
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

    /// Returns the number of artifacts, from the oldest on, that should move into a sealed
    /// manifest. The newest epoch always stays, and so do the newest older ones, up to `epochs` in
    /// total.
    pub(crate) fn surplus(&self, epochs: usize) -> usize {
        let openings = self.openings();
        let Some(newest) = openings.last() else { return 0 };
        let stay = openings.iter().rev().take(epochs.max(1));
        stay.take_while(|begin| newest - **begin <= OLDER_ARTIFACTS_MAX).last().copied().unwrap_or(*newest)
    }

    /// Removes the oldest `count` artifacts and returns them. Both parts then state their
    /// histories, so that each part keeps its meaning without the other.
    pub(crate) fn take_oldest(&mut self, count: usize) -> Vec<Artifact> {
        for history in self.histories() {
            for artifact in self.artifacts.get_mut(history.artifacts.clone()).into_iter().flatten() {
                if artifact.kind == ArtifactKind::Snapshot && artifact.history.is_none() {
                    let said = EpochHistory { id: history.id, shared_until: None, source: None };
                    artifact.history = Some(Box::new(said));
                }
            }
        }
        let stay = self.artifacts.split_off(count.min(self.artifacts.len()));
        std::mem::replace(&mut self.artifacts, stay)
    }

    /// Returns the indexes of the artifacts that open epochs.
    pub(crate) fn openings(&self) -> Vec<usize> {
        let artifacts = self.artifacts.iter().enumerate();
        artifacts.filter(|(_, artifact)| artifact.kind == ArtifactKind::Snapshot).map(|(place, _)| place).collect()
    }

    /// Returns the SHA-256 of the newest sealed manifest, if there is one.
    pub(crate) fn sealed_sha256(&self) -> Option<&str> {
        self.sealed.as_ref().map(|link| link.sha256.as_str())
    }
}

impl Artifact {
    /// Creates an artifact without objects.
    #[must_use]
    pub fn new(kind: ArtifactKind, epoch: u64, from: Option<Lsn>, to: Lsn, created_at: &str) -> Artifact {
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
            spelling: PositionSpelling::default(),
        }
    }

    /// Returns the name of the artifact's object in a format, or `None` if it is not in that
    /// format. The name follows from the positions. If another writer left them out, it is the end
    /// of the address.
    #[must_use]
    pub fn object(&self, format: ArtifactFormat) -> Option<String> {
        let stored = self.formats.get(format.id())?;
        let from = self.spelling.spell_from(self.from_position);
        let to = self.spelling.spell_to(self.to_position);
        let named = to.and_then(|to| artifact_name(self.kind, self.epoch, from.as_deref(), &to, format));
        named.or_else(|| {
            let begin = stored.uri.rfind("epoch=")?;
            stored.uri.get(begin..).filter(|name| is_inside(name)).map(ToOwned::to_owned)
        })
    }

    /// Sets the addresses of the artifact's objects at a destination.
    fn locate(&mut self, uri: &impl Fn(&str) -> String) {
        let named: Vec<(String, String)> =
            self.known_formats().filter_map(|format| Some((format.id().to_owned(), self.object(format)?))).collect();
        for (id, object) in named {
            self.formats.entry(id).and_modify(|stored| stored.uri = uri(&object));
        }
    }

    /// Returns the time when the artifact was written, or `None` if `created_at` is not a valid
    /// time.
    #[must_use]
    pub fn written_at(&self) -> Option<SystemTime> {
        let at: prost_types::Timestamp = self.created_at.parse().ok()?;
        at.try_into().ok()
    }

    /// Returns the artifact's formats that laredo knows.
    pub fn known_formats(&self) -> impl Iterator<Item = ArtifactFormat> {
        self.formats.keys().filter_map(|id| id.parse().ok())
    }
}

/// Returns true if a name from a manifest is that of an artifact's object in an epoch. Other names
/// could lead out of the archive.
fn is_inside(name: &str) -> bool {
    let is_artifact = |file: &str| file.starts_with("snapshot-") || file.starts_with("diff-");
    matches!(name.split_once('/'), Some((_, file)) if !file.contains(['/', '\\']) && is_artifact(file))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Deserializes a list. Other writers may write an empty list as `null`.
fn null_as_empty<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Checksums, serialized as 32 hexadecimal digits.
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

/// Optional positions, serialized as PostgreSQL writes them. `null` and the empty string are
/// `None`.
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
