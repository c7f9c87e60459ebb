//! The manifest at all destinations. The first destination's is authoritative; the others follow.

mod sealing;

use std::sync::Arc;

use futures::future::join_all;

use super::report::WriterReport;
use super::{WriterContext, WriterError};
use crate::destination::{Destination, DestinationError, ManifestTag, StagedArtifact, VersionedManifest};
use crate::layout::{ArtifactFormat, MANIFEST_NAME};
use crate::manifest::{Artifact, Manifest, WriterId, next_number};
use sealing::SealedCache;

/// The manifest that this writer holds, at all its destinations.
#[derive(Debug)]
pub(crate) struct ManifestLedger {
    manifest: Manifest,
    writer: WriterId,
    places: Vec<LedgerDestination>,
    sealed: SealedCache,
}

/// A destination, and its known contents.
#[derive(Debug)]
struct LedgerDestination {
    destination: Arc<dyn Destination>,
    /// The manifest that was last seen there; `None` if it has to be read, at first or again.
    seen: Option<ObservedManifest>,
    /// True once a probe has shown that the destination keeps two writers apart.
    is_probed: bool,
    /// The SHA-256 of a sealed manifest that is here with everything that it and its predecessors
    /// name.
    sealed: Option<String>,
}

#[derive(Debug)]
struct ObservedManifest {
    manifest: Option<Manifest>,
    tag: Option<ManifestTag>,
}

