//! The reader of an archive. It rebuilds the table as it was at a boundary, and reports damaged
//! objects.

mod apply;
mod checked_table;
mod columns;
mod object;
pub(crate) mod sealed;
mod verify;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use laredo_core::{Checksum, Lsn, Schema, ScopedMark, TableState};

use crate::destination::{DestinationError, DestinationReader};
use crate::format::FormatError;
use crate::layout::{ArtifactFormat, ArtifactKind, MANIFEST_NAME};
use crate::manifest::{Artifact, LocateError, Manifest, ManifestError, ManifestViolation, untyped};
use apply::{ArchivedDiff, fill};
use checked_table::CheckedTable;
use object::{ObjectEntries, read_object};

pub use object::ReadProgress;
pub use verify::ArtifactDamage;

/// An archive, as its manifest was when it was opened.
#[derive(Clone, Debug)]
pub struct Archive {
    destination: Arc<dyn DestinationReader>,
    manifest: Manifest,
    /// The key's columns, for a manifest that does not name them.
    key: Vec<String>,
}

/// The selection of one of an archive's states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchivePoint {
    /// The newest state.
    Latest,
    /// The newest state at or before a position.
    Position(Lsn),
    /// The newest state that was written at or before a time.
    Time(SystemTime),
}

/// A state that an archive has: the end of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveBoundary {
    /// The artifact's epoch.
    pub epoch: u64,
    /// The position of the state. Archives of other writers may lack that of a snapshot.
    pub position: Option<Lsn>,
    /// The time when the artifact was written: RFC 3339.
    pub created_at: String,
    /// The number of artifacts that lead to the state.
    pub artifacts: usize,
    /// The number of bytes that have to be read for the state.
    pub bytes: u64,
    /// The history that the position belongs to.
    pub history: u64,
    /// The newest commit at or before the position, if the archive names it.
    pub mark: Option<ScopedMark>,
}

/// A rebuilt table.
#[derive(Debug)]
pub struct RebuiltTable {
    /// The rows.
    pub table: TableState,
    /// The checksum of the rows as archives compute it.
    pub checksum: Checksum,
    /// The state that the rows are of.
    pub boundary: ArchiveBoundary,
}

