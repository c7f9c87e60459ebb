//! The removal of older epochs from the manifest: into sealed manifests, or permanently.

use std::io::Write;
use std::sync::Arc;

use futures::future::join_all;

use super::{LedgerDestination, ManifestLedger, ObservedManifest, PutError, comparable_contents};
use crate::destination::{Destination, DestinationError, StagedArtifact};
use crate::layout::ArtifactFormat;
use crate::manifest::{Artifact, Manifest, SealedLink, SealedManifest};
use crate::reader::ArchiveReadError;
use crate::reader::sealed::{read_sealed, walk_sealed};
use crate::writer::report::WriterReport;
use crate::writer::{WriterContext, WriterError};

/// Facts about sealed manifests, kept so that the sealed manifests need not be read again.
#[derive(Debug, Default)]
pub(super) struct SealedCache {
    /// The SHA-256 of the newest sealed manifest, and the manifest itself.
    newest: Option<(String, SealedManifest)>,
    /// The SHA-256 of the newest sealed manifest, and the numbers of all sealed epochs, oldest
    /// first.
    epochs: Option<(String, Vec<u64>)>,
}

impl ManifestLedger {
    /// Drops the epochs of a next manifest that are beyond the newest `keep`. If the sealed
    /// manifests cannot be read now, their epochs stay until the next snapshot.
    pub(crate) async fn drop_old_epochs(&mut self, next: Manifest, keep: usize, report: &WriterReport) -> Manifest {
        let named = next.openings().len();
        if named >= keep || next.sealed.is_none() {
            return Manifest { sealed: None, oldest_epoch: None, ..next.keeping_epochs(keep) };
        }
        let epochs = match self.sealed_epochs(&next).await {
            Ok(epochs) => epochs,
            Err(error) => {
                report.retried(&format!("old epochs are kept, because a sealed manifest cannot be read: {error}"));
                return next;
            }
        };
        let dropped = epochs.len().saturating_sub(keep - named);
        match epochs.get(dropped) {
            Some(oldest) if dropped > 0 => Manifest { oldest_epoch: Some(*oldest), ..next },
            _ => next,
        }
    }

    /// Returns the numbers of the sealed epochs that the archive keeps.
    async fn sealed_epochs(&mut self, manifest: &Manifest) -> Result<Vec<u64>, ArchiveReadError> {
        let Some(sha256) = manifest.sealed_sha256() else { return Ok(Vec::new()) };
        let known = self.sealed.epochs.take().filter(|(known, _)| known == sha256);
        let mut epochs = match (known, self.first()) {
            (Some((_, epochs)), _) => epochs,
            (None, Some(first)) => {
                let read = walk_sealed(&**first, manifest, |_| false).await?;
                read.iter().rev().flat_map(|(_, sealed)| sealed.epochs()).collect()
            }
            (None, None) => Vec::new(),
        };
        epochs.retain(|epoch| manifest.oldest_epoch.is_none_or(|oldest| *epoch >= oldest));
        self.sealed.epochs = Some((sha256.to_owned(), epochs.clone()));
        Ok(epochs)
    }