impl ManifestLedger {
    /// Takes over an archive. From then on, older writers are refused.
    ///
    /// # Errors
    /// When the first destination refuses, or has something other than an archive of this table.
    pub(crate) async fn claim(
        destinations: Vec<Arc<dyn Destination>>,
        table: &str,
        id: &str,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<ManifestLedger, WriterError> {
        let mut places: Vec<LedgerDestination> = destinations
            .into_iter()
            .map(|destination| LedgerDestination { destination, seen: None, is_probed: false, sealed: None })
            .collect();
        let first = places.first_mut().ok_or(WriterError::NoDestination)?;
        let mut backoff = tools.backoff();
        loop {
            match first.claim(table, id, &tools.now()).await {
                Ok(Some((manifest, writer))) => {
                    let ledger = ManifestLedger { manifest, writer, places, sealed: SealedCache::default() };
                    ledger.report_behind(report);
                    return Ok(ledger);
                }
                // Another writer claimed the archive first; the next try takes a higher number.
                Ok(None) => report.conflict(),
                Err(WriterError::Destination(error)) if tools.options.waits_at_start && may_pass(&error) => {
                    report.report_failed_call(0, &error);
                    tokio::time::sleep(backoff.after_failure()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns this writer's identity with its fencing number.
    pub(crate) fn writer(&self) -> &WriterId {
        &self.writer
    }

    pub(crate) fn first(&self) -> Option<&Arc<dyn Destination>> {
        self.places.first().map(|place| &place.destination)
    }

    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Arc<dyn Destination>> {
        self.places.iter().map(|place| &place.destination)
    }

    /// Puts an artifact's objects at all destinations. Failed calls are retried without limit.
    ///
    /// # Errors
    /// When other objects have the same names, or another writer has taken over.
    pub(crate) async fn put_artifact(
        &mut self,
        artifact: &Artifact,
        objects: &[StagedArtifact],
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<(), PutError> {
        self.follow(LedgerRetryPolicy::UntilDone, tools, report).await?;
        let puts = self.places.iter().enumerate().map(|(number, place)| async move {
            for staged in objects {
                let name = artifact.object(staged.format).unwrap_or_default();
                place.put_object(number, &name, staged, tools, report).await?;
            }
            Ok(())
        });
        let ended = join_all(puts).await.into_iter().collect::<Result<(), PutError>>();
        if matches!(ended, Err(PutError::Occupied)) {
            self.check_fence(tools, report).await?;
        }
        ended
    }

    /// Replaces the manifest at the first destination with `next`, which is in effect when this
    /// returns.
    ///
    /// # Errors
    /// When another writer has taken over, or when another program has replaced or removed the
    /// manifest.
    pub(crate) async fn advance(
        &mut self,
        next: Manifest,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<(), WriterError> {
        let next = Manifest { writer: Some(self.writer.clone()), ..next };
        let first = self.places.first_mut().ok_or(WriterError::NoDestination)?;
        let mut backoff = tools.backoff();
        loop {
            match first.publish(&next).await {
                Ok(bytes) => break report.manifest_bytes(bytes),
                Err(DestinationError::Moved { .. }) => {
                    report.conflict();
                    first.check_ownership(&next, &self.writer, tools, report).await?;
                }
                Err(error) => {
                    report.report_failed_call(0, &error);
                    tokio::time::sleep(backoff.after_failure()).await;
                }
            }
        }
        self.manifest = next;
        self.report_behind(report);
        Ok(())
    }

    /// Reports which destinations lack something.
    fn report_behind(&self, report: &WriterReport) {
        for (number, place) in self.places.iter().enumerate().skip(1) {
            report.set_behind(number, !place.has_manifest(&self.manifest));
        }
    }

    /// Brings the other destinations up to date with the first one: first the objects that they
    /// lack, then the manifest.
    ///
    /// # Errors
    /// When one has a newer archive than the first, another table's archive, or the claim of a
    /// newer writer.
    pub(crate) async fn follow(
        &mut self,
        wait: LedgerRetryPolicy,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<(), WriterError> {
        let Some((first, others)) = self.places.split_first_mut() else { return Err(WriterError::NoDestination) };
        let (first, manifest, writer) = (&first.destination, &self.manifest, &self.writer);
        let follows = others.iter_mut().enumerate().map(|(number, place)| async move {
            let mut backoff = tools.backoff();
            loop {
                let error = match place.follow(first, manifest, writer, tools).await {
                    Ok(()) => return Ok(()),
                    Err(WriterError::Destination(error)) => error,
                    Err(error) => return Err(error),
                };
                report.report_failed_call(number + 1, &error);
                if wait == LedgerRetryPolicy::Once {
                    return Ok(());
                }
                tokio::time::sleep(backoff.after_failure()).await;
            }
        });
        let ended = join_all(follows).await.into_iter().collect();
        self.report_behind(report);
        ended
    }

    /// Returns true if another destination lacks something that the first one has.
    pub(crate) fn is_behind(&self) -> bool {
        self.places.iter().skip(1).any(|place| !place.has_manifest(&self.manifest))
    }

    /// Checks that this writer still holds the archive.
    ///
    /// # Errors
    /// [`WriterError::Fenced`] or [`WriterError::Replaced`] if it does not.
    pub(crate) async fn check_fence(
        &mut self,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<(), WriterError> {
        let (manifest, writer) = (self.manifest.clone(), self.writer.clone());
        let first = self.places.first_mut().ok_or(WriterError::NoDestination)?;
        first.check_ownership(&manifest, &writer, tools, report).await
    }
}

/// The retry policy for calls that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerRetryPolicy {
    Once,
    UntilDone,
}

/// The reason why an artifact is not at all destinations.
#[derive(Debug)]
pub(crate) enum PutError {
    /// Another object has this name.
    Occupied,
    Writer(WriterError),
}

impl From<WriterError> for PutError {
    fn from(error: WriterError) -> PutError {
        PutError::Writer(error)
    }
}

impl LedgerDestination {
    /// Takes the next fencing number. Returns `None` if another writer did so at the same time.
    async fn claim(&mut self, table: &str, id: &str, now: &str) -> Result<Option<(Manifest, WriterId)>, WriterError> {
        let ObservedManifest { manifest, tag } = self.read_manifest(Some(table)).await?;
        self.probe().await?;
        let manifest = manifest.unwrap_or_else(|| Manifest::empty(table, now));
        let fence = manifest.writer.as_ref().map_or(0, |writer| writer.fence);
        if let Some(writer) = manifest.writer.clone().filter(|writer| writer.id == id) {
            // The response to an earlier try was lost.
            self.seen = Some(ObservedManifest { manifest: Some(manifest.clone()), tag });
            return Ok(Some((manifest, writer)));
        }
        let at = self.destination.uri(MANIFEST_NAME);
        let fence = next_number("writer's next fence", fence)
            .map_err(|violation| WriterError::Manifest { at, error: violation.into() })?;
        let writer = WriterId { id: id.to_owned(), fence };
        let claimed = Manifest { writer: Some(writer.clone()), ..manifest };
        self.seen = Some(ObservedManifest { manifest: None, tag });
        match self.publish(&claimed).await {
            Ok(_) => Ok(Some((claimed, writer))),
            Err(DestinationError::Moved { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Checks once that the destination keeps two writers apart.
    async fn probe(&mut self) -> Result<(), DestinationError> {
        if !self.is_probed {
            self.destination.probe().await?;
            self.is_probed = true;
        }
        Ok(())
    }

    async fn read_manifest(&self, table: Option<&str>) -> Result<ObservedManifest, WriterError> {
        let Some(VersionedManifest { bytes, tag }) = self.destination.manifest().await? else {
            return Ok(ObservedManifest { manifest: None, tag: None });
        };
        let at = self.destination.uri(MANIFEST_NAME);
        let manifest = Manifest::parse(&bytes, table).map_err(|error| WriterError::Manifest { at, error })?;
        Ok(ObservedManifest { manifest: Some(manifest), tag: Some(tag) })
    }

    /// Publishes a manifest over the one that was seen. Returns the size of the new one in bytes.
    async fn publish(&mut self, manifest: &Manifest) -> Result<u64, DestinationError> {
        let here = manifest.located(|object| self.destination.uri(object));
        let broken = |error| DestinationError::Refused {
            doing: "write",
            at: self.destination.uri(MANIFEST_NAME),
            reason: format!("{error}"),
        };
        let bytes = here.to_json().map_err(broken)?;
        let over = self.seen.as_ref().and_then(|seen| seen.tag.as_ref());
        let tag = self.destination.publish(&bytes, over).await?;
        self.seen = Some(ObservedManifest { manifest: Some(here), tag: Some(tag) });
        Ok(bytes.len() as u64)
    }

    /// Finds out who wrote the manifest when it is not the expected one. If this writer did, only a
    /// response was lost, and the caller may retry.
    ///
    /// # Errors
    /// When another writer has taken over, or when another program has replaced or removed the
    /// manifest.
    async fn check_ownership(
        &mut self,
        next: &Manifest,
        ours: &WriterId,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<(), WriterError> {
        let mut backoff = tools.backoff();
        let seen = loop {
            match self.read_manifest(Some(&next.table)).await {
                Ok(seen) => break seen,
                Err(WriterError::Destination(error)) => {
                    report.report_failed_call(0, &error);
                    tokio::time::sleep(backoff.after_failure()).await;
                }
                Err(error) => return Err(error),
            }
        };
        let at = self.destination.uri(MANIFEST_NAME);
        let there = seen.manifest.as_ref().and_then(|manifest| manifest.writer.clone());
        match there {
            Some(there) if there == *ours => {
                self.seen = Some(seen);
                Ok(())
            }
            Some(theirs) => Err(WriterError::Fenced { at, ours: ours.clone(), theirs }),
            None => Err(WriterError::Replaced { at }),
        }
    }

    fn has_manifest(&self, manifest: &Manifest) -> bool {
        let there = self.seen.as_ref().and_then(|seen| seen.manifest.as_ref());
        there.is_some_and(|there| {
            there.head_position == manifest.head_position
                && there.updated_at == manifest.updated_at
                && there.artifacts.len() == manifest.artifacts.len()
                && there.writer == manifest.writer
                && there.sealed_sha256() == manifest.sealed_sha256()
        })
    }

    /// Brings this destination up to date with the first one.
    async fn follow(
        &mut self,
        first: &Arc<dyn Destination>,
        manifest: &Manifest,
        writer: &WriterId,
        tools: &WriterContext,
    ) -> Result<(), WriterError> {
        if self.has_manifest(manifest) {
            return Ok(());
        }
        let seen = match self.seen.take() {
            Some(seen) => seen,
            None => self.read_manifest(Some(&manifest.table)).await?,
        };
        self.check_behind(&seen, first, manifest, writer)?;
        self.probe().await?;
        if !self.has_sealed(&seen, manifest) {
            self.copy_sealed(first, &seen, manifest, tools).await?;
        }
        let there = seen.manifest.as_ref().map_or(&[][..], |there| &there.artifacts);
        let is_there = |artifact: &Artifact| {
            let is_same = |other: &Artifact| comparable_contents(other) == comparable_contents(artifact);
            there.iter().any(|other| is_same(other) && other.formats.keys().eq(artifact.formats.keys()))
        };
        let lacking: Vec<Artifact> =
            manifest.artifacts.iter().filter(|artifact| !is_there(artifact)).cloned().collect();
        self.seen = Some(seen);
        for artifact in lacking {
            self.copy_artifact(first, &artifact, tools).await?;
        }
        let published = self.publish(manifest).await;
        if published.is_err() {
            // The next try reads the manifest there again.
            self.seen = None;
        }
        published?;
        Ok(())
    }

    /// Refuses to overwrite a destination that has something the first one lacks. Probably the
    /// operator has mixed up the destinations.
    fn check_behind(
        &self,
        seen: &ObservedManifest,
        first: &Arc<dyn Destination>,
        manifest: &Manifest,
        writer: &WriterId,
    ) -> Result<(), WriterError> {
        let Some(there) = &seen.manifest else { return Ok(()) };
        if (there.epoch, there.head_position) > (manifest.epoch, manifest.head_position) {
            let (at, first) = (self.destination.name().to_owned(), first.name().to_owned());
            return Err(WriterError::Ahead { at, first });
        }
        match &there.writer {
            Some(theirs) if theirs.fence > writer.fence => {
                let at = self.destination.uri(MANIFEST_NAME);
                Err(WriterError::Fenced { at, ours: writer.clone(), theirs: theirs.clone() })
            }
            _ => Ok(()),
        }
    }

    async fn copy_artifact(
        &self,
        first: &Arc<dyn Destination>,
        artifact: &Artifact,
        tools: &WriterContext,
    ) -> Result<(), WriterError> {
        for format in artifact.known_formats() {
            let Some(object) = artifact.object(format) else { continue };
            self.copy_object(first, &object, format, tools).await?;
        }
        Ok(())
    }

    async fn copy_object(
        &self,
        first: &Arc<dyn Destination>,
        object: &str,
        format: ArtifactFormat,
        tools: &WriterContext,
    ) -> Result<(), WriterError> {
        let mut from = first.open(object).await?;
        let (stager, at) = (tools.stager.clone(), first.uri(object));
        let copied = tokio::task::spawn_blocking(move || {
            let mut to = stager.begin(format)?;
            std::io::copy(&mut from, &mut to)?;
            to.finish()
        });
        let failed = |reason: String| DestinationError::Unavailable { doing: "copy", at, reason };
        let staged = match copied.await {
            Ok(Ok(staged)) => staged,
            Ok(Err(error)) => return Err(failed(error.to_string()).into()),
            Err(error) => return Err(failed(error.to_string()).into()),
        };
        Ok(self.destination.put(object, &staged).await?)
    }

    async fn put_object(
        &self,
        number: usize,
        object: &str,
        staged: &StagedArtifact,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<(), PutError> {
        let mut backoff = tools.backoff();
        loop {
            match self.destination.put(object, staged).await {
                Ok(()) => {
                    report.count_object(number, staged.size_bytes);
                    return Ok(());
                }
                Err(error @ DestinationError::Occupied { .. }) => {
                    report.report_failed_call(number, &error);
                    return Err(PutError::Occupied);
                }
                Err(error) => report.report_failed_call(number, &error),
            }
            tokio::time::sleep(backoff.after_failure()).await;
        }
    }
}

/// Returns true for errors that may pass without a restart: those of networks, permissions, buckets
/// and disks.
fn may_pass(error: &DestinationError) -> bool {
    match error {
        DestinationError::Unavailable { .. } | DestinationError::Refused { .. } => true,
        DestinationError::Unsuitable { .. }
        | DestinationError::Missing { .. }
        | DestinationError::Occupied { .. }
        | DestinationError::Moved { .. } => false,
    }
}

/// Returns the values that two entries share if they have the same rows of the same history,
/// wherever their objects are.
fn comparable_contents(artifact: &Artifact) -> impl PartialEq {
    let Artifact { kind, epoch, from_position, to_position, mark, checksum, history, .. } = artifact;
    (*kind, *epoch, *from_position, *to_position, *mark, *checksum, history)
}