/// An error that prevents reading an archive. Each variant names the object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveReadError {
    /// The manifest is missing.
    #[error("there is no archive: {at} does not exist")]
    NoManifest {
        /// The address where the manifest was expected.
        at: String,
    },
    /// The manifest cannot be used.
    #[error("{at}: {error}")]
    Manifest {
        /// The manifest's address.
        at: String,
        /// The error in the manifest.
        error: ManifestError,
    },
    /// The manifest names no artifact yet.
    #[error("{at} names no artifact yet")]
    Empty {
        /// The manifest's address.
        at: String,
    },
    /// The archive begins after the requested state.
    #[error("the archive has no state at or before {asked}; its oldest one is {oldest}")]
    TooEarly {
        /// The requested position or time.
        asked: String,
        /// The oldest boundary of the archive.
        oldest: String,
    },
    /// The requested state exists only in a history that is not known to be part of the newest
    /// history's past.
    #[error(
        "the newest state at or before {asked} is {found}, of history {history}; that is not known to be part of the past of history \
         {newest}, the newest one, which begins at {begin}. To read it all the same, name the history: {history}:{asked}"
    )]
    OtherHistory {
        /// The requested position or time.
        asked: String,
        /// The state of the other history.
        found: String,
        /// The number of the other history.
        history: u64,
        /// The number of the newest history.
        newest: u64,
        /// The first state of the newest history.
        begin: String,
    },
    /// The archive has no history of this number.
    #[error("{at} has no history {asked}; it has {known}")]
    NoHistory {
        /// The manifest's address.
        at: String,
        /// The requested number.
        asked: u64,
        /// The numbers of the histories that the archive has.
        known: String,
    },
    /// The manifest's entries about histories contradict each other.
    #[error("{at}: the history of epoch {epoch} is wrong: {reason}")]
    History {
        /// The manifest's address.
        at: String,
        /// The epoch with the contradiction.
        epoch: u64,
        /// The contradiction.
        reason: String,
    },
    /// The archive has no boundary exactly at the requested position.
    #[error("{asked} is not a boundary of the archive; the newest one before it is {before}")]
    NotExact {
        /// The requested position.
        asked: Lsn,
        /// The newest boundary before that position.
        before: String,
    },
    /// The destination cannot deliver an object.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// An object does not have the size that the manifest states.
    #[error(
        "{at} has {} bytes, and the manifest says {expected}",
        if found > expected { format!("more than {expected}") } else { found.to_string() }
    )]
    Size {
        /// The object's address.
        at: String,
        /// The size in bytes that the manifest states.
        expected: u64,
        /// The object's size in bytes, or a lower bound if the object is too long. A longer object
        /// is not read to its end.
        found: u64,
    },
    /// The contents of an object do not have the size that the manifest states.
    #[error("{at} has {found} bytes before compression, and the manifest says {expected}")]
    Unpacked {
        /// The object's address.
        at: String,
        /// The size in bytes that the manifest states.
        expected: u64,
        /// The size of the contents in bytes.
        found: u64,
    },
    /// An object does not have the bytes that were written.
    #[error("{at} was altered: its SHA-256 is not the manifest's")]
    Altered {
        /// The object's address.
        at: String,
    },
    /// An object cannot be parsed.
    #[error("{at}: {error}")]
    Entry {
        /// The object's address.
        at: String,
        /// The error in the object.
        error: Box<FormatError>,
    },
    /// An object does not have as many entries, or rows with different keys, as the manifest
    /// states.
    #[error("{at} has {found} entries of different keys, and the manifest says {expected}")]
    Count {
        /// The object's address.
        at: String,
        /// The number that the manifest states.
        expected: u64,
        /// The number that was found.
        found: u64,
    },
    /// The rows that an object leads to are not the rows that were there when it was written.
    #[error("{at}: the rows at its end have the checksum {found}, and the manifest says {expected}")]
    Contents {
        /// The object's address.
        at: String,
        /// The checksum that the manifest has.
        expected: Checksum,
        /// The checksum of the rows that were read.
        found: Checksum,
    },
    /// An object has other changes than the same artifact in another format.
    #[error("{at} has other changes than the same diff in its first format")]
    Formats {
        /// The object's address.
        at: String,
    },
    /// The artifact is in no format that laredo reads.
    #[error("the artifact that ends at {to} is in no format that this laredo reads")]
    Format {
        /// The position where the artifact ends.
        to: String,
    },
    /// The manifest has the address of an object that is not in an epoch of the archive.
    #[error("{at}: {uri} is not an object of an epoch of this archive")]
    Outside {
        /// The manifest's address.
        at: String,
        /// The address of the object.
        uri: String,
    },
    /// The manifest does not name the requested object.
    #[error("{at} names no object {object}")]
    NoObject {
        /// The manifest's address.
        at: String,
        /// The requested object.
        object: String,
    },
    /// The manifest's columns are invalid, or do not fit the key.
    #[error("{at}: {error}")]
    Columns {
        /// The manifest's address.
        at: String,
        /// The error in the columns.
        error: ManifestViolation,
    },
    /// The manifest names no columns, and the key is not known.
    #[error(
        "{at} does not name the table's columns; name those of its key, in its order: --key-fields COLUMN[,COLUMN…]"
    )]
    NoColumns {
        /// The manifest's address.
        at: String,
    },
    /// Reading was interrupted.
    #[error("reading {at} was interrupted: {reason}")]
    BrokenOff {
        /// The object's address.
        at: String,
        /// The reason for the interruption.
        reason: String,
    },
}

impl ArchiveReadError {
    /// Returns true if the archive itself is damaged, so that retrying, or asking for something
    /// else, does not help.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            ArchiveReadError::Destination(error) => matches!(error, DestinationError::Missing { .. }),
            ArchiveReadError::NoManifest { .. }
            | ArchiveReadError::Empty { .. }
            | ArchiveReadError::TooEarly { .. }
            | ArchiveReadError::NotExact { .. }
            | ArchiveReadError::OtherHistory { .. }
            | ArchiveReadError::NoHistory { .. }
            | ArchiveReadError::NoObject { .. }
            | ArchiveReadError::NoColumns { .. }
            | ArchiveReadError::BrokenOff { .. } => false,
            ArchiveReadError::Manifest { .. }
            | ArchiveReadError::History { .. }
            | ArchiveReadError::Size { .. }
            | ArchiveReadError::Unpacked { .. }
            | ArchiveReadError::Altered { .. }
            | ArchiveReadError::Entry { .. }
            | ArchiveReadError::Count { .. }
            | ArchiveReadError::Contents { .. }
            | ArchiveReadError::Formats { .. }
            | ArchiveReadError::Format { .. }
            | ArchiveReadError::Outside { .. }
            | ArchiveReadError::Columns { .. } => true,
        }
    }
}

