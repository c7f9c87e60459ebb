//! Deletes objects that no manifest names: those of epochs that retention has dropped, and those
//! that a crash has left behind. They stay for a grace period, in which readers of an older
//! manifest can finish.
//!
//! This runs while artifacts are written, and needs no lock for it. Positions increase within an
//! epoch, and epochs increase. A writer therefore names new objects only beyond the manifest's
//! head, and those are never judged here. An unnamed object before the head can no longer get a
//! name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use laredo_core::Lsn;
use tokio::time::Instant;

use super::report::WriterReport;
use super::{WriterContext, WriterError};
use crate::destination::{Destination, DestinationError};
use crate::layout::MANIFEST_NAME;
use crate::manifest::{Artifact, Manifest, WriterId};
use crate::reader::ArchiveReadError;
use crate::reader::sealed::walk_sealed;

/// The maximum number of objects that one call deletes: the limit of S3.
const BATCH: usize = 1000;

/// The objects that no manifest names.
#[derive(Debug, Default)]
pub(crate) struct UnnamedObjects {
    /// The time when each object was first found unnamed, by destination and name.
    since: HashMap<(usize, String), Instant>,
    /// The number of named objects of each sealed epoch, by destination and epoch. While an epoch
    /// has that many objects, its sealed manifest is not read again.
    sealed: HashMap<(usize, u64), usize>,
}

/// The destinations to examine, and the writer that may delete there.
pub(crate) struct CollectionScope {
    pub(crate) destinations: Vec<Arc<dyn Destination>>,
    pub(crate) writer: WriterId,
    pub(crate) grace: Duration,
}

