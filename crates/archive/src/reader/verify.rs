//! The check of a whole archive.

use std::sync::Arc;

use laredo_core::{Checksum, Schema};
use laredo_values::ArchivedChecksums;

use super::apply::{ArchivedDiff, ChangesDigest, fill};
use super::checked_table::CheckedTable;
use super::object::{ObjectEntries, read_object};
use super::{Archive, ArchiveReadError, ReadProgress};
use crate::layout::{ArtifactFormat, ArtifactKind};
use crate::manifest::Artifact;

/// A fault of an archive.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct ArtifactDamage {
    /// The number of the artifact, from 0.
    pub artifact: usize,
    /// The error in the artifact.
    pub error: ArchiveReadError,
}

/// The rows at an artifact's end, as far as its epoch could be read.
struct EpochRows {
    table: CheckedTable,
    /// The manifest's checksum minus that of these rows. Zero, unless an earlier artifact was
    /// wrong. Each artifact is judged by its own changes, so that one wrong artifact does not make
    /// all later ones wrong.
    offset: Checksum,
}

/// The result of reading an object.
struct VerifiedObject {
    /// The rows after this object, if those before it were known.
    rows: Option<EpochRows>,
    /// The digest of a diff's changes.
    digest: ChangesDigest,
}

/// Checks the whole archive for [`Archive::verify`].
pub(super) async fn verify(archive: &Archive, progress: &ReadProgress, mut found: impl FnMut(ArtifactDamage)) {
    for fault in archive.manifest.history_faults() {
        let epoch = archive.manifest.artifacts.get(fault.number).map_or(0, |artifact| artifact.epoch);
        let error = ArchiveReadError::History { at: archive.manifest_uri(), epoch, reason: fault.reason };
        found(ArtifactDamage { artifact: fault.number, error });
    }
    let mut rows = None;
    for (number, artifact) in archive.manifest.artifacts.iter().enumerate() {
        let mut damage = |error| found(ArtifactDamage { artifact: number, error });
        if let Err(error) = archive.format_of(artifact) {
            damage(error);
        }
        let mut before: Option<EpochRows> = rows.take();
        let mut formats = artifact.known_formats().peekable();
        if formats.peek().is_none() {
            continue;
        }
        let schema = match archive.schema(std::slice::from_ref(artifact)).await {
            Ok(schema) => schema,
            Err(error) => {
                damage(error);
                continue;
            }
        };
        // If the manifest does not name the columns, artifacts may have different ones.
        before = before.filter(|before| *before.table.schema() == schema);
        let mut first = None;
        for format in formats {
            let read = verify_object(archive, artifact, format, schema.clone(), before.take(), progress).await;
            let VerifiedObject { rows: after, digest } = match read {
                Ok(read) => read,
                Err(error) => {
                    damage(error);
                    continue;
                }
            };
            if *first.get_or_insert(digest) != digest {
                damage(ArchiveReadError::Formats { at: archive.object_uri(artifact, format) });
            }
            let Some(EpochRows { table, offset }) = after else { continue };
            let (is_right, offset) = judge(artifact.checksum, table.checksum(), offset);
            if !is_right {
                let expected = artifact.checksum.unwrap_or_default();
                let at = archive.object_uri(artifact, format);
                damage(ArchiveReadError::Contents { at, expected, found: table.checksum() });
            }
            rows.get_or_insert(EpochRows { table, offset });
        }
    }
}

async fn verify_object(
    archive: &Archive,
    artifact: &Artifact,
    format: ArtifactFormat,
    schema: Arc<Schema>,
    before: Option<EpochRows>,
    progress: &ReadProgress,
) -> Result<VerifiedObject, ArchiveReadError> {
    let (kind, of) = (artifact.kind, schema.clone());
    let all = move |entries: &mut ObjectEntries<'_>| match kind {
        ArtifactKind::Snapshot => {
            let (table, count) = fill(CheckedTable::new(of), entries)?;
            let rows = EpochRows { table, offset: Checksum::default() };
            Ok((VerifiedObject { rows: Some(rows), digest: ChangesDigest::default() }, count))
        }
        ArtifactKind::Diff => {
            let changes = ArchivedDiff::read(entries)?;
            let (count, digest) = (changes.count(), changes.digest(&ArchivedChecksums::new(of))?);
            let rows = match before {
                Some(EpochRows { table, offset }) => {
                    // After a truncate, nothing is left of the earlier rows.
                    let offset = if digest.truncates == 0 { offset } else { Checksum::default() };
                    Some(EpochRows { table: changes.apply_to(table)?, offset })
                }
                None => None,
            };
            Ok((VerifiedObject { rows, digest }, count))
        }
    };
    read_object(archive, artifact, format, schema, progress, all).await
}

/// Returns true if the rows are those of an artifact, together with the offset for the next
/// artifact.
fn judge(stated: Option<Checksum>, found: Checksum, offset: Checksum) -> (bool, Checksum) {
    match stated {
        None => (true, offset),
        Some(stated) => (stated == found.plus(offset), stated.minus(found)),
    }
}