impl Archive {
    /// Opens an archive with all epochs that it keeps. If `table` is given, the archive must be of
    /// that table.
    ///
    /// # Errors
    /// If the archive is missing, or if its manifest or a sealed manifest cannot be used.
    pub async fn open(
        destination: Arc<dyn DestinationReader>,
        table: Option<&str>,
    ) -> Result<Archive, ArchiveReadError> {
        let Archive { destination, manifest, key } = Archive::open_newest(destination, table).await?;
        let manifest = sealed::with_all_epochs(&*destination, manifest).await?;
        Ok(Archive { destination, manifest, key })
    }

    /// Opens an archive with only the epochs that `manifest.json` names. This is enough for
    /// [`ArchivePoint::Latest`]; other states may be in older epochs.
    ///
    /// # Errors
    /// If the archive is missing, or its manifest cannot be used.
    pub async fn open_newest(
        destination: Arc<dyn DestinationReader>,
        table: Option<&str>,
    ) -> Result<Archive, ArchiveReadError> {
        let at = destination.uri(MANIFEST_NAME);
        let Some(there) = destination.manifest().await? else { return Err(ArchiveReadError::NoManifest { at }) };
        let manifest =
            Manifest::parse(&there.bytes, table).map_err(|error| ArchiveReadError::Manifest { at, error })?;
        Ok(Archive::of(destination, manifest))
    }

    /// Creates an archive whose manifest is known.
    pub(crate) fn of(destination: Arc<dyn DestinationReader>, manifest: Manifest) -> Archive {
        Archive { destination, manifest, key: Vec::new() }
    }

    /// Returns the same archive with the key's columns named, in key order. The manifest of another
    /// writer may lack them.
    #[must_use]
    pub fn with_key(mut self, key: Vec<String>) -> Archive {
        self.key = key;
        self
    }