impl UnnamedObjects {
    /// Examines all destinations once, and deletes objects that have been unnamed for the grace
    /// period.
    ///
    /// # Errors
    /// When another writer has taken over.
    pub(crate) async fn collect(
        &mut self,
        collection: &CollectionScope,
        tools: &WriterContext,
        report: &WriterReport,
    ) -> Result<(), WriterError> {
        let Some(first) = collection.destinations.first() else { return Ok(()) };
        let manifest = match collection.held_manifest(first, &tools.options.table).await {
            Ok(manifest) => manifest,
            Err(WriterError::Destination(error)) => {
                report.report_failed_call(0, &error);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for (number, destination) in collection.destinations.iter().enumerate() {
            let collected = match number {
                0 => self.collect_at(number, destination, &manifest, collection.grace).await,
                _ => self.collect_following(number, destination, &manifest, collection.grace).await,
            };
            if let Err(error) = collected {
                report.report_failed_call(number, &error);
            }
        }
        Ok(())
    }

    /// Collects at a destination other than the first. A destination that is still being brought up
    /// to date is skipped.
    async fn collect_following(
        &mut self,
        number: usize,
        destination: &Arc<dyn Destination>,
        manifest: &Manifest,
        grace: Duration,
    ) -> Result<(), DestinationError> {
        let there = destination.manifest().await?;
        let there = there.and_then(|there| Manifest::parse(&there.bytes, Some(&manifest.table)).ok());
        let is_same = |there: &Manifest| {
            (there.epoch, there.head_position, there.artifacts.len(), there.sealed_sha256())
                == (manifest.epoch, manifest.head_position, manifest.artifacts.len(), manifest.sealed_sha256())
        };
        match there.filter(is_same) {
            Some(there) => self.collect_at(number, destination, &there, grace).await,
            None => Ok(()),
        }
    }

    async fn collect_at(
        &mut self,
        number: usize,
        destination: &Arc<dyn Destination>,
        manifest: &Manifest,
        grace: Duration,
    ) -> Result<(), DestinationError> {
        let unnamed = self.unnamed(number, destination, manifest).await?;
        let now = Instant::now();
        self.since.retain(|(place, object), _| *place != number || unnamed.contains(object));
        let mut due = Vec::new();
        for object in unnamed {
            let since = *self.since.entry((number, object.clone())).or_insert(now);
            if now.duration_since(since) >= grace {
                due.push(object);
            }
        }
        for batch in due.chunks(BATCH) {
            destination.delete(batch).await?;
            self.since.retain(|(place, object), _| *place != number || !batch.contains(object));
        }
        Ok(())
    }

    /// Returns the objects that no manifest names or can still come to name.
    async fn unnamed(
        &mut self,
        number: usize,
        destination: &Arc<dyn Destination>,
        manifest: &Manifest,
    ) -> Result<HashSet<String>, DestinationError> {
        let mut named: HashSet<String> = manifest.artifacts.iter().flat_map(names_of).collect();
        named.extend(manifest.sealed.as_ref().and_then(|link| link.object()));
        let mut unnamed = HashSet::new();
        let mut sealed: HashMap<u64, Vec<String>> = HashMap::new();
        for object in destination.list().await?.into_iter().map(|listed| listed.object) {
            if named.contains(&object) || may_be_written(manifest, &object) {
                continue;
            }
            match sealed_epoch(manifest, &object) {
                Some(epoch) => sealed.entry(epoch).or_default().push(object),
                None => drop(unnamed.insert(object)),
            }
        }
        self.sealed.retain(|(place, epoch), _| *place != number || sealed.contains_key(epoch));
        sealed.retain(|epoch, objects| self.sealed.get(&(number, *epoch)) != Some(&objects.len()));
        let Some(oldest) = sealed.keys().min().copied() else { return Ok(unnamed) };
        let read = match walk_sealed(&**destination, manifest, |link| link.last_epoch < oldest).await {
            Ok(read) => read,
            Err(ArchiveReadError::Destination(error)) => return Err(error),
            Err(error) => {
                // A damaged manifest names nothing, so no object of those epochs is judged.
                tracing::warn!(
                    event = "archive_objects_not_collected", table = manifest.table, %error,
                    "objects of old epochs are not collected"
                );
                return Ok(unnamed);
            }
        };
        for (_, manifest) in &read {
            named.extend(manifest.artifacts.iter().flat_map(names_of));
            named.extend(manifest.earlier.as_ref().and_then(|link| link.object()));
        }
        for (epoch, objects) in sealed {
            let (there, gone): (Vec<String>, Vec<String>) =
                objects.into_iter().partition(|object| named.contains(object));
            self.sealed.insert((number, epoch), there.len());
            unnamed.extend(gone);
        }
        Ok(unnamed)
    }
}

impl CollectionScope {
    /// Reads the current manifest and checks that this writer still holds the archive. Objects of a
    /// newer writer must not be judged here.
    async fn held_manifest(&self, first: &Arc<dyn Destination>, table: &str) -> Result<Manifest, WriterError> {
        let at = first.uri(MANIFEST_NAME);
        let Some(there) = first.manifest().await? else { return Err(WriterError::Replaced { at }) };
        let parsed = Manifest::parse(&there.bytes, Some(table));
        let manifest = parsed.map_err(|error| WriterError::Manifest { at: at.clone(), error })?;
        match &manifest.writer {
            Some(theirs) if *theirs == self.writer => Ok(manifest),
            Some(theirs) => Err(WriterError::Fenced { at, ours: self.writer.clone(), theirs: theirs.clone() }),
            None => Err(WriterError::Replaced { at }),
        }
    }
}

/// Returns the names of an artifact's objects, including those in formats unknown to laredo.
fn names_of(artifact: &Artifact) -> Vec<String> {
    let ours = artifact.known_formats().filter_map(|format| artifact.object(format));
    let addresses = artifact.formats.values().filter_map(|stored| {
        let begin = stored.uri.rfind("epoch=")?;
        stored.uri.get(begin..).map(ToOwned::to_owned)
    });
    ours.chain(addresses).collect()
}

/// Splits the name of an object into its epoch and its file name.
fn parts(object: &str) -> Option<(u64, &str)> {
    let (epoch, file) = object.strip_prefix("epoch=")?.split_once('/')?;
    Some((epoch.parse().ok()?, file))
}

/// Returns the epoch of an object whose name would be in a sealed manifest.
fn sealed_epoch(manifest: &Manifest, object: &str) -> Option<u64> {
    let (epoch, _) = parts(object)?;
    let sealed = manifest.sealed.as_ref()?;
    (manifest.oldest_epoch.unwrap_or(0)..=sealed.last_epoch).contains(&epoch).then_some(epoch)
}

/// Returns true if a writer that holds this manifest may be writing the object now.
fn may_be_written(manifest: &Manifest, object: &str) -> bool {
    let Some((epoch, file)) = parts(object) else { return false };
    let file = file.split('.').next().unwrap_or(file);
    if let Some(range) = file.strip_prefix("sealed-") {
        // The next sealed manifest ends with an epoch that is named here, or with a later one.
        let last = range.split('-').nth(1).and_then(|last| last.parse::<u64>().ok());
        let first_named = manifest.artifacts.first().map_or(0, |first| first.epoch);
        return last.is_some_and(|last| last >= first_named);
    }
    let to = || -> Option<Lsn> { file.strip_prefix("diff-")?.rsplit('-').next()?.replace('_', "/").parse().ok() };
    epoch > manifest.epoch || (epoch == manifest.epoch && to() > manifest.head_position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ArtifactKind;

    #[test]
    fn what_lies_beyond_the_head_may_be_written() {
        let mut manifest = Manifest::empty("public.t", "");
        assert!(may_be_written(&manifest, "epoch=1/snapshot-0_10.jsonl"), "the first base");
        manifest.artifacts = vec![
            Artifact::new(ArtifactKind::Snapshot, 4, None, Lsn(0x10), ""),
            Artifact::new(ArtifactKind::Snapshot, 5, None, Lsn(0x20), ""),
        ];
        (manifest.epoch, manifest.head_position) = (5, Some(Lsn(0x20)));
        for object in [
            "epoch=5/diff-0_20-0_30.jsonl",
            "epoch=5/diff-0_00000020-0_00000030.pb.zst",
            "epoch=5/diff-0_20-1_0.pb",
            "epoch=6/snapshot-0_10.jsonl",
            "epoch=6/diff-0_1-0_2.jsonl",
            "epoch=4/sealed-1-4-0123456789abcdef.json",
            "epoch=5/sealed-5-5-0123456789abcdef.json",
        ] {
            assert!(may_be_written(&manifest, object), "{object}");
        }
        for object in [
            "epoch=5/diff-0_10-0_20.jsonl",
            "epoch=5/snapshot-0_30.jsonl",
            "epoch=5/orphan-1.jsonl",
            "epoch=4/diff-0_20-0_30.jsonl",
            "epoch=3/sealed-1-3-0123456789abcdef.json",
            "epoch=x/diff-0_20-0_30.jsonl",
        ] {
            assert!(!may_be_written(&manifest, object), "{object}");
        }
    }
}
