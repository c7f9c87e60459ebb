//! Whether an archive is whole.

use std::sync::Arc;

use laredo_core::{ArchivedChecksums, Checksum, Schema};

use super::apply::{Changes, ChangesDigest, fill};
use super::contents::CheckedTable;
use super::object::{Entries, read};
use super::{Archive, ReadError, ReadProgress};
use crate::format::Format;
use crate::manifest::{Artifact, Kind};

/// Something that is wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Damage {
    /// Which artifact it is, from 0.
    pub artifact: usize,
    /// What is wrong.
    pub error: ReadError,
}

/// The rows at an artifact's end, as far as its epoch could be read.
struct EpochRows {
    table: CheckedTable,
    /// The manifest's checksum minus that of these rows. Zero, unless an earlier artifact was wrong: each artifact is judged
    /// by its own changes, so that one wrong artifact does not make all later ones wrong.
    offset: Checksum,
}

/// An object that was read.
struct ReadObject {
    /// The rows then, if it led there from rows that were known.
    rows: Option<EpochRows>,
    /// The digest of a diff's changes.
    digest: ChangesDigest,
}

impl Archive {
    /// Reads every object to its end and compares it with the manifest, whose own rules were checked when it was opened: its bytes, its
    /// entries, and the checksum of the rows that it leads to; and what the manifest says of histories with itself. What is wrong comes as it is found; nothing is where the archive is
    /// whole.
    pub async fn verify(&self, progress: &ReadProgress, mut found: impl FnMut(Damage)) {
        for fault in self.manifest.history_faults() {
            let epoch = self.manifest.artifacts.get(fault.number).map_or(0, |artifact| artifact.epoch);
            let error = ReadError::History { at: self.manifest_uri(), epoch, reason: fault.reason };
            found(Damage { artifact: fault.number, error });
        }
        let mut rows = None;
        for (number, artifact) in self.manifest.artifacts.iter().enumerate() {
            let mut damage = |error| found(Damage { artifact: number, error });
            if let Err(error) = self.format_of(artifact) {
                damage(error);
            }
            let mut before: Option<EpochRows> = rows.take();
            let mut formats = artifact.known_formats().peekable();
            if formats.peek().is_none() {
                continue;
            }
            let schema = match self.schema(std::slice::from_ref(artifact)).await {
                Ok(schema) => schema,
                Err(error) => {
                    damage(error);
                    continue;
                }
            };
            // Where the manifest does not name the columns, artifacts may have different ones.
            before = before.filter(|before| *before.table.schema() == schema);
            let mut first = None;
            for format in formats {
                let read = self.verify_object(artifact, format, schema.clone(), before.take(), progress).await;
                let ReadObject { rows: after, digest } = match read {
                    Ok(read) => read,
                    Err(error) => {
                        damage(error);
                        continue;
                    }
                };
                if *first.get_or_insert(digest) != digest {
                    damage(ReadError::Formats { at: self.object_uri(artifact, format) });
                }
                let Some(EpochRows { table, offset }) = after else { continue };
                let (is_right, offset) = judge(artifact.checksum, table.checksum(), offset);
                if !is_right {
                    let expected = artifact.checksum.unwrap_or_default();
                    let at = self.object_uri(artifact, format);
                    damage(ReadError::Contents { at, expected, found: table.checksum() });
                }
                rows.get_or_insert(EpochRows { table, offset });
            }
        }
    }

    async fn verify_object(
        &self,
        artifact: &Artifact,
        format: Format,
        schema: Arc<Schema>,
        before: Option<EpochRows>,
        progress: &ReadProgress,
    ) -> Result<ReadObject, ReadError> {
        let (kind, of) = (artifact.kind, schema.clone());
        let all = move |entries: &mut Entries<'_>| match kind {
            Kind::Snapshot => {
                let (table, count) = fill(CheckedTable::new(of), entries)?;
                let rows = EpochRows { table, offset: Checksum::default() };
                Ok((ReadObject { rows: Some(rows), digest: ChangesDigest::default() }, count))
            }
            Kind::Diff => {
                let changes = Changes::read(entries)?;
                let (count, digest) = (changes.count(), changes.digest(&ArchivedChecksums::new(of))?);
                let rows = match before {
                    Some(EpochRows { table, offset }) => {
                        // Nothing of the rows before is left behind a truncate.
                        let offset = if digest.truncates == 0 { offset } else { Checksum::default() };
                        Some(EpochRows { table: changes.apply_to(table)?, offset })
                    }
                    None => None,
                };
                Ok((ReadObject { rows, digest }, count))
            }
        };
        read(self, artifact, format, schema, progress, all).await
    }

    /// Bytes that [`Archive::verify`] reads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let of = |artifact: &Artifact| artifact.formats.values().map(|stored| stored.size_bytes).sum::<u64>();
        self.manifest.artifacts.iter().map(of).sum()
    }
}

/// Returns true where rows are those of an artifact, with the offset for the next one.
fn judge(stated: Option<Checksum>, found: Checksum, offset: Checksum) -> (bool, Checksum) {
    match stated {
        None => (true, offset),
        Some(stated) => (stated == found.plus(offset), stated.minus(found)),
    }
}