    /// Returns the archive's manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the archive as it would be if a history had no later ones. Positions and times then
    /// refer to that history.
    ///
    /// # Errors
    /// If the archive has no such history.
    pub fn of_history(&self, id: u64) -> Result<Archive, ArchiveReadError> {
        let manifest = self.manifest.of_history(id).ok_or_else(|| {
            let known: Vec<String> = self.manifest.histories().iter().map(|history| history.id.to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            ArchiveReadError::NoHistory { at: self.manifest_uri(), asked: id, known }
        })?;
        Ok(Archive { manifest, ..self.clone() })
    }

    /// Returns the boundary that [`Archive::rebuild`] would use.
    ///
    /// # Errors
    /// If the archive begins later or has no artifact yet, or if only another history has such a
    /// state.
    pub fn boundary(&self, at: ArchivePoint) -> Result<ArchiveBoundary, ArchiveReadError> {
        let chain = self.chain(at)?;
        let Some(last) = chain.last() else { return Err(ArchiveReadError::Empty { at: self.manifest_uri() }) };
        Ok(ArchiveBoundary {
            epoch: last.epoch,
            position: last.to_position,
            created_at: last.created_at.clone(),
            artifacts: chain.len(),
            bytes: total(chain.iter().filter_map(|artifact| Some(chosen(artifact)?.1))),
            history: self.manifest.history_of(last.epoch),
            mark: last.mark,
        })
    }

    /// Returns the boundary that is exactly at a position.
    ///
    /// # Errors
    /// The errors of [`Archive::boundary`], and [`ArchiveReadError::NotExact`] if no boundary is at
    /// the position.
    pub fn exactly(&self, asked: Lsn) -> Result<ArchiveBoundary, ArchiveReadError> {
        let boundary = self.boundary(ArchivePoint::Position(asked))?;
        if boundary.position == Some(asked) {
            return Ok(boundary);
        }
        let before = boundary.position.map_or_else(|| "unknown".to_owned(), |position| position.to_string());
        Err(ArchiveReadError::NotExact { asked, before })
    }

    /// Rebuilds the table from a snapshot and the diffs after it. Every object is checked.
    ///
    /// # Errors
    /// [`ArchiveReadError`] if anything is wrong; no rows are returned then.
    pub async fn rebuild(&self, at: ArchivePoint, progress: &ReadProgress) -> Result<RebuiltTable, ArchiveReadError> {
        let boundary = self.boundary(at)?;
        let mut table = CheckedTable::new(self.schema(self.chain(at)?).await?);
        for artifact in self.chain(at)? {
            table = self.apply(artifact, table, progress).await?;
            let found = table.checksum();
            if let Some(expected) = artifact.checksum.filter(|expected| *expected != found) {
                let at = self.object_uri(artifact, self.format_of(artifact)?);
                return Err(ArchiveReadError::Contents { at, expected, found });
            }
        }
        let checksum = table.checksum();
        Ok(RebuiltTable { table: table.into_table(), checksum, boundary })
    }

    /// Returns one object's entries as lines of JSON. The object is checked to its end.
    ///
    /// # Errors
    /// [`ArchiveReadError`] if the manifest does not name the object, or if the object cannot be
    /// read.
    pub async fn lines_of(&self, object: &str, progress: &ReadProgress) -> Result<Vec<u8>, ArchiveReadError> {
        let mut all = self.manifest.artifacts.iter().flat_map(|artifact| {
            artifact.known_formats().map(move |format| (artifact, format, artifact.object(format)))
        });
        let found = all.find(|(_, _, name)| name.as_deref() == Some(object));
        let Some((artifact, format, _)) = found else {
            return Err(ArchiveReadError::NoObject { at: self.manifest_uri(), object: object.to_owned() });
        };
        // The lines can be shown even if the key is unknown.
        let (schema, kind) = (self.known_schema(artifact.epoch)?.unwrap_or_else(columns::none), artifact.kind);
        let lines = move |entries: &mut ObjectEntries<'_>| {
            let (mut lines, mut count) = (Vec::new(), 0);
            while entries.push_json_line(kind, &mut lines)? {
                count += 1;
            }
            Ok((lines, count))
        };
        read_object(self, artifact, format, schema, progress, lines).await
    }

    /// Checks the whole archive, and calls `found` for each fault as it is found. If the archive is
    /// intact, `found` is not called.
    ///
    /// Every object is read to its end. Its bytes, its entries and the checksum of the resulting
    /// rows are compared with the manifest. The manifest's entries about histories are compared
    /// with each other. The manifest's own rules were already checked when it was opened.
    pub async fn verify(&self, progress: &ReadProgress, found: impl FnMut(ArtifactDamage)) {
        verify::verify(self, progress, found).await;
    }