    /// Moves the surplus epochs of a next manifest into a sealed manifest, which is at all
    /// destinations when this returns. No manifest names it before the next manifest is published.
    ///
    /// # Errors
    /// When the writer has to end.
    pub(crate) async fn seal(
        &mut self,
        mut next: Manifest,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<Manifest, WriterError> {
        let count = next.surplus(tools.options.manifest_epochs as usize);
        if count == 0 {
            return Ok(next);
        }
        let unsealed = next.clone();
        let moved = next.take_oldest(count);
        let epochs: Vec<u64> = SealedManifest::new(&next.table, moved.clone(), None).epochs().collect();
        let sealed = match self.newest_sealed(&next, count).await {
            Some(SealedManifest { artifacts, earlier, .. }) => {
                let oldest = next.oldest_epoch.unwrap_or(0);
                let kept = artifacts.into_iter().filter(|artifact| artifact.epoch >= oldest);
                let earlier = earlier.filter(|earlier| earlier.last_epoch >= oldest);
                SealedManifest::new(&next.table, kept.chain(moved).collect(), earlier)
            }
            None => SealedManifest::new(&next.table, moved, next.sealed.clone()),
        };
        let staged = stage(&sealed, tools, report).await?;
        let Some((object, link)) = sealed.link(staged.size_bytes, &staged.sha256) else { return Ok(unsealed) };
        let puts = self.places.iter().enumerate();
        let puts = puts.map(|(number, place)| place.put_object(number, &object, &staged, tools, report));
        match join_all(puts).await.into_iter().collect::<Result<(), PutError>>() {
            Ok(()) => {}
            // The name contains a hash of the bytes, so the existing object is damaged. The next
            // try has other epochs and thus another name.
            Err(PutError::Occupied) => return Ok(unsealed),
            Err(PutError::Writer(error)) => return Err(error),
        }
        for place in &mut self.places {
            place.sealed = Some(link.sha256.clone());
        }
        self.sealed.epochs = match (self.sealed.epochs.take(), next.sealed_sha256()) {
            (Some((known, all)), Some(before)) if known == before => Some([all, epochs].concat()),
            (_, None) => Some(epochs),
            (_, Some(_)) => None,
        }
        .map(|all| (link.sha256.clone(), all));
        self.sealed.newest = Some((link.sha256.clone(), sealed));
        next.sealed = Some(link);
        Ok(next)
    }

    /// Returns the newest sealed manifest if it has room for `more` artifacts.
    async fn newest_sealed(&mut self, manifest: &Manifest, more: usize) -> Option<SealedManifest> {
        let link = manifest.sealed.as_ref().filter(|link| link.has_room(more))?;
        if let Some((_, known)) = self.sealed.newest.take().filter(|(known, _)| *known == link.sha256) {
            return Some(known);
        }
        // If it cannot be read, the next sealed manifest contains only the epochs that move now.
        read_sealed(&**self.first()?, link, &manifest.table).await.ok()
    }
}

/// Writes a sealed manifest to the local disk. Failures are retried.
async fn stage(
    sealed: &SealedManifest,
    tools: &WriterContext,
    report: &WriterReport,
) -> Result<StagedArtifact, WriterError> {
    let bytes: Arc<[u8]> = sealed.to_json().map_err(WriterError::Broken)?.into();
    let mut backoff = tools.backoff();
    loop {
        let (stager, bytes) = (tools.stager.clone(), bytes.clone());
        let staged = tokio::task::spawn_blocking(move || {
            let mut file = stager.begin(ArtifactFormat::JSONL)?;
            file.write_all(&bytes)?;
            file.finish()
        });
        match staged.await {
            Ok(Ok(staged)) => return Ok(staged),
            Ok(Err(error)) => report.retried(&format!("cannot write in {}: {error}", tools.stager)),
            Err(error) => return Err(WriterError::Encode(error.to_string())),
        }
        tokio::time::sleep(backoff.after_failure()).await;
    }
}

impl LedgerDestination {
    /// Returns true if this destination has everything that a manifest's sealed manifests name.
    pub(super) fn has_sealed(&self, seen: &ObservedManifest, manifest: &Manifest) -> bool {
        let there = seen.manifest.as_ref().and_then(Manifest::sealed_sha256);
        let ours = manifest.sealed_sha256();
        ours.is_none() || ours == there || ours == self.sealed.as_deref()
    }

    /// Copies the sealed manifests that are missing here. The objects that each one names are
    /// copied before it.
    pub(super) async fn copy_sealed(
        &mut self,
        first: &Arc<dyn Destination>,
        seen: &ObservedManifest,
        manifest: &Manifest,
        tools: &WriterContext,
    ) -> Result<(), WriterError> {
        let mut there: Vec<Artifact> = Vec::new();
        let mut known: Vec<String> = Vec::new();
        if let Some(theirs) = &seen.manifest {
            there.extend(theirs.artifacts.iter().cloned());
            if let Some(link) = &theirs.sealed
                && let Ok(newest) = read_sealed(&*self.destination, link, &theirs.table).await
            {
                known.push(link.sha256.clone());
                known.extend(newest.earlier.as_ref().map(|earlier| earlier.sha256.clone()));
                there.extend(newest.artifacts);
            }
        }
        let read = walk_sealed(&**first, manifest, |link| known.contains(&link.sha256)).await;
        let oldest = manifest.oldest_epoch.unwrap_or(0);
        for (link, sealed) in read.map_err(unreadable)?.iter().rev() {
            for artifact in sealed.artifacts.iter().filter(|artifact| artifact.epoch >= oldest) {
                let is_same = |other: &Artifact| comparable_contents(other) == comparable_contents(artifact);
                if there.iter().any(|other| is_same(other) && other.formats.keys().eq(artifact.formats.keys())) {
                    continue;
                }
                self.copy_artifact(first, artifact, tools).await?;
            }
            self.copy_link(first, link, tools).await?;
        }
        self.sealed = manifest.sealed.as_ref().map(|link| link.sha256.clone());
        Ok(())
    }

    async fn copy_link(
        &self,
        first: &Arc<dyn Destination>,
        link: &SealedLink,
        tools: &WriterContext,
    ) -> Result<(), WriterError> {
        let Some(object) = link.object() else { return Ok(()) };
        self.copy_object(first, &object, ArtifactFormat::JSONL, tools).await
    }
}

/// Converts a read error of a sealed manifest into one that is retried: nothing else names those
/// epochs.
fn unreadable(error: ArchiveReadError) -> WriterError {
    match error {
        ArchiveReadError::Destination(error) => error.into(),
        error => DestinationError::Unavailable {
            doing: "copy",
            at: "a sealed manifest".to_owned(),
            reason: error.to_string(),
        }
        .into(),
    }
}