    /// Returns the number of bytes that [`Archive::verify`] reads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let stored = self.manifest.artifacts.iter().flat_map(|artifact| artifact.formats.values());
        total(stored.map(|stored| stored.size_bytes))
    }

    /// Returns true if the manifest names the columns of an epoch and their types.
    ///
    /// # Errors
    /// If the columns are not those of a table.
    pub fn has_columns(&self, epoch: u64) -> Result<bool, ArchiveReadError> {
        self.known_schema(epoch).map(|schema| schema.is_some())
    }

    /// Checks that the key of the newest rows is known.
    ///
    /// # Errors
    /// [`ArchiveReadError::NoColumns`] if the key has to be named.
    pub fn check_key(&self) -> Result<(), ArchiveReadError> {
        match self.key.is_empty() && self.known_schema(self.manifest.epoch)?.is_none() {
            true => Err(ArchiveReadError::NoColumns { at: self.manifest_uri() }),
            false => Ok(()),
        }
    }

    /// Returns the schema of an epoch's artifacts, of which there is at least one. If the manifest
    /// lacks it, it consists of the field names in the rows, which are read for this.
    async fn schema(&self, artifacts: &[Artifact]) -> Result<Arc<Schema>, ArchiveReadError> {
        let epoch = artifacts.last().map_or(self.manifest.epoch, |last| last.epoch);
        if let Some(schema) = self.known_schema(epoch)? {
            return Ok(schema);
        }
        self.check_key()?;
        let mut names = BTreeSet::new();
        for artifact in artifacts {
            names = columns::add_names(self, artifact, names).await?;
        }
        let others = names.into_iter().filter(|name| !self.key.contains(name));
        let schema = untyped(self.key.iter().cloned().chain(others), &self.key);
        Ok(Arc::new(schema.map_err(|error| self.broken(error))?))
    }

    fn known_schema(&self, epoch: u64) -> Result<Option<Arc<Schema>>, ArchiveReadError> {
        let schema = self.manifest.schema(epoch, &self.key).map_err(|error| self.broken(error))?;
        Ok(schema.map(Arc::new))
    }

    fn broken(&self, error: ManifestViolation) -> ArchiveReadError {
        ArchiveReadError::Columns { at: self.manifest_uri(), error }
    }

    async fn apply(
        &self,
        artifact: &Artifact,
        table: CheckedTable,
        progress: &ReadProgress,
    ) -> Result<CheckedTable, ArchiveReadError> {
        let (format, schema, kind) = (self.format_of(artifact)?, table.schema().clone(), artifact.kind);
        let apply = move |entries: &mut ObjectEntries<'_>| match kind {
            ArtifactKind::Snapshot => fill(table, entries),
            ArtifactKind::Diff => {
                let changes = ArchivedDiff::read(entries)?;
                let count = changes.count();
                Ok((changes.apply_to(table)?, count))
            }
        };
        read_object(self, artifact, format, schema, progress, apply).await
    }

    fn chain(&self, at: ArchivePoint) -> Result<&[Artifact], ArchiveReadError> {
        if self.manifest.artifacts.is_empty() {
            return Err(ArchiveReadError::Empty { at: self.manifest_uri() });
        }
        let (located, asked) = match at {
            ArchivePoint::Latest => return Ok(self.manifest.chain()),
            ArchivePoint::Position(position) => (self.manifest.locate(position), position.to_string()),
            ArchivePoint::Time(time) => {
                let shown = prost_types::Timestamp::from(time).to_string();
                let is_before = |artifact: &Artifact| artifact.written_at().is_some_and(|at| at <= time);
                (self.manifest.locate_where(is_before), shown)
            }
        };
        let shown = |number: usize| {
            let artifact = self.manifest.artifacts.get(number);
            let position = artifact.and_then(|artifact| artifact.to_position);
            let position = position.map_or_else(|| "an unknown position".to_owned(), |at| at.to_string());
            format!("{position}, written at {}", artifact.map_or("", |artifact| &artifact.created_at))
        };
        match located {
            Ok(number) => Ok(self.manifest.chain_to(number)),
            Err(LocateError::TooEarly) => Err(ArchiveReadError::TooEarly { asked, oldest: shown(0) }),
            Err(LocateError::OtherHistory { history, number, newest }) => {
                let histories = self.manifest.histories();
                let begin = shown(histories.last().map_or(0, |newest| newest.artifacts.start));
                Err(ArchiveReadError::OtherHistory { asked, found: shown(number), history, newest, begin })
            }
        }
    }

    fn format_of(&self, artifact: &Artifact) -> Result<ArtifactFormat, ArchiveReadError> {
        let to = artifact.to_position.map_or_else(|| "an unknown position".to_owned(), |to| to.to_string());
        chosen(artifact).map(|(format, _)| format).ok_or(ArchiveReadError::Format { to })
    }

    fn object_uri(&self, artifact: &Artifact, format: ArtifactFormat) -> String {
        artifact.object(format).map_or_else(|| self.manifest_uri(), |object| self.destination.uri(&object))
    }

    fn manifest_uri(&self) -> String {
        self.destination.uri(MANIFEST_NAME)
    }
}

/// Returns the sum of sizes from a manifest, which may state any.
fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// Returns the smallest of an artifact's known formats, with its size in bytes.
fn chosen(artifact: &Artifact) -> Option<(ArtifactFormat, u64)> {
    let known = artifact.known_formats();
    let sized = known.filter_map(|format| Some((format, artifact.formats.get(format.id())?.size_bytes)));
    sized.min_by_key(|(_, bytes)| *bytes)
}
